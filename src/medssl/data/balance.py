"""Composition of the splits: sex, age, view position, skin type and positive findings, beside that of all images.

Everything is counted in whole images, so that neither the order of rows nor of sums changes a digit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl import schema
from medssl.config import AGE_EDGES_YEARS

UNKNOWN = -1
# What is split at random, and so compared with the whole: the three splits, and what none of them takes.
PARTS = (*schema.SPLITS[:3], schema.UNUSED)

Flags = NDArray[np.int8]
Ints = NDArray[np.int64]


def attributes(index: pa.Table) -> dict[str, Flags]:
    """What is balanced, by name: for each image 1, 0 or UNKNOWN, shape (N,).

    Sex, view position, age band and skin type are UNKNOWN where the source does not say; a finding counts as positive
    where it is stated so, and as not positive everywhere else that it was assessed.
    """
    flags = {"share_female": _is(index["sex"], "female")}
    for column, name in (("view_position", "view"), ("skin_type", "skin_type")):
        for value in sorted(value for value in index[column].unique().to_pylist() if value is not None):
            flags[f"share_{name} {value}"] = _is(index[column], value)
    ages_years = index["age_years"].to_numpy().astype(np.float64)
    for low, high in pairwise((0.0, *AGE_EDGES_YEARS, math.inf)):
        name = f"{low:g}-{high:g}" if math.isfinite(high) else f"{low:g}+"
        is_in = (ages_years >= low) & (ages_years < high)
        flags[f"share_age {name}"] = np.where(np.isnan(ages_years), UNKNOWN, is_in).astype(np.int8)
    for finding in schema.label_columns(index):
        states = index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy()
        is_positive = (states == schema.POSITIVE).astype(np.int8)
        flags[f"share_positive {finding}"] = np.where(states == schema.NOT_ASSESSED, UNKNOWN, is_positive)
    return flags


def _is(column: Any, value: str) -> Flags:
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    of_code = np.array([*(int(name == value) for name in names), UNKNOWN], dtype=np.int8)
    codes: Ints = encoded.indices.fill_null(len(names)).to_numpy()
    return of_code[codes]


@dataclass(frozen=True)
class Composition:
    """Images of each group of patients by attribute: U groups, V attributes.

    Attributes:
        names: Of the attributes.
        positive: Images that have the attribute, shape (U, V).
        known: Images of which it is known, shape (U, V).
    """

    names: tuple[str, ...]
    positive: Ints
    known: Ints

    @classmethod
    def count(cls, flags: Mapping[str, Flags], group_of_image: Ints, num_groups: int) -> Self:
        """Count the attributes of the images of each group."""
        columns = [(_bincount(f == 1, group_of_image, num_groups), f != UNKNOWN) for f in flags.values()]
        positive = np.column_stack([counts for counts, _ in columns])
        known = np.column_stack([_bincount(is_known, group_of_image, num_groups) for _, is_known in columns])
        return cls(tuple(flags), positive, known)

    def merged(self, part_of_group: Ints, num_parts: int) -> "Composition":
        """The composition of parts that consist of whole groups."""
        positive, known = (
            np.column_stack([_bincount(column, part_of_group, num_parts) for column in counts.T])
            for counts in (self.positive, self.known)
        )
        return Composition(self.names, positive, known)

    def shares(self) -> NDArray[np.float64]:
        """Share of the known images that have the attribute, shape (U, V); NaN where none is known."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.positive / self.known)

    def against_whole(self) -> tuple["Composition", NDArray[np.float64]]:
        """Of PARTS: the composition of all together, and how far the share of each of the three splits is from it.

        The absolute differences have the shape (3, V), and are 0 where a share is not known.
        """
        whole = self.merged(np.zeros(len(PARTS), dtype=np.int64), 1)
        return whole, np.nan_to_num(np.abs(self.shares() - whole.shares()), nan=0.0)[: len(PARTS) - 1]


def part_of(names: NDArray[Any]) -> Ints:
    """The number in PARTS of each split; beyond them for any other."""
    numbers = {name: i for i, name in enumerate(PARTS)}
    return np.array([numbers.get(name, len(PARTS)) for name in names.tolist()], dtype=np.int64)


def _bincount(weights: NDArray[Any], codes: Ints, num: int) -> Ints:
    return np.bincount(codes, weights=weights.astype(np.float64), minlength=num)[:num].astype(np.int64)


def mean_age_years(ages_years: NDArray[np.float64]) -> float | None:
    """Mean of the known ages, rounded to 6 digits; None where none is known."""
    known = ages_years[~np.isnan(ages_years)]
    # fsum: the same for every order of rows
    return round(math.fsum(known.tolist()) / known.size, 6) if known.size else None
