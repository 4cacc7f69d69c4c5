import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medssl import layout, schema
from medssl.__main__ import main
from medssl.commands.weights import FORMATS
from medssl.config import EncoderConfig
from medssl.model.networks import build_encoder
from medssl.store import Store, file_digest
from medssl.train import imported
from tests.model.published_sources import SimclrV2ResNet50, contrastive_head, scrambled


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r50_1x_sk0.pth"
    head = contrastive_head(128, 2)
    torch.save({"resnet": scrambled(SimclrV2ResNet50(4)).state_dict(), "head": head.state_dict()}, path)
    return path


def test_published_weights_become_a_checkpoint_that_pretraining_and_fine_tuning_load(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MEDSSL_STORE", str(tmp_path / "store"))
    arguments = ["import-weights", str(weights), "--name", "simclr-v2", "--sha256", file_digest(weights)]
    told = []
    for _ in range(2):
        assert main(arguments) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert told[0] == told[1]
    artifact = Store(str(tmp_path / "store")).open(told[0]["uri"], kind="checkpoint")
    assert told[0]["encoder"] == {"width": 0.0625, "input_channels": 3}
    assert artifact.summary["encoder"] == EncoderConfig(width=0.0625, input_channels=3).dump()
    encoder = build_encoder(EncoderConfig.model_validate(told[0]["encoder"]), image_channels=1)
    encoder.load_state_dict(load_file(artifact.folder / layout.ENCODER))
    assert (artifact.folder / layout.PROJECTION_HEAD).is_file()
    assert schema.read(artifact.folder / layout.HISTORY, schema.HISTORY).num_rows == 0
    record = json.loads((artifact.folder / layout.PUBLISHED).read_text())
    assert record["source_sha256"] == {".pth": file_digest(weights)}
    assert record["num_parameters"] == sum(p.numel() for p in encoder.parameters())
    assert record["left_out"] == ["head.layers.4.bias", "resnet.fc.bias", "resnet.fc.weight"][-2:]


def test_a_folder_takes_the_same_files(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "here"
    arguments = ["import-weights", str(weights), "--name", "a", "--out", str(out), "--mean", "0.5", "--std", "0.5"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["encoder"]["input_mean"] == [0.5]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [layout.ENCODER, layout.PROJECTION_HEAD, layout.HISTORY, layout.PUBLISHED]
    )
    assert main(arguments) == 78
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "Not A Name"], "expected small letters"),
        (["--name", "a", "--sha256", "0" * 64], "download it again"),
        (["--name", "a", "--format", "bit"], "is --format bit right?"),
        (["--name", "a", "--mean", "0.5,0.5"], "input_mean and input_std need one number"),
        (["--name", "a", "--std", "1"], "input_mean and input_std need one number"),
    ],
)
def test_a_refusal_is_told_ends_with_78_and_leaves_nothing(
    options: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-weights", str(weights), "--out", str(tmp_path / "out"), *options]) == 78
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path) not in error
    assert list(tmp_path.iterdir()) == []


def test_the_command_knows_the_formats_that_there_are() -> None:
    assert FORMATS == imported.FORMATS
