"""Metrics of predictions against the truth.

A metric that the data cannot define (a finding without negatives) is None with a reason, never NaN and never
an error: rare findings and small subgroups meet this case in ordinary use. Where scikit-learn has the metric its value
is the same to 1e-12; one sort of the scores serves all metrics that rank units, where scikit-learn sorts for each.

Shape suffixes: N units, C classes. Truth is float: 1, 0, or NaN where not known.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOP_K = (1, 3)  # the k of top-k metrics (supplement B.1.1)
OTHER = "Other"  # the class of all conditions that the study does not name; no mean of sensitivities holds it


@dataclass(frozen=True)
class Metric:
    """A metric over all classes.

    Attributes:
        name: As the metrics table names it.
        k: Of a top-k metric, else None.
        part: The metric of one class that this one is the mean of; "" where it is no mean over classes.
    """

    name: str
    k: int | None
    part: str

    @property
    def log_name(self) -> str:
        """The metric as curves and runs are named, with its k: "mean_auc", "top_1_accuracy"."""
        return self.name.replace("_k_", f"_{self.k}_")


# What decides for each kind of unit: models are chosen, differences tested and subgroups compared by it. Images have
# findings and cases have one of many conditions (Azizi et al. 2021, Tables B.3 and B.6; supplement B.1.1).
PRIMARY: Mapping[str, Metric] = MappingProxyType(
    {"image": Metric("mean_auc", None, "auc"), "case": Metric("top_k_accuracy", 1, "")}
)


def unit_kind(metric_names: Container[str]) -> str:
    """The kind of unit that a metrics table is about, told by the names of its metrics: only cases have a top k."""
    return "case" if PRIMARY["case"].name in metric_names else "image"


@dataclass(frozen=True)
class Evaluation:
    """One metric on one sample.

    Attributes:
        value: The metric, or None where it is not defined.
        n_units: Units (images or cases) with a known truth.
        n_positive: Units among them that are positive; of top-k metrics, whose truth holds a condition.
        reason: Why `value` is None, or which classes a mean leaves out; "" when there is nothing to say.
    """

    value: float | None
    n_units: int
    n_positive: int
    reason: str


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units by score: how many a threshold calls positive, rightly and wrongly. Tied units pass it together.

    Attributes:
        true_positives: At each different score, from the highest, the positives that score as much; shape (T,).
        false_positives: The negatives that score as much; shape (T,).
        n_units: Units with a known truth.
        n_positive: Positives among them.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    n_units: int
    n_positive: int

    def auc(self) -> Evaluation:
        """Area under the ROC curve; a tie between a positive and a negative counts one half."""
        before = np.concatenate([[0], self.true_positives[:-1]])
        passed = np.diff(self.false_positives, prepend=0)
        # Twice the area in whole numbers: the quotient is the only rounding.
        twice = int(np.sum(passed * (before + self.true_positives)))
        return self._evaluation(twice, 2 * self.n_positive * (self.n_units - self.n_positive))

    def average_precision(self) -> Evaluation:
        """Precision at each threshold, weighted by the share of the positives that it adds; no interpolation."""
        found = np.diff(self.true_positives, prepend=0)
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return self._evaluation(float(np.sum(found * precision)), self.n_positive)

    def sensitivity(self, *, specificity: float) -> Evaluation:
        """Largest sensitivity over the thresholds that keep at least this specificity, in 0-1; no interpolation."""
        num_negatives = max(1, self.n_units - self.n_positive)
        num_points = int(np.count_nonzero(1 - self.false_positives / num_negatives >= specificity))
        return self._evaluation(int(self.true_positives[num_points - 1]) if num_points else 0, self.n_positive)

    def _evaluation(self, numerator: float, denominator: int) -> Evaluation:
        counts = (("positives", self.n_positive), ("negatives", self.n_units - self.n_positive))
        missing = [name for name, count in counts if count == 0]
        value = None if missing else float(numerator / denominator)
        return Evaluation(value, self.n_units, self.n_positive, f"no {' and no '.join(missing)}" if missing else "")


def rank(y_true: Floats, y_score: Floats) -> Ranking:
    """Sort units by score.

    Args:
        y_true: Shape (n,), 1 positive, 0 negative, NaN not known: such units are left out.
        y_score: Shape (n,), finite; higher means more likely positive.
    """
    known = ~np.isnan(y_true)
    order = np.argsort(-y_score[known], kind="stable")
    truth, scores = y_true[known][order] == 1, y_score[known][order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1) if scores.size else np.empty(0, int)
    true_positives = np.cumsum(truth, dtype=np.int64)[last_of_tie]
    return Ranking(true_positives, 1 + last_of_tie - true_positives, truth.size, int(np.count_nonzero(truth)))


def evaluate_auc(y_true: Floats, y_score: Floats) -> Evaluation:
    """Area under the ROC curve; arguments as `rank`."""
    return rank(y_true, y_score).auc()


def auc(y_true: Floats, y_score: Floats) -> float | None:
    """The value of `evaluate_auc`."""
    return evaluate_auc(y_true, y_score).value


def class_mean(per_class: Mapping[str, Evaluation]) -> Evaluation:
    """Plain mean of a metric over the classes where it is defined (the paper's mean AUC over five findings).

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


def primary(y_true_NC: Floats, y_score_NC: Floats, *, kind: str, classes: Sequence[str]) -> Evaluation:
    """The metric that chooses models: top-1 accuracy over cases, the mean of the AUCs that are defined over images.

    Args:
        y_true_NC: 1, 0, or NaN where not known.
        y_score_NC: Finite; higher means more likely.
        kind: Of the units, "image" or "case".
        classes: Names of the C columns.
    """
    if kind == "case":
        return top_k_accuracy(y_true_NC, y_score_NC, k=1)
    return class_mean({name: evaluate_auc(y_true_NC[:, c], y_score_NC[:, c]) for c, name in enumerate(classes)})


def top_k_hits(y_true_NC: Floats, y_score_NC: Floats, *, k: int) -> Floats:
    """Whether any condition of a case's truth is among the k classes with the highest scores (supplement B.1.1).

    "Other" is a class as any. Of classes with equal scores the one that comes first ranks higher.

    Args:
        y_true_NC: 1 for each condition of the case's truth, which may be several; a row with a NaN is not known.
        y_score_NC: Finite; higher means more likely.
        k: > 0.

    Returns:
        Shape (N,): 1 or 0, NaN where the truth is not known; all NaN unless there are more than k classes, since
        every case would count.

    Raises:
        ValueError: On shapes that differ or a `k` below 1.
    """
    hits_NC = _among_highest(y_true_NC, y_score_NC, k) & (y_true_NC == 1)
    is_known = ~np.isnan(y_true_NC).any(axis=1) & (k < y_true_NC.shape[1])
    return np.where(is_known, hits_NC.any(axis=1), np.nan)


def top_k_recalls(y_true_NC: Floats, y_score_NC: Floats, *, k: int) -> Floats:
    """For each condition of a case's truth, whether it is among the k classes with the highest scores.

    A case with several conditions counts in each of them. Arguments, ties and errors as `top_k_hits`.

    Returns:
        Shape (N, C): 1 or 0 where the truth holds the condition, elsewhere NaN; all NaN unless C > k.
    """
    among_NC = _among_highest(y_true_NC, y_score_NC, k)
    is_known_N1 = ~np.isnan(y_true_NC).any(axis=1, keepdims=True)
    return np.where((y_true_NC == 1) & is_known_N1 & (k < y_true_NC.shape[1]), among_NC, np.nan)


def top_k_accuracy(y_true_NC: Floats, y_score_NC: Floats, *, k: int) -> Evaluation:
    """Share of the cases with a known truth that are hits at k; see `top_k_hits`."""
    return _share(top_k_hits(y_true_NC, y_score_NC, k=k), k, y_true_NC.shape[1], "no case with a known truth")


def top_k_sensitivity(y_true_NC: Floats, y_score_NC: Floats, *, k: int) -> list[Evaluation]:
    """For each condition, the share of its cases in which it is among the k highest; see `top_k_recalls`."""
    recalls_NC = top_k_recalls(y_true_NC, y_score_NC, k=k)
    return [_share(recalls_N, k, y_true_NC.shape[1], "no positives") for recalls_N in recalls_NC.T]


def named(classes: Sequence[str]) -> list[str]:
    """The classes that stand for one condition each: all but `OTHER`, which no mean holds (supplement B.1.1)."""
    return [name for name in classes if name != OTHER]


def _among_highest(y_true_NC: Floats, y_score_NC: Floats, k: int) -> NDArray[np.bool_]:
    if k < 1 or y_score_NC.ndim != 2 or y_true_NC.shape != y_score_NC.shape:
        raise ValueError(
            f"top-k metrics need k >= 1 and truth and scores of one shape (units, classes), got k={k}, "
            f"{y_true_NC.shape} and {y_score_NC.shape}"
        )
    # Stable, so that of equal scores the first class stays first.
    order_NC = np.argsort(-y_score_NC, axis=1, kind="stable")
    among_NC = np.zeros(y_score_NC.shape, dtype=bool)
    np.put_along_axis(among_NC, order_NC[:, :k], True, axis=1)
    return among_NC


def _share(hits_N: Floats, k: int, num_classes: int, reason_if_none: str) -> Evaluation:
    known = hits_N[~np.isnan(hits_N)]
    if num_classes <= k:
        return Evaluation(None, 0, 0, f"the top {k} of {num_classes} classes would hold every one")
    if not known.size:
        return Evaluation(None, 0, 0, reason_if_none)
    return Evaluation(float(np.count_nonzero(known) / known.size), known.size, known.size, "")
