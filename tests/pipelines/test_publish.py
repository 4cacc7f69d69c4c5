from pathlib import Path

import pytest

from medssl import layout
from medssl.exit_codes import BadInputError
from medssl.store import MANIFEST
from pipelines.publish import _copy_report, public_uri

HTML = '<p><a href="#task-predict-micle" data-task="predict micle">0.8</a></p>'
URLS = {"predict micle": "http://127.0.0.1:5000/#/experiments/1/runs/2"}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "report" / "digest"
    (folder / "tables").mkdir(parents=True)
    (folder / layout.REPORT).write_text(HTML)
    (folder / "tables" / "b1.csv").write_text("a,b\n")
    (folder / MANIFEST).write_text("{}")
    return folder


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_of_the_report_leads_to_mlflow_and_the_stored_one_stays_as_it_is(report: Path, tmp_path: Path) -> None:
    before = files(report)
    target = tmp_path / "out"
    for _ in range(2):
        _copy_report(report, target, URLS, None)
        found = files(target)
        assert found == {layout.REPORT: HTML.replace("#task-predict-micle", URLS["predict micle"])} | {
            "tables/b1.csv": "a,b\n"
        }
    assert files(report) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_link_of_an_earlier_version_is_replaced_and_its_target_kept(report: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.symlink_to(report)
    _copy_report(report, target, {}, None)
    assert not target.is_symlink()
    assert (report / MANIFEST).is_file()


def test_what_is_no_report_is_never_replaced(report: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(BadInputError, match="no report of an earlier run"):
        _copy_report(report, target, {}, None)
    assert files(target) == {"mine.txt": "mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "store"}


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("http://user:secret@mlflow:5000/path", "http://mlflow:5000/path"),
        ("postgresql://user:se@cret@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////out/mlflow.db", "sqlite:////out/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_an_address_is_recorded_without_its_password(uri: str, public: str) -> None:
    assert public_uri(uri) == public
