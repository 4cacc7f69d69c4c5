"""Permutation test of equal groups: could a gap this large come about if the groups were drawn by lot?

Permuted are the groups of exchangeable patients: those with equally many units and equally many positive labels. Such
patients swap the groups of their units as a whole, so images of one patient stay together, and every group keeps its
numbers of patients, of units and of positive labels: a finding that is more frequent among the old is no difference of
the model. Where the attribute differs within patients, as the view position does, a patient's units are exchangeable,
too: what a patient got is turned by a random number of units. A patient like no other swaps with nobody, which costs
power and not validity, as these permutations are a group: the test is exact where, given the two counts, neither
truths nor scores depend on the group.

Shape suffixes: L lanes (permutations of a block), N units, M models, C classes, Q quantities, G groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.quantities import AUC, Fill, Quantities, ranked_fills, share_fills
from medssl.analysis.resampling import Block
from medssl.analysis.runs import Run
from medssl.metrics import PRIMARY, top_k_hits

Floats = NDArray[np.float64]
Codes = NDArray[np.int16]

OUTSIDE = -1  # the code of units in no group


@dataclass(frozen=True, eq=False)
class Exchange:
    """Patients with equally many units and positive labels stand next to one another: these may swap their groups.

    Attributes:
        units: Shape (n,), places of the units in some group, patient by patient.
        set_of_patient: Shape (P,), the set of each patient, rising.
        start_of_patient: Shape (P,), where the units of each patient begin in `units`.
        patient: Shape (n,), the place of each unit's patient.
        size: Shape (n,), how many units this patient has.
    """

    units: NDArray[np.int64]
    set_of_patient: NDArray[np.int64]
    start_of_patient: NDArray[np.int64]
    patient: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run, code_of_unit: Codes) -> "Exchange":
        """The sets of the patients of a run who have units in a group."""
        inside = np.flatnonzero(code_of_unit != OUTSIDE)
        _, patient_of_unit, sizes = np.unique(run.patients[inside], return_inverse=True, return_counts=True)
        positive = np.bincount(patient_of_unit, weights=np.nansum(run.y_true[inside], axis=1))
        _, set_of_patient = np.unique(np.column_stack([sizes, positive]), axis=0, return_inverse=True)
        by_set = np.argsort(set_of_patient.ravel(), kind="stable")
        place = np.empty_like(by_set)
        place[by_set] = np.arange(by_set.size)
        units = inside[np.argsort(place[patient_of_unit], kind="stable")]
        sizes = sizes[by_set]
        patient = np.repeat(np.arange(sizes.size), sizes)
        return cls(units, set_of_patient.ravel()[by_set], np.cumsum(sizes) - sizes, patient, sizes[patient])

    def permuted(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """For each unit the one whose group it gets, both as places in `units`: one permutation, shape (n,)."""
        # Sorted by a random number within each set.
        owner = np.argsort(self.set_of_patient + rng.random(self.set_of_patient.size))
        turned = np.arange(self.units.size) - self.start_of_patient[self.patient]
        turned += (rng.random(owner.size)[self.patient] * self.size).astype(np.int64)
        return self.start_of_patient[owner][self.patient] + turned % self.size


def permuted_codes(run: Run, code_of_unit: Codes, *, num_permutations: int, seed: int) -> Iterator[Codes]:
    """The groups as they are, then permutations; see the module for what changes places with what.

    Yields:
        Blocks of shape (N, L), each of `kernels.LANES` but the last.
    """
    from medssl.analysis import kernels

    rng = np.random.default_rng(seed)
    exchange = Exchange.of(run, code_of_unit)
    codes = code_of_unit[exchange.units]
    for first in range(0, num_permutations + 1, kernels.LANES):
        code_LN = np.tile(code_of_unit, (min(kernels.LANES, num_permutations + 1 - first), 1))
        for code_N in code_LN[int(first == 0) :]:
            code_N[exchange.units] = codes[exchange.permuted(rng)]
        yield np.ascontiguousarray(code_LN.T)


@dataclass(frozen=True, eq=False)
class _Primary:
    """The primary metric of M models on parts of the units, as the mean of Q quantities.

    Attributes:
        num_models: M.
        order: Of the quantities: the AUCs that it averages, or a share.
        fills: What computes them, each unit being a cluster of its own.
    """

    num_models: int
    order: Quantities
    fills: tuple[Fill, ...]

    @classmethod
    def of(cls, runs: Sequence[Run], classes: Sequence[int]) -> "_Primary":
        """Rank the scores of all models once."""
        first, primary = runs[0], PRIMARY[runs[0].unit_kind]
        unit_N = np.arange(first.units.size, dtype=np.int32)
        if primary.part:
            order = Quantities((AUC,), len(classes), 0, 0)
            score_MNC = np.stack([run.y_score[:, classes] for run in runs])
            return cls(len(runs), order, tuple(ranked_fills(order, first.y_true[:, classes], score_MNC, unit_N, 0)))
        order = Quantities((), 0, 1, 0)
        hit_MN1 = np.stack([top_k_hits(run.y_true, run.y_score, k=primary.k or 1) for run in runs])[:, :, None]
        return cls(len(runs), order, tuple(share_fills(order, hit_MN1, unit_N)))

    def means(self, is_chosen_NL: NDArray[np.bool_]) -> Floats:
        """Of the chosen units, over the quantities that they define; NaN without any. Shape (M, L)."""
        from medssl.analysis import kernels

        num_units, num = is_chosen_NL.shape
        count_NL = np.zeros((num_units, kernels.LANES), np.uint8)
        count_NL[:, :num] = is_chosen_NL
        value_MQL = np.empty((self.num_models, len(self.order), kernels.LANES))
        for fill in self.fills:
            fill(Block(count_NL, 1), value_MQL)
        is_defined_MQL = ~np.isnan(value_MQL)
        count_ML = is_defined_MQL.sum(axis=1)
        mean_ML = np.full(count_ML.shape, np.nan)
        np.divide(np.nansum(value_MQL, axis=1), count_ML, out=mean_ML, where=count_ML > 0)
        return mean_ML[:, :num]


def p_of_equal_groups(
    runs: Sequence[Run], code_of_unit: Codes, *, classes: Sequence[int], num_permutations: int, seed: int
) -> Floats:
    """Share of the permutations, the groups as they are among them, with a gap at least as large; shape (M,).

    The gap is the largest minus the smallest primary metric. In a permutation a group averages over the classes that
    it can evaluate, and one without any is passed over.

    Args:
        runs: On the same units, one of each model; all see the same permutations.
        code_of_unit: Shape (N,), the group of each unit from 0, or `OUTSIDE`.
        classes: Places of the classes that a mean over classes covers.
        num_permutations: > 0.
        seed: Of the permutations.
    """
    primary = _Primary.of(runs, classes)
    gap_blocks = []
    for code_NL in permuted_codes(runs[0], code_of_unit, num_permutations=num_permutations, seed=seed):
        mean_GML = np.stack([primary.means(code_NL == g) for g in range(int(code_of_unit.max()) + 1)])
        is_lacking_GML = np.isnan(mean_GML)
        largest_ML = np.where(is_lacking_GML, -np.inf, mean_GML).max(axis=0)
        gap_blocks.append(largest_ML - np.where(is_lacking_GML, np.inf, mean_GML).min(axis=0))
    gap_MR = np.concatenate(gap_blocks, axis=1)
    # A mean of other terms may differ from an equal one in its last bits.
    shares: Floats = (gap_MR >= gap_MR[:, :1] - 1e-12).mean(axis=1)
    return shares
