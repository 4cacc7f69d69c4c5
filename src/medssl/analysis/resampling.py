"""Resamples of clusters with replacement: the same for a seed and a number of clusters, on any machine.

A replicate depends on the seed, the clusters and its own number only, not on how many others there are: the first
1,000 of 2,000 replicates are the 1,000.

Shape suffixes: C clusters, L lanes (replicates of a block), N units, R replicates, E ends of ranges of random words.
"""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Codes of a cluster's units and a bound of the places in all clusters take 31 and 32 bits.
MAX_CLUSTERS = 1 << 24
# Standard deviations by which the sum of Poisson counts is drawn below what is needed: to add is cheap, to remove not.
MARGIN = 2
_MIN_MEAN = 0.25
_NUM_COUNTS = 21  # a mean of 1 or less gives more than 20 once in 1e20 draws
_NUM_TERMS = 40  # of the exponential series: beyond 128 bits
_PRECISION = 128  # bits of chances
_ONE = 1 << _PRECISION


class Block(NamedTuple):
    """Resamples side by side.

    Attributes:
        count_CL: How often each cluster was drawn; valid until the next block is asked for, and may be written to. 8
            bits do: one cluster in 256 draws has a probability below 1e-500.
        heaviest: No count is above.
    """

    count_CL: NDArray[np.uint8]
    heaviest: int


def resamples(num_clusters: int, *, num_replicates: int, seed: int) -> Iterator[Block]:
    """Draw as many clusters as there are, with replacement, LANES replicates at a time.

    Each cluster's count is a Poisson variable, drawn by 16 bits as a mixture (see `_ends`); then single draws make the
    sum what it has to be, which gives the multinomial distribution. What falls short of it is a rounding of chances by
    1e-19 a draw at most, and that SplitMix64 is not random.

    Args:
        num_clusters: 1 to `MAX_CLUSTERS`.
        num_replicates: > 0; the last block may hold more, which are those that would follow.
        seed: >= 0.

    Raises:
        ValueError: For a number out of range.
    """
    if not 0 < num_clusters <= MAX_CLUSTERS or num_replicates < 1:
        raise ValueError(
            f"a bootstrap needs 1 to {MAX_CLUSTERS} clusters of units and at least one replicate, got {num_clusters} "
            f"clusters and num_replicates={num_replicates}"
        )
    from medssl.analysis import kernels  # importing the compiler takes a second

    common_E, rare_E = _ends(num_clusters, kernels.NUM_COMMON)
    root_3 = np.random.SeedSequence(seed).generate_state(3, np.uint64).astype(np.uint64)
    # Rows that begin where lines of the cache do.
    memory = np.empty((num_clusters + 1) * kernels.LANES, np.uint8)
    memory = memory[-memory.ctypes.data % kernels.LANES :][: num_clusters * kernels.LANES]
    count_CL = memory.reshape(num_clusters, kernels.LANES)
    for first in range(0, num_replicates, kernels.LANES):
        heaviest = kernels.draw(root_3, first, common_E, rare_E, count_CL)
        yield Block(count_CL, heaviest)


def resample_weights(
    cluster_of_unit: NDArray[np.int64], *, num_replicates: int, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """The resamples of `resamples` as weights of units: a unit weighs as often as its cluster was drawn.

    With the patient as the cluster, images of one patient stay together; with `arange(n)` every unit is its own.

    Args:
        cluster_of_unit: Shape (N,), any integers; equal ones belong together.
        num_replicates: Total over all blocks, > 0.
        seed: >= 0.

    Yields:
        Blocks of shape (r, N).

    Raises:
        ValueError: Without a unit or a replicate.
    """
    clusters, cluster_N = np.unique(cluster_of_unit, return_inverse=True)
    left = num_replicates
    for block in resamples(clusters.size, num_replicates=num_replicates, seed=seed):
        yield np.ascontiguousarray(block.count_CL[cluster_N, :left].T)
        left -= block.count_CL.shape[1]


def _ends(num_clusters: int, num_common: int) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Ends of the ranges of random words that stand for Poisson counts: 16 bits for common counts, 64 for rare ones.

    Common counts have their chances rounded down to 16 bits. With what is left of all chances, once in some 1,500
    draws, a count is rare: its chances, given that, are what was missing, so that the sum of both is the distribution.
    """
    mean = max(_MIN_MEAN, 1 - MARGIN / math.sqrt(num_clusters))
    # Chances as multiples of 2**-_PRECISION, by the exponential series; the mean is a double and taken as exact.
    powers = [_ONE]
    for count in range(1, _NUM_TERMS):
        powers.append(powers[-1] * int(mean * 2**53) // (count << 53))
    no_event = sum(powers[::2]) - sum(powers[1::2])
    chances = [no_event * power >> _PRECISION for power in powers[:_NUM_COUNTS]]
    common = [chance >> (_PRECISION - 16) for chance in chances[:num_common]]
    missing = [chance - (share << (_PRECISION - 16)) for chance, share in zip(chances, common, strict=False)]
    missing += chances[num_common:]
    ends = [end * 2**64 // sum(missing) for end in accumulate(missing[:-1])]
    return np.cumsum(common).astype(np.uint16), np.array(ends, np.uint64)
