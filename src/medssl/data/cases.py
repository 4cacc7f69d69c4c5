"""Tables of dermatological photographs, one row an image: cases of one or more images with a set-valued truth.

Everything in a table is checked on reading, once; no message holds a path, an id or a name.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import DataConfig
from medssl.data import attributes, conditions, layouts
from medssl.data.cells import Cells, Column, read_header
from medssl.data.cells import read as read_cells
from medssl.data.reading import (
    NUMBER_OF_YEARS,
    GroupKind,
    Reading,
    age_years,
    finish,
    locate,
    probe,
    readable_ids,
    reject_repeated_images,
    reject_unsafe_files,
    unknown_attributes,
)
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

MAX_COUNTED_IMAGES = 6  # of a case, as in the paper (spec 2.1); larger cases are counted together
SETTING = "data.train_table"


@dataclass(frozen=True)
class Listed:
    """What a table says of its images, but their conditions.

    Attributes:
        cells: The table.
        columns: Header of each field that the table has.
        rows: The columns of schema INDEX without labels, with the source's own names where identifiers will stand.
        files: File of each row, relative to the data set's folder.
        group_kind: What patient_id stands for.
        summary: What was counted.
    """

    cells: Cells
    columns: Mapping[str, str]
    rows: pa.Table
    files: Column
    group_kind: GroupKind
    summary: dict[str, Any]


def read(root: Path, config: DataConfig, key: PatientKey, *, with_files: bool = True) -> Reading:
    """Read and check a table of cases; image files are not opened.

    A label column for each condition of the set holds, for every image of a case, schema.POSITIVE for the conditions
    that any row of the case states, schema.NEGATIVE for the others, and schema.NOT_ASSESSED throughout where no row
    states one. See `readers.read` for the arguments.
    """
    conditions.check_names(config.condition_names)
    names = {**layouts.CONDITION_NAMES.get(config.dataset, {}), **config.condition_names}
    listed = list_images(
        root,
        config,
        fields=layouts.FIELDS,
        required=("image", "condition"),
        source_split="train",
        with_files=with_files,
    )
    case = codes_of(listed.rows["case_id"].combine_chunks())
    labels, counts = conditions.labels(listed.cells, listed.columns["condition"], case, names)
    columns: dict[str, Column] = {name: listed.rows[name] for name in listed.rows.column_names}
    columns |= {f"{schema.LABEL_PREFIX}{condition}": states for condition, states in labels.items()}
    summary = {**listed.summary, **counts}
    return finish(
        pa.table(columns),
        dataset=config.name,
        key=key,
        summary=summary,
        group_kind=listed.group_kind,
        files=listed.files,
    )


def list_images(
    root: Path,
    config: DataConfig,
    *,
    fields: Sequence[str],
    required: Sequence[str],
    source_split: str,
    with_files: bool,
) -> Listed:
    """Read and check all columns of a table of images but the conditions.

    Args:
        root: The data set's folder.
        config: Names the table and its columns.
        fields: Those of layouts.FIELDS that the set can have.
        required: Those that the table must have.
        source_split: What the index says of where its rows come from.
        with_files: Whether the files should be looked for.
    """
    label = Path(config.train_table).name
    header = read_header(root, config.train_table, setting=SETTING)
    layout = layouts.choose(config, header, fields=fields, table=label)
    if missing := [field for field in required if field not in layout.columns]:
        example = f"{{{missing[0]}: HEADER}}"
        raise BadInputError(
            f"{label}: row 1 has no column named {' or '.join(missing)}; say which it is: data.columns: {example}"
        )
    cells = read_cells(
        root,
        config.train_table,
        setting=SETTING,
        required=list(layout.columns.values()),
        remedy='say which they are as data.columns, {FIELD: HEADER}, or {FIELD: ""} for what the table lacks',
    )
    image = _images(cells, layout)
    files = locate(root, layout.folders, image) if with_files and layout.folders else image
    if with_files:
        probe(root, files)
    patient, case, group_kind = _groups(cells, layout.columns, image)
    described = _attributes(cells, layout.columns)
    split = pa.repeat(source_split, cells.rows.size)
    rows = pa.table({"patient_id": patient, "case_id": case, "image_id": image, "source_split": split, **described})
    sizes = np.bincount(codes_of(case))
    summary = {
        "rows": {cells.name: int(cells.rows.size)},
        "ignored_columns": {cells.name: cells.num_ignored_columns},
        "group_kind": group_kind,
        "images_per_case": images_per_case(sizes),
        "skin_types": _counts_of(described["skin_type"]),
    }
    return Listed(cells, layout.columns, rows, files, group_kind, summary)


def images_per_case(sizes: NDArray[np.int64]) -> dict[str, int]:
    """Number of cases by their number of images, from the number of images of each case."""
    counts = {str(size): int((sizes == size).sum()) for size in range(1, MAX_COUNTED_IMAGES + 1)}
    return {**counts, f"{MAX_COUNTED_IMAGES + 1}+": int((sizes > MAX_COUNTED_IMAGES).sum())}


def codes_of(column: Column) -> NDArray[np.int32]:
    """A number for each distinct text of a column, in order of occurrence."""
    codes: NDArray[np.int32] = column.dictionary_encode().indices.to_numpy()
    return codes


def _images(cells: Cells, layout: layouts.Layout) -> Column:
    """Name of each image with its suffix, in normal form, so that "./a.jpg" repeats "a.jpg"."""
    column = layout.columns["image"]
    reject_unsafe_files(cells, column, cells.columns[column])
    names = [f"{posixpath.normpath(name)}{layout.suffix}" for name in cells.columns[column].to_pylist()]
    image: Column = pa.array(names, pa.string())
    reject_repeated_images(cells, image)
    return image


def _groups(cells: Cells, columns: Mapping[str, str], image: Column) -> tuple[Column, Column, GroupKind]:
    """Patient and case of each image by the source's names, and what the patient really is."""
    patient, case, lesion = (_filled(cells, columns, field) for field in ("patient", "case", "lesion"))
    if case is None and lesion is not None:
        case = lesion if patient is None else pc.binary_join_element_wise(patient, lesion, pa.scalar("/"))
    if patient is None:
        return (image, image, "image") if case is None else (case, case, "lesion")
    if case is None:
        return patient, image, "patient"
    case_codes, patient_codes = codes_of(case), codes_of(patient)
    _, first = np.unique(case_codes, return_index=True)
    cells.reject(
        patient_codes != patient_codes[first[case_codes]],
        "a case has another patient than in an earlier row",
        "a case is of one patient: correct these rows, or, where cases are numbered anew for each patient, give their "
        'column as the lesion: data.columns: {lesion: HEADER, case: ""}',
    )
    return patient, case, "patient"


