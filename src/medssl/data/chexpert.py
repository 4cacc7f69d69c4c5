"""CheXpert's own layout: `train.csv`, `valid.csv` and the image files they list, read as an index.

Irvin et al. 2019, CheXpert: A Large Chest Radiograph Dataset. Everything in a table is checked here, once. A row is
named by its number in the file as a spreadsheet shows it: the header is row 1, and blank rows count. No message holds
a path or a patient's id.
"""

import csv
import difflib
import gzip
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from medssl import schema
from medssl.config import DataConfig
from medssl.exit_codes import BadInputError
from medssl.identifiers import Level, PatientKey

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)  # fmt: skip
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
# The first component is the set's folder name, which copies change; it is dropped.
PATH_PATTERN = (
    r"^[^/]+/(?P<folder>train|valid)/(?P<patient>patient[0-9]{5,})/(?P<study>study[0-9]+)"
    r"/(?P<name>view[0-9]+_(?P<view>frontal|lateral)\.(?:jpg|jpeg|png))$"
)
SEXES = {"Female": "female", "Male": "male", "Unknown": None, "": None}
# LL and RL, in 17 rows of the public table, are left and right lateral projections.
VIEW_POSITIONS = {"AP": "AP", "PA": "PA", "LL": "lateral", "RL": "lateral", "": None}
MAX_AGE_YEARS = 130
NUM_PROBED_FILES = 100
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class ChexpertIndex:
    """A data set in CheXpert's layout.

    Attributes:
        index: Schema INDEX with a label column for each of the 14 findings; rows sorted by image_id.
        sources: Schema SOURCES, same rows; `file` is relative to the data set's root.
        summary: Counts of rows, images, patients, views, label states and unknown values; JSON types.
    """

    index: pa.Table
    sources: pa.Table
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Cells:
    """The cells of one table as text, trimmed, with the row number of each row."""

    name: str
    columns: pa.Table
    rows: NDArray[np.int64]
    num_ignored_columns: int

    def reject(self, wrong: Any, found: str, remedy: str) -> None:
        """Raise if any row is wrong; `wrong` is a boolean array over the rows."""
        rows = self.rows[np.asarray(wrong)]
        if rows.size:
            raise BadInputError(f"{self.name}: {found} in {_count(rows.size)} ({_examples(rows)}); {remedy}")

    def translate(self, column: str, meaning: Callable[[str], Any], kind: pa.DataType, expected: str) -> pa.Array:
        """The column with each distinct text replaced by its meaning; ValueError or KeyError marks a wrong one."""
        encoded = self.columns[column].combine_chunks().dictionary_encode()
        meanings, wrong = [], []
        for text in encoded.dictionary.to_pylist():
            try:
                meanings.append(meaning(text))
                wrong.append(False)
            except (KeyError, ValueError):
                meanings.append(None)
                wrong.append(True)
        if any(wrong):
            texts = sorted(_shown(text) for text, bad in zip(encoded.dictionary.to_pylist(), wrong, strict=True) if bad)
            self.reject(
                np.array(wrong)[encoded.indices.to_numpy()],
                f'column "{column}" holds {", ".join(dict.fromkeys(texts[:MAX_EXAMPLES]))}',
                f"expected {expected}; correct these rows or remove them",
            )
        return pa.array(meanings, type=kind).take(encoded.indices)


def read(root: Path, config: DataConfig, key: PatientKey) -> ChexpertIndex:
    """Read and check the tables of a data set; image files are not opened.

    Labels keep their four states apart: 1 positive, 0 negative, -1 uncertain, blank (schema.BLANK). An unknown sex,
    age or view position is null; ages 0 and 90 are CheXpert's caps and stay.

    Args:
        root: The folder that holds the tables and the folders `train` and `valid`.
        config: Names of the tables and of the data set, which enters every identifier.
        key: Makes the identifiers.

    Raises:
        BadInputError: A table is missing or holds something it must not; or none of the first listed files exists.
    """
    if not root.is_dir():
        raise BadInputError("data.root is not a folder that exists; give the folder that contains train.csv")
    tables = {"train": _parse_table(root, config.train_table, "data.train_table")}
    if config.valid_table is not None:
        tables["official_valid"] = _parse_table(root, config.valid_table, "data.valid_table")
    raw = {source_split: _paths(cells) for source_split, cells in tables.items()}
    _reject_shared_patients(tables, raw)
    files = pa.concat_arrays([paths["file"].combine_chunks() for paths in raw.values()])
    _probe(root, files)
    parts = [_index_part(split, cells, raw[split]) for split, cells in tables.items()]
    index = pa.concat_tables(parts)
    for level, column in (("patient", "patient_id"), ("case", "case_id"), ("image", "image_id")):
        hashed = _identifiers(key, config.name, level, index[column])
        index = index.set_column(index.column_names.index(column), column, hashed)
    order = pc.sort_indices(index["image_id"])
    index = schema.check(index.take(order), schema.INDEX, "index")
    sources = pa.table({"image_id": index["image_id"], "file": files.take(order)})
    return ChexpertIndex(index, schema.check(sources, schema.SOURCES, "sources"), _summarize(index, tables))


