import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.data import packing

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=300).map(lambda sizes: np.array(sizes, np.int64))
TARGETS = st.lists(st.integers(0, 400), min_size=1, max_size=4).map(lambda targets: np.array(targets, np.int64))


def one_by_one(sizes, targets, overshoot):
    room, groups = list(targets), []
    for size in sizes:
        fitting = [g for g, left in enumerate(room) if size <= left or (overshoot and size < 2 * left)]
        groups.append(fitting[0] if fitting else len(room))
        if fitting:
            room[fitting[0]] -= size
    return groups


@given(SIZES, TARGETS, st.booleans(), st.sampled_from([1, 7, packing._WINDOW]))
def test_first_fit_in_runs_is_first_fit_one_by_one(sizes, targets, overshoot, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW", window)
        groups = packing.first_fit(sizes, targets, overshoot=overshoot)
    assert groups.tolist() == one_by_one(sizes.tolist(), targets.tolist(), overshoot)


@given(SIZES, TARGETS)
def test_a_packing_meets_every_target_exactly(sizes, targets):
    groups = packing.pack(sizes, targets)
    if groups is not None:
        assert [int(sizes[groups == group].sum()) for group in range(targets.size)] == targets.tolist()


def test_equal_sizes_fill_the_groups_in_order():
    groups = packing.first_fit(np.full(10, 3), np.array([6, 9, 4]))
    assert groups.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 3]
