"""What stays whole when a set is split: patients, or studies or images, alone or tied together by a shared picture."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import SplitConfig
from medssl.exit_codes import BadInputError

UNIT_COLUMNS = {"patient": "patient_id", "study": "case_id", "image": "image_id"}
# Who shares a picture follows the one whose place is decided; evaluation goes before training.
PRECEDENCE = (schema.OFFICIAL_VALID, "test", "validation", "train", schema.UNUSED)

Column = Any  # a pyarrow array; the published stubs cannot say of what
Ints = NDArray[np.int64]
Names = NDArray[Any]  # of splits


@dataclass(frozen=True)
class Units:
    """What stays whole: patients, or studies or images where the study says so.

    Attributes:
        column: Of the index, that names them.
        ids: Sorted, so that equal hashes (never seen) have an order, too; shape (U,).
        patient_ids: Whose they are, shape (U,).
        num_images: Images that count for the sizes: neither unlabelled nor of the official validation, shape (U,).
        of_image: The unit of each row of the index, shape (N,).
        names: Split of each unit where it is already decided, else "", shape (U,).
    """

    column: str
    ids: NDArray[Any]
    patient_ids: NDArray[Any]
    num_images: Ints
    of_image: Ints
    names: Names


def read_units(index: pa.Table, column: str) -> Units:
    """What stays whole, with the places that the source decides: official validation, and unlabelled images only.

    Args:
        index: Schema INDEX.
        column: One of UNIT_COLUMNS.

    Raises:
        BadInputError: A unit is in the tables of both training and official validation.
    """
    encoded = index[column].combine_chunks().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(names.astype(str), kind="stable")
    code = np.empty(order.size, dtype=np.int64)
    code[order] = np.arange(order.size)
    of_image = code[encoded.indices.to_numpy()]
    source = np.array(index["source_split"].to_pylist(), dtype=object)
    is_official, is_unlabelled = source == schema.OFFICIAL_VALID, source == schema.UNLABELLED
    is_own = ~is_official & ~is_unlabelled
    num_images, num_official = (np.bincount(of_image[flag], minlength=order.size) for flag in (is_own, is_official))
    if in_two := int(((num_images > 0) & (num_official > 0)).sum()):
        raise BadInputError(
            f"index: {in_two} patients are in the tables of both train and official validation; run ingest again"
        )
    first = np.empty(order.size, dtype=np.int64)
    first[of_image[::-1]] = np.arange(of_image.size)[::-1]
    unofficial = np.where(num_images > 0, "", schema.UNLABELLED)
    decided = np.where(num_official > 0, schema.OFFICIAL_VALID, unofficial).astype(object)
    of_unit: Column = index["patient_id"].take(pa.array(first.tolist(), pa.int64()))
    patients = np.array(of_unit.to_pylist(), dtype=object)
    return Units(column, names[order], patients, num_images.astype(np.int64), of_image, decided)


def keep(units: Units, previous: pa.Table, config: SplitConfig) -> None:
    """Decide the units that an earlier table holds as it does."""
    column = schema.split_unit(previous)
    if column != units.column:
        raise BadInputError(
            f"the previous splits keep every {column.removesuffix('_id')} whole, these shall keep every "
            f"{units.column.removesuffix('_id')}; extend them with the same group_by"
        )
    num_draws = len(previous["label_ranks"][0]) if previous.num_rows else config.draws
    own = dict(zip(previous[column].to_pylist(), previous["split"].to_pylist(), strict=True))
    known = [(i, own[name]) for i, name in enumerate(units.ids) if name in own]
    checks = [
        (num_draws != config.draws, f"the previous splits have {num_draws} draws, these shall have {config.draws}"),
        (not known, "none of the previous splits' patients is in the index; was it made with another key or name?"),
        (
            any(units.names[i] == schema.OFFICIAL_VALID != split for i, split in known),
            "a patient has moved between the source's training and official validation tables since the previous "
            "splits; start anew without extending",
        ),
    ]
    if complaint := next((text for is_wrong, text in checks if is_wrong), None):
        raise BadInputError(complaint)
    for i, split in known:
        # Who had unlabelled images only and now has labelled ones is new to the splits.
        if split != schema.UNLABELLED:
            units.names[i] = split


def with_kept_rows(splits: pa.Table, previous: pa.Table, column: str) -> pa.Table:
    """Ranks, and rows of patients who are no longer in the index, as the earlier table has them."""
    is_known: Column = pc.is_in(splits[column], value_set=previous[column])
    known = splits.filter(is_known).sort_by(column)
    kept = previous.filter(pc.is_in(previous[column], value_set=known[column])).sort_by(column)
    at = known.column_names.index("label_ranks")
    known = known.set_column(at, known.schema.field(at), kept["label_ranks"])
    is_new: Column = pc.invert(is_known)
    is_absent: Column = pc.invert(pc.is_in(previous[column], value_set=splits[column]))
    tables = (known, splits.filter(is_new), previous.filter(is_absent))
    parts = [table.select(splits.column_names) for table in tables]
    return schema.check(pa.concat_tables(parts).sort_by(column), schema.SPLIT_TABLE, "splits")


def groups_of(units: Units, index: pa.Table, pairs: pa.Table | None) -> Ints:
    """The number of the group of each unit: its own, or the first of those with which it shares a picture.

    Args:
        units: Of `index`.
        index: Schema INDEX.
        pairs: Schema DUPLICATES over the same images.

    Raises:
        BadInputError: A pair names an image that is not in the index.
    """
    if pairs is None:
        return np.arange(units.ids.size)
    rows = [pc.index_in(pairs[side], value_set=index["image_id"].combine_chunks()) for side in ("image_a", "image_b")]
    if num_unknown := sum(side.null_count for side in rows):
        raise BadInputError(f"duplicates: {num_unknown} images of pairs are not in the index; run ingest again")
    a, b = (units.of_image[side.to_numpy()] for side in rows)
    return linked(units.ids.size, a, b)


def linked(num: int, a: Ints, b: Ints) -> Ints:
    """The smallest number that each of `num` patients is linked to by shared pictures; itself where it shares none.

    Sharing is transitive here: who shares a picture with someone who shares another one with a third is in one group
    with both. The result does not depend on the order of the pairs.

    Args:
        num: Of patients, or of whatever else pictures belong to.
        a: One side of each pair, in [0, num).
        b: The other side.
    """
    parent = list(range(num))

    def root_of(patient: int) -> int:
        while parent[patient] != patient:
            parent[patient] = patient = parent[parent[patient]]
        return patient

    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        smaller, larger = sorted((root_of(one), root_of(other)))
        parent[larger] = smaller
    return np.array([root_of(patient) for patient in range(num)], dtype=np.int64)


def follow(names: Names, group_of_unit: Ints) -> None:
    """Who shares a picture with a patient whose split is decided follows him; evaluation goes before training."""
    is_open = (names == "") | (names == schema.UNLABELLED)
    if is_open.all() or not is_open.any():
        return
    rank = {name: i for i, name in enumerate(PRECEDENCE)}
    decided: dict[int, str] = {}
    for group, name in zip(group_of_unit[~is_open].tolist(), names[~is_open].tolist(), strict=True):
        if name in rank and rank[name] < rank.get(decided.get(group, ""), len(rank)):
            decided[group] = name
    for i in np.flatnonzero(is_open):
        names[i] = decided.get(int(group_of_unit[i]), names[i])


def follow_owner(units: Units) -> None:
    """Studies or images without labels go where another one of their patient is evaluated, and to no pretraining."""
    is_unlabelled = units.names == schema.UNLABELLED
    if not is_unlabelled.any():
        return
    evaluated: dict[str, str] = {}
    for patient, name in zip(units.patient_ids.tolist(), units.names.tolist(), strict=True):
        if name in PRECEDENCE[:3]:
            evaluated[patient] = name
    for i in np.flatnonzero(is_unlabelled):
        units.names[i] = evaluated.get(units.patient_ids[i], units.names[i])


def num_grouped_patients(units: Units, group_of_unit: Ints) -> int:
    """Patients who share a picture with another one."""
    members = np.bincount(group_of_unit, minlength=units.ids.size)
    return len(set(units.patient_ids[members[group_of_unit] > 1]))


def num_torn_groups(units: Units, group_of_unit: Ints) -> int:
    """Groups that share a picture and yet lie in two splits."""
    is_shared = np.bincount(group_of_unit)[group_of_unit] > 1
    members = zip(group_of_unit[is_shared].tolist(), units.names[is_shared].tolist(), strict=True)
    places = Counter(group for group, _ in set(members))
    return sum(count > 1 for count in places.values())