def _parse_table(root: Path, name: str, setting: str) -> _Cells:
    label = Path(name).name
    try:
        data = (root / name).read_bytes()
        text = gzip.decompress(data) if name.endswith(".gz") else data
    except FileNotFoundError:
        hint = " (data.valid_table: null if the set has none)" if setting == "data.valid_table" else ""
        raise BadInputError(f"{label} is not in data.root; give its name as {setting}{hint}") from None
    except (OSError, EOFError) as error:
        raise BadInputError(f"{label} cannot be read: {type(error).__name__}; copy it anew") from None
    header = _header(label, text)
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise BadInputError(f"{label}: {_missing_columns(missing, header)}; name the columns as CheXpert does")
    doubled = [column for column in COLUMNS if header.count(column) > 1]
    if doubled:
        raise BadInputError(f"{label}: column {doubled[0]!r} occurs {header.count(doubled[0])} times; keep one")
    columns, rows = _parse_cells(label, text)
    if not columns.num_rows:
        raise BadInputError(f"{label} has a header but no rows; give the complete table")
    return _Cells(label, columns, rows, len(header) - len(COLUMNS))


def _header(name: str, text: bytes) -> list[str]:
    """Names of the columns, once the whole text is known to be UTF-8."""
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = text.count(b"\n", 0, error.start) + 1
        raise BadInputError(f"{name} is not UTF-8 text (first seen in row {row}); save it as UTF-8") from None
    if not decoded.strip():
        raise BadInputError(f"{name} is empty; give the complete table")
    return next(csv.reader(io.StringIO(decoded)), [])


def _missing_columns(missing: list[str], header: list[str]) -> str:
    unknown = [column for column in header if column not in COLUMNS]
    parts = []
    for column in missing[:MAX_EXAMPLES]:
        similar = difflib.get_close_matches(column, unknown, n=1)
        parts.append(f'"{column}"' + (f' (found "{similar[0]}")' if similar else ""))
    rest = f" and {len(missing) - len(parts)} more" if len(missing) > len(parts) else ""
    return f"{len(missing)} of {len(COLUMNS)} columns missing in row 1: {', '.join(parts)}{rest}"


def _parse_cells(name: str, text: bytes) -> tuple[pa.Table, NDArray[np.int64]]:
    """The required columns as trimmed text without blank rows, and the row number of each row left."""
    ragged, blank = [], []

    def invalid(row: Any) -> str:
        (ragged if row.text.strip() else blank).append((row.number, row.actual_columns, row.expected_columns))
        return "skip"

    try:
        cells = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            # Rows are numbered only when one thread parses. Blank rows are kept, since they count.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=max(len(text), 1)),
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=invalid
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=COLUMNS, column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:  # its message quotes the table
        raise BadInputError(f"{name} has no rows that can be parsed; expected comma-separated values") from None
    if ragged:
        number, found, expected = ragged[0]
        raise BadInputError(
            f"{name}: not as many cells as the header in {_count(len(ragged))} ({_examples(r for r, _, _ in ragged)}; "
            f"row {number} has {found} of {expected}); correct these rows or quote cells that hold a comma"
        )
    rows = np.arange(2, 2 + cells.num_rows + len(blank))
    rows = np.delete(rows, [number - 2 for number, _, _ in blank])
    cells = pa.table({column: pc.utf8_trim_whitespace(cells[column]) for column in COLUMNS})
    is_filled = np.zeros(len(rows), dtype=bool)
    for column in COLUMNS:
        is_filled |= pc.not_equal(cells[column], "").to_numpy()
    return cells.filter(pa.array(is_filled)), rows[is_filled]


def _paths(cells: _Cells) -> pa.Table:
    """Patient, case, file below the set's folder and view of each row, as the source names them."""
    parts = pc.extract_regex(cells.columns["Path"].combine_chunks(), PATH_PATTERN)
    cells.reject(
        parts.is_null(),
        'column "Path" is not of the form SET/train/patient00001/study1/view1_frontal.jpg',
        "expected train or valid, patient with 5 digits or more, study, view, and jpg, jpeg or png",
    )
    folder, patient, study, name, view = (parts.field(i) for i in range(5))
    case = pc.binary_join_element_wise(patient, study, "/")
    file = pc.binary_join_element_wise(folder, case, name, "/")
    stated = pc.utf8_lower(cells.columns["Frontal/Lateral"].combine_chunks())
    cells.reject(
        pc.not_equal(view, stated),
        'columns "Path" and "Frontal/Lateral" disagree',
        'a file name "…_frontal" goes with Frontal, "…_lateral" with Lateral; correct these rows',
    )
    table = pa.table({"patient": patient, "case": case, "file": file, "view": view})
    codes = file.dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    if len(first) != len(codes):
        again = np.setdiff1d(np.arange(len(codes)), first)
        # Codes count up in order of first occurrence, so `first[code]` is the row that came first.
        pairs = [f"row {cells.rows[i]} repeats row {cells.rows[first[codes[i]]]}" for i in again[:MAX_EXAMPLES]]
        raise BadInputError(
            f"{cells.name}: the same image in {_count(len(again))} ({', '.join(pairs)}{_more(len(again))}); "
            "remove the repeated rows"
        )
    return table


