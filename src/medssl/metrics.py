"""Metrics of predictions against the truth: the only module that imports scikit-learn.

A metric that the data cannot define (a finding without negatives) is None with a reason, never NaN and never
an error: rare findings and small subgroups meet this case in ordinary use.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """One metric on one sample.

    Attributes:
        value: The metric, or None where it is not defined.
        n_units: Units (images or cases) with a known truth.
        n_positive: Units among them that are positive.
        reason: Why `value` is None, or which classes a mean leaves out; "" when there is nothing to say.
    """

    value: float | None
    n_units: int
    n_positive: int
    reason: str


def auc(y_true: NDArray[np.float64], y_score: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve; a tie between a positive and a negative counts one half.

    Args:
        y_true: Shape (n,), 1 positive, 0 negative, NaN not known: such units are left out.
        y_score: Shape (n,), finite; higher means more likely positive.

    Returns:
        A value in 0-1, or None when no positive or no negative is left.
    """
    return evaluate_auc(y_true, y_score).value


def evaluate_auc(y_true: NDArray[np.float64], y_score: NDArray[np.float64]) -> Evaluation:
    """`auc` with its counts, and with the reason where it is not defined."""
    known = ~np.isnan(y_true)
    truth = y_true[known]
    n_units, n_positive = truth.size, int(np.count_nonzero(truth == 1))
    missing = [name for name, n in (("positives", n_positive), ("negatives", n_units - n_positive)) if n == 0]
    if missing:
        return Evaluation(None, n_units, n_positive, f"no {' and no '.join(missing)}")
    # Imported here: it takes a second, and most stages that import this module's dataclass never need it.
    from sklearn.metrics import roc_auc_score

    return Evaluation(float(roc_auc_score(truth, y_score[known])), n_units, n_positive, "")


def mean_auc(per_class: Mapping[str, Evaluation]) -> Evaluation:
    """Plain mean of the AUCs of the classes where it is defined (the paper's mean AUC over five findings).

    Args:
        per_class: Class name to its evaluation.

    Returns:
        The mean; None when no class is evaluable. `reason` names every class left out. `n_units` and
        `n_positive` count labels, summed over the classes that the mean covers.
    """
    evaluable = [e for e in per_class.values() if e.value is not None]
    left_out = [f"{name} ({e.reason})" for name, e in per_class.items() if e.value is None]
    return Evaluation(
        float(np.mean([e.value for e in evaluable])) if evaluable else None,
        sum(e.n_units for e in evaluable),
        sum(e.n_positive for e in evaluable),
        f"not evaluable: {', '.join(left_out)}" if left_out else "",
    )


def top_k_accuracy(y_true_NC: NDArray[np.float64], y_score_NC: NDArray[np.float64], *, k: int) -> Evaluation:
    """PLACEHOLDER until the merge."""
    known = ~np.isnan(y_true_NC).any(axis=1)
    order = np.argsort(-y_score_NC[known], axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(y_true_NC[known], order, axis=1).any(axis=1)
    if not hits.size:
        return Evaluation(None, 0, 0, "no cases")
    return Evaluation(float(hits.mean()), hits.size, hits.size, "")
