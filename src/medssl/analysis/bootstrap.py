"""Paired bootstrap of ranked quantities, shares and calibration errors, over patients or over single units.

A resample is a vector of weights, so nothing is copied and nothing is sorted again: each model's scores are ranked
once, and what is computed on a resample are sums of weights in that order, many resamples at a time. All models see the
same resamples, which makes their differences paired (Azizi et al. 2021, supplement B.1.1: 1,000 replicates, 95 %
percentile interval).

Shape suffixes: R replicates, L lanes (replicates of a block), M models, Q quantities, in the order of `Quantities`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.quantities import (
    AUC,
    RANKED,
    Calibration,
    Fill,
    Quantities,
    calibration_fills,
    pooled_fills,
    ranked_fills,
    share_fills,
)
from medssl.analysis.resampling import resamples

Floats = NDArray[np.float64]

# Above this share of replicates that lack a class, the others no longer stand for all resamples.
MAX_LACKING_SHARE = 0.05
# Fewer clusters that count get no interval and no p value, as percentiles are too narrow then: in simulations two equal
# models differ at the 5 % level in 12 % of samples of 5 patients with 6 images each, in 7 % of 10 and in 5 % of 20 and
# more; by DeLong's test in 14 %, 8 % and 6 %.
MIN_CLUSTERS = 10


@dataclass(frozen=True)
class Interval:
    """A metric, or a difference of two models, with its percentile interval.

    Attributes:
        estimate_a: First model on the full sample; None where the metric is not defined there.
        estimate_b: Second model; None also when there is none.
        estimate: `estimate_a`, or the difference a minus b.
        ci_low: Lower end; None when withheld.
        ci_high: Upper end; None when withheld.
        p: Two-sided p value of no difference; None for one model and when withheld.
        n_replicates: Replicates behind the interval.
        n_lacking: Replicates in which a class had no positive or no negative, or a share no unit.
        reason: Why something is None, or how many replicates lack a class; else "".
    """

    estimate_a: float | None
    estimate_b: float | None
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    n_replicates: int
    n_lacking: int
    reason: str


@dataclass(frozen=True, eq=False)
class Replicates:
    """Quantities of several models on the full sample and on the same resamples; NaN where not defined.

    Attributes:
        quantities: The order of the Q quantities.
        estimates: On the full sample, shape (M, Q).
        values: On the resamples, shape (R, M, Q).
    """

    quantities: Quantities
    estimates: Floats
    values: Floats

    def intervals(
        self, a: int, b: int | None = None, *, alpha: float, means: Sequence[Sequence[int]] | None = None
    ) -> list[Interval]:
        """Intervals of model `a`, or of `a` minus `b`: one for each of `means`.

        A mean covers the quantities that the full sample defines. A replicate that lacks one of them averages
        over the others, in both models alike, and is counted.

        Args:
            a: Index of a model.
            b: Index of the model to subtract.
            alpha: One minus the level, in 0-1.
            means: Quantities to average, by index; one alone is a mean over itself. By default each quantity, then
                the mean over all.

        Raises:
            ValueError: For an `alpha` outside 0-1.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
        models = [a] if b is None else [a, b]
        if means is None:
            num_quantities = self.estimates.shape[1]
            means = [*([q] for q in range(num_quantities)), list(range(num_quantities))]
        return [self._interval(models, quantities, alpha) for quantities in means]

    def _interval(self, models: list[int], quantities: Sequence[int], alpha: float) -> Interval:
        """Interval of the mean over `quantities`."""
        defined = [q for q in quantities if not np.isnan(self.estimates[models, q]).any()]
        if not defined:
            return Interval(None, None, None, None, None, None, 0, 0, "not evaluable on the full sample")
        estimates = [float(self.estimates[m, defined].mean()) for m in models]
        estimate = estimates[0] - estimates[1] if len(models) == 2 else estimates[0]
        draws_R, num_lacking = self._draws(models, defined)
        reason = f"{num_lacking} of {len(self.values)} replicates lack a class" if num_lacking else ""
        low = high = p = None
        if num_lacking <= MAX_LACKING_SHARE * len(self.values):
            low, high = (float(q) for q in np.quantile(draws_R, (alpha / 2, 1 - alpha / 2)))
            p = two_sided_p(draws_R) if len(models) == 2 else None
        estimate_b = estimates[1] if len(models) == 2 else None
        return Interval(estimates[0], estimate_b, estimate, low, high, p, len(draws_R), num_lacking, reason)

    def _draws(self, models: list[int], quantities: Sequence[int]) -> tuple[Floats, int]:
        """The mean, or its difference, in each replicate with a quantity; and how many replicates lack one."""
        # Replicates last, as they lie in memory; of all quantities these alone are copied.
        values_MQR = self.values.transpose(1, 2, 0)[np.ix_(models, quantities)]
        evaluable_QR = ~np.isnan(values_MQR).any(axis=0)
        counts_R = np.count_nonzero(evaluable_QR, axis=0)
        sums_MR = np.where(evaluable_QR, values_MQR, 0).sum(axis=1)
        means_MR = sums_MR[:, counts_R > 0] / counts_R[counts_R > 0]
        draws_R = means_MR[0] - means_MR[1] if len(models) == 2 else means_MR[0]
        return draws_R, int(np.count_nonzero(counts_R < len(quantities)))


