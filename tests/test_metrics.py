import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

from medssl.config import TaskConfig
from medssl.metrics import (
    PRIMARY,
    Evaluation,
    auc,
    class_mean,
    evaluate_auc,
    named,
    rank,
    top_k_accuracy,
    top_k_sensitivity,
    unit_kind,
)


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


@pytest.mark.parametrize(("digits", "num_units"), [(0, 50), (1, 300), (1, 5000), (9, 300), (9, 5000)])
def test_ranking_metrics_equal_scikit_learn(digits, num_units):
    rng = np.random.default_rng(digits + num_units)
    y_true = (rng.random(num_units) < 0.2).astype(float)
    y_score = np.round(rng.normal(size=num_units) + y_true, digits)
    ranking = rank(y_true, y_score)
    assert ranking.auc().value == pytest.approx(roc_auc_score(y_true, y_score), abs=1e-12)
    assert ranking.average_precision().value == pytest.approx(average_precision_score(y_true, y_score), abs=1e-12)
    false_positive_rates, sensitivities, _ = roc_curve(y_true, y_score, drop_intermediate=False)
    for specificity in (0.05, 0.5, 0.8, 0.9, 0.95, 0.999):
        expected = sensitivities[1 - false_positive_rates >= specificity].max()
        assert ranking.sensitivity(specificity=specificity).value == pytest.approx(expected, abs=1e-12)


def test_micro_averaging_over_flattened_classes_equals_scikit_learn():
    rng = np.random.default_rng(3)
    y_true, y_score = np.eye(5)[rng.integers(5, size=200)], np.round(rng.random((200, 5)), 1)
    expected = roc_auc_score(y_true, y_score, average="micro")
    assert evaluate_auc(y_true.ravel(), y_score.ravel()).value == pytest.approx(expected, abs=1e-12)


def test_a_threshold_must_keep_the_specificity_and_nothing_lies_between_thresholds():
    # Of ten negatives one may be called positive at 0.9; the tie of two negatives and a positive is passed as a whole.
    y_true = np.array([1, 0, 1, 0, 0, 1, *[0] * 7], dtype=float)
    y_score = np.array([9, 8, 7, 6, 6, 6, *range(-7, 0)], dtype=float)
    assert rank(y_true, y_score).sensitivity(specificity=0.9).value == 2 / 3
    assert rank(y_true, y_score).sensitivity(specificity=0.91).value == 1 / 3
    assert rank(y_true, y_score).sensitivity(specificity=0.7).value == 1


def test_a_perfect_order_is_worth_one_and_the_opposite_little():
    y_true = np.array([0, 0, 0, 1, 1], dtype=float)
    best, worst = rank(y_true, np.arange(5.0)), rank(y_true, -np.arange(5.0))
    assert [best.auc().value, best.average_precision().value] == [1, 1]
    assert best.sensitivity(specificity=0.99).value == 1
    assert worst.auc().value == 0
    assert worst.average_precision().value == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert worst.sensitivity(specificity=0.5).value == 0


@pytest.mark.parametrize("truth", [[1, 1, 1], [0, 0], [], [np.nan]])
def test_no_ranking_metric_is_defined_without_both_classes(truth):
    ranking = rank(np.array(truth, dtype=float), np.arange(len(truth), dtype=float))
    for found in (ranking.auc(), ranking.average_precision(), ranking.sensitivity(specificity=0.5)):
        assert found.value is None
        assert found.reason.startswith("no ")


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


def test_a_mean_over_classes_averages_evaluable_classes_and_names_the_others():
    edema, effusion = Evaluation(0.75, 10, 4, ""), Evaluation(0.25, 8, 2, "")
    assert class_mean({"Edema": edema, "Pleural Effusion": effusion}) == Evaluation(0.5, 18, 6, "")
    partial = class_mean({"Edema": edema, "Consolidation": Evaluation(None, 9, 9, "no negatives")})
    assert partial == Evaluation(0.75, 10, 4, "not evaluable: Consolidation (no negatives)")


def test_a_mean_over_classes_without_an_evaluable_class_is_none():
    assert class_mean({"Edema": Evaluation(None, 3, 3, "no negatives")}).value is None


