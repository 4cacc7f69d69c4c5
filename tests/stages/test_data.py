from pathlib import Path

import pytest

from medssl.config import DataConfig
from medssl.identifiers import KEY_FILE_VARIABLE, KEY_VARIABLE
from medssl.stages.data import load_key


def test_a_private_key_that_is_made_is_told_once_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    config = DataConfig(name="own", root="x")
    key = load_key(config, create=True)
    assert f"made a private patient key, {tmp_path / '.medssl' / 'patient.key'}; keep it" in capsys.readouterr().out
    assert load_key(config, create=True).key_id == key.key_id
    assert capsys.readouterr().out == ""
