import json
from pathlib import Path

import pytest

from medssl.__main__ import MODULES, STAGES, main

STUDY = str(Path(__file__).parents[1] / "pipelines" / "studies" / "tiny.yaml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "set"
    assert main(["demo", "--out", str(out), "--patients", "20", "--image-size-px", "32"]) == 0
    return out


def stage(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert main(list(arguments)) == 0
    result: dict[str, str] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_stages_run_one_by_one_from_the_command_line(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSSL_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    common = [STUDY, "--set", f"data.root={demo}", "--set", "data.generate=null"]
    source = stage(capsys, "fingerprint", *common)
    index = stage(capsys, "ingest", *common, "--input", f"source={source['uri']}")
    splits = stage(capsys, "assign-splits", *common, "--input", f"index={index['uri']}")
    again = stage(capsys, "assign-splits", *common, "--input", f"index={index['uri']}")
    assert splits == again
    assert (Path(splits["uri"]) / "splits.parquet").is_file()


def test_an_image_id_leads_to_its_file_through_the_private_store_alone(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medssl import layout, schema

    monkeypatch.setenv("MEDSSL_STORE", str(tmp_path / "store"))
    common = [STUDY, "--set", f"data.root={demo}", "--set", "data.generate=null"]
    source = stage(capsys, "fingerprint", *common)
    index = stage(capsys, "ingest", *common, "--input", f"source={source['uri']}")
    image_id = schema.read(Path(index["uri"]) / layout.INDEX, schema.INDEX)["image_id"][0].as_py()
    assert main(["locate", image_id]) == 0
    assert (demo / capsys.readouterr().out.strip()).is_file()
    assert main(["locate", "0" * 32]) == 78
    assert "private store" in capsys.readouterr().err


def test_a_demo_set_can_be_photographs_of_skin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "derm", "--patients", "20", "--image-size-px", "32"]
    assert main(["demo", "--out", str(tmp_path / "set"), *arguments]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(list((tmp_path / "set" / "images").iterdir())) == counts["images"]
    assert (tmp_path / "set" / "cases.csv").is_file()


def test_a_demo_set_is_never_written_over(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(demo), "--patients", "20"]) == 78
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assign-splits", STUDY], "input index is missing; give --input index=URI"),
        (["assign-splits", STUDY, "--input", "index"], "expected ROLE=URI"),
        (["assign-splits", STUDY, "--input", f"index=/nowhere/index/{'0' * 64}"], "ingest will make it anew"),
        (["assign-splits", STUDY, "--input", "index=foo"], "foo is no artifact's URI: expected <store>/<kind>/<sha"),
        (["pretrain", STUDY, "--item", "nothing"], "expected one of"),
        (["ingest", "nowhere.yaml"], "not found"),
        (["fingerprint", STUDY], "data.root is not set"),
    ],
)
def test_a_wrong_call_is_told_and_ends_with_78(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDSSL_STORE", str(tmp_path))
    assert main(arguments) == 78
    assert message in capsys.readouterr().err


def test_a_missing_store_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDSSL_STORE", raising=False)
    assert main(["assign-splits", STUDY]) == 78
    assert "MEDSSL_STORE is not set" in capsys.readouterr().err


def test_schemas_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "splits"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == ["patient_id"]


def test_every_stage_of_the_pipeline_has_its_command() -> None:
    from pipelines.plan import STAGES as PLANNED

    assert list(STAGES) == list(PLANNED)
    assert all(PLANNED[name] == MODULES[STAGES[name][0]].__name__ for name in STAGES)
