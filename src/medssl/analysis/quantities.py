"""What the bootstrap computes on every resample, and the order in which it gives it.

All that does not depend on the weights is done once: scores are ranked, and units that no share tells apart become a
cell. What is left for a resample are sums of whole weights, by `kernels`.

Shape suffixes: L lanes (replicates of a block), M models, N units, C classes, S shares, E calibrations, Q quantities, K
units in some order, G groups of these, P products. Truth is float: 1, 0, or NaN where not known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.calibration import NUM_BINS, bins_of
from medssl.analysis.resampling import Block

Floats = NDArray[np.float64]
# Writes quantities of a block of resamples to their places in an array of shape (M, Q, L).
Fill = Callable[[Block, Floats], None]

AUC, AVERAGE_PRECISION, SENSITIVITY = RANKED = ("auc", "average_precision", "sensitivity_at_specificity")


@dataclass(frozen=True)
class Quantities:
    """The order of quantities: each ranked one of all classes, then the shares, then the calibration errors.

    Attributes:
        ranked: Of `RANKED`, in this order.
        num_classes: C.
        num_shares: S.
        num_calibrated: E.
        has_pooled: Whether the AUC of several classes ranked together comes last.
    """

    ranked: tuple[str, ...]
    num_classes: int
    num_shares: int
    num_calibrated: int
    has_pooled: bool = False

    def place(self, ranked: str, c: int) -> int:
        """Of a ranked quantity of class `c`."""
        return self.ranked.index(ranked) * self.num_classes + c

    def share(self, s: int) -> int:
        """Place of share `s`."""
        return len(self.ranked) * self.num_classes + s

    def calibration_error(self, e: int) -> int:
        """Place of calibration error `e`."""
        return self.share(self.num_shares) + e

    @property
    def pooled(self) -> int:
        """Place of the AUC of several classes ranked together."""
        return self.calibration_error(self.num_calibrated)

    def __len__(self) -> int:
        return self.pooled + self.has_pooled


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions whose expected calibration error is asked for, E of each model and unit.

    The error is the sum over bins of equal width of |sum of w (truth - score)|, over the sum of all w; which unit
    lies in which bin, `bins_of` says (Naeini et al. 2015).

    Attributes:
        y_true: Shape (M, N, E): 1, 0, or NaN where a unit does not count. Models may differ: whether the class that
            each holds likeliest is right.
        y_score: Shape (M, N, E), from 0 to 1.
        num_bins: > 0.
    """

    y_true: Floats
    y_score: Floats
    num_bins: int = NUM_BINS


def ranked_fills(
    order: Quantities, y_true_NC: Floats, y_score_MNC: Floats, cluster_N: NDArray[np.int32], specificity: float
) -> Iterator[Fill]:
    """For each model and class what fills its ranked quantities."""
    if not order.ranked:
        return
    for m, y_score_NC in enumerate(y_score_MNC):
        for c in range(order.num_classes):
            code_K, end_G = _rank(y_true_NC[:, c], y_score_NC[:, c], cluster_N)
            tied_T, tie_end_G = _ties(code_K, end_G)
            for name in order.ranked:
                at = (m, order.place(name, c))
                if name == AUC:
                    yield partial(_fill_auc, at, code_K, tied_T, tie_end_G)
                elif name == AVERAGE_PRECISION:
                    yield partial(_fill_average_precision, at, code_K, end_G)
                else:
                    yield partial(_fill_sensitivity, at, code_K, end_G, specificity)


def pooled_fills(
    order: Quantities,
    y_true_NC: Floats,
    y_score_MNC: Floats,
    cluster_N: NDArray[np.int32],
    pooled: Sequence[int] | None,
) -> Iterator[Fill]:
    """For each model what fills the AUC of some classes ranked together: each unit once for each of them."""
    if pooled is None:
        return
    y_true_K = y_true_NC[:, pooled].ravel()
    cluster_K = np.repeat(cluster_N, len(pooled))
    for m, y_score_NC in enumerate(y_score_MNC):
        code_K, end_G = _rank(y_true_K, y_score_NC[:, pooled].ravel(), cluster_K)
        yield partial(_fill_auc, (m, order.pooled), code_K, *_ties(code_K, end_G))


