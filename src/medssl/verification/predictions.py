"""Predictions against splits and models: nothing was trained on, everything is compared on the same units."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import layout, schema
from medssl.verification import tables
from medssl.verification.finding import Finding, examples

# Splits whose labels or images a model may have learned from.
_LEARNED_FROM = ("train", schema.UNLABELLED)
_CELL = ("arm_id", "label_fraction", "draw", "repeat")
_UNIT_COLUMNS = {"image": "image_id", "case": "case_id"}
Ints = NDArray[np.int64]


def check(predictions: pa.Table, *, where: str, models: set[str]) -> Iterator[Finding]:
    """Check what can be known from the predictions and the digests of the models in the store.

    Args:
        predictions: Schema PREDICTIONS.
        where: Names the artifact in findings.
        models: SHA-256 of every model file; empty where there is no store to look in.
    """
    learned: Any = pc.is_in(predictions["split"], value_set=pa.array(_LEARNED_FROM))
    if found := len(predictions.filter(learned)["unit_id"].unique()):
        yield Finding(where, f"{found} units of {' or '.join(_LEARNED_FROM)} were predicted; expected none")
    scores = predictions["y_score"].to_numpy()
    if wrong := int(np.count_nonzero(~((scores >= 0) & (scores <= 1)))):
        yield Finding(where, f"{wrong} scores are no probabilities")
    used = set(tables.counts(predictions["checkpoint_digest"]))
    if models and (gone := sorted(used - models)):
        yield Finding(where, f"{len(gone)} models that predicted are not in the store, among them {examples(gone)}")
    yield from _same_units(predictions, where)


def check_splits(predictions: pa.Table, index: pa.Table, splits: pa.Table, *, where: str) -> Iterator[Finding]:
    """Check that every unit that stands in `index` is predicted under the split that it belongs to."""
    of_image = schema.split_of_images(index, splits).to_pylist()
    units: Any = predictions.group_by(["unit_kind", "unit_id", "split"]).aggregate([])
    for kind, column in _UNIT_COLUMNS.items():
        of_kind = units.filter(pc.equal(units["unit_kind"], pa.scalar(kind))).to_pylist()
        known = set(zip(index[column].to_pylist(), of_image, strict=True))
        names = {name for name, _ in known}
        if strangers := sorted({row["unit_id"] for row in of_kind} - names):
            yield Finding(where, f"{len(strangers)} {kind}s are not in the index, among them {examples(strangers)}")
        units_of_kind = {(row["unit_id"], row["split"]) for row in of_kind if row["unit_id"] in names}
        if moved := sorted({name for name, _ in units_of_kind - known}):
            what = f"{kind}s are predicted under a split that they are not in, among them {examples(moved)}"
            yield Finding(where, f"{len(moved)} {what}")


def _same_units(predictions: pa.Table, where: str) -> Iterator[Finding]:
    """Compare the units and classes of all arms, fractions, draws and repeats of a data set's split."""
    if not predictions.num_rows:
        yield Finding(where, f"{layout.PREDICTIONS} is empty")
        return
    groups = _codes(predictions, ("dataset", "dataset_digest", "split"))
    cells, units = _codes(predictions, _CELL), _codes(predictions, ("unit_id", "class"))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        in_cells = {int(cell): rows[cells[rows] == cell] for cell in np.unique(cells[rows])}
        first, *others = in_cells.values()
        expected = np.unique(units[first])
        for of_cell in others:
            differing = np.setxor1d(expected, units[of_cell])
            if differing.size:
                split = predictions["split"][int(of_cell[0])].as_py()
                what = f"{differing.size} rows of {split} are predicted by one of {_cell(predictions, first[0])} and"
                yield Finding(where, f"{what} {_cell(predictions, of_cell[0])} only; expected the same units for all")


def _codes(table: pa.Table, columns: Sequence[str]) -> Ints:
    """A number for each row, the same where all `columns` are."""
    codes = np.zeros(table.num_rows, np.int64)
    for column in columns:
        chunk: Any = table[column].combine_chunks()
        encoded = chunk.dictionary_encode()
        part = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        codes = np.unique(codes * (len(encoded.dictionary) + 1) + part, return_inverse=True)[1].astype(np.int64)
    return codes


def _cell(predictions: pa.Table, row: Any) -> str:
    arm, fraction, draw, repeat = (predictions[column][int(row)].as_py() for column in _CELL)
    return f"{arm} at {fraction:g} (draw {draw}, repeat {repeat})"
