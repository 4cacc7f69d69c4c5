"""`medssl compare` from tables of predictions, by the command line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from medssl import schema
from medssl.__main__ import main
from medssl.analysis.subgroups import analyze
from medssl.config import SubgroupConfig
from medssl.exit_codes import BAD_INPUT
from tests.analysis.case_predictions import case_rows, table
from tests.analysis.test_subgroups import find

README = Path(__file__).parents[2] / "README.md"
ARMS = {"micle": 2.5, "random": 1.0}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.parquet"
    rows = case_rows(num_patients=15, repeats=(0,), fractions=(0.1, 1.0), splits=("test",), arms=ARMS)
    pq.write_table(table(rows), path)
    return path


def compare(*arguments: str | Path) -> int:
    return main(["compare", *map(str, arguments)])


def metrics_of(path: Path, **values: object) -> list[dict[str, object]]:
    rows = schema.read(path, schema.METRICS).to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def test_predictions_become_metrics_curves_a_summary_and_a_printed_table(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, summary = tmp_path / "new" / "metrics.parquet", tmp_path / "counts.json"
    options = ("--replicates", "200", "--label-efficiency", "micle,random", "--summary", summary)
    assert compare("--predictions", mine, "--out", out, *options) == 0
    printed = capsys.readouterr().out
    difference = metrics_of(out, metric="top_k_accuracy", k=1, arm_b="random", label_fraction=1.0)
    assert [row["resampling_unit"] for row in difference] == ["case", "patient"]
    assert difference[0]["n_replicates"] == 200
    for heading in ("top-1 accuracy [95 % interval]", "difference in top-1 accuracy", "labels saved"):
        assert heading in printed
    patient = difference[1]
    assert f"{patient['estimate']:.3f} [{patient['ci_low']:.3f}, {patient['ci_high']:.3f}]" in printed
    assert json.loads(summary.read_text())["rows"] == len(metrics_of(out))
    curves = schema.read(out.with_name("metrics.calibration.parquet"), schema.CALIBRATION)
    assert curves.num_rows == 2 * 2 * 15


def test_several_files_are_one_table_and_the_order_of_rows_and_files_changes_nothing(
    mine: Path, tmp_path: Path
) -> None:
    whole = pq.read_table(mine)
    parts = []
    for arm in ("random", "micle"):
        parts.append(tmp_path / f"{arm}.parquet")
        pq.write_table(whole.filter(pc.equal(whole["arm_id"], arm)), parts[-1])
    options = ("--replicates", "100", "--resampling-units", "patient")
    compare("--predictions", mine, "--out", tmp_path / "a.parquet", *options)
    compare("--predictions", *parts, "--out", tmp_path / "b.parquet", *options)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_families_of_a_file_are_what_is_adjusted(mine: Path, tmp_path: Path) -> None:
    families = tmp_path / "families.yaml"
    families.write_text("- {name: both fractions, metrics: [top_1_accuracy, top_3_accuracy]}\n")
    out = tmp_path / "metrics.parquet"
    compare("--predictions", mine, "--out", out, "--replicates", "200", "--families", families)
    family = metrics_of(out, family="both fractions")
    assert {(row["k"], row["label_fraction"]) for row in family} == {(1, 0.1), (1, 1.0), (3, 0.1), (3, 1.0)}


def test_it_works_without_torch_in_a_process_of_its_own(mine: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from medssl.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'sklearn', 'matplotlib', 'mlflow', 'kfp')))"
    )
    arguments = ["compare", "--predictions", str(mine), "--out", str(tmp_path / "m.parquet"), "--replicates", "100"]
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 0


def test_the_example_of_the_readme_writes_predictions_that_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert compare("--predictions", "mine.parquet", "--pairs", "new,old", "--out", "metrics.parquet") == 0
    (row,) = metrics_of(tmp_path / "metrics.parquet", metric="mean_auc", arm_b="old", resampling_unit="patient")
    assert row["estimate"] is not None
    assert "new minus old" in capsys.readouterr().out


def rewritten(path: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> Path:
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "1 rows repeat a unit and class of their run; correct the table"),
        (lambda rows: [rows[0] | {"y_score": float("nan")}, *rows[1:]], "1 scores are not finite"),
        (
            lambda rows: [row | {"y_score": "high"} for row in rows],
            "column y_score is string, expected double, and its 600 values cannot all be converted; write it as double",
        ),
        (
            lambda rows: [row | {"age_years": row["patient_id"]} for row in rows],
            "column age_years is string, expected float, and its 600 values cannot all be converted; write it as "
            "float, null where it is not known",
        ),
        (lambda rows: [row | {"patient_id": [row["patient_id"]]} for row in rows], "expected string, and it cannot be"),
        (lambda rows: [row | {"y_true": 0.5} for row in rows], "column y_true is double, expected int8"),
        (lambda rows: [row | {"split": "val"} for row in rows], "1 values of split are unknown: ['val']; expected one"),
        (
            lambda rows: [row | {"split": row["patient_id"]} for row in rows],
            "15 values of split are unknown; expected one of ['train', 'validation', 'test'",
        ),
        (
            lambda rows: [row | {"label_fraction": 100 * row["label_fraction"]} for row in rows],
            "2 values of label_fraction are not above 0 and up to 1, such as [10.0, 100.0]; divide percentages by 100",
        ),
        (lambda rows: [row | {"label_fraction": 0.0} for row in rows], "such as [0.0]; divide"),
        (lambda rows: [row | {"label_fraction": float("nan")} for row in rows], "such as [nan]; divide"),
        (
            lambda rows: [rows[0] | {"y_score": -1e300}, *rows[1:]],
            "0 scores are not finite and 1 beyond 1e+100 in size",
        ),
        (lambda rows: [rows[0] | {"patient_id": None}, *rows[1:]], "column patient_id holds 1 nulls"),
        (lambda rows: [{k: v for k, v in row.items() if k != "site"} for row in rows], "missing columns ['site']"),
        (lambda rows: [row | {"is_selected": False} for row in rows], "mark one with is_selected"),
        (lambda rows: [row | {"unit_kind": "film"} for row in rows], "values of unit_kind are unknown"),
        (
            lambda rows: [row | {"arm_id": f"arm{i}"} for i in range(25) for row in rows if row["arm_id"] == "micle"],
            "25 arms make 300 pairs; name those to compare by --pairs",
        ),
        (
            lambda rows: [rows[0] | {"arm_id": f"arm{i}"} for i in range(600)],
            "600 arms; at most 500 are compared at once",
        ),
        (
            lambda rows: [
                rows[0] | {"repeat": i, "draw": i} | dict.fromkeys(("unit_id", "class", "dataset", "study_id"), f"{i}")
                for i in range(9999)
            ],
            "too many different values for one table",
        ),
    ],
)
def test_tables_that_cannot_be_compared_are_refused_with_a_reason(
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[dict[str, object]]], list[dict[str, object]]],
    message: str,
) -> None:
    rewritten(mine, change)
    assert compare("--predictions", mine, "--out", tmp_path / "metrics.parquet", "--replicates", "100") == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path) not in error
    assert "patient1" not in error
    assert not (tmp_path / "metrics.parquet").exists()


def test_a_column_that_occurs_twice_is_named(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pq.read_table(mine)
    pq.write_table(pa.table([*whole.columns, whole["sex"]], names=[*whole.column_names, "sex"]), mine)
    assert compare("--predictions", mine, "--out", tmp_path / "metrics.parquet") == BAD_INPUT
    assert "columns ['sex'] occur more than once; keep one of each" in capsys.readouterr().err


def test_no_input_and_no_other_output_is_written_over(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (curves := tmp_path / "new.calibration.parquet").write_bytes(mine.read_bytes())
    (families := tmp_path / "families.yaml").write_text("- {name: all, metrics: [top_1_accuracy]}\n")
    (tmp_path / "link.parquet").hardlink_to(mine)
    new = tmp_path / "new.parquet"
    before = {path: path.read_bytes() for path in (mine, curves, families)}
    for given, message in (
        (
            ["--predictions", mine, "--out", mine],
            "--out mine.parquet: expected a new file, found one",
        ),
        (["--predictions", mine, "--out", tmp_path / "link.parquet"], "found one of the inputs"),
        (["--predictions", mine, tmp_path / "link.parquet", "--out", new], "some of them given twice"),
        (["--predictions", curves, "--out", new], "the calibration table of --out new.calibration.parquet: expected"),
        (["--predictions", mine, "--out", families, "--families", families], "found one of the inputs"),
        (["--predictions", mine, "--out", new, "--summary", mine], "--summary mine.parquet: expected a new file"),
        (["--predictions", mine, "--out", new, "--summary", new], "found what --out names"),
        (
            ["--predictions", mine, "--out", new, "--summary", tmp_path / "sub" / ".." / "new.parquet"],
            "found what --out names",
        ),
    ):
        assert compare("--replicates", "100", *given) == BAD_INPUT, message
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not new.exists()


def test_names_with_commas_are_parted_where_both_sides_are_arms(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"micle": "ResNet-50 (4x), micle", "random": "ResNet-50 (1x), random"}
    rewritten(mine, lambda rows: [row | {"arm_id": names[str(row["arm_id"])]} for row in rows])
    out, pair = tmp_path / "metrics.parquet", ",".join(names.values())
    options = ("--out", out, "--replicates", "100", "--label-efficiency", pair, "--pairs")
    assert compare("--predictions", mine, *options, pair) == 0
    assert {row["arm_b"] for row in metrics_of(out, metric="top_k_accuracy")} == {None, names["random"]}
    capsys.readouterr()
    assert compare("--predictions", mine, *options, "ResNet-50 (4x), micle") == BAD_INPUT
    assert "there are ResNet-50 (1x), random, ResNet-50 (4x), micle" in capsys.readouterr().err
    copies = {"a": "micle", "a,a": "random"}
    predictions = case_rows(num_patients=12, repeats=(0,), splits=("test",), arms=ARMS)
    pq.write_table(
        table([row | {"arm_id": name} for name, arm in copies.items() for row in predictions if row["arm_id"] == arm]),
        mine,
    )
    assert compare("--predictions", mine, *options[:4], "--pairs", "a,a,a") == BAD_INPUT
    assert "a comma between them, found 2 that leave two arms; there are a, a,a" in capsys.readouterr().err


def test_a_family_of_nothing_that_is_compared_is_refused_and_what_is_compared_named(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (families := tmp_path / "families.yaml").write_text("- {name: x, pairs: [[micle, typo]], label_fractions: [0.1]}\n")
    options = ("--out", tmp_path / "metrics.parquet", "--replicates", "100", "--families", families)
    assert compare("--predictions", mine, *options) == BAD_INPUT
    error = capsys.readouterr().err
    assert '"x" holds none of the 84 differences of the table' in error
    assert "pairs [['micle', 'random']], label fractions [0.1, 1.0], datasets ['derm'], splits ['test']" in error


def test_images_and_cases_are_compared_in_one_table_each_with_its_own_unit(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"unit_kind": "image", "dataset": "clinic"}
    rewritten(mine, lambda rows: [*rows, *(row | images for row in rows)])
    out = tmp_path / "metrics.parquet"
    assert compare("--predictions", mine, "--out", out, "--replicates", "100") == 0
    printed = capsys.readouterr().out
    for heading in ("mean AUC [95 % interval]", "difference in top-1 accuracy [95 % interval]"):
        assert heading in printed
    for dataset, unit in (("clinic", "image"), ("derm", "case")):
        found = metrics_of(out, dataset=dataset, repeat="selected")
        assert {row["resampling_unit"] for row in found} == {"patient", unit}
    assert compare("--predictions", mine, "--out", out, "--resampling-units", "image") == BAD_INPUT
    assert "are of kind 'case'" in capsys.readouterr().err


def test_subgroups_stand_in_the_same_table_as_a_study_would_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = table(case_rows(num_patients=60, repeats=(0,), splits=("test",), arms=ARMS))
    pq.write_table(predictions, path := tmp_path / "mine.parquet")
    out, alone = tmp_path / "metrics.parquet", tmp_path / "alone.parquet"
    options = ("--predictions", path, "--replicates", "100", "--seed", "3")
    assert compare(*options, "--out", out, "--by", "sex,age_band", "--min-patients", "15") == 0
    printed = capsys.readouterr().out
    assert "gap in top-1 accuracy between groups [95 % interval]\n  micle, age_band " in printed
    assert compare(*options, "--out", alone) == 0
    config = SubgroupConfig(by=("sex", "age_band"), min_patients=15, num_replicates=100, seed=3)
    expected = analyze(
        predictions,
        **{name: getattr(config, name) for name in ("by", "age_edges", "skin_type_groups", "min_patients")},
        **{name: getattr(config, name) for name in ("num_replicates", "alpha", "seed", "attribute_pairs")},
        arm_pairs=[("micle", "random")],
    )
    rows = metrics_of(out)
    assert [row for row in rows if row["subgroup"] == "all"] == metrics_of(alone)
    assert [row for row in rows if row["subgroup"] != "all"] == expected
    assert {row["status"] for row in find(expected, subgroup="sex=female", metric="top_k_accuracy")} == {"ok"}


def test_a_censored_end_is_printed_beside_one_that_is_not(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = case_rows(num_patients=25, repeats=(0,), fractions=(0.1, 0.3, 1.0), splits=("test",), arms=ARMS)
    pq.write_table(table(rows), mine)
    out = tmp_path / "metrics.parquet"
    assert (
        compare("--predictions", mine, "--out", out, "--replicates", "100", "--label-efficiency", "micle,random") == 0
    )
    row = next(row for row in metrics_of(out, metric="labels_saved") if row["resampling_unit"] == "patient")
    assert (row["ci_low"] is None) != (row["ci_high"] is None)
    assert ", …]" in capsys.readouterr().out


def test_files_that_are_none_or_no_parquet_are_refused(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "metrics.parquet", tmp_path / "text.parquet"
    text.write_text("arm,score\n")
    pq.write_table(schema.PREDICTIONS.columns.empty_table(), empty := tmp_path / "empty.parquet")
    cases: list[tuple[list[str | Path], str]] = [
        (["--predictions", text], "cannot be read as Parquet"),
        (["--predictions", tmp_path], "cannot be read as Parquet"),
        (["--predictions", tmp_path / "gone.parquet"], "no such file"),
        (["--predictions", empty], "1 files hold no row"),
        (["--predictions", mine, mine], "some of them given twice"),
        ([], "give --predictions"),
        (["--predictions", mine, "--out", tmp_path], "expected a new Parquet file, found a folder"),
        (["--predictions", mine, "--out", text / "under" / "a.parquet"], "cannot be written"),
        (["--predictions", mine, "--by", "sex,income"], "--by"),
        (["--predictions", mine, "--pairs", "micle"], "expected two arms with a comma between them"),
        (["--predictions", mine, "--pairs", "micle,bit"], "there are micle, random"),
        (["--predictions", mine, "--pairs", "micle,random", "random,micle"], "compared once, in either order"),
        (["--predictions", mine, "--replicates", "7"], "num_replicates"),
        (["--predictions", mine, "--alpha", "7"], "alpha"),
        (["--predictions", mine, "--resampling-units", "image"], "are of kind 'case'"),
        (["--predictions", mine, "--families", text], "families"),
        (["--predictions", mine, "--families", tmp_path / "gone.yaml"], "families file gone.yaml not found"),
    ]
    for given, message in cases:
        assert compare("--out", out, *given) == BAD_INPUT, message
        assert message in capsys.readouterr().err
