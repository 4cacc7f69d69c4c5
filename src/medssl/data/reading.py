"""What every reader of a data set shares: the form of its result, and the steps from source names to identifiers.

A reader turns one layout into rows whose identifiers are still the source's own names; `finish` replaces these by
keyed hashes. No message of a reader holds a path, an id or a name.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl import schema
from medssl.data.cells import MAX_EXAMPLES, Cells, Column, count, more
from medssl.exit_codes import BadInputError
from medssl.identifiers import IDENTIFIER_DIGITS, Level, PatientKey

MAX_AGE_YEARS = 130
NUM_PROBED_FILES = 100
NUMBER_OF_YEARS = f"a number from 0 to {MAX_AGE_YEARS} or blank"

# What a row of `patient_id` really is: some sets name lesions only, or nothing but files.
GroupKind = Literal["patient", "lesion", "image"]


@dataclass(frozen=True)
class Reading:
    """A data set as it was read.

    Attributes:
        index: Schema INDEX with a label column for each finding or condition; rows sorted by image_id.
        sources: Schema SOURCES, the same rows; `file` is relative to the data set's folder.
        summary: Counts of rows, images, patients, label states and what was left out, in JSON types.
        dataset: Name of the set.
        group_kind: What `patient_id` stands for.
    """

    index: pa.Table
    sources: pa.Table
    summary: dict[str, Any]
    dataset: str
    group_kind: GroupKind = "patient"
    metadata: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", {"dataset": self.dataset, "group_kind": self.group_kind})


def finish(
    rows: pa.Table,
    *,
    dataset: str,
    key: PatientKey,
    summary: Mapping[str, Any],
    group_kind: GroupKind = "patient",
    files: Column | None = None,
    below: str = "",
) -> Reading:
    """Replace the source's names by identifiers, sort, and take the files' names into a table of their own.

    Args:
        rows: Columns of schema INDEX, where patient_id, case_id and image_id hold the source's names; image_id is
            the file, relative to the data set's folder, unless `files` says where it lies.
        dataset: Name of the set, which enters every identifier.
        key: Makes the identifiers.
        summary: What the reader counted; counts of the finished index are added.
        group_kind: What patient_id stands for.
        files: The file of each row, relative to the data set's folder, where copies of the set differ in their
            folders and identifiers must not.
        below: Folder of the data set that `rows` and `files` are relative to; it enters what names cases and images.
    """
    if files is None:
        files = rows["image_id"]
    if below:
        files = _prefixed(below, files)
        # A patient is the same in every folder; a file that stands for one is not.
        own = ["patient_id"] if group_kind == "image" else []
        for column in (*own, "case_id", "image_id"):
            at = rows.column_names.index(column)
            rows = rows.set_column(at, column, _prefixed(below, rows[column]))
    index = rows
    levels: tuple[Level, ...] = ("patient", "case", "image")
    for level in levels:
        column = f"{level}_id"
        position = index.column_names.index(column)
        index = index.set_column(position, column, _identifiers(key, dataset, level, index[column]))
    order = pc.sort_indices(index["image_id"])
    index = schema.check(index.take(order), schema.INDEX, "index")
    sources = pa.Table.from_arrays([index["image_id"], files.take(order)], names=["image_id", "file"])
    sources = schema.check(sources, schema.SOURCES, "sources")
    return Reading(index, sources, {**summary, **_counts(index)}, dataset, group_kind)


def _prefixed(folder: str, names: Column) -> Column:
    return pc.binary_join_element_wise(pa.scalar(folder), names, pa.scalar("/"))


def _identifiers(key: PatientKey, dataset: str, level: Level, names: Column) -> Column:
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    encoded = names.dictionary_encode()
    digits = key.digests(dataset, level, encoded.dictionary.to_pylist()).hex().encode()
    offsets = np.arange(0, len(digits) + 1, IDENTIFIER_DIGITS, dtype=np.int32)
    # The digits are the column's memory: a Python text of each takes a tenth of the whole time.
    distinct = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets.data), pa.py_buffer(digits))
    return distinct.take(encoded.indices)


def _counts(index: pa.Table) -> dict[str, Any]:
    findings = {}
    for finding in schema.label_columns(index):
        codes = index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy()
        findings[finding] = {state: int((codes == code).sum()) for code, state in schema.LABEL_STATES.items()}
    return {
        "images": index.num_rows,
        "cases": len(index["case_id"].unique()),
        "patients": len(index["patient_id"].unique()),
        "unknown_sex": index["sex"].null_count,
        "unknown_age": index["age_years"].null_count,
        "unknown_view_position": index["view_position"].null_count,
        "unknown_skin_type": index["skin_type"].null_count,
        "findings": findings,
    }


def reject_repeated_images(cells: Cells, file: Column) -> None:
    """Refuse a table that lists an image twice."""
    encoded = file.dictionary_encode()
    if len(encoded.dictionary) == len(file):
        return
    codes = encoded.indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.setdiff1d(np.arange(codes.size), first)
    if repeated.size:
        # Codes count the distinct files in order of occurrence, so first[code] is where a file came first.
        pairs = [f"row {cells.rows[i]} repeats row {cells.rows[first[codes[i]]]}" for i in repeated[:MAX_EXAMPLES]]
        raise BadInputError(
            f"{cells.name}: an image listed before in {count(repeated.size)} "
            f"({', '.join(pairs)}{more(repeated.size)}); remove the repeated rows"
        )


def reject_unsafe_files(cells: Cells, column: str, file: Column) -> None:
    """Refuse names that are empty, absolute, climb out of the data set's folder or hold control characters."""
    encoded = file.dictionary_encode()
    is_wrong = np.array([not is_safe(name) for name in encoded.dictionary.to_pylist()], dtype=bool)
    cells.reject(
        is_wrong[encoded.indices.to_numpy()] if is_wrong.size else np.zeros(cells.rows.size, dtype=bool),
        f'column "{column}" holds no name of a file below the data set\'s folder',
        "expected relative paths without .. or control characters",
    )


