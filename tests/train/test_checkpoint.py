import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from medssl.store import StoreError
from medssl.train.checkpoint import STATE, load_state, load_weights, save_state, save_weights


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_weights_of_another_network_or_no_weights_are_refused(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    with pytest.raises(StoreError, match="cannot be loaded into Linear"):
        load_weights(nn.Linear(4, 2), tmp_path / "w.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"garbage")
    with pytest.raises(StoreError, match=r"x\.safetensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "x.safetensors")


def test_only_a_whole_state_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_state(tmp_path) is None
    for step in (1, 2):
        save_state(tmp_path, {"step": step, "model": {"w": torch.ones(3) * step}})
    state = load_state(tmp_path)
    assert state is not None
    assert (state["step"], state["model"]["w"].tolist()) == (2, [2.0, 2.0, 2.0])
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-1])
    damaged = (tmp_path / STATE).read_bytes()
    assert load_state(tmp_path) is None
    assert "damaged and has been put aside" in capsys.readouterr().out
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged")] == [damaged]


def test_a_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 1, "evil": Path("/")})
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        load_state(tmp_path)