def cases(*, num_cases=200, num_classes=7, digits=1, seed=0):
    """Sets of one to three conditions a case, some cases unknown, scores with ties; the truth as sets too."""
    rng = np.random.default_rng(seed)
    truths = [set(rng.choice(num_classes, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(num_cases)]
    truths = [truth if rng.random() > 0.1 else None for truth in truths]
    y_true = np.array(
        [[np.nan if t is None else float(c in t) for c in range(num_classes)] for t in truths], dtype=float
    )
    return truths, y_true, np.round(rng.normal(size=y_true.shape) + np.nan_to_num(y_true), digits)


def highest(scores, k):
    """Classes of the k highest scores, one after the other; the first of equal ones wins."""
    left, chosen = list(range(len(scores))), []
    for _ in range(k):
        best = left[0]
        for c in left:
            if scores[c] > scores[best]:
                best = c
        left.remove(best)
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(("k", "digits"), [(1, 0), (3, 0), (1, 6), (3, 6)])
def test_top_k_metrics_equal_a_slow_loop_over_sets_of_conditions(k, digits):
    truths, y_true, y_score = cases(digits=digits)
    known = [
        (truth, highest(list(scores), k)) for truth, scores in zip(truths, y_score, strict=True) if truth is not None
    ]
    hits = [any(c in truth for c in chosen) for truth, chosen in known]
    assert top_k_accuracy(y_true, y_score, k=k) == Evaluation(sum(hits) / len(hits), len(hits), len(hits), "")
    for c, evaluation in enumerate(top_k_sensitivity(y_true, y_score, k=k)):
        of_condition = [c in chosen for truth, chosen in known if c in truth]
        assert evaluation.value == sum(of_condition) / len(of_condition)
        assert evaluation.n_units == len(of_condition)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_equals_scikit_learn_for_one_condition_a_case_and_no_ties(k):
    rng = np.random.default_rng(k)
    condition, y_score = rng.integers(6, size=300), rng.random((300, 6))
    expected = top_k_accuracy_score(condition, y_score, k=k, labels=range(6))
    assert top_k_accuracy(np.eye(6)[condition], y_score, k=k).value == expected


def test_mean_top_1_sensitivity_is_the_balanced_accuracy_of_one_condition_a_case():
    rng = np.random.default_rng(4)
    condition, y_score = rng.integers(6, size=300), rng.random((300, 6))
    per_class = dict(zip("abcdef", top_k_sensitivity(np.eye(6)[condition], y_score, k=1), strict=True))
    expected = balanced_accuracy_score(condition, y_score.argmax(axis=1))
    assert class_mean(per_class).value == pytest.approx(expected, abs=1e-12)


def test_equal_scores_rank_by_the_order_of_the_classes():
    assert top_k_accuracy(np.eye(5), np.zeros((5, 5)), k=2).value == 2 / 5
    assert [e.value for e in top_k_sensitivity(np.eye(5), np.zeros((5, 5)), k=2)] == [1, 1, 0, 0, 0]


def test_top_k_metrics_see_only_the_order_of_the_scores_within_a_case():
    _, y_true, y_score = cases()
    order = np.random.default_rng(1).permutation(len(y_true))
    bent = np.exp(y_score) * np.arange(1, len(y_true) + 1)[:, None]
    for metric in (top_k_accuracy, top_k_sensitivity):
        assert metric(y_true[order], y_score[order], k=3) == metric(y_true, y_score, k=3)
        assert metric(y_true, bent, k=3) == metric(y_true, y_score, k=3)


def test_means_over_named_conditions_leave_out_other_alone():
    assert named(["Acne", "Other", "Tinea"]) == ["Acne", "Tinea"]


def test_top_k_metrics_that_the_data_cannot_define_are_none_with_a_reason():
    y_score = np.random.default_rng(0).random((4, 3))
    unknown = top_k_accuracy(np.full((4, 3), np.nan), y_score, k=1)
    assert (unknown.value, unknown.reason) == (None, "no case with a known truth")
    absent = top_k_sensitivity(np.eye(3)[[0, 0, 1, 1]], y_score, k=1)[2]
    assert (absent.value, absent.n_units, absent.reason) == (None, 0, "no positives")
    for evaluation in (
        top_k_accuracy(np.eye(3)[[0, 1, 2, 2]], y_score, k=3),
        *top_k_sensitivity(np.eye(3)[[0, 1, 2, 2]], y_score, k=3),
    ):
        assert (evaluation.value, evaluation.reason) == (None, "the top 3 of 3 classes would hold every one")


def test_bad_arguments_of_top_k_metrics_are_named():
    with pytest.raises(ValueError, match="k=0"):
        top_k_accuracy(np.eye(3), np.eye(3), k=0)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(3, 2\)"):
        top_k_sensitivity(np.eye(3), np.eye(3)[:, :2], k=1)


def test_the_primary_metric_is_told_by_the_metrics_of_a_table():
    assert unit_kind({"auc", "mean_auc"}) == "image"
    assert unit_kind({"auc", "mean_auc", "top_k_accuracy"}) == "case"
    assert [metric.log_name for metric in PRIMARY.values()] == ["mean_auc", "top_1_accuracy"]


@pytest.mark.parametrize(("kind", "unit"), [("findings", "image"), ("conditions", "case")])
def test_models_are_chosen_by_the_primary_metric(kind, unit):
    assert TaskConfig(kind=kind).selection_metric == PRIMARY[unit].log_name
