"""Which images make which batch: pure functions of (seed, step), and the decoded images they index.

A step's batch depends on the seed and the step alone, so a resumed run and any number of processes see the same
batches. Images are decoded once and kept as uint8; augmentation happens on whole batches.

Shape suffixes: N images of a batch, C channels, S pixels a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.exit_codes import BadInputError
from medssl.progress import Progress
from medssl.shardset import Cohort, permutation
from medssl.train.augment import uniforms

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """All images of a cohort in memory.

    Attributes:
        pixels_NCSS: uint8.
        patient_N: Number of the patient of each image.
        case_N: Number of the case of each image.
    """

    pixels_NCSS: Tensor
    patient_N: Index
    case_N: Index

    @classmethod
    def decode(cls, cohort: Cohort) -> "Images":
        """Decode every image of `cohort`."""
        numbers = [
            np.unique(np.asarray(cohort.rows[column].to_pylist()), return_inverse=True)[1].astype(np.int64)
            for column in ("patient_id", "case_id")
        ]
        return cls(
            torch.from_numpy(cohort.decode_all(Progress(f"decode {cohort.split}", len(cohort), unit="images"))),
            *numbers,
        )

    def __len__(self) -> int:
        return len(self.patient_N)


def batch_at(step: int, *, num_units: int, batch_size: int, seed: int) -> Index:
    """Units of the global batch at `step`: consecutive pieces of a fresh permutation an epoch, rest dropped.

    Raises:
        BadInputError: There are fewer units than a batch takes.
    """
    if num_units < batch_size:
        raise BadInputError(f"batch_size is {batch_size} but only {num_units} are there to draw from; lower batch_size")
    epoch, position = divmod(step, num_units // batch_size)
    order = permutation(num_units, seed=seed, epoch=epoch)
    return order[position * batch_size : (position + 1) * batch_size]


def finetune_batch_at(step: int, *, num_units: int, batch_size: int, seed: int) -> Index:
    """Images or cases at `step`, from permutations laid end to end: a batch may exceed a small label fraction."""
    start = step * batch_size
    first, last = start // num_units, (start + batch_size - 1) // num_units
    orders = [permutation(num_units, seed=seed, epoch=epoch) for epoch in range(first, last + 1)]
    return np.concatenate(orders)[start - first * num_units :][:batch_size]


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
