"""Pairs of 64-bit hashes that differ in few bits, found without comparing all pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
# Of more hashes that are equal than this, each is paired with the first one only: all pairs are too many to hold.
MAX_EQUAL = 100

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of hashes, named by their positions; `a` < `b`, each pair once, in ascending order.

    Attributes:
        a: int32, shape (P,).
        b: int32, shape (P,).
        distance: Bits in which the hashes differ, uint8, shape (P,).
    """

    a: NDArray[np.int32]
    b: NDArray[np.int32]
    distance: NDArray[np.uint8]

    def where(self, is_kept: NDArray[np.bool_]) -> "Pairs":
        """The pairs that a boolean array of shape (P,) selects."""
        return Pairs(self.a[is_kept], self.b[is_kept], self.distance[is_kept])


def near_pairs(hashes: Hashes, *, max_distance: int) -> Pairs:
    """All pairs of hashes that differ in at most `max_distance` bits, without comparing all pairs.

    Of 64 bits in max_distance + 1 blocks, at least one block is equal in both hashes of such a pair (the pigeonhole
    principle), so it is enough to compare hashes that share a block.

    Where more than MAX_EQUAL hashes are equal, the first stands for all of them: the others are paired with it alone.

    Args:
        hashes: uint64, shape (N,).
        max_distance: 0 to 15.

    Raises:
        ValueError: `max_distance` is out of range.
    """
    if not 0 <= max_distance < HASH_BITS // 4:
        raise ValueError(f"max_distance must be from 0 to {HASH_BITS // 4 - 1}, found {max_distance}")
    values, counts = np.unique(hashes, return_counts=True)
    members = np.argsort(hashes, kind="stable").astype(np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    near = [np.empty((0, 3), dtype=np.int32), *_near(values, max_distance)]
    shown = np.where(counts > MAX_EQUAL, 1, counts)  # members of a value that pairs with other values name
    parts = [_equal(members, starts, counts), _crossed(members, starts, shown, np.concatenate(near))]
    a, b, distance = np.concatenate(parts).T
    first, second = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], distance[order].astype(np.uint8))


def _blocks(max_distance: int) -> list[np.uint64]:
    """Masks of max_distance + 1 blocks of bits; each takes every so many-th bit.

    Neighbouring bits are neighbouring frequencies, which pictures of one kind share: blocks of neighbours would leave
    more hashes to compare.
    """
    num_blocks = max_distance + 1
    weights = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
    return [np.bitwise_or.reduce(weights[block::num_blocks]) for block in range(num_blocks)]


def _near(values: Hashes, max_distance: int) -> Iterator[NDArray[np.int32]]:
    """Rows (position, position, distance) of the pairs of distinct values that are near each other, each pair once."""
    blocks = _blocks(max_distance)
    for number, block in enumerate(blocks):
        order = np.argsort(values & block, kind="stable").astype(np.int32)
        ordered = values[order]
        keys = ordered & block
        # Compared with the next one, the next but one, …, as long as both share the block.
        left = np.arange(values.size - 1, dtype=np.int32)
        for step in range(1, values.size):
            left = left[: np.searchsorted(left, values.size - step)]
            left = left[keys[left] == keys[left + step]]
            if not left.size:
                break
            differing = ordered[left] ^ ordered[left + step]
            distance = np.bitwise_count(differing)
            is_near = distance <= max_distance
            for earlier in blocks[:number]:  # a pair that shares an earlier block was found there
                is_near &= (differing & earlier) != 0
            if is_near.any():
                found = left[is_near]
                yield np.stack([order[found], order[found + step], distance[is_near].astype(np.int32)], axis=1)


def _equal(members: NDArray[np.int32], starts: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Rows (number, number, 0) of the pictures whose hashes are equal."""
    rows = [np.empty((0, 3), dtype=np.int32)]
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        group = members[start : start + count]
        a, b = np.triu_indices(count, 1) if count <= MAX_EQUAL else (np.zeros(count - 1, int), np.arange(1, count))
        rows.append(np.stack([group[a], group[b], np.zeros(a.size, dtype=np.int32)], axis=1))
    return np.concatenate(rows)


def _crossed(
    members: NDArray[np.int32], starts: NDArray[np.int32], shown: NDArray[np.int64], near: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Rows (number, number, distance) of the pictures that have the near values."""
    a, b, distance = near.T
    repeats = shown[a] * shown[b]
    pair = np.repeat(np.arange(a.size), repeats)
    offset = np.arange(pair.size) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    of_a, of_b = np.divmod(offset, shown[b][pair])
    return np.stack([members[starts[a][pair] + of_a], members[starts[b][pair] + of_b], distance[pair]], axis=1)
