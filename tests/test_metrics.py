import numpy as np
import pytest

from medssl.metrics import Evaluation, auc, evaluate_auc, mean_auc


def auc_by_pairs(y_true, y_score):
    """Share of (positive, negative) pairs in the right order; a tie is half a pair."""
    pairs = [
        (p, n)
        for p, a in zip(y_score, y_true, strict=True)
        if a == 1
        for n, b in zip(y_score, y_true, strict=True)
        if b == 0
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_auc_is_the_share_of_ordered_pairs_with_ties_as_half(digits):
    rng = np.random.default_rng(digits)
    y_true = (rng.random(60) < 0.4).astype(float)
    y_score = np.round(rng.normal(size=60) + y_true, digits)
    assert auc(y_true, y_score) == pytest.approx(auc_by_pairs(y_true, y_score), abs=1e-12)


def test_units_without_a_truth_are_left_out():
    y_true, y_score = np.array([1, 0, np.nan, 1, np.nan]), np.array([0.9, 0.5, 0.0, 0.1, 1.0])
    assert evaluate_auc(y_true, y_score) == Evaluation(0.5, 3, 2, "")


@pytest.mark.parametrize(
    ("truth", "reason"),
    [([1, 1], "no negatives"), ([0, np.nan], "no positives"), ([], "no positives and no negatives")],
)
def test_a_missing_class_is_none_with_a_reason(truth, reason):
    evaluation = evaluate_auc(np.array(truth, dtype=float), np.arange(len(truth), dtype=float))
    assert (evaluation.value, evaluation.reason) == (None, reason)
    assert auc(np.array(truth, dtype=float), np.arange(len(truth), dtype=float)) is None


def test_mean_auc_averages_evaluable_classes_and_names_the_others():
    edema, effusion = Evaluation(0.75, 10, 4, ""), Evaluation(0.25, 8, 2, "")
    assert mean_auc({"Edema": edema, "Pleural Effusion": effusion}) == Evaluation(0.5, 18, 6, "")
    partial = mean_auc({"Edema": edema, "Consolidation": Evaluation(None, 9, 9, "no negatives")})
    assert partial == Evaluation(0.75, 10, 4, "not evaluable: Consolidation (no negatives)")


def test_mean_auc_without_an_evaluable_class_is_none():
    assert mean_auc({"Edema": Evaluation(None, 3, 3, "no negatives")}).value is None
