import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medssl import schema
from medssl.schema import SchemaError


def splits(**columns: list[object]) -> pa.Table:
    return pa.table({"patient_id": ["b", "a"], "split": ["train", "test"], "label_ranks": [[0.5], [0.25]]} | columns)


def test_equal_rows_are_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    table = splits()
    for name, rows in (("one", table), ("two", table.take([1, 0]))):
        schema.write(rows, schema.SPLIT_TABLE, tmp_path / name, metadata={"key_id": "k"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = schema.read(tmp_path / "one", schema.SPLIT_TABLE)
    assert read["patient_id"].to_pylist() == ["a", "b"]
    assert schema.metadata_of(read)["key_id"] == "k"


def test_a_table_that_does_not_fit_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "splits.parquet"
    with pytest.raises(SchemaError, match=r"missing columns \['split'\], unknown columns \['splitt'\]"):
        schema.write(splits().rename_columns(["patient_id", "splitt", "label_ranks"]), schema.SPLIT_TABLE, path)
    with pytest.raises(SchemaError, match="column split holds 1 nulls"):
        schema.write(splits(split=["train", None]), schema.SPLIT_TABLE, path)
    with pytest.raises(SchemaError, match="two rows share the key patient_id"):
        schema.write(splits(patient_id=["a", "a"]), schema.SPLIT_TABLE, path)
    with pytest.raises(SchemaError, match="not a splits table"):
        schema.write(splits(label_ranks=["x", "y"]), schema.SPLIT_TABLE, path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_absent_or_no_parquet_is_told(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no such file"):
        schema.read(tmp_path / "index.parquet", schema.INDEX)
    (tmp_path / "index.parquet").write_text("hello")
    with pytest.raises(SchemaError, match="cannot be read as Parquet"):
        schema.read(tmp_path / "index.parquet", schema.INDEX)


def test_some_columns_are_read_alone_and_all_are_checked(tmp_path: Path) -> None:
    schema.write(splits(), schema.SPLIT_TABLE, tmp_path / "splits", metadata={"dataset": "x"})
    read = schema.read(tmp_path / "splits", schema.SPLIT_TABLE, columns=["split", "patient_id"])
    assert read.to_pydict() == {"split": ["test", "train"], "patient_id": ["a", "b"]}
    nothing = schema.read(tmp_path / "splits", schema.SPLIT_TABLE, columns=[])
    assert schema.metadata_of(nothing)["dataset"] == "x"
    pq.write_table(splits().drop_columns(["label_ranks"]), tmp_path / "short")
    with pytest.raises(SchemaError, match="missing columns"):
        schema.read(tmp_path / "short", schema.SPLIT_TABLE, columns=["split"])


def test_only_the_index_carries_label_columns() -> None:
    table = splits().append_column("label:Edema", pa.array([1, 0], pa.int8()))
    with pytest.raises(SchemaError, match="unknown columns"):
        schema.check(table, schema.SPLIT_TABLE, "x")


def test_every_schema_is_described_as_json() -> None:
    for table in schema.TABLES.values():
        described = json.loads(schema.describe(table))
        assert set(described["key"]) <= {column["name"] for column in described["columns"]}
