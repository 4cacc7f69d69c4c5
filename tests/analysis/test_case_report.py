"""The report of a study of cases with one of many conditions."""

import re
from dataclasses import replace
from itertools import product

import pyarrow as pa
import pytest

from medssl import schema
from medssl.analysis import report
from medssl.analysis.compare import compare
from medssl.analysis.subgroups import analyze
from tests.analysis.case_predictions import CONDITIONS, SKILL, case_rows, table
from tests.analysis.test_report import Page, by_heading, find, make_inputs, make_study, names

FRACTIONS = (0.1, 1.0)
BY = ("skin_type", "skin_type_group")


def make_case_metrics():
    study = make_study()
    predictions = table(case_rows(num_patients=40, fractions=FRACTIONS))
    common = {"num_replicates": 100, "alpha": 0.05, "seed": 0}
    rows = compare(predictions, pairs=study.compare.pairs, resampling_units=["patient", "case"], **common)
    groups = study.subgroups
    edges, types = groups.age_edges, groups.skin_type_groups
    rows += analyze(predictions, by=BY, age_edges=edges, skin_type_groups=types, min_patients=6, **common)
    return pa.Table.from_pylist(rows, schema=schema.METRICS.columns)


def make_case_inputs(metrics):
    inputs = make_inputs(metrics=metrics)
    compared = inputs.study["compare"] | {"resampling_units": ["patient", "case"]}
    task = {"kind": "conditions", "conditions": list(CONDITIONS)}
    study = inputs.study | {
        "task": task,
        "subgroups": inputs.study["subgroups"] | {"by": list(BY)},
        "compare": compared,
    }
    curves = [
        row | {"metric": row["metric"].replace("mean_auc", "top_1_accuracy")} for row in inputs.history.to_pylist()
    ]
    history = pa.Table.from_pylist(curves, schema=schema.HISTORY.columns)
    return replace(inputs, study=study, history=history)


@pytest.fixture(scope="module")
def inputs():
    return make_case_inputs(make_case_metrics())


