"""Rows and their intervals mean the same: what is measured on the full sample and what the bootstrap resamples."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medssl.analysis.compare import compare
from medssl.analysis.measures import Bootstrap, measure, measures
from medssl.analysis.resampling import resample_weights
from medssl.analysis.runs import read_runs
from tests.analysis.case_predictions import CONDITIONS, case_rows, table

SETTINGS = {"num_replicates": 100, "alpha": 0.1, "resampling_units": ["patient"], "seed": 0}


def runs_of(unit_kind, **options):
    rows = case_rows(num_patients=25, repeats=(0,), splits=("test",), **options)
    return read_runs(table([row | {"unit_kind": unit_kind} for row in rows]))


@pytest.mark.parametrize("specificity", [0.9, 0.6])
@pytest.mark.parametrize("unit_kind", ["image", "case"])
def test_every_estimate_of_the_bootstrap_is_that_of_its_row(unit_kind, specificity):
    runs = runs_of(unit_kind)
    bootstrap = Bootstrap(100, 0.05, 0, specificity)
    replicates = bootstrap.replicates(runs, "patient")
    rows = [measure(run, specificity=specificity) for run in runs]
    for m, of_run in enumerate(rows):
        for row, interval in zip(of_run, bootstrap.intervals(replicates, runs[0], m), strict=True):
            assert interval.estimate == pytest.approx(row["estimate"], abs=1e-12), row["metric"]
            assert interval.ci_low is None or interval.ci_low <= interval.ci_high
    for a, b in combinations(range(len(runs)), 2):
        for x, y, interval in zip(rows[a], rows[b], bootstrap.intervals(replicates, runs[0], a, b), strict=True):
            assert interval.estimate == pytest.approx(x["estimate"] - y["estimate"], abs=1e-12)
    assert len(measures(runs[0])) == len(rows[0]) == len({(r["metric"], r["k"], r["class"]) for r in rows[0]})


def test_the_micro_average_is_resampled_with_everything_else():
    runs = runs_of("case")
    named = [i for i, name in enumerate(CONDITIONS) if name != "Other"]
    bootstrap = Bootstrap(30, 0.05, 3)
    replicates = bootstrap.replicates(runs, "patient")
    weights = np.concatenate(list(resample_weights(runs[0].patients, num_replicates=30, seed=3)))
    known = ~np.isnan(runs[0].y_true[:, 0])
    for m, run in enumerate(runs):
        for weight, value in zip(weights, replicates.values[:, m, -1], strict=True):
            drawn = np.repeat(np.arange(run.units.size), weight * known)
            expected = roc_auc_score(run.y_true[drawn][:, named].ravel(), run.y_score[drawn][:, named].ravel())
            assert value == pytest.approx(expected, abs=1e-12)


def test_what_needs_probabilities_is_undefined_for_the_arm_that_has_none_and_for_differences_from_it():
    rows = [row | {"unit_kind": "image"} for row in case_rows(num_patients=25, repeats=(0,), splits=("test",))]
    logits = [row | {"y_score": 9 * row["y_score"] - 4} if row["arm_id"] == "micle" else row for row in rows]
    runs = read_runs(table(logits))
    bootstrap = Bootstrap(50, 0.05, 0)
    replicates = bootstrap.replicates(runs, "patient")
    for m, run in enumerate(runs):
        for row, interval in zip(measure(run), bootstrap.intervals(replicates, runs[0], m), strict=True):
            is_calibration = "ece" in row["metric"] or "brier" in row["metric"]
            assert (row["estimate"] is None) == (is_calibration and run.arm_id == "micle")
            if row["estimate"] is not None:
                assert interval.estimate == pytest.approx(row["estimate"], abs=1e-12)
            else:
                assert "scores are no probabilities" in row["reason"]


def with_logits(rows, of):
    """Scores of some arms and classes become logits."""
    return [row | {"y_score": 9 * row["y_score"] - 4} if of(row) else row for row in rows]


def test_what_one_model_leaves_undefined_leaves_means_of_it_alone_and_differences_over_what_both_define():
    rows = [row | {"unit_kind": "image"} for row in case_rows(num_patients=25, repeats=(0,), splits=("test",))]
    rows = with_logits(rows, lambda row: row["arm_id"] == "micle" and row["class"] == "Acne")
    pairs = [("micle", "random"), ("random", "simclr")]
    metrics = compare(table(rows), pairs=pairs, **SETTINGS)
    for metric in ("brier", "ece"):
        each = [row for row in metrics if row["metric"] == metric and row["repeat"] == "selected"]
        value = {(row["arm_a"], row["class"]): row["estimate"] for row in each if row["arm_b"] is None}
        for row in metrics:
            if row["metric"] != f"mean_{metric}" or row["repeat"] != "selected":
                continue
            arms = [arm for arm in (row["arm_a"], row["arm_b"]) if arm]
            names = CONDITIONS[1:] if "micle" in arms else CONDITIONS
            means = [np.mean([value[arm, name] for name in names]) for arm in arms]
            assert row["estimate"] == pytest.approx(means[0] - sum(means[1:]), abs=1e-12)
            assert row["ci_low"] <= row["estimate"] <= row["ci_high"]
            assert row["status"] == ("partial" if "micle" in arms else "ok")


def test_models_that_define_no_class_in_common_have_no_difference():
    rows = [row | {"unit_kind": "image"} for row in case_rows(num_patients=25, repeats=(0,), splits=("test",))]
    rows = with_logits(rows, lambda row: (row["arm_id"] == "micle") == (row["class"] in CONDITIONS[:2]))
    metrics = compare(table(rows), pairs=[("micle", "random")], **SETTINGS)
    (row,) = (row for row in metrics if row["metric"] == "mean_brier" and row["arm_b"])
    assert (row["estimate"], row["ci_low"], row["p"], row["status"]) == (None, None, None, "not_evaluable")
    assert row["reason"].endswith("no class is evaluable for both")


@pytest.mark.parametrize("num_patients", [1, 3, 9, 10])
def test_fewer_than_ten_patients_have_estimates_without_intervals_p_values_or_delong(num_patients):
    rows = [row | {"unit_kind": "image"} for row in case_rows(num_patients=40, repeats=(0,), splits=("test",))]
    rows = [row | {"patient_id": f"p{int(row['unit_id'].split('-')[1][1:]) % num_patients}"} for row in rows]
    metrics = compare(table(rows), pairs=[("micle", "random")], **SETTINGS | {"resampling_units": ["patient", "image"]})
    found = [row for row in metrics if (row["metric"], row["repeat"]) == ("mean_auc", "selected")]
    assert len(found) == 2 * 4
    for row in found:
        is_withheld = row["resampling_unit"] == "patient" and num_patients < 10
        assert row["estimate"] is not None
        intervals = [row["ci_low"], row["ci_high"], row["delong_low"], row["delong_high"]]
        p_values = [row["p"], row["p_adjusted"], row["delong_p"]] if row["arm_b"] else []
        assert [value is None for value in intervals + p_values] == [is_withheld] * len(intervals + p_values)
        assert row["status"] == ("interval_withheld" if is_withheld else "ok")
        if is_withheld:
            assert row["reason"] == f"{num_patients} patients count, an interval takes at least 10"
