"""Paired bootstrap of AUCs and of shares of units, over patients or over single units.

A resample is a vector of weights, one a unit, so nothing is copied and nothing is sorted again: each model's
scores are ranked once, and an AUC under weights is a cumulative sum and a product; a share (top-k accuracy or
sensitivity) is a product of the weights and of what is 1 for each unit that counts. All models see the same
resamples, which makes their differences paired (Azizi et al. 2021, supplement B.1.1: 1,000 replicates, 95 %
percentile interval).

Shape suffixes: R replicates, M models, N units, C classes, S shares, Q quantities (the C AUCs, then the S shares).
Truth is float: 1, 0, or NaN where not known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Above this share of replicates that lack a class, the others no longer stand for all resamples.
MAX_LACKING_SHARE = 0.05
# Weights in memory at a time, in bytes; a block and its cumulative sums stay near the processor's caches.
_BLOCK_BYTES = 1 << 20


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


def resample_weights(
    cluster_of_unit: NDArray[np.int64], *, num_replicates: int, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """Draw as many clusters as there are, with replacement; a unit weighs as often as its cluster was drawn.

    With the patient as the cluster, images of one patient stay together; with `arange(n)` every unit is its
    own cluster. The replicates depend on the seed and the clusters only, not on the size of the blocks.

    Args:
        cluster_of_unit: Shape (N,), any integers; equal ones belong together.
        num_replicates: Total over all blocks, > 0.
        seed: Of the generator.

    Yields:
        Blocks of shape (r, N). 8 bits do: one cluster in 256 draws has a probability below 1e-500.

    Raises:
        ValueError: Without a unit or a replicate.
    """
    if cluster_of_unit.size == 0 or num_replicates < 1:
        raise ValueError(
            f"a bootstrap needs at least one unit and one replicate, got {cluster_of_unit.size} units and "
            f"num_replicates={num_replicates}"
        )
    clusters, cluster_N = np.unique(cluster_of_unit, return_inverse=True)
    rng = np.random.default_rng(seed)
    block_size = max(1, _BLOCK_BYTES // cluster_N.size)
    for start in range(0, num_replicates, block_size):
        counts = np.empty((min(block_size, num_replicates - start), clusters.size), dtype=np.uint8)
        for row in counts:
            row[:] = np.bincount(rng.integers(clusters.size, size=clusters.size), minlength=clusters.size)
        yield np.take(counts, cluster_N, axis=1)


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Order of one model's scores for one class: all that an AUC needs besides the weights.

    Attributes:
        positives: Positive units, by score.
        negatives: Negative units, by score.
        below: For each positive, how many negatives score lower.
        up_to: For each positive, how many negatives score no higher.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    below: NDArray[np.int64]
    up_to: NDArray[np.int64]


def _rank(y_true_N: Floats, y_score_N: Floats) -> _Ranking:
    positives, negatives = (np.flatnonzero(y_true_N == label) for label in (1, 0))
    positives = positives[np.argsort(y_score_N[positives], kind="stable")]
    negatives = negatives[np.argsort(y_score_N[negatives], kind="stable")]
    positive_scores, negative_scores = y_score_N[positives], y_score_N[negatives]
    below = np.searchsorted(negative_scores, positive_scores, side="left")
    return _Ranking(positives, negatives, below, np.searchsorted(negative_scores, positive_scores, side="right"))


def _auc_of_ranking(ranking: _Ranking, weights_RN: NDArray[np.uint8]) -> Floats:
    """AUC = sum over positives of w (W_below + W_up_to) / (2 W_positives W_negatives); W sums weights."""
    # 32 bits double the speed. A term is at most (2 N w_max) w_max; the sums of terms take 64.
    heaviest = int(weights_RN.max(initial=0))
    dtype: type[np.int32] | type[np.int64] = (
        np.int32 if 2 * weights_RN.shape[1] * heaviest**2 < np.iinfo(np.int32).max else np.int64
    )
    cumulative = np.zeros((len(weights_RN), ranking.negatives.size + 1), dtype=dtype)
    # mode="clip" skips numpy's buffered bounds check; the indices are in range by construction.
    negatives = np.take(weights_RN, ranking.negatives, axis=1, mode="clip")
    np.cumsum(negatives, axis=1, dtype=dtype, out=cumulative[:, 1:])
    beaten_twice = np.take(cumulative, ranking.below, axis=1, mode="clip")
    beaten_twice += np.take(cumulative, ranking.up_to, axis=1, mode="clip")
    positives = np.take(weights_RN, ranking.positives, axis=1, mode="clip")
    numerator = (beaten_twice * positives).sum(axis=1, dtype=np.int64)
    denominator = 2 * positives.sum(axis=1, dtype=np.int64) * cumulative[:, -1].astype(np.int64)
    # Integers up to here: the quotient is the only rounding.
    aucs_R = np.full(len(weights_RN), np.nan)
    np.divide(numerator, denominator, out=aucs_R, where=denominator > 0)
    return aucs_R


def weighted_auc(y_true: Floats, y_score: Floats, weights: NDArray[np.uint8]) -> Floats:
    """AUC under each row of weights, equal to the AUC of the rows repeated `weight` times.

    Args:
        y_true: Shape (N,); NaN leaves the unit out.
        y_score: Shape (N,), finite; ties count one half.
        weights: Shape (R, N), counts >= 0.

    Returns:
        Shape (R,); NaN where the positives or the negatives have no weight.
    """
    return _auc_of_ranking(_rank(y_true, y_score), weights)


def _share_of_hits(hits_MN: Floats, weights_RN: NDArray[np.uint8]) -> Floats:
    """Weighted share of each model's units, shape (R, M); NaN where the units that count have no weight."""
    counted = np.flatnonzero(~np.isnan(hits_MN[0]))
    # Whole numbers below 2**53 in 64 bits: exact in any order of summation.
    weights = np.take(weights_RN, counted, axis=1, mode="clip").astype(np.float64)
    totals_R1 = weights.sum(axis=1, keepdims=True)
    shares_RM = np.full((len(weights_RN), len(hits_MN)), np.nan)
    np.divide(weights @ hits_MN[:, counted].T, totals_R1, out=shares_RM, where=totals_R1 > 0)
    return shares_RM


