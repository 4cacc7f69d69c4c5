"""Comparison and subgroups of cases with one of many conditions."""

import json
from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from medssl import schema
from medssl.analysis.compare import compare
from medssl.analysis.multiplicity import holm
from medssl.analysis.resampling import resample_weights
from medssl.analysis.runs import ROW_KEY
from medssl.analysis.subgroups import analyze
from tests.analysis.case_predictions import CONDITIONS, SKILL, case_rows, table

PAIRS = [("micle", "random"), ("micle", "simclr"), ("simclr", "random")]
SETTINGS = {"pairs": PAIRS, "num_replicates": 100, "alpha": 0.1, "resampling_units": ["patient", "case"], "seed": 0}
GROUPS = {
    "by": ["skin_type", "skin_type_group"],
    "age_edges": [50],
    "skin_type_groups": {"white": ["1", "2"], "beige": ["3"], "brown": ["4"], "dark brown": ["5"]},
    "min_patients": 5,
    "num_replicates": 100,
    "alpha": 0.1,
    "seed": 0,
}


@pytest.fixture(scope="module")
def predictions():
    return case_rows()


@pytest.fixture(scope="module")
def metrics(predictions):
    return compare(table(predictions), **SETTINGS)


@pytest.fixture(scope="module")
def groups(predictions):
    return analyze(table(predictions), **GROUPS)


def find(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def known_cases(predictions, **values):
    """Truth as a set, scores by condition, and patient of each labelled case, by its name."""
    found = {}
    for row in find(predictions, **values):
        case = found.setdefault(row["unit_id"], {"truth": set(), "scores": {}, "patient": row["patient_id"]})
        case["scores"][row["class"]] = row["y_score"]
        if row["y_true"] is None:
            case["truth"] = None
        elif row["y_true"]:
            case["truth"].add(row["class"])
    return {unit: case for unit, case in sorted(found.items()) if case["truth"] is not None}


def slow_metrics(cases):
    """Every top-k metric of a list of cases, by counting."""
    found = {}
    for k in (1, 3):
        chosen = [sorted(CONDITIONS, key=lambda name: (-case["scores"][name], name))[:k] for case in cases]
        hits = [bool(case["truth"] & set(names)) for case, names in zip(cases, chosen, strict=True)]
        found["top_k_accuracy", k, ""] = sum(hits) / len(hits)
        for condition in CONDITIONS:
            with_it = [
                condition in names for case, names in zip(cases, chosen, strict=True) if condition in case["truth"]
            ]
            found["top_k_sensitivity", k, condition] = sum(with_it) / len(with_it) if with_it else None
        values = [found["top_k_sensitivity", k, condition] for condition in CONDITIONS if condition != "Other"]
        values = [value for value in values if value is not None]
        found["mean_top_k_sensitivity", k, ""] = sum(values) / len(values)
    return found


def name_of(row):
    return row["metric"], row["k"], row["class"]


def test_every_run_has_each_metric_of_a_slow_count(predictions, metrics):
    for arm_id, split, repeat in product(SKILL, ("validation", "test"), (0, 1)):
        cases = list(known_cases(predictions, arm_id=arm_id, split=split, repeat=repeat).values())
        rows = {name_of(row): row for row in find(metrics, arm_a=arm_id, split=split, repeat=str(repeat))}
        for name, value in slow_metrics(cases).items():
            assert rows[name]["estimate"] == pytest.approx(value, abs=1e-12)
        assert rows["top_k_accuracy", 1, ""]["n_units"] == len(cases)
        assert rows["top_k_accuracy", 1, ""]["n_patients"] == len({case["patient"] for case in cases})
        with_it = [case for case in cases if "Melanoma" in case["truth"]]
        assert rows["top_k_sensitivity", 3, "Melanoma"]["n_units"] == len(with_it)
        each = {"auc", "average_precision", "sensitivity_at_specificity_0.9", "brier"}
        whole = {*(f"mean_{name}" for name in each), "mean_auc_with_other", "micro_auc"}
        whole |= {"multiclass_brier", "top_label_ece"}
        of_class = {(name, None, condition) for name, condition in product(each, CONDITIONS)}
        assert set(rows) == {*slow_metrics(cases), *of_class, *((name, None, "") for name in whole)}


@pytest.mark.parametrize("unit", ["patient", "case"])
def test_paired_differences_equal_explicit_resampling(unit):
    predictions = case_rows(num_patients=40, repeats=(0,), splits=("test",))
    metrics = compare(table(predictions), **SETTINGS | {"resampling_units": [unit]})
    everyone = sorted({(row["unit_id"], row["patient_id"]) for row in predictions})
    _, clusters = np.unique([patient for _, patient in everyone], return_inverse=True)
    clusters = clusters if unit == "patient" else np.arange(len(everyone))
    a, b = (known_cases(predictions, arm_id=arm_id) for arm_id in ("micle", "random"))
    draws = []
    for weights in np.concatenate(list(resample_weights(clusters, num_replicates=100, seed=0))).tolist():
        units = [u for (u, _), weight in zip(everyone, weights, strict=True) for _ in range(weight) if u in a]
        draws.append([slow_metrics([cases[u] for u in units]) for cases in (a, b)])
    assessed = set()
    for row in find(metrics, arm_a="micle", arm_b="random"):
        name = name_of(row)
        if "top_k" not in name[0] or row["estimate"] is None:
            continue
        values = [x[name] - y[name] for x, y in draws if x[name] is not None]
        if row["ci_low"] is None:
            assert row["status"] == "interval_withheld"
            continue
        assessed.add(name)
        assert row["n_replicates"] == len(values)
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.percentile(values, [5, 95]).tolist(), abs=1e-12)
        shares = [np.mean(np.array(values) <= 1e-12), np.mean(np.array(values) >= -1e-12)]
        assert row["p"] == pytest.approx(min(1, 2 * min(shares)), abs=0.04)
    assert {(name, k, "") for name, k in product(("top_k_accuracy", "mean_top_k_sensitivity"), (1, 3))} <= assessed


