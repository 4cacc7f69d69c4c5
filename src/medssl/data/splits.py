"""Assigning patients to train, validation and test, and to nested label fractions.

A patient's place depends on a keyed hash of its identifier and never on the order of rows or on a generator's state.
Sizes count images, as the paper's 167,429 / 22,240 / 33,745 do (spec 2.4), while patients stay whole; patients with
few images fill what remains, so that exact sizes are nearly always reachable.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import SplitConfig
from medssl.data.packing import first_fit, missing, nearest_sums, pack
from medssl.data.split_summary import OFFICIAL_VALID, UNUSED, ranks_of_draw, summarize
from medssl.exit_codes import BadInputError

# The smaller splits choose first; with fractions, train takes what is left.
FILL_ORDER = ("test", "validation", "train")

Column = Any  # a pyarrow array; the published stubs cannot say of what


@dataclass(frozen=True)
class Assignment:
    """Who is in which split.

    Attributes:
        splits: Schema SPLIT_TABLE, rows sorted by patient_id; label_ranks has one number in [0, 1) a draw.
        summary: The proof of it, recounted from the joined tables, in JSON types; shares are 0-1.
    """

    splits: pa.Table
    summary: dict[str, Any]


def assign(index: pa.Table, config: SplitConfig) -> Assignment:
    """Put every patient of `index` into exactly one split.

    In hash order a patient goes to the first of test, validation and train with room for all of its images. Where
    this misses the sizes, the patients that came last in each split are placed anew, exactly. Fractions that cannot
    be met exactly are met as nearly as whole patients allow; exact sizes that leave images over leave whole patients
    "unused". Patients of the source's official validation table stay there.

    Args:
        index: Schema INDEX.
        config: Sizes, seed and number of draws.

    Raises:
        BadInputError: Exact sizes cannot be met, or a split would hold no patient.
    """
    patients = _patients(index)
    is_official = pc.equal(patients["source_split"], pa.scalar(OFFICIAL_VALID)).to_numpy(zero_copy_only=False)
    ids = np.array(patients["patient_id"].to_pylist(), dtype=object)
    names = np.full(ids.size, OFFICIAL_VALID, dtype=object)
    own = np.flatnonzero(~is_official)
    order = own[np.argsort(_hashes(ids[own], f"split/{config.seed}"), kind="stable")]
    sizes = patients["num_images"].to_numpy()[order]
    names[order] = _place(sizes, config)
    ranks = np.column_stack([label_ranks(ids, seed=config.seed, draw=draw) for draw in range(config.draws)])
    splits = pa.Table.from_arrays(
        [patients["patient_id"], pa.array(names, pa.string()), pa.array(list(ranks), pa.list_(pa.float64()))],
        names=["patient_id", "split", "label_ranks"],
    )
    splits = schema.check(splits, schema.SPLIT_TABLE, "splits")
    return Assignment(splits, summarize(index, splits, config))


def label_ranks(patient_ids: Sequence[str] | NDArray[Any], *, seed: int, draw: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each patient: the 10 % label set is that of the patients below 0.1.

    It is the first 53 bits of a keyed hash of seed, draw, stratum (one only, "") and patient_id. So fractions are
    nested, and a patient's number does not depend on who else is there.
    """
    bits = _hashes(patient_ids, f"rank/{seed}/{draw}/") >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def select_fraction(splits: pa.Table, *, fraction: float, draw: int) -> set[str]:
    """Train patients of a label fraction.

    Args:
        splits: Schema SPLIT_TABLE.
        fraction: In (0, 1]; 1 takes all.
        draw: Which of the independent orders of patients.

    Raises:
        ValueError: `fraction` or `draw` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label fraction {fraction}: expected a number above 0 and at most 1")
    train = splits.filter(pc.equal(splits["split"], pa.scalar("train")))
    is_in = pa.array(ranks_of_draw(train, draw) < fraction)
    chosen: Column = train["patient_id"].filter(is_in)
    return set(chosen.to_pylist())


def _hashes(patient_ids: Sequence[str] | NDArray[Any], purpose: str) -> NDArray[np.uint64]:
    keyed = hashlib.blake2b(key=hashlib.sha256(purpose.encode()).digest(), digest_size=8)
    digests = bytearray()
    for patient_id in patient_ids:
        state = keyed.copy()
        state.update(patient_id.encode())
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64)


def _patients(index: pa.Table) -> pa.Table:
    """One row a patient, sorted by patient_id, so that equal hashes (never seen) have an order, too."""
    counted: Any = index.group_by(["patient_id", "source_split"]).aggregate([([], "count_all")])
    counted = counted.rename_columns(["patient_id", "source_split", "num_images"]).sort_by("patient_id")
    in_two = counted.num_rows - len(counted["patient_id"].unique())
    if in_two:
        raise BadInputError(
            f"index: {in_two} patients are in the tables of both train and official validation; run ingest again"
        )
    table: pa.Table = counted
    return table


def _place(sizes: NDArray[np.int64], config: SplitConfig) -> NDArray[Any]:
    """Split of each patient, given the number of images of each in hash order."""
    targets = _targets(int(sizes.sum()), config)
    groups = pack(sizes, targets)
    if groups is None and config.exact:
        raise BadInputError(_impossible(sizes, targets))
    if groups is None:
        groups = first_fit(sizes, targets, overshoot=True)
        groups[groups == len(FILL_ORDER)] = FILL_ORDER.index("train")
    names = np.array([*FILL_ORDER, UNUSED], dtype=object)[groups]
    for split in FILL_ORDER:
        if split not in names:
            raise BadInputError(
                f"impossible split: no patient for {split}, with {sizes.size} patients of {int(sizes.sum())} images; "
                "change the sizes in the study's splits, or give more patients"
            )
    return names


def _targets(num_images: int, config: SplitConfig) -> NDArray[np.int64]:
    """Images wanted in each split of FILL_ORDER."""
    wanted = config.sizes
    if not config.exact:
        test, validation = (round(wanted[split] * num_images) for split in ("test", "validation"))
        return np.array([test, validation, num_images - test - validation])
    targets = np.array([int(wanted[split]) for split in FILL_ORDER])
    if targets.sum() > num_images:
        raise BadInputError(
            f"impossible split: the sizes sum to {targets.sum()} images, the data set has {num_images}; lower the "
            "sizes in the study's splits or give fractions"
        )
    return targets


def _impossible(sizes: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    wanted = dict(zip(FILL_ORDER, targets.tolist(), strict=True))
    nearest = {split: nearest_sums(sizes, target) for split, target in wanted.items()}
    parts = [
        f"{split} cannot have {wanted[split]} images; reachable are {' and '.join(map(str, sums))}"
        for split, sums in nearest.items()
        if sums != [wanted[split]]
    ]
    if not parts:
        near = targets - missing(sizes, first_fit(sizes, targets), targets)
        parts = [
            f"no patients give {_listed(wanted)} together; "
            f"reachable is {_listed(dict(zip(FILL_ORDER, near.tolist(), strict=True)))}"
        ]
    return (
        f"impossible split: {'; '.join(parts)} (patients stay whole: {sizes.size} of {sizes.min()} to {sizes.max()} "
        "images); change the sizes in the study's splits or give fractions"
    )


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{split} {number}" for split, number in numbers.items())
