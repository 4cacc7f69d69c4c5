"""CheXpert's own layout: `train.csv`, `valid.csv` and the image files they list, read as an index.

Irvin et al. 2019, CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison. Everything
in a table is checked here, once; no message holds a path or a patient's id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl import schema
from medssl.config import DataConfig
from medssl.data.cells import MAX_EXAMPLES, Cells, Column, count, examples, more
from medssl.data.cells import read as read_cells
from medssl.exit_codes import BadInputError
from medssl.identifiers import Level, PatientKey

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)  # fmt: skip
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
# The first component is the name of the set's folder, which copies change; it is dropped.
PATH_PATTERN = (
    r"^[^/]+/(?P<folder>train|valid)/(?P<patient>patient[0-9]{5,})/(?P<study>study[0-9]+)"
    r"/(?P<name>view[0-9]+_(?P<view>frontal|lateral)\.(?:jpg|jpeg|png))$"
)
FOLDERS = {"train": "train", "official_valid": "valid"}  # of the images, by source_split
VIEWS = {"Frontal": "frontal", "Lateral": "lateral"}
SEXES = {"Female": "female", "Male": "male", "Unknown": None, "": None}
# LL and RL, in 17 rows of the public table, are left and right lateral projections.
VIEW_POSITIONS = {"AP": "AP", "PA": "PA", "LL": "lateral", "RL": "lateral", "": None}
LABELS = {1.0: schema.POSITIVE, 0.0: schema.NEGATIVE, -1.0: schema.UNCERTAIN}
MAX_AGE_YEARS = 130
NUM_PROBED_FILES = 100


@dataclass(frozen=True)
class ChexpertIndex:
    """A data set in CheXpert's layout.

    Attributes:
        index: Schema INDEX with a label column for each of the 14 findings; rows sorted by image_id.
        sources: Schema SOURCES, the same rows; `file` is relative to the data set's folder.
        summary: Counts of rows, images, patients, views, label states and unknown values, in JSON types.
    """

    index: pa.Table
    sources: pa.Table
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Names:
    """What the source calls the patient, case, file and view of each row."""

    patient: Column
    case: Column
    file: Column
    view: Column


def read(root: Path, config: DataConfig, key: PatientKey) -> ChexpertIndex:
    """Read and check the tables of a data set; image files are not opened.

    Labels keep their states apart: positive, negative, uncertain (-1) and blank (schema.BLANK). An unknown sex, age
    or view position is null; the ages 0 and 90 are CheXpert's caps and stay.

    Args:
        root: The folder that holds the tables and the folders `train` and `valid`.
        config: Names of the tables, and of the data set, which enters every identifier.
        key: Makes the identifiers.

    Raises:
        BadInputError: A table is missing or holds what it must not, or none of the first listed files exists.
    """
    if not root.is_dir():
        raise BadInputError("data.root is no folder that exists; give the folder that contains train.csv")
    settings = {"train": ("data.train_table", config.train_table)}
    if config.valid_table:
        settings["official_valid"] = ("data.valid_table (null: the set has none)", config.valid_table)
    tables = {
        split: read_cells(root, name, setting=setting, required=COLUMNS) for split, (setting, name) in settings.items()
    }
    names = {split: _names(cells, FOLDERS[split]) for split, cells in tables.items()}
    if config.valid_table:
        _reject_shared_patients(tables["train"], names["train"], tables["official_valid"], names["official_valid"])
    _probe(root, names["train"].file)
    index = pa.concat_tables([_rows(split, cells, names[split]) for split, cells in tables.items()])
    files = index["image_id"]  # still the source's own name
    levels: tuple[Level, ...] = ("patient", "case", "image")
    for level in levels:
        column = f"{level}_id"
        position = index.column_names.index(column)
        index = index.set_column(position, column, _identifiers(key, config.name, level, index[column]))
    order = pc.sort_indices(index["image_id"])
    index = schema.check(index.take(order), schema.INDEX, "index")
    sources = pa.Table.from_arrays([index["image_id"], files.take(order)], names=["image_id", "file"])
    return ChexpertIndex(index, schema.check(sources, schema.SOURCES, "sources"), _summarize(index, tables, names))


def _names(cells: Cells, expected_folder: str) -> _Names:
    parts: Column = pc.extract_regex(cells.columns["Path"], PATH_PATTERN)
    cells.reject(
        parts.is_null(),
        'column "Path" is not of the form SET/train/patient…/study1/view1_frontal.jpg',
        "expected train or valid, patient and at least 5 digits, study, view, and jpg, jpeg or png",
    )
    folder, patient, study, name, view = (parts.field(i) for i in range(5))
    cells.reject(
        pc.not_equal(folder, pa.scalar(expected_folder)),
        f'column "Path" names another folder than {expected_folder}',
        f"this table lists the images of the folder {expected_folder}: move these rows to the table of their folder, "
        "or give the right tables as data.train_table and data.valid_table",
    )
    stated = cells.translate(
        "Frontal/Lateral", VIEWS.__getitem__, pa.string(), expected="Frontal or Lateral", words=VIEWS
    )
    cells.reject(
        pc.not_equal(view, stated),
        'columns "Path" and "Frontal/Lateral" disagree',
        "a file of a Frontal row ends in _frontal, one of a Lateral row in _lateral; correct these rows",
    )
    case: Column = pc.binary_join_element_wise(patient, study, pa.scalar("/"))
    file: Column = pc.binary_join_element_wise(folder, case, name, pa.scalar("/"))
    _reject_repeated_images(cells, file)
    return _Names(patient, case, file, view)


def _reject_repeated_images(cells: Cells, file: Column) -> None:
    codes = file.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.setdiff1d(np.arange(codes.size), first)
    if repeated.size:
        # Codes count the distinct files in order of occurrence, so first[code] is where a file came first.
        pairs = [f"row {cells.rows[i]} repeats row {cells.rows[first[codes[i]]]}" for i in repeated[:MAX_EXAMPLES]]
        raise BadInputError(
            f"{cells.name}: an image listed before in {count(repeated.size)} "
            f"({', '.join(pairs)}{more(repeated.size)}); remove the repeated rows"
        )


def _reject_shared_patients(train: Cells, train_names: _Names, valid: Cells, valid_names: _Names) -> None:
    in_valid: Column = pc.is_in(valid_names.patient, value_set=train_names.patient)
    rows = valid.rows[in_valid.to_numpy(zero_copy_only=False)]
    if not rows.size:
        return
    shared: Column = valid_names.patient.filter(in_valid).unique()
    also: Column = pc.is_in(train_names.patient, value_set=shared)
    train_rows = train.rows[also.to_numpy(zero_copy_only=False)]
    raise BadInputError(
        f"{valid.name} and {train.name} share {len(shared)} patients, in {count(rows.size)} of {valid.name} "
        f"({examples(rows)}) and {count(train_rows.size)} of {train.name} ({examples(train_rows)}); a patient may be "
        "in one table only: remove the rows from one of them"
    )


def _probe(root: Path, file: Column) -> None:
    """Refuse a folder in which none of the first files lies: it is the wrong one, rather than short of a few."""
    probed = file.slice(0, NUM_PROBED_FILES).to_pylist()
    if not any((root / name).is_file() for name in probed):
        raise BadInputError(
            f"none of the first {len(probed)} listed images exists below data.root; it must be the folder that "
            "contains train.csv and, beside it, the folder train with the images"
        )


def _rows(source_split: str, cells: Cells, names: _Names) -> pa.Table:
    """One table's rows of the index, with the source's own names where identifiers will stand."""
    stated = cells.translate(
        "AP/PA", VIEW_POSITIONS.__getitem__, pa.string(), expected="AP, PA, LL, RL or blank", words=VIEW_POSITIONS
    )
    is_lateral: Column = pc.equal(names.view, pa.scalar("lateral"))
    number = f"a number from 0 to {MAX_AGE_YEARS} or blank"
    columns: dict[str, Column] = {
        "patient_id": names.patient,
        "case_id": names.case,
        "image_id": names.file,
        "source_split": pa.repeat(source_split, cells.rows.size),
        "view_position": pc.if_else(is_lateral, pa.scalar("lateral"), stated),
        "sex": cells.translate(
            "Sex", SEXES.__getitem__, pa.string(), expected="Female, Male, Unknown or blank", words=SEXES
        ),
        "age_years": cells.translate("Age", _age_years, pa.float32(), expected=number),
        "skin_type": pa.nulls(cells.rows.size, pa.string()),
        "site": pa.nulls(cells.rows.size, pa.string()),
    }
    for finding in FINDINGS:
        states = cells.translate(finding, _label_state, pa.int8(), expected="1, 0, -1 or blank")
        columns[f"{schema.LABEL_PREFIX}{finding}"] = states
    return pa.table(columns)


def _age_years(text: str) -> float | None:
    if not text:
        return None
    age_years = float(text)
    if not 0 <= age_years <= MAX_AGE_YEARS:  # NaN is outside, too
        raise ValueError
    return age_years


def _label_state(text: str) -> int:
    return LABELS[float(text)] if text else schema.BLANK


def _identifiers(key: PatientKey, dataset: str, level: Level, names: Column) -> Column:
    encoded = names.combine_chunks().dictionary_encode()
    return pa.array(key.identify_all(dataset, level, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


def _summarize(index: pa.Table, tables: Mapping[str, Cells], names: Mapping[str, _Names]) -> dict[str, Any]:
    findings = {}
    for finding in FINDINGS:
        codes = index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy()
        findings[finding] = {state: int((codes == code).sum()) for code, state in schema.LABEL_STATES.items()}
    num_lateral = sum(part.view.to_pylist().count("lateral") for part in names.values())
    return {
        "rows": {cells.name: int(cells.rows.size) for cells in tables.values()},
        "ignored_columns": {cells.name: cells.num_ignored_columns for cells in tables.values()},
        "images": index.num_rows,
        "cases": len(index["case_id"].unique()),
        "patients": len(index["patient_id"].unique()),
        "frontal": index.num_rows - num_lateral,
        "lateral": num_lateral,
        "unknown_sex": index["sex"].null_count,
        "unknown_age": index["age_years"].null_count,
        "unknown_view_position": index["view_position"].null_count,
        "findings": findings,
    }
