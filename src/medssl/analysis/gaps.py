"""The gap between the best and the worst of several groups, freed of its upward bias, with an interval.

The largest of noisy estimates minus the smallest overstates the gap of the groups, and a percentile interval of it
never reaches 0. What noise there is, the bootstrap replicates show: their errors e are taken as draws of the errors of
the estimates t themselves, correlated as these are.

*Point.* Cross-fitting picks best and worst group on three quarters of the patients and measures them on the fourth. The
quarters need not be evaluated: with g = 1 / sqrt(3), t + g e and t - e / g are for normal errors independent, with the
variances that three quarters and one quarter have, and the mean over replicates leaves no noise of the division. The
result is the mean gap of the groups that three quarters of the data call extreme. It is 0 where all groups are equal
and right where one best and one worst group stand out; where several compete it is below the true gap, by 0.9 standard
errors of a group at most in simulations, and never above. A bootstrap estimate of the bias, the usual way, leaves 0.6
of it where groups are equal.

*Interval.* The true gap is the largest of the differences between two groups. The lower end is the largest of their
simultaneous lower ends, over the differences that may be the largest (Chernozhukov, Lee & Rosen 2013, Intersection
bounds, sections 2 and 4.1); the upper end is the largest of their single upper ends. It holds 0 when the groups are
equal, and gets wider the more groups there are: many small groups can tell little about the gap.

Shape suffixes: G groups, R replicates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.bootstrap import two_sided_p

Floats = NDArray[np.float64]

NUM_FOLDS = 4
# Errors that stand for divisions of the patients when a gap is corrected in each replicate; each with both signs.
_NUM_DIVISIONS = 64
# Share of the resamples in which the difference that is the largest may be passed over, divided by log R (ibidem).
_MISSED = 0.1
_BLOCK_SIZE = 1 << 18  # numbers in an array at a time


@dataclass(frozen=True)
class Gap:
    """Largest minus smallest estimate of some groups.

    Attributes:
        raw: As it stands: too large on average.
        corrected: Without the upward bias; below 0 where the groups differ less than noise would make them.
        ci_low: Lower end of the interval, 0 or above.
        ci_high: Upper end.
    """

    raw: float
    corrected: float
    ci_low: float
    ci_high: float

    @property
    def shown(self) -> float:
        """The corrected gap within its interval: a gap is not negative."""
        return min(max(self.corrected, self.ci_low), self.ci_high)


def gap(estimates_G: Floats, errors_RG: Floats, *, alpha: float) -> Gap:
    """The gap of two or more groups.

    Args:
        estimates_G: On the full sample.
        errors_RG: What replicates on common resamples deviate by from their mean.
        alpha: One minus the level of the interval, in 0-1.
    """
    low, high = _bounds(estimates_G, errors_RG, alpha)
    both_signs = np.concatenate([errors_RG, -errors_RG])
    return Gap(float(np.ptp(estimates_G)), float(_cross_fitted(estimates_G[None], both_signs)[0]), low, high)


def resampled_gaps(estimates_G: Floats, errors_RG: Floats) -> Floats:
    """The corrected gap in every replicate, shape (R,): for differences of gaps on common resamples.

    A percentile interval of one gap is wrong where groups are equal; a difference of two gaps has no such bound, and
    its percentile interval covers at the nominal rate or above.
    """
    some = errors_RG[:_NUM_DIVISIONS]
    return _cross_fitted(estimates_G + errors_RG, np.concatenate([some, -some]))


def difference_interval(gaps_a_R: Floats, gaps_b_R: Floats, *, alpha: float) -> tuple[float, float, float]:
    """Percentile interval of the difference of two corrected gaps, and two-sided p of none."""
    draws_R = gaps_a_R - gaps_b_R
    low, high = np.quantile(draws_R, (alpha / 2, 1 - alpha / 2))
    return float(low), float(high), two_sided_p(draws_R)


def _cross_fitted(estimates_KG: Floats, errors_DG: Floats) -> Floats:
    """Gap of the groups that t + g e calls extreme, measured on t - e / g; mean over D errors e, shape (K,)."""
    ratio = (NUM_FOLDS - 1) ** -0.5
    gaps_K = np.empty(len(estimates_KG))
    step = max(1, _BLOCK_SIZE // errors_DG.size)
    for start in range(0, len(gaps_K), step):
        estimates_k1G = estimates_KG[start : start + step, None]
        choosing_kDG, measuring_kDG = estimates_k1G + ratio * errors_DG, estimates_k1G - errors_DG / ratio
        best_kD1, worst_kD1 = (
            np.take_along_axis(measuring_kDG, scores.argmax(axis=2)[..., None], axis=2)
            for scores in (choosing_kDG, -choosing_kDG)
        )
        gaps_K[start : start + step] = (best_kD1 - worst_kD1).mean(axis=(1, 2))
    return gaps_K


def _bounds(estimates_G: Floats, errors_RG: Floats, alpha: float) -> tuple[float, float]:
    """Ends of the interval, from the D = G (G - 1) differences of two groups."""
    a_D, b_D = np.nonzero(~np.eye(len(estimates_G), dtype=bool))
    differences_D = estimates_G[a_D] - estimates_G[b_D]
    errors_RD = errors_RG[:, a_D] - errors_RG[:, b_D]
    sd_D = errors_RD.std(axis=0)
    # Groups without a single error, or with none at all, have a difference without noise.
    scaled_RD = np.divide(errors_RD, sd_D, out=np.zeros_like(errors_RD), where=sd_D > 0)
    wide = np.quantile(scaled_RD.max(axis=1), 1 - _MISSED / np.log(max(len(errors_RG), 3)))
    may_be_largest_D = differences_D >= (differences_D - wide * sd_D).max() - 2 * wide * sd_D
    critical = np.quantile(scaled_RD[:, may_be_largest_D].max(axis=1), 1 - alpha / 2)
    low = float((differences_D - critical * sd_D).max())
    high = float((differences_D - np.quantile(errors_RD, alpha / 2, axis=0)).max())
    return max(0.0, low), max(0.0, high)
