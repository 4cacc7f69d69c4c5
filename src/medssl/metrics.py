"""Metrics of predictions against the truth: the only module that imports scikit-learn.

A metric that the data cannot define (a finding without negatives) is None with a reason, never NaN and never
an error: rare findings and small subgroups meet this case in ordinary use.

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


def auc(y_true: Floats, y_score: Floats) -> float | None:
    """Area under the ROC curve; a tie between a positive and a negative counts one half.

    Args:
        y_true: Shape (n,), 1 positive, 0 negative, NaN not known: such units are left out.
        y_score: Shape (n,), finite; higher means more likely positive.

    Returns:
        A value in 0-1, or None when no positive or no negative is left.
    """
    return evaluate_auc(y_true, y_score).value


def evaluate_auc(y_true: Floats, y_score: Floats) -> Evaluation:
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
    return mean_auc({name: evaluate_auc(y_true_NC[:, c], y_score_NC[:, c]) for c, name in enumerate(classes)})


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


def mean_top_k_sensitivity(per_class: Mapping[str, Evaluation]) -> Evaluation:
    """Plain mean over the named conditions where it is defined: `OTHER` is left out (supplement B.1.1).

    With k = 1 and one condition a case it is the balanced accuracy over these conditions. Counts and `reason` as
    `mean_auc`.
    """
    return mean_auc({name: per_class[name] for name in named(list(per_class))})


def named(classes: Sequence[str]) -> list[str]:
    """The classes that stand for one condition each: all but `OTHER`."""
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
