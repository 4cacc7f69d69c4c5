"""Schemas of every table that passes between stages, and the only way to read and write one.

A table on disk is Parquet in its declared column order with its schema's name in the metadata; nothing in it depends
on the clock or the machine, so equal rows are equal bytes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medssl.exit_codes import BadInputError

LABEL_PREFIX = "label:"  # index columns "label:Edema", one a finding, hold the codes below

POSITIVE, NEGATIVE, UNCERTAIN, BLANK, NOT_ASSESSED = 1, 0, -1, -2, -3
LABEL_STATES: Mapping[int, str] = MappingProxyType(
    {
        POSITIVE: "positive",
        NEGATIVE: "negative",
        UNCERTAIN: "uncertain",
        BLANK: "blank",
        NOT_ASSESSED: "not assessed",
    }
)
# Beside the three that are drawn at random. The first and the last are parts of a source, too.
OFFICIAL_VALID, UNUSED, UNLABELLED = "official_valid", "unused", "unlabelled"
SPLITS = ("train", "validation", "test", OFFICIAL_VALID, UNUSED, UNLABELLED)
EXTERNAL = "external"  # in predictions: a whole data set on which the finished models are evaluated


class SchemaError(BadInputError):
    """A file between stages is not what its schema says; the message names file, column and remedy."""


@dataclass(frozen=True)
class TableSchema:
    """Columns of a table.

    Attributes:
        name: Name of the table, as `medssl schema NAME` takes it.
        columns: Columns in their order on disk.
        key: Columns that together identify a row; rows are sorted by them and no two share them.
        labels: Whether int8 columns named "label:<finding>" may follow.
        finer_key: Columns of which one may follow the key, for tables whose rows are parts of what the key names.
    """

    name: str
    columns: pa.Schema
    key: tuple[str, ...]
    labels: bool = False
    finer_key: tuple[str, ...] = ()

    def key_of(self, table: pa.Table) -> list[str]:
        """Columns that together identify a row of `table`."""
        return [*self.key, *(column for column in self.finer_key if column in table.column_names)]


def _table(
    name: str,
    key: tuple[str, ...],
    columns: Mapping[str, pa.DataType],
    *,
    labels: bool = False,
    finer_key: tuple[str, ...] = (),
) -> TableSchema:
    # A trailing "?" marks a column that may hold nulls: unknown, not applicable or undefined.
    fields = [pa.field(column.rstrip("?"), kind, nullable=column.endswith("?")) for column, kind in columns.items()]
    return TableSchema(name, pa.schema(fields), key, labels, finer_key)


_TEXT, _REAL, _FLAG = pa.string(), pa.float64(), pa.bool_()

INDEX = _table(
    "index",
    ("image_id",),
    {
        "patient_id": _TEXT,
        "case_id": _TEXT,  # a CheXpert study; a skin lesion at one visit
        "image_id": _TEXT,
        "source_split": _TEXT,  # train, official_valid or unlabelled: which part of the source listed the image
        "view_position?": _TEXT,  # AP, PA, lateral
        "sex?": _TEXT,  # female, male
        "age_years?": pa.float32(),
        "skin_type?": _TEXT,
        "site?": _TEXT,
    },
    labels=True,
)
SOURCES = _table("sources", ("image_id",), {"image_id": _TEXT, "file": _TEXT})
DUPLICATES = _table(
    "duplicates",
    ("image_a", "image_b"),
    {
        "image_a": _TEXT,  # the smaller image_id of the two
        "image_b": _TEXT,
        "patient_a": _TEXT,
        "patient_b": _TEXT,
        "distance": pa.int32(),  # bits in which the perceptual hashes differ
        "is_same_patient": _FLAG,
    },
)
SPLIT_TABLE = _table(
    "splits",
    ("patient_id",),
    {
        "patient_id": _TEXT,
        "split": _TEXT,
        "label_ranks": pa.list_(pa.field("element", _REAL, nullable=False)),
    },
    # Where not patients but studies or images stay whole, a row is one of these.
    finer_key=("case_id", "image_id"),
)
SHARD = _table("shard", ("image_id",), {"image_id": _TEXT, "image": pa.large_binary()})
SCORES = _table(
    "scores",
    ("arm_id", "label_fraction", "draw", "learning_rate", "weight_decay"),
    {
        "arm_id": _TEXT,
        "label_fraction": _REAL,
        "draw": pa.int32(),
        "learning_rate": _REAL,
        "weight_decay": _REAL,
        "validation_score?": _REAL,  # mean AUC, or top-1 accuracy of cases; null where nothing is evaluable
        "step": pa.int32(),  # at which the score was reached
        "num_train_images": pa.int32(),
        "num_train_patients": pa.int32(),
    },
)
HISTORY = _table(
    "history",
    ("run", "metric", "step"),
    {"run": _TEXT, "metric": _TEXT, "step": pa.int32(), "value": _REAL},
)
PREDICTIONS = _table(
    "predictions",
    (
        "study_id", "dataset", "dataset_digest", "split", "arm_id", "label_fraction", "draw", "repeat", "unit_id",
        "class",
    ),
    {
        "study_id": _TEXT,
        "dataset": _TEXT,
        "dataset_digest": _TEXT,
        "split": _TEXT,
        "arm_id": _TEXT,
        "label_fraction": _REAL,
        "draw": pa.int32(),
        "repeat": pa.int32(),
        "unit_id": _TEXT,
        "class": _TEXT,
        "unit_kind": _TEXT,  # image or case
        "patient_id": _TEXT,
        "group_kind": _TEXT,  # what patient_id stands for: patient; lesion or image where the set names no patient
        "y_true?": pa.int8(),  # null: not known under the study's label policy
        "y_score": _REAL,  # probability
        "is_selected": _FLAG,  # made by the repeat that validation chose
        "checkpoint_digest": _TEXT,
        "sex?": _TEXT,
        "age_years?": pa.float32(),
        "skin_type?": _TEXT,
        "view_position?": _TEXT,
        "site?": _TEXT,
    },
)  # fmt: skip
ARMS = _table(
    "arms",
    ("arm_id",),
    {
        "arm_id": _TEXT,
        "architecture": _TEXT,
        "method": _TEXT,
        "num_steps": pa.int64(),  # pretraining steps, all stages together
        "batch_size?": pa.int32(),  # of the last pretraining run
        "augmentation?": _TEXT,
        "display_name": _TEXT,
    },
)
METRICS = _table(
    "metrics",
    (
        "dataset", "split", "metric", "k", "class", "subgroup", "arm_a", "arm_b", "label_fraction", "draw", "repeat",
        "resampling_unit",
    ),
    {
        "dataset": _TEXT,
        "split": _TEXT,
        "metric": _TEXT,
        "k?": pa.int32(),
        "class": _TEXT,  # "" for a metric over all classes
        "subgroup": _TEXT,  # "all", "sex=female"
        "arm_a": _TEXT,
        "arm_b?": _TEXT,  # null for one arm; else the row is arm_a minus arm_b
        "label_fraction": _REAL,
        "draw": pa.int32(),
        "repeat": _TEXT,  # a number, "mean" or "selected"
        # patient, or lesion where the set names no patient; image or case; "" where nothing was resampled
        "resampling_unit": _TEXT,
        "estimate?": _REAL,
        "std?": _REAL,
        "ci_low?": _REAL,
        "ci_high?": _REAL,
        "p?": _REAL,
        "p_adjusted?": _REAL,  # by Holm's method
        "p_fdr?": _REAL,  # by Benjamini's and Hochberg's
        "delong_low?": _REAL,  # of AUCs, without resampling: a cross-check
        "delong_high?": _REAL,
        "delong_p?": _REAL,
        "family": _TEXT,
        "n_units": pa.int64(),
        "n_patients": pa.int64(),
        "n_replicates": pa.int64(),
        "status": _TEXT,
        "reason": _TEXT,
    },
)  # fmt: skip
CALIBRATION = _table(
    "calibration",
    ("dataset", "split", "arm_id", "label_fraction", "draw", "class", "bin"),
    {
        "dataset": _TEXT,
        "split": _TEXT,
        "arm_id": _TEXT,
        "label_fraction": _REAL,
        "draw": pa.int32(),
        "class": _TEXT,  # "" for the class with the highest score of a case
        "bin": pa.int32(),
        "score_low": _REAL,  # excluded, but by the first bin
        "score_high": _REAL,
        "n_units": pa.int64(),
        "mean_score?": _REAL,  # null in an empty bin
        "share_positive?": _REAL,
    },
)

TABLES: Mapping[str, TableSchema] = MappingProxyType(
    {
        s.name: s
        for s in (
            INDEX,
            SOURCES,
            DUPLICATES,
            SPLIT_TABLE,
            SHARD,
            SCORES,
            HISTORY,
            PREDICTIONS,
            ARMS,
            METRICS,
            CALIBRATION,
        )
    }
)


def split_unit(splits: pa.Table) -> str:
    """The column that says what a row of the splits is: patient_id, or a finer one."""
    return SPLIT_TABLE.key_of(splits)[-1]


def split_of_images(index: pa.Table, splits: pa.Table) -> Any:
    """The split of each row of an index, null where it has none."""
    unit = split_unit(splits)
    at: Any = pc.index_in(index[unit], value_set=splits[unit].combine_chunks())
    return splits["split"].take(at)


def rows_of(index: pa.Table, splits: pa.Table) -> pa.Table:
    """The rows of an index whose patients, studies or images stand in (a part of) a table of splits."""
    unit = split_unit(splits)
    return index.filter(pc.is_in(index[unit], value_set=splits[unit].combine_chunks()))


def ranks_of_draw(splits: pa.Table, draw: int) -> NDArray[np.float64]:
    """The label ranks of one draw, one a row of `splits`.

    Raises:
        ValueError: There is no such draw.
    """
    if not splits.num_rows:
        return np.empty(0)
    lists: Any = splits["label_ranks"].combine_chunks()
    ranks: NDArray[np.float64] = lists.flatten().to_numpy().reshape(splits.num_rows, -1)
    num_draws = ranks.shape[1]
    if not 0 <= draw < num_draws:
        raise ValueError(f"draw {draw} does not exist: splits.draws is {num_draws}, and draws count from 0")
    return ranks[:, draw]


def label_columns(table: pa.Table) -> list[str]:
    """Findings that `table` has a label column for, in column order."""
    return [name.removeprefix(LABEL_PREFIX) for name in table.column_names if name.startswith(LABEL_PREFIX)]


def check(table: pa.Table, schema: TableSchema, where: str) -> pa.Table:
    """Return `table` with its columns in order and types as declared.

    Raises:
        SchemaError: A column is missing, unknown, repeated, of another type, or holds nulls where none may be.
    """
    finer = [name for name in schema.finer_key if name in table.column_names][:1]
    labels = [name for name in table.column_names if schema.labels and name.startswith(LABEL_PREFIX)]
    expected = [*schema.columns.names, *finer, *labels]
    if repeated := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise SchemaError(f"{where}: columns {repeated} occur more than once; keep one of each")
    missing = [name for name in expected if name not in table.column_names]
    unknown = [name for name in table.column_names if name not in expected]
    if missing or unknown:
        raise SchemaError(
            f"{where}: not a {schema.name} table: missing columns {missing}, unknown columns {unknown}; "
            f"see `medssl schema {schema.name}`"
        )
    fields = [
        *schema.columns,
        *(pa.field(name, _TEXT, nullable=False) for name in finer),
        *(pa.field(name, pa.int8(), nullable=False) for name in labels),
    ]
    return _checked(table.select(expected), fields, schema, where)


def _checked(table: pa.Table, fields: "Sequence[pa.Field[Any]]", schema: TableSchema, where: str) -> pa.Table:
    """`table` with the types of `fields`, which are its columns."""
    for field in fields:
        if not field.nullable and table[field.name].null_count:
            count = table[field.name].null_count
            raise SchemaError(
                f"{where}: column {field.name} holds {count} nulls; a {schema.name} table allows none there"
            )
    typed = [_cast(table[field.name], field, schema, where) for field in fields]
    return pa.table(typed, schema=pa.schema(fields)).replace_schema_metadata(table.schema.metadata)


def _cast(
    column: "pa.ChunkedArray[Any]", field: "pa.Field[Any]", schema: TableSchema, where: str
) -> "pa.ChunkedArray[Any]":
    """A column with the type of its field; Arrow's own words would show a value of it, which may name a patient."""
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError):
        null = ", null where it is not known" if field.nullable else ""
        what = f"its {len(column):,} values cannot all" if len(column) else "it cannot"
        raise SchemaError(
            f"{where}: not a {schema.name} table: column {field.name} is {column.type}, expected {field.type}, and "
            f"{what} be converted; write it as {field.type}{null}"
        ) from None


