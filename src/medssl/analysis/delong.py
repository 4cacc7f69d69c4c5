"""DeLong's interval and test for AUCs of paired models, over units or over clusters of them.

Without resampling, so a check on the bootstrap. DeLong, DeLong and Clarke-Pearson 1988, Comparing the areas under two
or more correlated ROC curves; with ranks in O(n log n), Sun and Xu 2014; for clusters, such as the images of a patient,
Obuchowski 1997, Nonparametric analysis of clustered ROC curve data.

Shape suffixes: M models, N units, C classes, P positives, Q negatives, G clusters. Truth is float: 1, 0, or NaN where
not known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from medssl.metrics import Floats


@dataclass(frozen=True, eq=False)
class AucCovariance:
    """AUCs of several models on the same units with their covariance.

    Attributes:
        aucs: Shape (M,).
        covariance: Shape (M, M), symmetric.
    """

    aucs: Floats
    covariance: Floats


@dataclass(frozen=True)
class NormalInterval:
    """An interval by the normal distribution, cut to what the quantity can be, with a two-sided p value.

    Attributes:
        low: Lower end.
        high: Upper end.
        p: Of no difference; None for one model, and where a difference has no variance.
    """

    low: float
    high: float
    p: float | None


@dataclass(frozen=True, eq=False)
class Placements:
    """For each positive the share of negatives that it beats, for each negative that of positives that beat it.

    Attributes:
        positives: Units, shape (P,).
        negatives: Units, shape (Q,).
        of_positives_MP: Ties count one half; the mean is the AUC.
        of_negatives_MQ: Likewise.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    of_positives_MP: Floats
    of_negatives_MQ: Floats

    @property
    def aucs(self) -> Floats:
        """AUC of each model, shape (M,)."""
        means: Floats = self.of_positives_MP.mean(axis=1)
        return means

    def deviations(self, cluster_N: NDArray[np.int64], num_clusters: int) -> tuple[Floats, Floats]:
        """Of the placements from the AUC, summed within clusters: of positives and of negatives, each (M, G)."""
        of_positives, of_negatives = (
            np.stack(
                [np.bincount(cluster_N[units], row, minlength=num_clusters).astype(np.float64) for row in of_units]
            )
            for units, of_units in (
                (self.positives, self.of_positives_MP - self.aucs[:, None]),
                (self.negatives, self.of_negatives_MQ - self.aucs[:, None]),
            )
        )
        return of_positives, of_negatives

    def enough_clusters(self, cluster_N: NDArray[np.int64]) -> bool:
        """Whether two clusters have a positive and two a negative: a variance needs as many."""
        return all(np.ptp(cluster_N[units]) > 0 for units in (self.positives, self.negatives))


def place(y_true_N: Floats, y_scores_MN: Floats) -> Placements | None:
    """Compare positives and negatives of one class in each model; None where either is missing.

    Args:
        y_true_N: 1, 0, or NaN for units to leave out.
        y_scores_MN: Finite.
    """
    positives, negatives = np.flatnonzero(y_true_N == 1), np.flatnonzero(y_true_N == 0)
    if not positives.size or not negatives.size:
        return None
    units = np.concatenate([positives, negatives])
    is_positive = np.arange(units.size) < positives.size
    placed = np.stack([_placed(scores[units], is_positive) for scores in y_scores_MN])
    return Placements(positives, negatives, placed[:, : positives.size], placed[:, positives.size :])


def _placed(scores: Floats, is_positive: NDArray[np.bool_]) -> Floats:
    """Of a positive the share of negatives below it, of a negative that of positives above it; a tie is one half."""
    order = np.argsort(scores, kind="stable")
    new_value = np.append(True, np.diff(scores[order]) > 0)
    tie_of_rank = np.cumsum(new_value) - 1
    starts = np.append(np.flatnonzero(new_value), scores.size)
    num_negatives = np.append(0, np.cumsum(~is_positive[order]))
    num_positives = np.append(0, np.cumsum(is_positive[order]))
    below = (num_negatives[starts[:-1]] + num_negatives[starts[1:]]) / (2 * num_negatives[-1])
    above = 1 - (num_positives[starts[:-1]] + num_positives[starts[1:]]) / (2 * num_positives[-1])
    placed = np.empty(scores.size)
    placed[order] = np.where(is_positive[order], below[tie_of_rank], above[tie_of_rank])
    return placed


