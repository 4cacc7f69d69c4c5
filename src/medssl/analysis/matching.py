"""At which share of the labels a curve reaches a target, on the full sample and on resamples.

A curve is linear between label fractions against the logarithm of the fraction. The matching fraction is the first at
which it reaches the target. It is censored on the left where the smallest fraction already does, and on the right where
none does. Censored values are carried through resampling as -inf and inf, so that a percentile interval can be open at
an end.

Shape suffixes: R replicates, F label fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medssl.metrics import Floats

LEFT, RIGHT = -np.inf, np.inf  # of the smallest fraction, and of the largest


@dataclass(frozen=True)
class Matching:
    """A label fraction, with its interval.

    Attributes:
        estimate: In 0-1; `LEFT` or `RIGHT` where censored, None where not defined.
        ci_low: Lower end, `LEFT` where censored; None when withheld.
        ci_high: Upper end, `RIGHT` where censored; None when withheld.
        n_replicates: Replicates behind the interval.
    """

    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    n_replicates: int


def matching_fractions(fractions: Sequence[float], curve_RF: Floats, target_R: Floats) -> Floats:
    """The smallest label fraction at which each curve reaches its target.

    Args:
        fractions: F label fractions, increasing, in 0-1.
        curve_RF: The arm's metric; higher is better.
        target_R: The baseline's metric at all labels.

    Returns:
        Shape (R,): `LEFT` where the first point reaches the target, `RIGHT` where none does, NaN where the target or a
        point of the curve is NaN.
    """
    reached_RF = curve_RF >= target_R[:, None]
    first_R = np.argmax(reached_RF, axis=1)
    rows = np.arange(len(curve_RF))
    before_R = np.maximum(first_R - 1, 0)
    below, above = curve_RF[rows, before_R], curve_RF[rows, first_R]
    rise = np.where(above > below, above - below, 1.0)
    log_fractions = np.log(np.asarray(fractions))
    step = log_fractions[first_R] - log_fractions[before_R]
    found = np.exp(log_fractions[before_R] + (target_R - below) / rise * step)
    found = np.where(reached_RF.any(axis=1), np.where(reached_RF[:, 0], LEFT, found), RIGHT)
    missing = np.isnan(target_R) | np.isnan(curve_RF).any(axis=1)
    matched: Floats = np.where(missing, np.nan, found)
    return matched


def with_interval(estimate: float, draws_R: Floats, *, alpha: float, max_missing: float) -> Matching:
    """The matching fraction of the full sample with the percentile interval of its replicates.

    Args:
        estimate: `LEFT` or `RIGHT` where censored.
        draws_R: Of the replicates; NaN where not defined.
        alpha: One minus the level, in 0-1.
        max_missing: Largest share of replicates that may be NaN, above which the interval is withheld.
    """
    known = draws_R[~np.isnan(draws_R)]
    if np.isnan(estimate):
        return Matching(None, None, None, known.size)
    if not known.size or draws_R.size - known.size > max_missing * draws_R.size:
        return Matching(float(estimate), None, None, known.size)
    low, high = _quantile(known, alpha / 2, up=False), _quantile(known, 1 - alpha / 2, up=True)
    return Matching(float(estimate), low, high, known.size)


def _quantile(values: Floats, share: float, *, up: bool) -> float:
    """Linear between order statistics, as numpy's; beside a censored one the outer of the two (`up`: the upper)."""
    ordered = np.sort(values)
    position = share * (values.size - 1)
    below, above = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    if np.isfinite(below) and np.isfinite(above):
        return float(below + (position - np.floor(position)) * (above - below))
    return float(above if up else below)


def labels_saved(matching: Matching) -> Matching:
    """One minus the matching fraction; the ends change places."""
    low, high = matching.ci_low, matching.ci_high
    return replace(
        matching,
        estimate=None if matching.estimate is None else 1 - matching.estimate,
        ci_low=None if high is None else 1 - high,
        ci_high=None if low is None else 1 - low,
    )