def readable_ids(cells: Cells, column: str) -> Column:
    """A column of ids in Unicode's composed form (NFC), so that one name has one id however it was typed.

    Raises:
        BadInputError: Some hold characters that cannot be seen, which would make two patients of one.
    """
    encoded = cells.columns[column].dictionary_encode()
    names = [unicodedata.normalize("NFC", name) for name in encoded.dictionary.to_pylist()]
    is_wrong = np.array([not name.isprintable() for name in names], dtype=bool)
    cells.reject(
        is_wrong[encoded.indices.to_numpy()],
        f'column "{column}" holds characters that cannot be seen',
        "remove control characters, marks of direction and spaces other than the usual one",
    )
    return pa.array(names, pa.string()).take(encoded.indices)


def is_safe(name: str) -> bool:
    """Whether the name, relative to the data set's folder, stays below it and can be shown and stored as text."""
    # Split by hand: for a million names a Path of each takes several times as long as all the rest of this.
    leaves = name.startswith("/") or ".." in name.split("/")
    is_folder = not name.strip("./")  # the data set's own, whatever the spelling
    return not is_folder and name.isprintable() and "\\" not in name and not leaves


def locate(root: Path, folders: Iterable[str], names: Column) -> Column:
    """Each file's path relative to `root`, where any of `folders` holds it; its bare name where none does.

    Each folder is listed once, whatever the number of names: sets of 10^5 files come in many layouts.

    Args:
        root: The data set's folder.
        folders: Folders below it that may hold files, "" for itself; ones that do not exist are passed over, and of
            two that hold the same name the first counts.
        names: File names.

    Raises:
        BadInputError: A folder may not be listed.
    """
    folder_of: dict[str, str] = {}
    for folder in folders:
        try:
            with os.scandir(root / folder) as entries:
                found = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # its own text holds the path
            raise BadInputError(
                f"a folder of images below data.root cannot be listed ({error.strerror}); check its permissions"
            ) from None
        for name in found:
            folder_of.setdefault(name, folder)
    paths = ((folder_of.get(name, ""), name) for name in names.to_pylist())
    return pa.array([f"{folder}/{name}" if folder else name for folder, name in paths], pa.string())


def probe(root: Path, file: Column) -> None:
    """Refuse a folder in which none of the first files lies: it is the wrong one, rather than short of a few."""
    probed = file.slice(0, NUM_PROBED_FILES).to_pylist()
    if not any(_is_file(root / name) for name in probed):
        raise BadInputError(
            f"none of the first {len(probed)} listed images exists below data.root; it must be the folder that "
            "the names in the table are relative to"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system permits, or a folder that may not be entered
        return False


def unknown_attributes(num_rows: int) -> dict[str, Column]:
    """The columns of schema INDEX that describe the person and the image, of a source that says nothing of them."""
    names = ("view_position", "sex", "age_years", "skin_type", "site")
    return {name: pa.nulls(num_rows, schema.INDEX.columns.field(name).type) for name in names}


def age_years(text: str) -> float | None:
    """The age in a cell; None where it is blank.

    Raises:
        ValueError: It is no number from 0 to 130.
    """
    if not text:
        return None
    years = float(text)
    if not 0 <= years <= MAX_AGE_YEARS:  # NaN is outside, too
        raise ValueError
    return years
