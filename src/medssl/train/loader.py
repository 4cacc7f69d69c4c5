"""Which images make which batch: pure functions of (seed, step), and the images that they number.

A step's batch depends on the seed and the step alone, so a resumed run and any number of processes see the same
batches.

Shape suffixes: N images, H and W pixels of an image, C channels.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medssl.exit_codes import BadInputError
from medssl.imaging import ImageError, Pixels
from medssl.progress import Progress, say
from medssl.shardset import Cohort, permutation
from medssl.train.augment import uniforms
from medssl.train.decode import decode_stored
from medssl.train.resources import MIB, cache_bytes, own_cores

Index = NDArray[np.int64]

_DECODE_AHEAD = 256  # images decoded between two progress lines


def stored_pixels(cohort: Cohort, number: int) -> Pixels:
    """Image of row `number` of a cohort, uint8, shape (H, W, C), decoded now.

    Raises:
        BadInputError: What is stored is no image of that shape.
    """
    shards, position = cohort.shards, int(cohort.positions[number])
    try:
        image_HWC = decode_stored(shards.read(position), shards.channels)
    except ImageError as error:
        raise BadInputError(f"shards: image number {position}: {error}; run write_shards again") from None
    expected = (shards.image_size_px, shards.image_size_px, shards.channels)
    if image_HWC.shape != expected:
        found = f"image number {position} has shape {image_HWC.shape}, expected {expected}"
        raise BadInputError(f"shards: {found}; run write_shards again")
    return image_HWC


class Images:
    """The images of a cohort, by the number of their row: kept decoded where they fit, else decoded at each use.

    Attributes:
        cohort: Which images.
        shape: (H, W, C) of each.
        patient_N: Number of the patient of each image.
        case_N: Number of the case of each image.
        num_bytes_kept: Memory of the decoded images; 0 where they are decoded at each use.
    """

    def __init__(self, cohort: Cohort, *, max_bytes: int | None = None) -> None:
        """Decode all images now if that takes at most `max_bytes`, by default what this process may keep."""
        size_px = cohort.shards.image_size_px
        self.cohort, self.shape = cohort, (size_px, size_px, cohort.shards.channels)
        self.patient_N, self.case_N = (
            np.unique(np.asarray(cohort.rows[column].to_pylist()), return_inverse=True)[1].astype(np.int64)
            for column in ("patient_id", "case_id")
        )
        self._pixels_NHWC: Pixels | None = None
        if max_bytes is None:
            max_bytes = cache_bytes()
        needed = len(self) * math.prod(self.shape)
        self.num_bytes_kept = needed if needed <= max_bytes else 0
        if self.num_bytes_kept:
            self._pixels_NHWC = self._decode_all()
        else:
            say(
                f"{cohort.split}: {len(self)} decoded images would take {needed / MIB:.0f} MiB of the "
                f"{max_bytes / MIB:.0f} MiB left for such; they are decoded at each use"
            )

    def __len__(self) -> int:
        return len(self.cohort)

    def pixels(self, number: int) -> Pixels:
        """An image, uint8, shape (H, W, C), not to be changed.

        Raises:
            BadInputError: What is stored is no image of that shape.
        """
        if self._pixels_NHWC is not None:
            kept_HWC: Pixels = self._pixels_NHWC[number]
            return kept_HWC
        return stored_pixels(self.cohort, number)

    def _decode_all(self) -> Pixels:
        pixels_NHWC = np.empty((len(self), *self.shape), np.uint8)

        def decode_into(number: int) -> None:
            pixels_NHWC[number] = self.pixels(number)

        # In the order of the files, so that a cold disk is read forwards.
        numbers = np.argsort(self.cohort.positions).tolist()
        progress = Progress(f"decode {self.cohort.split}", len(numbers), unit="images")
        with ThreadPoolExecutor(own_cores()) as pool:
            for begin in range(0, len(numbers), _DECODE_AHEAD):
                done = sum(1 for _ in pool.map(decode_into, numbers[begin : begin + _DECODE_AHEAD]))
                progress.update(begin + done)
        return pixels_NHWC


@lru_cache(maxsize=8)
def _order(num: int, *, seed: int, epoch: int) -> Index:
    """`permutation`, kept for the next steps of its epoch."""
    order = permutation(num, seed=seed, epoch=epoch)
    order.flags.writeable = False
    return order


def batch_at(step: int, *, num_units: int, batch_size: int, seed: int) -> Index:
    """Units of the global batch at `step`: consecutive pieces of a fresh permutation an epoch, rest dropped.

    Raises:
        BadInputError: There are fewer units than a batch takes.
    """
    if num_units < batch_size:
        raise BadInputError(f"batch_size is {batch_size} but only {num_units} are there to draw from; lower batch_size")
    epoch, position = divmod(step, num_units // batch_size)
    return _order(num_units, seed=seed, epoch=epoch)[position * batch_size : (position + 1) * batch_size]


def finetune_batch_at(step: int, *, num_units: int, batch_size: int, seed: int) -> tuple[Index, Index]:
    """Images or cases at `step`, from permutations laid end to end: a batch may exceed a small label fraction.

    Returns:
        The units, and the epoch of each, in which it comes once: by both together no two rows of a run are alike.
    """
    place_N = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch_N = place_N // num_units
    first, last = int(epoch_N[0]), int(epoch_N[-1])
    orders = [_order(num_units, seed=seed, epoch=epoch) for epoch in range(first, last + 1)]
    return np.concatenate(orders)[place_N - first * num_units], epoch_N


class Bags:
    """MICLe's positive pairs: two distinct images of one bag, chosen before any augmentation (spec 1.5).

    A bag is a case, or all images of a patient. The units of an epoch are patients, each with one of his bags, so
    two bags of one patient are never in one batch, where they would be each other's negatives.
    """

    def __init__(self, patient_N: Sequence[int] | Index, bag_N: Sequence[int] | Index) -> None:
        bags: dict[int, dict[int, list[int]]] = {}
        for image, (patient, bag) in enumerate(zip(patient_N, bag_N, strict=True)):
            bags.setdefault(int(patient), {}).setdefault(int(bag), []).append(image)
        self._bags_of_patient = [list(own.values()) for _, own in sorted(bags.items())]

    def __len__(self) -> int:
        return len(self._bags_of_patient)

    def pairs(self, patients: Index, *, seed: int, epoch: int) -> tuple[Index, Index]:
        """One pair of image numbers a patient; a bag of a single image gives that image twice."""
        draws_N3 = uniforms(seed, epoch, patients, view=2, num=3)
        first, second = np.empty_like(patients), np.empty_like(patients)
        for row, (patient, draw) in enumerate(zip(patients, draws_N3, strict=True)):
            own = self._bags_of_patient[patient]
            bag = own[int(draw[0] * len(own))]
            a = int(draw[1] * len(bag))
            b = (a + 1 + int(draw[2] * (len(bag) - 1))) % len(bag)
            first[row], second[row] = bag[a], bag[b]
        return first, second
