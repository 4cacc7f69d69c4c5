"""Permutation test of equal groups: could a gap this large come about if the groups were drawn by lot?

Permuted are the groups of exchangeable patients: those with equally many units and equally many positive labels. Such
patients swap the groups of their units as a whole, so images of one patient stay together, and every group keeps its
numbers of patients, of units and of positive labels: a finding that is more frequent among the old is no difference of
the model. Where the attribute differs within patients, as the view position does, a patient's units are exchangeable,
too, and what a patient got is shuffled among them. A patient like no other swaps with nobody, which costs power and
not validity: the test is exact where, given these two counts, neither truths nor scores depend on the group.

Shape suffixes: R permutations, N units, P patients, M models, C classes, G groups.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.bootstrap import weighted_auc
from medssl.analysis.runs import Run
from medssl.metrics import PRIMARY, top_k_hits

Floats = NDArray[np.float64]
Codes = NDArray[np.int16]

OUTSIDE = -1  # the code of units in no group
_BLOCK_BYTES = 1 << 24  # of weights, a byte for each unit and group, in memory at a time


def exchangeable_sets(run: Run, code_of_unit: Codes) -> list[NDArray[np.int64]]:
    """Patients who may swap their groups: one array a set, shape (patients, units of each), of places of units.

    Args:
        run: Units, patients and truth.
        code_of_unit: Shape (N,); units that are `OUTSIDE` are in no set.
    """
    inside = np.flatnonzero(code_of_unit != OUTSIDE)
    order = inside[np.argsort(run.patients[inside], kind="stable")]
    _, starts, counts = np.unique(run.patients[order], return_index=True, return_counts=True)
    positive = np.add.reduceat(np.nansum(run.y_true[order], axis=1), starts) if order.size else np.empty(0)
    keys, set_of_patient = np.unique(np.column_stack([counts, positive]), axis=0, return_inverse=True)
    return [
        order[starts[set_of_patient.ravel() == s][:, None] + np.arange(int(num_units))]
        for s, (num_units, _) in enumerate(keys)
    ]


def permuted_codes(run: Run, code_of_unit: Codes, *, num_permutations: int, seed: int) -> Iterator[Codes]:
    """Blocks of permutations, shape (r, N); see the module for what changes places with what."""
    rng = np.random.default_rng(seed)
    # A set in which all units are of one group stays as it is.
    sets = [units for units in exchangeable_sets(run, code_of_unit) if np.ptp(code_of_unit[units])]
    within = any(np.ptp(code_of_unit[units], axis=1).any() for units in sets)
    block = max(1, _BLOCK_BYTES // (code_of_unit.size * (int(code_of_unit.max()) + 1)))
    for start in range(0, num_permutations, block):
        num = min(block, num_permutations - start)
        codes = np.tile(code_of_unit, (num, 1))
        for units in sets:
            owners = rng.permuted(np.tile(np.arange(len(units)), (num, 1)), axis=1)
            moved = code_of_unit[units][owners]
            codes[:, units] = rng.permuted(moved, axis=2) if within else moved
        yield codes


def raw_gaps(runs: Sequence[Run], codes: Codes, classes: Sequence[int], num_groups: int) -> Floats:
    """Largest minus smallest primary metric among the groups, shape (r, M).

    A group averages over the classes that it can evaluate, and one without any is passed over.

    Args:
        runs: Of M models.
        codes: Shape (r, N).
        classes: Places of the classes that a mean over classes covers.
        num_groups: Codes run from 0 to below it.
    """
    of_model = _mean_aucs if PRIMARY[runs[0].unit_kind].part else _accuracies
    gaps = np.empty((len(codes), len(runs)))
    for m, run in enumerate(runs):
        means_Gr = of_model(run, codes, classes, num_groups)
        lacking_Gr = np.isnan(means_Gr)
        gaps[:, m] = np.where(lacking_Gr, -np.inf, means_Gr).max(axis=0)
        gaps[:, m] -= np.where(lacking_Gr, np.inf, means_Gr).min(axis=0)
    return gaps


def _mean_aucs(run: Run, codes: Codes, classes: Sequence[int], num_groups: int) -> Floats:
    """Mean AUC of each group over the classes that it can evaluate, shape (G, r)."""
    # Side by side, so that a class is ranked once for all groups.
    weights = np.concatenate([codes == g for g in range(num_groups)]).view(np.uint8)
    values_CX = np.stack([weighted_auc(run.y_true[:, c], run.y_score[:, c], weights) for c in classes])
    return _ratios(np.nansum(values_CX, axis=0), (~np.isnan(values_CX)).sum(axis=0)).reshape(num_groups, -1)


def _accuracies(run: Run, codes: Codes, classes: Sequence[int], num_groups: int) -> Floats:
    """Top-k accuracy of each group, shape (G, r); it has no mean over classes."""
    hits = top_k_hits(run.y_true, run.y_score, k=PRIMARY[run.unit_kind].k or 1)
    counts = np.column_stack([np.nan_to_num(hits), ~np.isnan(hits)])
    sums = (((codes == g).astype(np.float64) @ counts).T for g in range(num_groups))
    return np.stack([_ratios(num_hits, num_units) for num_hits, num_units in sums])


def _ratios(sums: Floats, counts: NDArray[Any]) -> Floats:
    ratios = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=ratios, where=counts > 0)
    return ratios


def p_of_equal_groups(
    runs: Sequence[Run],
    code_of_unit: Codes,
    *,
    classes: Sequence[int],
    num_permutations: int,
    seed: int,
) -> Floats:
    """Share of the permutations, the groups as they are among them, with a gap at least as large; shape (M,).

    Args:
        runs: On the same units, one of each model; all see the same permutations.
        code_of_unit: Shape (N,), the group of each unit from 0, or `OUTSIDE`.
        classes: Places of the classes that a mean over classes covers.
        num_permutations: > 0.
        seed: Of the permutations.
    """
    num_groups = int(code_of_unit.max()) + 1
    observed = raw_gaps(runs, code_of_unit[None], classes, num_groups)
    # Sums of equal terms in another order are equal.
    at_least = observed - 1e-12 * np.maximum(1, np.abs(observed))
    counts = np.ones(len(runs))
    for codes in permuted_codes(runs[0], code_of_unit, num_permutations=num_permutations, seed=seed):
        counts += (raw_gaps(runs, codes, classes, num_groups) >= at_least).sum(axis=0)
    return counts / (num_permutations + 1)