def test_holm_adjusts_the_differences_in_top_1_accuracy_and_no_others(metrics):
    for unit in ("patient", "case"):
        rows = [row for row in find(metrics, metric="top_k_accuracy", k=1, resampling_unit=unit) if row["arm_b"]]
        assert [row["p_adjusted"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
        assert len(rows) == len(PAIRS)
    adjusted = {name_of(row) for row in metrics if row["p_adjusted"] is not None}
    assert adjusted == {("top_k_accuracy", 1, "")}


def test_rows_of_cases_fit_the_metrics_table_and_say_why_something_is_undefined(metrics, groups):
    for rows in (metrics, groups):
        made = pa.Table.from_pylist(rows, schema=schema.METRICS.columns)
        assert schema.check(made, schema.METRICS, "metrics.parquet").to_pylist() == rows
        assert len({tuple(row[name] for name in ROW_KEY) for row in rows}) == len(rows)
        json.dumps(rows, allow_nan=False)
        assert all(row["estimate"] is not None or (row["status"] != "ok" and row["reason"]) for row in rows)


def test_the_order_of_the_rows_changes_nothing(predictions, metrics, groups):
    order = np.random.default_rng(0).permutation(len(predictions))
    mixed = table([predictions[i] for i in order])
    assert compare(mixed, **SETTINGS) == metrics
    assert analyze(mixed, **GROUPS) == groups


def test_a_pair_with_an_absent_arm_is_told_in_the_primary_metric(predictions):
    (row,) = find(compare(table(predictions), **SETTINGS | {"pairs": [("micle", "bit")]}), arm_b="bit")
    assert (row["metric"], row["k"], row["status"]) == ("top_k_accuracy", 1, "not_evaluable")


def test_what_was_resampled_is_named_lesion_where_the_set_names_no_patient(metrics):
    lesions = compare(table(case_rows(group_kind="lesion")), **SETTINGS)
    assert {row["resampling_unit"] for row in find(lesions, repeat="selected")} == {"lesion", "case"}
    renamed = [
        row | {name: row[name].replace("lesion", "patient") for name in ("resampling_unit", "reason")}
        for row in lesions
    ]
    by_key = {tuple(row[name] for name in ROW_KEY): row for row in renamed}
    assert by_key == {tuple(row[name] for name in ROW_KEY): row for row in metrics}
    small = analyze(table(case_rows(group_kind="lesion")), **GROUPS | {"min_patients": 9})
    assert {row["resampling_unit"] for row in small} == {"lesion", ""}
    reasons = {row["reason"] for row in find(small, status="too_small")}
    # At most 8 of the 50 have one skin type, some of them without a label.
    assert reasons
    assert reasons <= {f"{n} lesions, at least 9 are needed" for n in range(9)}


def test_images_that_stand_for_patients_are_resampled_once():
    rows = [row | {"unit_kind": "image", "group_kind": "image"} for row in case_rows(splits=("test",))]
    metrics = compare(table(rows), **SETTINGS | {"resampling_units": ["patient", "image"]})
    assert {row["resampling_unit"] for row in find(metrics, repeat="selected")} == {"image"}
    assert len({tuple(row[name] for name in ROW_KEY) for row in metrics}) == len(metrics)


@pytest.mark.parametrize("group_kind", ["patient", "image"])
def test_images_cannot_be_resampled_where_predictions_are_of_cases(group_kind):
    with pytest.raises(ValueError, match="'image': predictions on derm, test are of kind 'case'"):
        compare(table(case_rows(group_kind=group_kind)), **SETTINGS | {"resampling_units": ["patient", "image"]})


def test_a_set_without_labels_is_not_evaluable(predictions):
    metrics = compare(table([row | {"y_true": None} for row in predictions]), **SETTINGS)
    assert {row["status"] for row in metrics} == {"not_evaluable"}
    assert {row["reason"] for row in find(metrics, metric="top_k_accuracy")} == {"no case with a known truth"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_true": None}, "1 cases are labelled for some classes only and 0 hold no condition"),
        ({"y_true": 0}, "0 cases are labelled for some classes only and 1 hold no condition"),
        ({"group_kind": "clinic"}, "1 values of group_kind are unknown"),
        ({"group_kind": "lesion"}, "several values of group_kind"),
        ({"unit_kind": "image"}, "several values of unit_kind"),
    ],
)
def test_predictions_that_break_the_contract_are_refused(predictions, change, message):
    place = next(
        i for i, row in enumerate(predictions) if row["y_true"] and sum_of_truth(predictions, row["unit_id"]) == 1
    )
    rows = [*predictions[:place], predictions[place] | change, *predictions[place + 1 :]]
    with pytest.raises(ValueError, match=message):
        compare(table(rows), **SETTINGS)


def sum_of_truth(predictions, unit_id):
    first = find(predictions, unit_id=unit_id)[: len(CONDITIONS)]
    return sum(row["y_true"] or 0 for row in first)


def test_skin_types_are_groups_and_so_are_the_unknown_and_those_outside_the_map(predictions, groups):
    rows = find(groups, metric="top_k_accuracy", k=1, arm_a="micle")
    patients = {row["subgroup"]: row["n_patients"] for row in rows}
    every_seventh = [len(range(first, 50, 7)) for first in range(7)]
    assert {f"skin_type={t}" for t in "123456"} | {"skin_type=unknown"} <= set(patients)
    assert set(patients) - {f"skin_type={t}" for t in (*"123456", "unknown")} == {
        f"skin_type_group={name}" for name in ("white", "beige", "brown", "dark brown", "unmapped", "unknown")
    }
    assert patients["skin_type_group=white"] <= every_seventh[0] + every_seventh[1]
    for group, types in (("white", ("1", "2")), ("unmapped", ("6",)), ("unknown", (None,))):
        chosen = [row for row in predictions if row["skin_type"] in types]
        cases = known_cases(chosen, arm_id="micle", split="test", repeat=0)
        (row,) = find(rows, subgroup=f"skin_type_group={group}")
        assert row["estimate"] == pytest.approx(slow_metrics(list(cases.values()))["top_k_accuracy", 1, ""])
        assert row["n_units"] == len(cases)


def test_the_gap_of_cases_is_in_top_1_accuracy_whatever_conditions_a_group_lacks():
    groups = analyze(table(case_rows(num_patients=91, repeats=(0,), splits=("test",))), **GROUPS)
    for arm_id, attribute in product(SKILL, GROUPS["by"]):
        values = [
            row["estimate"]
            for row in find(groups, metric="top_k_accuracy", k=1, arm_a=arm_id)
            if row["subgroup"].startswith(f"{attribute}=")
        ]
        (gap,) = find(groups, metric="top_k_accuracy_gap", arm_a=arm_id, subgroup=attribute)
        (raw,) = find(groups, metric="top_k_accuracy_gap_raw", arm_a=arm_id, subgroup=attribute)
        assert (gap["k"], gap["status"], gap["resampling_unit"]) == (1, "ok", "patient")
        assert raw["estimate"] == pytest.approx(max(values) - min(values))
        assert 0 <= gap["ci_low"] <= gap["estimate"] <= raw["estimate"] <= gap["ci_high"]
    assert any(row["estimate"] is None for row in find(groups, metric="auc", split="test"))
