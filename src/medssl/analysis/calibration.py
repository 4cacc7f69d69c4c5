"""Calibration: how far scores are from probabilities of what they predict, and the curve that shows it.

Scores outside 0-1 (logits, say) are no probabilities: nothing here is defined for them, and the reason says so.

Shape suffixes: N units, C classes. Truth is float: 1, 0, or NaN where not known.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.metrics import Evaluation, Floats, top_k_hits

NUM_BINS = 15  # of equal width, as usual since Guo et al. 2017, On Calibration of Modern Neural Networks
NO_PROBABILITIES = "scores are no probabilities"
NO_DISTRIBUTION = "scores are no probabilities that sum to 1"
_SUM_TOLERANCE = 1e-3  # of probabilities with few decimals


@dataclass(frozen=True, eq=False)
class Reliability:
    """The reliability curve: units with a known truth, in bins of their score.

    Attributes:
        n_units: Shape (`NUM_BINS`,).
        sum_score: Of the units in each bin; shape (`NUM_BINS`,).
        sum_positive: Of the units in each bin; shape (`NUM_BINS`,).
    """

    n_units: NDArray[np.int64]
    sum_score: Floats
    sum_positive: Floats

    def error(self) -> Evaluation:
        """Expected calibration error: mean distance of score and truth over the bins, weighted by their units."""
        total = int(self.n_units.sum())
        gaps = np.abs(self.sum_positive - self.sum_score)
        value = float(gaps.sum() / total) if total else None
        return Evaluation(value, total, int(self.sum_positive.sum()), "" if total else "no unit with a known truth")


def edges(num_bins: int = NUM_BINS) -> Floats:
    """Ends of bins of equal width, shape (`num_bins` + 1,)."""
    return np.linspace(0, 1, num_bins + 1)


def bins_of(y_score: Floats, num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """The bin of each score, in 0 to `num_bins` - 1; a score on an end belongs to the bin below, 0 to the first."""
    return np.searchsorted(edges(num_bins)[1:-1], y_score, side="left")


def are_probabilities(y_score: Floats) -> bool:
    """Whether all scores lie in 0-1."""
    return bool(np.all((y_score >= 0) & (y_score <= 1)))


def are_distributions(y_score_NC: Floats) -> bool:
    """Whether the scores of each unit lie in 0-1 and sum to 1: probabilities of classes that exclude each other."""
    return are_probabilities(y_score_NC) and bool(np.all(np.abs(y_score_NC.sum(axis=1) - 1) <= _SUM_TOLERANCE))


def reliability(y_true_N: Floats, y_score_N: Floats) -> Reliability:
    """Sort the units with a known truth into bins of equal width; scores are in 0-1."""
    known = ~np.isnan(y_true_N)
    truth, scores = y_true_N[known], y_score_N[known]
    bin_of_unit = bins_of(scores)
    sums = [np.bincount(bin_of_unit, weights, NUM_BINS).astype(np.float64) for weights in (scores, truth)]
    return Reliability(np.bincount(bin_of_unit, minlength=NUM_BINS), *sums)


def calibration_error(y_true_N: Floats, y_score_N: Floats) -> Evaluation:
    """Expected calibration error of the scores of one class, in 0-1."""
    if not are_probabilities(y_score_N):
        known = ~np.isnan(y_true_N)
        return Evaluation(None, int(known.sum()), int((y_true_N == 1).sum()), NO_PROBABILITIES)
    return reliability(y_true_N, y_score_N).error()


def top_label_error(y_true_NC: Floats, y_score_NC: Floats) -> Evaluation:
    """Expected calibration error of the class with the highest score, in 0-1."""
    hits_N, confidence_N = top_label(y_true_NC, y_score_NC)
    if not are_distributions(y_score_NC):
        known = hits_N[~np.isnan(hits_N)]
        return Evaluation(None, known.size, int(known.sum()), NO_DISTRIBUTION)
    return reliability(hits_N, confidence_N).error()


def top_label(y_true_NC: Floats, y_score_NC: Floats) -> tuple[Floats, Floats]:
    """Whether the class with the highest score is among a case's conditions, and this score; both shape (N,)."""
    return top_k_hits(y_true_NC, y_score_NC, k=1), y_score_NC.max(axis=1)


def brier_terms(y_true_N: Floats, y_score_N: Floats) -> Floats:
    """Squared distance of score and truth of one class, whose mean is the Brier score: shape (N,), NaN not known."""
    terms_N: Floats = np.square(y_score_N - y_true_N)
    return terms_N


def multiclass_brier_terms(y_true_NC: Floats, y_score_NC: Floats) -> Floats:
    """Squared distance over all classes from the truth (Brier 1950), in 0-2: shape (N,), NaN not known.

    The conditions of a set-valued truth share its probability evenly, so that no case weighs more than another.
    """
    shares_NC = y_true_NC / np.maximum(y_true_NC.sum(axis=1, keepdims=True), 1)
    terms_N: Floats = np.square(y_score_NC - shares_NC).sum(axis=1)
    return terms_N


def brier(terms_N: Floats, y_score: Floats) -> Evaluation:
    """The mean of the terms above over the units with a known truth; all of these count as positive.

    Args:
        terms_N: Of one class, or of all.
        y_score: Of one class, shape (N,), or of all, shape (N, C).
    """
    known = terms_N[~np.isnan(terms_N)]
    if not (are_probabilities(y_score) if y_score.ndim == 1 else are_distributions(y_score)):
        return Evaluation(None, known.size, known.size, NO_PROBABILITIES if y_score.ndim == 1 else NO_DISTRIBUTION)
    if not known.size:
        return Evaluation(None, 0, 0, "no unit with a known truth")
    return Evaluation(float(known.mean()), known.size, known.size, "")
