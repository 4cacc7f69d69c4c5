import numpy as np
import pyarrow as pa
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medssl import schema
from medssl.analysis import calibration
from medssl.analysis.compare import compare, reliability_curves
from medssl.analysis.runs import read_runs
from tests.analysis.case_predictions import CONDITIONS, case_rows, table


def probabilities(rng, num_units, num_classes):
    scores = np.exp(2 * rng.normal(size=(num_units, num_classes)))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("digits", [1, 2, 12])
def test_the_curve_equals_scikit_learn_and_the_error_a_slow_loop(digits):
    rng = np.random.default_rng(digits)
    y_score = np.round(rng.random(400), digits)  # on the ends of bins, too
    y_true = (rng.random(400) < y_score).astype(float)
    curve = calibration.reliability(y_true, y_score)
    occupied = curve.n_units > 0
    share, mean = calibration_curve(y_true, y_score, n_bins=15)
    np.testing.assert_allclose(curve.sum_positive[occupied] / curve.n_units[occupied], share, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.sum_score[occupied] / curve.n_units[occupied], mean, rtol=0, atol=1e-12)
    slow = 0.0
    for low, high in zip(curve_edges := np.linspace(0, 1, 16), curve_edges[1:], strict=False):
        inside = [i for i in range(400) if low < y_score[i] <= high or (low == 0 and y_score[i] == 0)]
        if inside:
            slow += len(inside) / 400 * abs(np.mean(y_true[inside]) - np.mean(y_score[inside]))
    assert curve.error().value == pytest.approx(slow, abs=1e-12)


def test_the_brier_score_of_a_class_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y_true, y_score = (rng.random(300) < 0.3).astype(float), rng.random(300)
    found = calibration.brier(calibration.brier_terms(y_true, y_score), y_score)
    assert found.value == pytest.approx(brier_score_loss(y_true, y_score), abs=1e-12)


def test_the_brier_score_over_all_classes_equals_scikit_learn_for_one_condition_a_case():
    rng = np.random.default_rng(1)
    condition, y_score = rng.integers(4, size=200), probabilities(rng, 200, 4)
    found = calibration.brier(calibration.multiclass_brier_terms(np.eye(4)[condition], y_score), y_score)
    expected = brier_score_loss(condition, y_score, labels=range(4), scale_by_half=False)
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_conditions_of_a_case_share_its_truth_evenly():
    truth = np.array([[1.0, 1.0, 0.0]])
    assert calibration.multiclass_brier_terms(truth, np.array([[0.5, 0.5, 0.0]])).tolist() == [0]
    assert calibration.multiclass_brier_terms(truth, np.array([[1.0, 0.0, 0.0]])).tolist() == [0.5]


def test_scores_that_say_what_happens_are_calibrated_and_those_that_never_do_are_not():
    y_true = np.array([1.0, 1, 0, 0, np.nan])
    assert calibration.calibration_error(y_true, np.array([1.0, 1, 0, 0, 0.5])).value == 0
    assert calibration.calibration_error(y_true, np.array([0.0, 0, 1, 1, 0.5])).value == 1
    assert calibration.calibration_error(y_true, np.full(5, 0.5)).value == 0


def test_what_is_undefined_says_why():
    logits = np.array([2.0, -1.0])
    assert calibration.calibration_error(np.ones(2), logits).reason == "scores are no probabilities"
    assert calibration.brier(np.ones(2), logits).value is None
    unknown = np.full(2, np.nan)
    assert calibration.calibration_error(unknown, np.full(2, 0.5)).reason == "no unit with a known truth"
    assert calibration.brier(unknown, np.full(2, 0.5)).reason == "no unit with a known truth"


def test_scores_over_all_classes_are_probabilities_only_if_they_sum_to_one():
    truth = np.eye(3)
    for scores, expected in (
        (np.full((3, 3), 1 / 3), 2 / 3),
        (np.full((3, 3), 0.3335), pytest.approx(2 / 3, abs=1e-3)),
    ):
        assert calibration.brier(calibration.multiclass_brier_terms(truth, scores), scores).value == expected
        assert calibration.top_label_error(truth, scores).value is not None
    for scores in (np.full((3, 3), 0.5), np.full((3, 3), 0.33), np.eye(3) - 0.5):
        for found in (
            calibration.brier(calibration.multiclass_brier_terms(truth, scores), scores),
            calibration.top_label_error(truth, scores),
        ):
            assert (found.value, found.reason) == (None, "scores are no probabilities that sum to 1")


def test_scores_of_one_condition_against_the_rest_have_no_brier_score_of_all_in_metrics_or_resamples():
    rows = [row | {"y_score": row["y_score"] ** 0.5} for row in case_rows(num_patients=20, repeats=(0,))]
    metrics = compare(table(rows), pairs=[], num_replicates=100, alpha=0.1, resampling_units=["patient"], seed=0)
    for row in (r for r in metrics if r["metric"] in ("multiclass_brier", "top_label_ece")):
        assert (row["status"], row["estimate"], row["ci_low"]) == ("not_evaluable", None, None)
    assert {row["status"] for row in metrics if row["metric"] == "mean_brier"} == {"ok"}
    assert reliability_curves(read_runs(table(rows))) == []


def test_the_top_label_is_the_highest_class_and_right_if_the_case_has_it():
    truth = np.array([[1.0, 0, 1], [0, 1, 0], [np.nan] * 3])
    hits, confidence = calibration.top_label(truth, np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]))
    np.testing.assert_array_equal(hits, [1, 0, np.nan])
    np.testing.assert_array_equal(confidence, [0.5, 0.6, 0.8])


def test_reliability_curves_give_back_the_calibration_error_of_the_metrics():
    predictions = table(case_rows(num_patients=30))
    curves = reliability_curves(read_runs(predictions))
    made = pa.Table.from_pylist(curves, schema=schema.CALIBRATION.columns)
    assert schema.check(made, schema.CALIBRATION, "calibration.parquet").to_pylist() == curves
    assert {(row["split"], row["class"]) for row in curves} == {("test", "")}
    assert sorted({row["bin"] for row in curves}) == list(range(15))
    metrics = compare(predictions, pairs=[], num_replicates=100, alpha=0.05, resampling_units=["patient"], seed=0)
    for arm in ("micle", "random"):
        bins = [row for row in curves if row["arm_id"] == arm and row["n_units"]]
        total = sum(row["n_units"] for row in bins)
        error = sum(row["n_units"] * abs(row["share_positive"] - row["mean_score"]) for row in bins) / total
        (row,) = (r for r in metrics if (r["metric"], r["arm_a"], r["repeat"]) == ("top_label_ece", arm, "selected"))
        assert row["estimate"] == pytest.approx(error, abs=1e-12)


def test_curves_of_images_are_one_a_finding_and_none_where_scores_are_logits():
    rows = [row | {"unit_kind": "image"} for row in case_rows(num_patients=20, splits=("test",), repeats=(0,))]
    assert {row["class"] for row in reliability_curves(read_runs(table(rows)))} == set(CONDITIONS)
    logits = [row | {"y_score": 9 * row["y_score"]} for row in rows]
    assert reliability_curves(read_runs(table(logits))) == []
