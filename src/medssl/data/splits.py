"""Assigning patients to train, validation and test, and to nested label fractions.

A patient's place depends on a keyed hash of its identifier and never on the order of rows or on a generator's state.
Sizes count images, as the paper's 167,429 / 22,240 / 33,745 do (spec 2.4), while patients stay whole; patients with
few images fill what remains, so that exact sizes are nearly always reachable.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import PAPER_LITERAL_TRAIN, SplitConfig
from medssl.data.balance import PARTS, Composition, attributes, part_of
from medssl.data.packing import first_fit, missing, nearest_sums, pack
from medssl.data.ranks import hashes, label_ranks, stratified_ranks
from medssl.data.split_summary import summarize
from medssl.data.units import (
    UNIT_COLUMNS,
    Names,
    Units,
    follow,
    follow_owner,
    groups_of,
    keep,
    num_grouped_patients,
    num_torn_groups,
    read_units,
    with_kept_rows,
)
from medssl.exit_codes import BadInputError

# The smaller splits choose first; with fractions, train takes what is left.
FILL_ORDER = ("test", "validation", "train")

Column = Any  # a pyarrow array; the published stubs cannot say of what
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """Who is in which split.

    Attributes:
        splits: Schema SPLIT_TABLE, rows sorted by their unit; label_ranks has one number in [0, 1) a draw.
        summary: The proof of it, recounted from the joined tables, in JSON types; shares are 0-1.
    """

    splits: pa.Table
    summary: dict[str, Any]


def assign(
    index: pa.Table, config: SplitConfig, *, previous: pa.Table | None = None, pairs: pa.Table | None = None
) -> Assignment:
    """Put every patient of `index` into exactly one split.

    In hash order a patient goes to the first of test, validation and train with room for all of its images. Where
    this misses the sizes, the patients that came last in each split are placed anew, exactly. Fractions that cannot
    be met exactly are met as nearly as whole patients allow; exact sizes that leave images over leave whole patients
    "unused". Patients of the source's official validation table stay there; who has unlabelled images only is
    "unlabelled", for pretraining alone.

    Args:
        index: Schema INDEX.
        config: Sizes, seed and number of draws.
        previous: An earlier SPLIT_TABLE: its patients keep split and ranks, and only the others are placed, so that
            the sizes hold for all together. Patients who are in it alone stay in the result.
        pairs: Schema DUPLICATES: patients who share a picture are placed together.

    Raises:
        BadInputError: Exact sizes cannot be met, a split would hold no patient, or `previous` is of another kind.
    """
    units = read_units(index, UNIT_COLUMNS[config.group_by])
    if previous is not None:
        keep(units, previous, config)
    group_of_unit = groups_of(units, index, pairs)
    follow(units.names, group_of_unit)
    tried = _place_all(index, units, group_of_unit, config)
    follow(units.names, group_of_unit)  # unlabelled copies of pictures that have only now been placed
    follow_owner(units)
    if config.stratify == "condition":
        ranks = stratified_ranks(index, units, seed=config.seed, draws=config.draws, previous=previous)
    else:
        ranks = np.column_stack([label_ranks(units.ids, seed=config.seed, draw=draw) for draw in range(config.draws)])
    columns: dict[str, Column] = {
        "patient_id": pa.array(units.patient_ids, pa.string()),
        "split": pa.array(units.names, pa.string()),
        "label_ranks": pa.array(list(ranks), pa.list_(pa.float64())),
    }
    if units.column != "patient_id":
        columns[units.column] = pa.array(units.ids, pa.string())
    splits = schema.check(pa.table(columns), schema.SPLIT_TABLE, "splits")
    if previous is not None:
        splits = with_kept_rows(splits, previous, units.column)
    summary = summarize(index, splits, config) | {
        "group_by": config.group_by,
        "seeds_tried": tried,
        "kept_from_previous": 0 if previous is None else previous.num_rows,
        "patients_in_groups_of_shared_pictures": num_grouped_patients(units, group_of_unit),
        # Earlier splits stay as they are, even where a picture is now known to lie in two of them.
        "shared_pictures_in_two_splits": num_torn_groups(units, group_of_unit),
    }
    return Assignment(splits, summary)


def shares(index: pa.Table, splits: pa.Table) -> dict[str, float]:
    """Share of the images of train, validation and test that lies in each, for `SplitConfig`.

    Args:
        index: Schema INDEX; images of patients who are not in `splits` do not count.
        splits: Schema SPLIT_TABLE.

    Raises:
        BadInputError: One of the three has no image.
    """
    of_image = schema.split_of_images(index, splits).to_pylist()
    images = {split: of_image.count(split) for split in FILL_ORDER}
    if not all(images.values()):
        raise BadInputError(
            f"the previous splits have {_listed(images)} images in this index; expected some in each; were both made "
            "with the same key and name?"
        )
    return {split: number / sum(images.values()) for split, number in images.items()}


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
    is_in = pa.array(schema.ranks_of_draw(train, draw) < fraction)
    chosen: Column = train["patient_id"].filter(is_in)
    return set(chosen.to_pylist())


def _place_all(index: pa.Table, units: Units, group_of_unit: Ints, config: SplitConfig) -> list[dict[str, Any]]:
    """Decide every unit that is left, by the best of the seeds to try; returns each with its largest deviation."""
    is_free = units.names == ""
    groups, code = np.unique(group_of_unit[is_free], return_inverse=True)
    sizes = np.bincount(code, weights=units.num_images[is_free], minlength=groups.size).astype(np.int64)
    ids = units.ids[groups]
    held = {split: int(units.num_images[units.names == split].sum()) for split in PARTS}
    if not groups.size and any(held.values()):
        return []
    composition = None
    if config.balance_seeds > 1:
        composition = Composition.count(attributes(index), units.of_image, units.ids.size)
    tried: list[dict[str, Any]] = []
    best: Names | None = None
    for seed in range(config.seed, config.seed + config.balance_seeds):
        order = np.argsort(hashes(ids, f"split/{seed}"), kind="stable")
        placed = np.empty(groups.size, dtype=object)
        placed[order] = _place(sizes[order], config, held)
        names = units.names.copy()
        names[is_free] = placed[code]
        deviation = None if composition is None else _largest_deviation(composition, names)
        if best is None or (deviation is not None and deviation < min(t["largest_deviation"] for t in tried)):
            best = names
        tried.append({"seed": seed, "largest_deviation": deviation})
    if best is not None:
        units.names[:] = best
    return tried


def _largest_deviation(composition: Composition, names: Names) -> float:
    """The largest absolute deviation of a split's share from that of all patients who are split."""
    _, deviations = composition.merged(part_of(names), len(PARTS)).against_whole()
    return round(float(deviations.max(initial=0.0)), 6)


