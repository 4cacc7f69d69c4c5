"""`medssl write-report` from tables alone, by the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medssl import schema
from medssl.__main__ import main
from medssl.analysis.inputs import ReportInputs
from medssl.exit_codes import BAD_INPUT
from tests.analysis.test_report import Page, by_heading, make_inputs, make_predictions, make_study


@pytest.fixture(scope="module")
def made() -> ReportInputs:
    return make_inputs()


@pytest.fixture(scope="module")
def files(made: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tables that a report is made from."""
    folder = tmp_path_factory.mktemp("tables")
    assert made.history is not None
    schema.write(made.metrics, schema.METRICS, folder / "metrics.parquet")
    schema.write(made.arms, schema.ARMS, folder / "arms.parquet")
    schema.write(made.history, schema.HISTORY, folder / "history.parquet")
    schema.write(make_predictions(num_patients=20), schema.PREDICTIONS, folder / "predictions.parquet")
    study = make_study().model_dump(mode="json")
    (folder / "study.yaml").write_text(json.dumps(study))  # JSON is YAML
    (folder / "study.json").write_text(json.dumps({"study": study, "root": "/somewhere", "key_id": "k"}))
    return folder


def write_report(*arguments: str | Path) -> int:
    return main(["write-report", *map(str, arguments)])


def all_options(files: Path) -> tuple[str | Path, ...]:
    given = {name: files / f"{name}.parquet" for name in ("metrics", "arms", "history", "predictions")}
    return *(part for name, path in given.items() for part in (f"--{name}", path)), "--settings", files / "study.yaml"


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all tables, with its counts beside it."""
    folder = tmp_path_factory.mktemp("whole") / "new"
    options = ("--out", folder / "report", "--summary", folder / "counts.json")
    assert write_report(*all_options(files), *options) == 0
    return folder


def test_tables_become_a_page_with_its_figures_and_tables_beside_it(whole: Path) -> None:
    counts, out = json.loads((whole / "counts.json").read_text()), whole / "report"
    page = Page((out / "index.html").read_text())
    assert len(page.tables) == counts["num_tables"] == len(list(out.glob("tables/*.tex")))
    assert counts["num_figures"] == len(list(out.glob("figures/*.png"))) == len(list(out.glob("figures/*.svg")))
    figures = {path.stem for path in out.glob("figures/*.svg")}
    assert {"label-efficiency-phantom-test", "pretraining", "finetuning", "reliability-1-phantom-test"} <= figures


def test_the_same_rows_give_the_same_bytes_from_several_files_and_with_the_study_of_a_runs_folder(
    files: Path, made: ReportInputs, whole: Path, tmp_path: Path
) -> None:
    is_grouped = [group != "all" for group in made.metrics["subgroup"].to_pylist()]
    parts = [made.metrics.filter(pa.array([not one for one in is_grouped])), made.metrics.filter(is_grouped)]
    names = [tmp_path / f"{number}.parquet" for number in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        schema.write(part, schema.METRICS, name)
    others = all_options(files)[2:-1]
    assert write_report("--metrics", *names, *others, files / "study.json", "--out", tmp_path / "out") == 0
    found, expected = bytes_of(tmp_path / "out"), bytes_of(whole / "report")
    in_order = Path("tables/metrics.csv")  # keeps the order of the files
    assert sorted(found.pop(in_order).splitlines()) == sorted(expected.pop(in_order).splitlines())
    assert found == expected


def test_metrics_alone_make_a_page_in_which_arms_have_their_own_names(
    files: Path, made: ReportInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_report("--metrics", files / "metrics.parquet", "--out", tmp_path) == 0
    assert f"{made.metrics.num_rows:,} rows of metrics, " in capsys.readouterr().out
    shown = by_heading(Page((tmp_path / "index.html").read_text()).tables["results-phantom-test"])
    assert {arm for arm, _ in shown} == {"micle", "random", "simclr"}
    wanted = {"arm_a": "micle", "arm_b": None, "split": "test", "metric": "mean_auc", "repeat": "mean"}
    wanted |= {"label_fraction": 1.0, "subgroup": "all"}
    (row,) = (r for r in made.metrics.to_pylist() if all(r[k] == v for k, v in wanted.items()))
    assert shown["micle", "100 %"][0][1] == f"{row['estimate']:.3f} ± {row['std']:.3f}"


def test_curves_that_compare_wrote_stand_for_those_of_predictions(files: Path, tmp_path: Path) -> None:
    options = ("--predictions", files / "predictions.parquet", "--replicates", "100", "--resampling-units", "patient")
    metrics, curves = tmp_path / "m.parquet", tmp_path / "m.calibration.parquet"
    assert main(["compare", *map(str, options), "--out", str(metrics)]) == 0
    write_report("--metrics", metrics, "--calibration", curves, "--out", tmp_path / "curves")
    write_report("--metrics", metrics, "--predictions", files / "predictions.parquet", "--out", tmp_path / "scores")
    assert bytes_of(tmp_path / "curves") == bytes_of(tmp_path / "scores")
    assert list((tmp_path / "curves" / "figures").glob("reliability-*.svg"))


def test_it_works_without_torch_or_mlflow_in_a_process_of_its_own(files: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from medssl.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'sklearn', 'mlflow', 'kfp', 'apache_beam')))"
    )
    options = ("--metrics", files / "metrics.parquet", "--predictions", files / "predictions.parquet")
    arguments = ["write-report", *map(str, options), "--out", str(tmp_path)]
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda files, out: ["--out", out], "give --metrics"),
        (lambda files, out: ["--metrics", files / "metrics.parquet"], "give a study file, or --out"),
        (lambda files, out: ["--metrics", files / "gone.parquet", "--out", out], "no such file"),
        (lambda files, out: ["--metrics", files / "arms.parquet", "--out", out], "not a metrics table"),
        (lambda files, out: ["--metrics", files / "study.json", "--out", out], "cannot be read as Parquet"),
        (lambda files, out: ["--metrics", files / "empty.parquet", "--out", out], "1 files hold no row"),
        (
            lambda files, out: ["--metrics", files / "metrics.parquet", "--out", files / "arms.parquet"],
            "expected a folder, found a file",
        ),
        (
            lambda files, out: ["--metrics", files / "metrics.parquet", "--settings", files / "wrong.yaml",
                                "--out", out],
            "wrong.yaml",
        ),
        (
            lambda files, out: ["--metrics", files / "metrics.parquet", "--predictions",
                                *[files / "predictions.parquet"] * 2, "--out", out],
            "repeat a unit and class",
        ),
        (
            lambda files, out: ["--metrics", files / "metrics.parquet", "--predictions", files / "unmarked.parquet",
                                "--out", out],
            "none of 30 rows is of a selected model",
        ),
    ],
)  # fmt: skip
def test_tables_that_make_no_report_are_refused_with_a_reason(
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[str | Path]],
    message: str,
) -> None:
    pq.write_table(schema.METRICS.columns.empty_table(), files / "empty.parquet")
    (files / "wrong.yaml").write_text("nmae: wrong\n")
    unmarked = pq.read_table(files / "predictions.parquet").slice(0, 30)
    unmarked = unmarked.set_column(
        unmarked.column_names.index("is_selected"), unmarked.schema.field("is_selected"), pa.array([False] * 30)
    )
    pq.write_table(unmarked, files / "unmarked.parquet")
    assert write_report(*arguments(files, tmp_path / "out")) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert str(files) not in error
    assert str(tmp_path) not in error
    assert not (tmp_path / "out" / "index.html").exists()