def two_sided_p(differences: Floats) -> float:
    """2 (1 + min(number <= 0, number >= 0)) / (B + 1), at most 1: B replicates can show no less than 2 / (B + 1).

    The sample itself counts as one more replicate, without which p could be 0 (Davison & Hinkley 1997, 4.2.3).
    """
    least = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (1 + int(least)) / (differences.size + 1))


def paired_bootstrap(
    y_true: Floats,
    y_scores: Floats,
    clusters: NDArray[np.int64],
    *,
    num_replicates: int,
    seed: int,
    ranked: Sequence[str] = (AUC,),
    specificity: float = 0.9,
    hits: Floats | None = None,
    calibration: Calibration | None = None,
    pooled: Sequence[int] | None = None,
) -> Replicates:
    """What is asked for of every model, on the same resamples.

    A resample holds as many clusters as there are, drawn with replacement. With the patient as the cluster, images of
    one patient stay together; with `arange(n)` every unit is its own. Same seed and same number of clusters, same
    resamples, whatever the models: those of several label fractions or arms can be compared replicate by replicate.

    Args:
        y_true: Shape (N, C): 1, 0, or NaN where not known: such a unit is left out of this class.
        y_scores: Shape (M, N, C), finite; one model or more. Equal scores are ties: in AUC they count one half, and no
            threshold parts them.
        clusters: Shape (N,), any integers; equal ones are drawn as one.
        num_replicates: > 0; 1,000 in the paper.
        seed: >= 0.
        ranked: Of `quantities.RANKED`, each of every class: "auc", "average_precision",
            "sensitivity_at_specificity", the largest sensitivity of a threshold with this specificity or more.
        specificity: In 0-1; for the latter.
        hits: Shape (M, N, S): any finite number for each unit that a share counts, NaN for the others, in the same
            places for all models. A share is the mean over the units that it counts: of hits and misses an accuracy or
            a sensitivity, of squared errors the Brier score. None: no shares.
        calibration: None: no calibration errors.
        pooled: Classes that are ranked together too, for one AUC of all of them. None: no such AUC.

    Raises:
        ValueError: On shapes that do not fit, numbers out of range, or without a unit or a replicate.
    """
    hits = np.empty((*y_scores.shape[:2], 0)) if hits is None else hits
    _check_shapes(y_true, y_scores, clusters, hits)
    _check_values(y_scores, hits, num_replicates, ranked, specificity)
    if calibration is not None:
        _check_calibration(calibration, y_scores.shape[:2])
    num_calibrated = 0 if calibration is None else calibration.y_true.shape[2]
    order = Quantities(tuple(ranked), y_true.shape[1], hits.shape[2], num_calibrated, pooled is not None)
    names, places_N = np.unique(clusters, return_inverse=True)
    cluster_N: NDArray[np.int32] = places_N.astype(np.int32)
    fills = [
        *ranked_fills(order, y_true, y_scores, cluster_N, specificity),
        *share_fills(order, hits, cluster_N),
        *calibration_fills(order, calibration, cluster_N),
        *pooled_fills(order, y_true, y_scores, cluster_N, pooled),
    ]
    values = _filled(fills, (len(y_scores), len(order)), names.size, num_replicates, seed)
    return Replicates(order, values[num_replicates].copy(), values[:num_replicates])