def _place(sizes: Ints, config: SplitConfig, held: dict[str, int]) -> Names:
    """Split of each group, given the number of images of each in hash order and those each split already holds."""
    if config.mode == "paper_literal":
        return _place_literally(sizes, config, held)
    targets = _targets(int(sizes.sum()), config, held)
    groups = pack(sizes, targets)
    if groups is None and config.exact:
        raise BadInputError(_impossible(sizes, targets))
    if groups is None:
        groups = first_fit(sizes, targets, overshoot=True)
        groups[groups == len(FILL_ORDER)] = FILL_ORDER.index("train")
    names = np.array([*FILL_ORDER, schema.UNUSED], dtype=object)[groups]
    for split in FILL_ORDER:
        if split not in names and not held[split]:
            raise BadInputError(
                f"impossible split: no patient for {split}, with {sizes.size} patients of {int(sizes.sum())} images; "
                "change the sizes in the study's splits, or give more patients"
            )
    return names


def _place_literally(sizes: Ints, config: SplitConfig, held: dict[str, int]) -> Names:
    """The split with the paper's true sizes, of whose training images only the number that it prints is kept.

    So both readings of the paper are evaluated on the same images (spec 2.4).
    """
    names = _place(sizes, config.model_copy(update={"mode": "paper"}), held)
    in_train = np.flatnonzero(names == "train")
    wanted = np.array([PAPER_LITERAL_TRAIN - held["train"]])
    kept = pack(sizes[in_train], wanted) if wanted[0] >= 0 else None
    if kept is None:
        raise BadInputError(
            f"impossible split: no patients of the training split have {PAPER_LITERAL_TRAIN} images together; "
            "splits.mode paper_literal is for CheXpert's own table"
        )
    names[in_train[kept == 1]] = schema.UNUSED
    return names


def _targets(num_images: int, config: SplitConfig, held: dict[str, int]) -> Ints:
    """Of `num_images` still to be placed, those wanted in each split of FILL_ORDER beside what it already holds."""
    wanted = config.sizes
    if not config.exact:
        total = num_images + sum(held.values())
        test = min(max(round(wanted["test"] * total) - held["test"], 0), num_images)
        validation = min(max(round(wanted["validation"] * total) - held["validation"], 0), num_images - test)
        return np.array([test, validation, num_images - test - validation])
    targets = np.array([int(wanted[split]) - held[split] for split in FILL_ORDER])
    if targets.min() < 0:
        raise BadInputError(
            f"impossible split: the patients of the previous splits already have more images than wanted "
            f"({_listed({split: held[split] for split in FILL_ORDER})}); raise the sizes or give fractions"
        )
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
