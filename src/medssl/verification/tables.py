"""Parquet files against their schemas, and the numbers of metrics against what they can be."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl import layout, schema
from medssl.verification.artifacts import Found
from medssl.verification.finding import Finding

# By file name.
SCHEMAS: Mapping[str, schema.TableSchema] = MappingProxyType(
    {
        layout.INDEX: schema.INDEX,
        layout.SOURCES: schema.SOURCES,
        layout.DUPLICATES: schema.DUPLICATES,
        layout.SPLITS: schema.SPLIT_TABLE,
        layout.SCORES: schema.SCORES,
        layout.HISTORY: schema.HISTORY,
        layout.PREDICTIONS: schema.PREDICTIONS,
        layout.ARMS: schema.ARMS,
        layout.METRICS: schema.METRICS,
        layout.CALIBRATION: schema.CALIBRATION,
    }
)
# Metrics that are a probability or a share: 0 to 1, a difference of two of them -1 to 1.
_SHARES = re.compile("auc|accuracy|sensitivity|specificity|precision|ece$")


def check(found: Found) -> Iterator[Finding]:
    """Check every Parquet file of an artifact: schema, and a key that is unique and sorted."""
    for name in sorted(found.files):
        path = found.folder / name
        if path.suffix != ".parquet" or not path.is_file():
            continue
        file = PurePosixPath(name).name
        if file not in SCHEMAS:
            yield Finding(found.name, f"{name} is of no known table; expected one of {', '.join(SCHEMAS)}")
            continue
        yield from check_table(path, SCHEMAS[file], where=found.name)


def check_table(path: Path, declared: schema.TableSchema, *, where: str) -> Iterator[Finding]:
    """Check one file: `schema.write` would have written it so."""
    table = read(path, declared)
    if isinstance(table, Finding):
        yield Finding(where, table.what)
        return
    stored = pq.read_schema(path)
    stated = (stored.metadata or {}).get(b"medssl.schema", b"").decode()
    if stated != declared.name:
        yield Finding(where, f'{path.name}: its metadata names the schema "{stated}"; expected {declared.name}')
    if not table.schema.equals(stored, check_metadata=False):
        yield Finding(where, f"{path.name}: columns of another order or type than declared")
    key = declared.key_of(table)
    keys: Any = table.select(key)
    if repeated := keys.num_rows - keys.group_by(key).aggregate([]).num_rows:
        yield Finding(where, f"{path.name}: {repeated} rows repeat the key ({', '.join(key)}) of another")
    elif not keys.equals(keys.sort_by([(column, "ascending") for column in key])):
        yield Finding(where, f"{path.name}: rows are not sorted by their key ({', '.join(key)})")


def read(path: Path, declared: schema.TableSchema) -> pa.Table | Finding:
    """The table in `path`, or why it cannot be read."""
    try:
        return schema.read(path, declared)
    except schema.SchemaError as error:
        return Finding(path.name, str(error))


def check_metrics(metrics: pa.Table, *, where: str) -> Iterator[Finding]:
    """Check that estimates, intervals and p-values are numbers that such numbers can be.

    A percentile interval of few units need not hold the estimate: that is a note.
    """
    rows: list[dict[str, Any]] = metrics.to_pylist()
    shares = [row for row in rows if _SHARES.search(row["metric"])]
    impossible: dict[str, list[dict[str, Any]]] = {
        "estimate or interval is no share, or no difference of two": [
            row
            for row in shares
            if not all(_ends(row)[0] <= row[c] <= _ends(row)[1] for c in _REALS if row[c] is not None)
        ],
        "interval ends before it begins": [row for row in rows if _both(row) and not row["ci_low"] <= row["ci_high"]],
        "interval has one end": [
            row for row in rows if (row["ci_low"] is None) != (row["ci_high"] is None) and row["status"] != "censored"
        ],
        "interval stands without an estimate": [
            row for row in rows if _both(row) and row["estimate"] is None and row["status"] != "censored"
        ],
        "p-value is not in 0 to 1, or its adjusted one is smaller": [row for row in rows if not _is_p(row)],
        "standard deviation is negative": [row for row in rows if row["std"] is not None and not row["std"] >= 0],
    }
    for what, of_rows in impossible.items():
        if of_rows:
            yield Finding(where, f"{layout.METRICS}: in {len(of_rows)} rows the {what}, first in {_row(of_rows[0])}")
    outside = [r for r in rows if _both(r) and r["estimate"] is not None and not _inside(r)]
    if outside:
        what = f"in {len(outside)} rows the estimate is outside its interval, first in {_row(outside[0])}"
        yield Finding(where, f"{layout.METRICS}: {what}", is_note=True)


_REALS = ("estimate", "ci_low", "ci_high")


def _ends(row: Mapping[str, Any]) -> tuple[int, int]:
    """What a share, or so many times a difference of shares, lies between."""
    times = int(row["arm_b"] is not None) + int(row["metric"].endswith(("_drop", "_gap_difference")))
    return -times, max(times, 1)


def _both(row: Mapping[str, Any]) -> bool:
    return row["ci_low"] is not None and row["ci_high"] is not None


def _inside(row: Mapping[str, Any]) -> bool:
    slack = 1e-9  # the interval of one replicate is the estimate, added up in another order
    return bool(row["ci_low"] - slack <= row["estimate"] <= row["ci_high"] + slack)


def _is_p(row: Mapping[str, Any]) -> bool:
    p, adjusted = row["p"], [row[name] for name in ("p_adjusted", "p_fdr") if row[name] is not None]
    known = [value for value in (p, *adjusted, row["delong_p"]) if value is not None]
    return all(0 <= value <= 1 for value in known) and (p is None or all(value >= p for value in adjusted))


def _row(row: Mapping[str, Any]) -> str:
    arms = f"{row['arm_a']} minus {row['arm_b']}" if row["arm_b"] is not None else row["arm_a"]
    parts = (row["metric"], row["class"], row["split"], row["subgroup"], arms, f"{row['label_fraction']:g}")
    return " / ".join(part for part in parts if part)


def counts(column: Any) -> dict[str, int]:
    """How often each value of a column occurs."""
    found: Any = pc.value_counts(column)
    return {entry["values"].as_py(): entry["counts"].as_py() for entry in found}
