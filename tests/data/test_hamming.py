import itertools
import random
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.data import hamming


def near_pairs(values, max_distance):
    pairs = hamming.near_pairs(np.array(values, dtype=np.uint64), max_distance=max_distance)
    return list(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.distance.tolist(), strict=True))


def compare_all(values, max_distance):
    distances = [(i, j, (values[i] ^ values[j]).bit_count()) for i, j in itertools.combinations(range(len(values)), 2)]
    return [row for row in distances if row[2] <= max_distance]


def with_flipped_bits(value, count, generator):
    for bit in generator.sample(range(64), count):
        value ^= 1 << bit
    return value


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.integers(0, 15), st.randoms(use_true_random=False))
def test_exactly_the_near_pairs_are_found(originals, max_distance, generator):
    values = [with_flipped_bits(v, generator.randrange(18), generator) for v in originals for _ in range(3)]
    assert near_pairs(values, max_distance) == compare_all(values, max_distance)


@pytest.mark.parametrize("max_distance", [0, 1, 4, 15])
def test_every_bit_counts_once(max_distance):
    values = [0, 2**64 - 1, *(1 << bit for bit in range(64)), (1 << max_distance) - 1]
    assert near_pairs(values, max_distance) == compare_all(values, max_distance)


def test_hashes_of_one_kind_are_found_as_by_comparing_all():
    generator = random.Random(0)
    common = generator.getrandbits(64)
    values = [with_flipped_bits(common, generator.randrange(7), generator) for _ in range(300)]
    assert len(compare_all(values, 4)) > 1000
    assert near_pairs(values, 4) == compare_all(values, 4)


def test_of_very_many_equal_hashes_the_first_stands_for_all():
    many = hamming.MAX_EQUAL + 1
    values = [7] * many + [6] + [9] * hamming.MAX_EQUAL
    found = near_pairs(values, 1)
    nines = list(itertools.combinations(range(many + 1, len(values)), 2))
    assert found == [*((0, i, 0) for i in range(1, many)), (0, many, 1), *((i, j, 0) for i, j in nines)]


@pytest.mark.parametrize("values", [[], [5]])
def test_fewer_than_two_hashes_have_no_pairs(values):
    assert near_pairs(values, 4) == []


@pytest.mark.parametrize("max_distance", [-1, 16])
def test_a_distance_out_of_range_is_refused(max_distance):
    with pytest.raises(ValueError, match=r"max_distance must be from 0 to 15, found"):
        near_pairs([1, 2], max_distance)


def test_a_quarter_of_a_million_hashes_of_which_half_are_equal_take_seconds_and_little_memory():
    hashes = np.random.default_rng(0).integers(0, 2**64, 223_414, dtype=np.uint64)
    hashes[: hashes.size // 2] = hashes[0]
    hashes[-20_000:] = np.repeat(hashes[-200:], 100)
    tracemalloc.start()
    start_s = time.perf_counter()
    pairs = hamming.near_pairs(hashes, max_distance=4)
    took_s = time.perf_counter() - start_s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pairs.a.size == hashes.size // 2 - 1 + 200 * 100 * 99 // 2
    assert peak_bytes < 300e6
    assert took_s < 30  # 1.5 s on an idle core