def _filled(fills: Sequence[Fill], shape: tuple[int, int], num_clusters: int, num_replicates: int, seed: int) -> Floats:
    """What `fills` write for each replicate, then for the full sample; shape (R + 1 or more, M, Q)."""
    from medssl.analysis.kernels import LANES  # importing the compiler takes a second

    # All memory at once: many models and replicates make this large, and to join blocks would take it twice.
    values_MQR = np.empty((*shape, (num_replicates // LANES + 1) * LANES))
    # The full sample is one more replicate, in which every cluster is drawn once.
    for b, block in enumerate(resamples(num_clusters, num_replicates=num_replicates + 1, seed=seed)):
        if b == num_replicates // LANES:
            block.count_CL[:, num_replicates % LANES] = 1
        value_MQL = values_MQR[:, :, b * LANES : (b + 1) * LANES]
        for fill in fills:
            fill(block, value_MQL)
    return values_MQR.transpose(2, 0, 1)


def _check_shapes(y_true: Floats, y_scores: Floats, clusters: NDArray[np.int64], hits: Floats) -> None:
    if y_scores.ndim != 3 or y_scores.shape[1:] != y_true.shape or clusters.shape != y_true.shape[:1]:
        raise ValueError(
            f"scores {y_scores.shape} must be (models, *truth) and clusters {clusters.shape} (units,), "
            f"with truth {y_true.shape} as (units, classes)"
        )
    if hits.ndim != 3 or hits.shape[:2] != y_scores.shape[:2] or (np.isnan(hits) != np.isnan(hits[:1])).any():
        raise ValueError(
            f"hits {hits.shape} must be (models, units, shares) with scores {y_scores.shape} as (models, units, "
            "classes), and NaN in the same places for all models"
        )


def _check_values(
    y_scores: Floats, hits: Floats, num_replicates: int, ranked: Sequence[str], specificity: float
) -> None:
    if (y_scores.size and not np.isfinite(y_scores).all()) or np.isinf(hits).any():
        raise ValueError("scores and hits must be finite; some are not")
    if num_replicates < 1:
        raise ValueError(f"a bootstrap needs at least one replicate, got num_replicates={num_replicates}")
    if not set(ranked) <= set(RANKED) or len(set(ranked)) != len(ranked):
        raise ValueError(f"ranked: expected distinct ones of {RANKED}, got {tuple(ranked)}")
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity must lie in 0-1, got {specificity}")


def _check_calibration(calibration: Calibration, expected: tuple[int, ...]) -> None:
    y_true, y_score = calibration.y_true, calibration.y_score
    if y_true.ndim != 3 or y_true.shape != y_score.shape or y_true.shape[:2] != expected:
        raise ValueError(
            f"calibration: truth {y_true.shape} and scores {y_score.shape} must be (models, units, any), with "
            f"{expected} models and units"
        )
    if calibration.num_bins < 1 or not ((y_score >= 0) & (y_score <= 1)).all():
        raise ValueError(f"calibration needs scores in 0-1 and at least one bin, got {calibration.num_bins} bins")