@pytest.fixture(scope="module")
def out_dir(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(inputs, folder)
    return folder


@pytest.fixture(scope="module")
def page(out_dir):
    return Page((out_dir / "index.html").read_text())


def test_the_results_table_shows_top_1_accuracy_of_the_metrics(inputs, page):
    shown = by_heading(page.tables["results-derm-test"])
    for arm, fraction in product(SKILL, FRACTIONS):
        keys = {"arm_a": arm, "label_fraction": fraction, "metric": "top_k_accuracy", "k": 1}
        (mean,) = find(inputs.metrics, repeat="mean", **keys)
        (validation,) = find(inputs.metrics, repeat="mean", split="validation", **keys)
        (chosen,) = find(inputs.metrics, repeat="selected", resampling_unit="patient", **keys)
        assert shown[names(inputs)[arm], f"{100 * fraction:.0f} %"] == [
            [
                "2",
                f"{mean['estimate']:.3f} ± {mean['std']:.3f}",
                f"{chosen['estimate']:.3f} [{chosen['ci_low']:.3f}, {chosen['ci_high']:.3f}]",
                f"{validation['estimate']:.3f} ± {validation['std']:.3f}",
            ]
        ]


def test_the_papers_five_metrics_stand_side_by_side(inputs, page):
    head = page.tables["metrics-derm-test"][0]
    assert head[-5:] == [
        *("Top-1 accuracy", "Top-3 accuracy", "Mean top-1 sensitivity", "Mean top-3 sensitivity"),
        "Mean AUC",
    ]
    (line,) = by_heading(page.tables["metrics-derm-test"])[names(inputs)["micle"], "100 %"]
    wanted = (("top_k_accuracy", 1), ("top_k_accuracy", 3), ("mean_top_k_sensitivity", 1))
    wanted += (("mean_top_k_sensitivity", 3), ("mean_auc", None))
    for cell, (metric, k) in zip(line, wanted, strict=True):
        (row,) = find(inputs.metrics, arm_a="micle", label_fraction=1.0, repeat="mean", metric=metric, k=k)
        assert cell == f"{row['estimate']:.3f} ± {row['std']:.3f}"


def test_each_condition_has_its_sensitivity_beside_its_number_of_cases(inputs, page):
    rows = page.tables["conditions-top-1-sensitivity-derm-test"][1:]
    assert [row[0] for row in rows] == [*(name for name in CONDITIONS if name != "Other"), "Other"]
    for condition, num_cases, *cells in rows:
        for arm, cell in zip(SKILL, cells[::-1], strict=True):
            keys = {"metric": "top_k_sensitivity", "k": 1, "class": condition, "label_fraction": 1.0}
            (row,) = find(inputs.metrics, arm_a=arm, repeat="mean", **keys)
            assert (num_cases, cell) == (str(row["n_units"]), f"{row['estimate']:.3f} ± {row['std']:.3f}")


def test_differences_in_top_1_accuracy_are_adjusted_and_those_in_other_metrics_are_told_apart(inputs, page):
    shown = by_heading(page.tables["differences-primary-derm-test"])
    rows = [r for r in inputs.metrics.to_pylist() if r["arm_b"] and (r["metric"], r["k"]) == ("top_k_accuracy", 1)]
    assert sum(map(len, shown.values())) == len(rows) == 8
    for row in rows:
        heading = f"{names(inputs)[row['arm_a']]} minus {names(inputs)[row['arm_b']]}"
        lines = {line[0]: line for line in shown[heading, f"{100 * row['label_fraction']:.0f} %"]}
        assert lines[row["resampling_unit"]][3] == f"{row['p_adjusted']:.3f}"
    others = {line[0] for lines in by_heading(page.tables["differences-metrics-derm-test"]).values() for line in lines}
    assert others == {"Top-3 accuracy", "Mean top-1 sensitivity", "Mean top-3 sensitivity", "Mean AUC"}


def test_groups_of_skin_types_run_from_light_to_dark_and_their_map_is_called_inferred(page):
    rows = page.tables["subgroups-derm-test-skin-type-group-1-0"][1:]
    expected = ["white", "beige", "brown", "dark brown", "unknown", "Gap (largest − smallest)"]
    assert [row[0] for row in rows] == expected
    assert page.tables["subgroups-derm-test-skin-type-1-0"][0][:3] == ["Group", "Cases", "Patients"]
    assert [row[0] for row in page.tables["subgroups-derm-test-skin-type-1-0"][1:-1]] == [*"123456", "unknown"]
    words = " ".join(page.text)
    assert "white: 1, 2; beige: 3; brown: 4; dark brown: 5, 6." in words
    assert "prints no map, so this one is inferred" in words


def test_the_page_speaks_of_cases_and_conditions_throughout(page, inputs):
    words = " ".join(page.text)
    assert "resamples of the test cases" in words
    assert "Top-1 accuracy on test by share of training labels" in words
    assert "Uncertain labels" not in words
    assert "findings" not in words
    assert not re.search(r"\b(nan|None|null|inf)\b", words, re.IGNORECASE)
    assert report.headline(inputs.metrics, inputs.arms).startswith("top-1 accuracy on test, by share of labels")


def test_a_set_without_patients_is_said_to_have_been_resampled_by_lesion(inputs, tmp_path, page):
    named = {"patient": "lesion", "case": "case", "": ""}
    rows = [row | {"resampling_unit": named[row["resampling_unit"]]} for row in inputs.metrics.to_pylist()]
    report.write(replace(inputs, metrics=pa.Table.from_pylist(rows, schema=inputs.metrics.schema)), tmp_path)
    of_lesions = Page((tmp_path / "index.html").read_text())
    words = " ".join(of_lesions.text)
    assert "names no patient: each lesion stands for one" in words
    assert "percentile bootstrap over lesions" in words
    assert "names no patient" not in " ".join(page.text)
    assert of_lesions.tables["subgroups-derm-test-skin-type-1-0"][0][:3] == ["Group", "Cases", "Lesions"]
    # The numbers are those of the same predictions with patients.
    assert of_lesions.tables["results-derm-test"] == page.tables["results-derm-test"]