def write(
    table: pa.Table,
    schema: TableSchema,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    mode: int = 0o666,
) -> None:
    """Check, sort by the key and write `table`, atomically and always with the same bytes for the same rows.

    Args:
        table: Rows in any order.
        schema: What they must be.
        path: The file; its folder exists.
        metadata: Text that is kept with the table.
        mode: Permissions of the file, less those that the user's umask takes.

    Raises:
        SchemaError: The table does not fit, or two rows share a key.
    """
    table = check(table, schema, path.name)
    key = schema.key_of(table)
    table = table.sort_by([(column, "ascending") for column in key])
    if table.group_by(key).aggregate([]).num_rows != table.num_rows:
        raise SchemaError(f"{path.name}: two rows share the key {', '.join(key)}")
    stored = {"medssl.schema": schema.name, **(metadata or {})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch(mode=mode)
    pq.write_table(table.replace_schema_metadata(stored), temporary, compression="zstd")
    temporary.replace(path)


def read(path: Path, schema: TableSchema, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read and check a table written by `write`.

    Args:
        path: The file.
        schema: What it must be.
        columns: Read these only, in this order, where a whole table would take much memory; names and types of all
            are checked.

    Raises:
        SchemaError: The file is absent, no Parquet, or another table.
    """
    try:
        with pq.ParquetFile(path) as file:
            declared = check(file.schema_arrow.empty_table(), schema, path.name).schema
            table = file.read(columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise SchemaError(f"{path.name}: no such file; expected a {schema.name} table") from None
    except (pa.ArrowInvalid, OSError) as error:
        told = " ".join(str(error).replace(str(path), path.name).split())[:200]
        raise SchemaError(f"{path.name}: cannot be read as Parquet: {told}") from None
    names = declared.names if columns is None else list(columns)
    return _checked(table.select(names), [declared.field(name) for name in names], schema, path.name)


def metadata_of(table: pa.Table) -> dict[str, str]:
    """The text metadata of a table read by `read`."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def describe(schema: TableSchema) -> str:
    """The schema as JSON, as `medssl schema NAME` prints it."""
    columns = [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema.columns]
    columns += [{"name": name, "type": "string", "nullable": False, "optional": True} for name in schema.finer_key]
    if schema.labels:
        columns.append(
            {
                "name": f"{LABEL_PREFIX}<finding>",
                "type": "int8",
                "nullable": False,
                "codes": dict(LABEL_STATES),
            }
        )
    return json.dumps({"table": schema.name, "key": list(schema.key), "columns": columns}, indent=2)