def _reject_shared_patients(tables: dict[str, _Cells], raw: dict[str, pa.Table]) -> None:
    for (_, a), (_, b) in itertools.combinations(((tables[s], raw[s]) for s in tables), 2):
        shared = pc.is_in(b["patient"], value_set=a["patient"]).to_numpy()
        if not shared.any():
            continue
        train, valid = tables.values()
        in_train = pc.is_in(a["patient"], value_set=b["patient"]).to_numpy()
        num_patients = pc.count_distinct(b["patient"].filter(pa.array(shared))).as_py()
        raise BadInputError(
            f"{train.name} and {valid.name} share {num_patients} patients: {_count(in_train.sum())} of the one "
            f"({_examples(train.rows[in_train])}), {_count(shared.sum())} of the other "
            f"({_examples(valid.rows[shared])}); a patient may be in one table only: remove these from one of them"
        )


def _probe(root: Path, files: pa.Array) -> None:
    """Refuse a root below which none of the first files lies: a wrong folder, not single lost files."""
    probed = files.slice(0, NUM_PROBED_FILES).to_pylist()
    if not any((root / file).is_file() for file in probed):
        raise BadInputError(
            f"none of the first {len(probed)} listed images exists below data.root; it must be the folder that "
            "contains train.csv and, beside it, the folder train with the images"
        )


def _index_part(source_split: str, cells: _Cells, raw: pa.Table) -> pa.Table:
    """One table's rows of the index, with the source's own ids where identifiers will stand."""
    stated = cells.translate("AP/PA", VIEW_POSITIONS.__getitem__, pa.string(), "AP, PA, LL, RL or blank")
    is_lateral = pc.equal(raw["view"].combine_chunks(), "lateral")
    nulls = pa.nulls(len(raw), pa.string())
    columns = {
        "patient_id": raw["patient"],
        "case_id": raw["case"],
        "image_id": raw["file"],
        "source_split": pa.repeat(source_split, len(raw)),
        "view_position": pc.if_else(is_lateral, "lateral", stated),
        "sex": cells.translate("Sex", SEXES.__getitem__, pa.string(), "Male, Female, Unknown or blank"),
        "age_years": cells.translate("Age", _age_years, pa.float32(), f"a number from 0 to {MAX_AGE_YEARS} or blank"),
        "skin_type": nulls,
        "site": nulls,
    }
    for finding in FINDINGS:
        states = cells.translate(finding, _label_state, pa.int8(), "1, 0, -1 or blank")
        columns[f"{schema.LABEL_PREFIX}{finding}"] = states
    return pa.table(columns)


def _age_years(text: str) -> float | None:
    if not text:
        return None
    age_years = float(text)
    if not 0 <= age_years <= MAX_AGE_YEARS:
        raise ValueError
    return age_years


def _label_state(text: str) -> int:
    if not text:
        return schema.BLANK
    return {1.0: schema.POSITIVE, 0.0: schema.NEGATIVE, -1.0: schema.UNCERTAIN}[float(text)]


def _identifiers(key: PatientKey, dataset: str, level: Level, raw_ids: pa.ChunkedArray) -> pa.Array:
    encoded = raw_ids.combine_chunks().dictionary_encode()
    return pa.array(key.identify_all(dataset, level, encoded.dictionary.to_pylist())).take(encoded.indices)


def _summarize(index: pa.Table, tables: dict[str, _Cells]) -> dict[str, Any]:
    findings = {}
    for finding in FINDINGS:
        counts = Counter(index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy().tolist())
        findings[finding] = {state: counts.get(code, 0) for code, state in schema.LABEL_STATES.items()}
    lateral = sum(
        pc.equal(pc.utf8_lower(cells.columns["Frontal/Lateral"]), "lateral").to_numpy().sum()
        for cells in tables.values()
    )
    return {
        "rows": {cells.name: len(cells.rows) for cells in tables.values()},
        "ignored_columns": {cells.name: cells.num_ignored_columns for cells in tables.values()},
        "images": index.num_rows,
        "cases": pc.count_distinct(index["case_id"]).as_py(),
        "patients": pc.count_distinct(index["patient_id"]).as_py(),
        "frontal": index.num_rows - int(lateral),
        "lateral": int(lateral),
        "unknown_sex": index["sex"].null_count,
        "unknown_age": index["age_years"].null_count,
        "unknown_view_position": index["view_position"].null_count,
        "findings": findings,
    }


def _shown(text: str) -> str:
    """A cell as a message may show it: nothing that could be a path or an id."""
    if re.fullmatch(r"[+-]?\d{1,3}(\.\d{1,3})?|[A-Za-z ]{1,12}", text):
        return f'"{text}"'
    return f"a text of {len(text)} characters"


def _count(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def _examples(rows: Any) -> str:
    numbers = [int(row) for row in rows]
    return ", ".join(f"row {row}" for row in numbers[:MAX_EXAMPLES]) + _more(len(numbers))


def _more(number: int) -> str:
    return ", …" if number > MAX_EXAMPLES else ""