@dataclass(frozen=True, eq=False)
class Replicates:
    """AUCs and shares of several models on the full sample and on the same resamples; NaN where not defined.

    Attributes:
        estimates: On the full sample, shape (M, Q).
        values: On the resamples, shape (R, M, Q).
    """

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
        values_RMQ = self.values[:, models][:, :, defined]
        evaluable_RQ: NDArray[np.bool_] = ~np.any(np.isnan(values_RMQ), axis=1)
        num_lacking = int(np.count_nonzero(~np.all(evaluable_RQ, axis=1)))
        counts_R = np.count_nonzero(evaluable_RQ, axis=1)
        sums_RM = np.where(evaluable_RQ[:, None], values_RMQ, 0).sum(axis=2)
        means_RM = sums_RM[counts_R > 0] / counts_R[counts_R > 0, None]
        draws_R = means_RM[:, 0] - means_RM[:, 1] if len(models) == 2 else means_RM[:, 0]
        reason = f"{num_lacking} of {len(values_RMQ)} replicates lack a class" if num_lacking else ""
        low = high = p = None
        if num_lacking <= MAX_LACKING_SHARE * len(values_RMQ):
            low, high = (float(q) for q in np.quantile(draws_R, (alpha / 2, 1 - alpha / 2)))
            p = two_sided_p(draws_R) if len(models) == 2 else None
        estimate_b = estimates[1] if len(models) == 2 else None
        return Interval(estimates[0], estimate_b, estimate, low, high, p, len(draws_R), num_lacking, reason)


def two_sided_p(differences: Floats) -> float:
    """2 min(share <= 0, share >= 0), at least 1 / R and at most 1: R replicates cannot show less."""
    share = min(float((differences <= 0).mean()), float((differences >= 0).mean()))
    return min(1.0, max(2 * share, 1 / differences.size))


def paired_bootstrap(
    y_true: Floats,
    y_scores: Floats,
    clusters: NDArray[np.int64],
    *,
    num_replicates: int,
    seed: int,
    hits: Floats | None = None,
) -> Replicates:
    """AUC of every model and class, and every share, on the same resamples.

    Args:
        y_true: Shape (N, C).
        y_scores: Shape (M, N, C), finite; one model or more.
        clusters: Shape (N,); what is drawn as one, see `resample_weights`.
        num_replicates: > 0; 1,000 in the paper.
        seed: Same seed and clusters, same resamples.
        hits: Shape (M, N, S): 1 or 0 for each unit that a share counts, NaN for the others, in the same places for
            all models. A share is the mean over the units that it counts. None: no shares.

    Raises:
        ValueError: On shapes that do not fit, or without a unit or a replicate.
    """
    hits = np.empty((*y_scores.shape[:2], 0)) if hits is None else hits
    _check_shapes(y_true, y_scores, clusters, hits)
    num_models, num_units, num_classes = y_scores.shape
    rankings = {(m, c): _rank(y_true[:, c], y_scores[m, :, c]) for m in range(num_models) for c in range(num_classes)}

    def quantities(weights_RN: NDArray[np.uint8]) -> Floats:
        values_RMQ = np.empty((len(weights_RN), num_models, num_classes + hits.shape[2]))
        for (m, c), ranking in rankings.items():
            values_RMQ[:, m, c] = _auc_of_ranking(ranking, weights_RN)
        for s in range(hits.shape[2]):
            values_RMQ[:, :, num_classes + s] = _share_of_hits(hits[:, :, s], weights_RN)
        return values_RMQ

    blocks = resample_weights(clusters, num_replicates=num_replicates, seed=seed)
    values = np.concatenate([quantities(block) for block in blocks])
    return Replicates(quantities(np.ones((1, num_units), dtype=np.uint8))[0], values)


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