def _rank(
    y_true_N: Floats, y_score_N: Floats, cluster_N: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Codes of the known units by rising score, and the ends of groups of equal scores; see `kernels`."""
    from medssl.analysis import kernels

    known_K = np.flatnonzero(~np.isnan(y_true_N))
    y_true_K, y_score_K = np.ascontiguousarray(y_true_N[known_K]), np.ascontiguousarray(y_score_N[known_K])
    code_K, end_G = np.empty(known_K.size, np.int32), np.empty(known_K.size, np.int64)
    order_K = kernels.order_by(y_score_K)
    num_groups = kernels.rank(order_K, y_true_K, y_score_K, cluster_N[known_K], code_K, end_G)
    return code_K, end_G[:num_groups].copy()


def _ties(code_K: NDArray[np.int32], end_G: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The codes of units in groups of both classes, and the ends of these groups among them."""
    if len(end_G) == len(code_K):
        return code_K[:0], end_G[:0]
    begin_G = np.concatenate([[0], end_G[:-1]])
    is_mixed_G = (code_K[begin_G] & 1) < (code_K[end_G - 1] & 1)  # negatives come first
    size_G = end_G - begin_G
    return code_K[np.repeat(is_mixed_G, size_G)], np.cumsum(size_G[is_mixed_G])


def _fill_auc(
    at: tuple[int, int],
    code_K: NDArray[np.int32],
    tied_T: NDArray[np.int32],
    tie_end_G: NDArray[np.int64],
    block: Block,
    value_MQL: Floats,
) -> None:
    from medssl.analysis import kernels

    kernels.auc(block.count_CL, block.heaviest, code_K, tied_T, tie_end_G, value_MQL[at])


def _fill_average_precision(
    at: tuple[int, int], code_K: NDArray[np.int32], end_G: NDArray[np.int64], block: Block, value_MQL: Floats
) -> None:
    from medssl.analysis import kernels

    kernels.average_precision(block.count_CL, code_K, end_G, value_MQL[at])


def _fill_sensitivity(
    at: tuple[int, int],
    code_K: NDArray[np.int32],
    end_G: NDArray[np.int64],
    specificity: float,
    block: Block,
    value_MQL: Floats,
) -> None:
    from medssl.analysis import kernels

    kernels.sensitivity(block.count_CL, code_K, end_G, specificity, value_MQL[at])


def calibration_fills(
    order: Quantities, calibration: Calibration | None, cluster_N: NDArray[np.int32]
) -> Iterator[Fill]:
    """For each model and calibration what fills its error."""
    if calibration is None:
        return
    for m, (y_true_NE, y_score_NE) in enumerate(zip(calibration.y_true, calibration.y_score, strict=True)):
        for e in range(order.num_calibrated):
            excess_N = y_true_NE[:, e] - y_score_NE[:, e]
            known_K = np.flatnonzero(~np.isnan(excess_N))
            bin_K = bins_of(y_score_NE[known_K, e], calibration.num_bins).astype(np.int32)
            at = (m, order.calibration_error(e))
            yield partial(
                _fill_calibration_error, at, cluster_N[known_K], bin_K, excess_N[known_K], calibration.num_bins
            )


def _fill_calibration_error(
    at: tuple[int, int],
    cluster_K: NDArray[np.int32],
    bin_K: NDArray[np.int32],
    excess_K: Floats,
    num_bins: int,
    block: Block,
    value_MQL: Floats,
) -> None:
    from medssl.analysis import kernels

    kernels.calibration_error(block.count_CL, cluster_K, bin_K, excess_K, num_bins, value_MQL[at])


def share_fills(order: Quantities, hits_MNS: Floats, cluster_N: NDArray[np.int32]) -> Iterator[Fill]:
    """What fills the shares: of yes or no together, and of other numbers, which hardly two units have in common."""
    if not order.num_shares:
        return
    from medssl.analysis import kernels

    hits_MNS, is_yes_or_no_S = np.ascontiguousarray(hits_MNS), np.empty(order.num_shares, np.bool_)
    kernels.are_yes_or_no(hits_MNS, is_yes_or_no_S)
    for is_chosen_S in (is_yes_or_no_S, ~is_yes_or_no_S):
        if is_chosen_S.any():
            places = [order.share(int(s)) for s in np.flatnonzero(is_chosen_S)]
            chosen_MNS = hits_MNS if is_chosen_S.all() else np.compress(is_chosen_S, hits_MNS, axis=2)
            yield _Shares.of(places, chosen_MNS, cluster_N).fill


@dataclass(frozen=True, eq=False)
class _Shares:
    """Shares as sums over cells, of units that are equal in all of them.

    Attributes:
        places: Of the S shares.
        num_models: M.
        cluster_K: Clusters of the units, cell by cell.
        end_G: Where the units of a cell end.
        cell_K: Cells of each product in turn: the weighted sums of the models' shares, then the weights counted.
        factor_K: What the weights of these cells are multiplied by.
        end_P: Where the cells of a product end.
    """

    places: Sequence[int]
    num_models: int
    cluster_K: NDArray[np.int32]
    end_G: NDArray[np.int64]
    cell_K: NDArray[np.int64]
    factor_K: Floats
    end_P: NDArray[np.int64]

    @classmethod
    def of(cls, places: Sequence[int], hits_MNS: Floats, cluster_N: NDArray[np.int32]) -> "_Shares":
        """Find the cells of units."""
        num_models, _, num_shares = hits_MNS.shape
        first_G, cell_N = _cells(hits_MNS)
        value_PG = hits_MNS[:, first_G].transpose(0, 2, 1).reshape(num_models * num_shares, first_G.size)
        factor_PG = np.concatenate([np.nan_to_num(value_PG), ~np.isnan(value_PG[:num_shares])])
        product_K, cell_K = np.nonzero(factor_PG)
        return cls(
            places,
            num_models,
            cluster_N[np.argsort(cell_N, kind="stable")],
            np.cumsum(np.bincount(cell_N, minlength=first_G.size)),
            cell_K,
            factor_PG[product_K, cell_K],
            np.cumsum(np.bincount(product_K, minlength=len(factor_PG))),
        )

    def fill(self, block: Block, value_MQL: Floats) -> None:
        """Write all shares of a block; NaN where the units that count have no weight."""
        from medssl.analysis import kernels

        weight_GL = np.empty((self.end_G.size, kernels.LANES), np.int32)
        kernels.cell_weights(block.count_CL, self.cluster_K, self.end_G, weight_GL)
        sum_PL = np.empty((self.end_P.size, kernels.LANES))
        kernels.products(weight_GL, self.cell_K, self.factor_K, self.end_P, sum_PL)
        *sums_MSL, counted_SL = sum_PL.reshape(self.num_models + 1, len(self.places), kernels.LANES)
        counted_SL[counted_SL == 0] = np.nan
        for m, sums_SL in enumerate(sums_MSL):
            value_MQL[m, self.places] = sums_SL / counted_SL


def _cells(hits_MNS: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first of the units of each cell, and the cell of each unit."""
    from medssl.analysis import kernels

    bits_MNS, print_N = hits_MNS.view(np.uint64), np.empty(hits_MNS.shape[1], np.uint64)
    kernels.fingerprints(bits_MNS, print_N)
    _, first_G, cell_N = np.unique(print_N, return_index=True, return_inverse=True)
    if not kernels.are_equal(bits_MNS, first_G[cell_N]):  # two different units with one fingerprint
        first_G = cell_N = np.arange(print_N.size)
    return first_G, cell_N
