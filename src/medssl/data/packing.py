"""Packing whole patients into groups of exact size: first fit, then an exact repair of what it misses.

Patients are given as their numbers of images, in the order in which they are placed. Groups are numbered from 0;
the number after the last one means "in none".
"""

import math

import numpy as np
from numpy.typing import NDArray

# Largest product of patients and states that one exact search may visit: about a second of work.
MAX_REPAIR_WORK = 10**8
FIRST_RELEASED = 4
_WINDOW = 1024  # patients looked at together

Ints = NDArray[np.int64]


def pack(sizes: Ints, targets: Ints) -> Ints | None:
    """The group of each patient, such that the patients of each group have exactly its target of images.

    Args:
        sizes: Images of each patient, > 0, shape (P,).
        targets: Images wanted in each group, >= 0, shape (G,).

    Returns:
        Integers 0..G, shape (P,); G marks a patient in no group. None if there is no such packing, or, among very
        many patients of awkward sizes, if none was found.
    """
    groups = first_fit(sizes, targets)
    return _repair(sizes, groups, targets) if missing(sizes, groups, targets).any() else groups


def first_fit(sizes: Ints, targets: Ints, *, overshoot: bool = False) -> Ints:
    """The first group that has room for all images of a patient, in the order of the patients; G where none has.

    With `overshoot`, a group also takes a patient that is too large for it but brings it nearer to its target.
    """
    room = [int(target) for target in targets]
    groups = np.full(sizes.size, len(room))
    placed = 0
    while placed < sizes.size:
        limits = [2 * left - 1 if overshoot and left > 0 else left for left in room]
        group = next((g for g, limit in enumerate(limits) if sizes[placed] <= limit), len(room))
        taken = _run(sizes[placed : placed + _WINDOW], max(limits[:group], default=0), [*room, None][group])
        groups[placed : placed + taken] = group
        if group < len(room):
            room[group] -= int(sizes[placed : placed + taken].sum())
        placed += taken
    return groups


def _run(sizes: Ints, too_small: int, room: int | None) -> int:
    """How many of the next patients go where the first one goes, so that they need no look each.

    Args:
        sizes: Of the next patients.
        too_small: What the groups before have room for: none of these patients must fit there.
        room: Of the group; None: it takes all.
    """
    goes = sizes > too_small
    if room is not None:
        goes &= np.cumsum(sizes) <= room
    goes[0] = True
    return goes.size if goes.all() else int(np.argmin(goes))


def missing(sizes: Ints, groups: Ints, targets: Ints) -> Ints:
    """Images that each group lacks."""
    held = np.bincount(groups, weights=sizes, minlength=targets.size + 1).astype(np.int64)
    return targets - held[: targets.size]


def _repair(sizes: Ints, groups: Ints, targets: Ints) -> Ints | None:
    """Groups that meet the targets exactly, changed only for the last patients of each group; None if none are found.

    Few released patients nearly always suffice and keep the split random; they are doubled until all are released,
    when the search is complete, or until the search gets too long.
    """
    num_groups = targets.size
    released = FIRST_RELEASED
    while True:
        pool = np.concatenate([np.flatnonzero(groups == group)[-released:] for group in range(num_groups + 1)])
        pool.sort()
        held = np.bincount(groups[pool], weights=sizes[pool], minlength=num_groups + 1).astype(np.int64)
        wanted = missing(sizes, groups, targets) + held[:num_groups]
        totals = np.append(wanted, held.sum() - wanted.sum())
        rest = int(np.argmax(totals))  # the group whose sum follows from the others'
        others = [group for group in range(num_groups + 1) if group != rest]
        if pool.size * math.prod(totals[others].tolist()) > MAX_REPAIR_WORK:
            return None
        # A negative total: the released patients of no group have fewer images than the groups lack.
        chosen = _exact_subsets(sizes[pool], totals[others]) if totals.min() >= 0 else None
        if chosen is not None:
            repaired = groups.copy()
            repaired[pool] = np.array([*others, rest])[chosen]
            return repaired
        if pool.size == sizes.size:
            return None
        released *= 2


def _exact_subsets(sizes: Ints, sums: Ints) -> Ints | None:
    """Disjoint subsets of items with exactly these sums: the subset of each item, len(sums) for no subset.

    Dynamic programme over the states (sum of subset 0, 1, …): `made_by` holds the first item with which a state was
    reached, so the state before it was reached with earlier items only.
    """
    unreached = sizes.size
    made_by = np.full([int(total) + 1 for total in sums], unreached, dtype=np.int32)
    made_by[(0,) * sums.size] = -1  # reached with no item
    for item, size in enumerate(sizes.tolist()):
        is_reached = made_by < item
        for axis, total in enumerate(sums.tolist()):
            if size <= total:
                target = np.moveaxis(made_by, axis, 0)[size:]
                source = np.moveaxis(is_reached, axis, 0)[: total + 1 - size]
                target[source & (target == unreached)] = item
        if made_by[tuple(sums)] < unreached:
            return _trace(made_by, sizes, sums)
    return None


def _trace(made_by: NDArray[np.int32], sizes: Ints, sums: Ints) -> Ints:
    chosen = np.full(sizes.size, sums.size)
    state = [int(total) for total in sums]
    while (item := int(made_by[tuple(state)])) >= 0:
        for axis, total in enumerate(state):
            before = [*state[:axis], total - int(sizes[item]), *state[axis + 1 :]]
            if before[axis] >= 0 and made_by[tuple(before)] < item:
                chosen[item], state = axis, before
                break
    return chosen


def nearest_sums(sizes: Ints, target: int) -> list[int]:
    """`target` if some patients together have that many images, else the nearest such numbers below and above."""
    reachable = 1  # bit n is set if some patients together have n images
    values, counts = np.unique(sizes, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        step = 1
        while count > 0:  # a multiplicity as a sum of powers of two
            taken = min(step, count)
            reachable |= reachable << (value * taken)
            count, step = count - taken, step * 2
    if reachable >> target & 1:
        return [target]
    below = (reachable & ((1 << target) - 1)).bit_length() - 1
    above = reachable >> target
    return [below, *([target + (above & -above).bit_length() - 1] if above else [])]