def _filled(cells: Cells, columns: Mapping[str, str], field: str) -> Column | None:
    """The column of ids; None where the table has none or it is blank throughout."""
    if field not in columns:
        return None
    column = readable_ids(cells, columns[field])
    is_blank: Column = pc.equal(column, pa.scalar(""))
    if pc.all(is_blank).as_py():
        return None
    cells.reject(
        is_blank,
        f'column "{columns[field]}" (the {field}) is blank, but filled elsewhere,',
        f'fill these cells or remove the rows; data.columns: {{{field}: ""}} reads the set without any {field}',
    )
    return column


def _attributes(cells: Cells, columns: Mapping[str, str]) -> dict[str, Column]:
    """The columns of schema INDEX that describe the person and the image; null where unknown or not in the table."""
    text = pa.string()
    described = unknown_attributes(cells.rows.size)
    if "sex" in columns:
        described["sex"] = cells.translate(
            columns["sex"], attributes.sex, text, expected=attributes.SEX_WORDS, words=attributes.SEXES
        )
    if "age" in columns:
        described["age_years"] = cells.translate(columns["age"], age_years, pa.float32(), expected=NUMBER_OF_YEARS)
    if "skin_type" in columns:
        described["skin_type"] = cells.translate(
            columns["skin_type"], attributes.skin_type, text, expected=attributes.SKIN_TYPES, words=("unknown",)
        )
    if "site" in columns:
        described["site"] = cells.translate(columns["site"], attributes.site, text, expected=attributes.SITES)
    return described


def _counts_of(column: Column) -> dict[str, int]:
    """Number of images by value, sorted; nulls count as "unknown"."""
    return dict(sorted(Counter(value or "unknown" for value in column.to_pylist()).items()))