def auc_covariance(placements: Placements, cluster_N: NDArray[np.int64]) -> AucCovariance | None:
    """Obuchowski's covariance of the AUCs of one class, which is DeLong's where every unit is its own cluster.

    Args:
        placements: Of the class.
        cluster_N: Any integers, of all units; equal ones belong together.

    Returns:
        None unless two clusters have a positive and two have a negative.
    """
    if not placements.enough_clusters(cluster_N):
        return None
    positives, negatives = placements.positives, placements.negatives
    clusters, cluster_N = _numbered(cluster_N, np.concatenate([positives, negatives]))
    of_positives_MG, of_negatives_MG = placements.deviations(cluster_N, clusters)
    # Obuchowski's S10 / m, S01 / n and S11 / (m n), each with its own correction for small numbers of clusters.
    with_positives, with_negatives = (
        int(np.count_nonzero(np.bincount(cluster_N[units]))) for units in (positives, negatives)
    )
    within_positives = _correction(with_positives) / positives.size**2 * of_positives_MG @ of_positives_MG.T
    within_negatives = _correction(with_negatives) / negatives.size**2 * of_negatives_MG @ of_negatives_MG.T
    between_MM = _correction(clusters) / (positives.size * negatives.size) * of_positives_MG @ of_negatives_MG.T
    return AucCovariance(placements.aucs, within_positives + within_negatives + between_MM + between_MM.T)


def mean_auc_covariance(placements: Sequence[Placements], cluster_N: NDArray[np.int64]) -> AucCovariance | None:
    """Covariance of the mean AUC over some classes, one or more.

    What a cluster contributes to the AUC of each class is averaged over the classes (the influence function), so the
    covariance between classes counts. With one class it differs from `auc_covariance` by the correction for small
    numbers of clusters only, which here is G / (G - 1).

    Returns:
        None unless each class has a positive in two clusters and a negative in two.
    """
    if not all(of_class.enough_clusters(cluster_N) for of_class in placements):
        return None
    units = np.concatenate([part for of_class in placements for part in (of_class.positives, of_class.negatives)])
    clusters, cluster_N = _numbered(cluster_N, units)
    influence_MG = np.zeros((len(placements[0].aucs), clusters))
    for of_class in placements:
        of_positives_MG, of_negatives_MG = of_class.deviations(cluster_N, clusters)
        influence_MG += of_positives_MG / of_class.positives.size + of_negatives_MG / of_class.negatives.size
    aucs_M = np.mean([of_class.aucs for of_class in placements], axis=0)
    return AucCovariance(aucs_M, _correction(clusters) / len(placements) ** 2 * influence_MG @ influence_MG.T)


def _numbered(cluster_N: NDArray[np.int64], units: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """How many clusters the units have, and the clusters of all units, those of `units` as 0, 1, ..."""
    present = np.unique(cluster_N[units])
    return present.size, np.searchsorted(present, cluster_N)


def _correction(num_clusters: int) -> float:
    return num_clusters / (num_clusters - 1)


def normal_interval(found: AucCovariance, a: int, b: int | None = None, *, alpha: float) -> NormalInterval:
    """Interval of model `a`'s AUC, or of `a` minus `b` with its test.

    Args:
        found: AUCs with their covariance.
        a: Index of a model.
        b: Index of the model to subtract.
        alpha: One minus the level, in 0-1.
    """
    weights = np.zeros(found.aucs.size)
    weights[a] = 1
    if b is not None:
        weights[b] -= 1
    estimate = float(weights @ found.aucs)
    # Rounding leaves a variance of equal models a little below 0.
    error = math.sqrt(max(0.0, float(weights @ found.covariance @ weights)))
    reach = NormalDist().inv_cdf(1 - alpha / 2) * error
    least = 0.0 if b is None else -1.0
    p = None
    if b is not None and error > 0:
        p = math.erfc(abs(estimate) / error / math.sqrt(2))
    elif b is not None and estimate == 0:
        p = 1.0
    return NormalInterval(max(least, estimate - reach), min(1.0, estimate + reach), p)
