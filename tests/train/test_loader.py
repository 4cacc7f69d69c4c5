import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.exit_codes import BadInputError
from medssl.train.loader import Bags, batch_at, finetune_batch_at


def test_an_epoch_shows_every_unit_once_and_the_next_in_another_order() -> None:
    batches = [batch_at(step, num_units=16, batch_size=4, seed=1) for step in range(8)]
    epochs = [np.concatenate(batches[:4]), np.concatenate(batches[4:])]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(16))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_too_few_images_for_a_batch_are_told() -> None:
    with pytest.raises(BadInputError, match="batch_size is 8 but only 5"):
        batch_at(0, num_units=5, batch_size=8, seed=0)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 50))
def test_fine_tuning_batches_are_consecutive_pieces_of_an_endless_row_of_permutations(
    num_images: int, batch_size: int, step: int
) -> None:
    batches = [finetune_batch_at(s, num_units=num_images, batch_size=batch_size, seed=3) for s in range(step + 1)]
    row, epochs = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert len(set(zip(row.tolist(), epochs.tolist(), strict=True))) == len(row)
    whole = len(row) // num_images
    for epoch in range(whole):
        assert sorted(row[epoch * num_images : (epoch + 1) * num_images].tolist()) == list(range(num_images))
    assert len(row) == batch_size * (step + 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40), st.integers(0, 9))
def test_a_pair_is_two_distinct_images_of_one_bag(owners: list[tuple[int, int]], epoch: int) -> None:
    patients, cases = np.array([p for p, _ in owners]), np.array([p * 10 + c for p, c in owners])
    bags = Bags(patients, cases)
    first, second = bags.pairs(np.arange(len(bags)), seed=0, epoch=epoch)
    assert (cases[first] == cases[second]).all()
    assert sorted(patients[first].tolist()) == sorted(set(patients.tolist()))
    for a, b in zip(first, second, strict=True):
        assert (a == b) == ((cases == cases[a]).sum() == 1)


def test_every_pair_of_a_bag_is_drawn_about_equally_often() -> None:
    bags = Bags([0, 0, 0], [0, 0, 0])
    pairs = [tuple(int(x[0]) for x in bags.pairs(np.array([0]), seed=5, epoch=e)) for e in range(3000)]
    counts = [pairs.count((a, b)) for a in range(3) for b in range(3) if a != b]
    assert sum(counts) == 3000
    assert min(counts) > 400  # 500 expected, standard deviation 20
