"""Rows and their intervals mean the same: what is measured on the full sample and what the bootstrap resamples."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medssl.analysis.measures import Bootstrap, measure, measures
from medssl.analysis.resampling import resample_weights
from medssl.analysis.runs import read_runs
from tests.analysis.case_predictions import CONDITIONS, case_rows, table


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
