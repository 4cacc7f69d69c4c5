"""What the readers of radiographs whose tables list file names and findings share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from medssl import schema
from medssl.data.cells import Cells, Column
from medssl.exit_codes import BadInputError


def label_columns(
    cells: Cells,
    column: str,
    states: Callable[[str], Sequence[int]],
    findings: Sequence[str],
    *,
    expected: str,
    words: Iterable[str],
) -> dict[str, Column]:
    """One label column a finding, from one column of the table that lists the findings of an image.

    Args:
        cells: The table.
        column: The column that lists findings.
        states: The label states of `findings`, in their order, for a text of the column; raises ValueError for a
            text that is no list of known findings.
        findings: Names of the findings.
        expected: What the column may hold, for the message.
        words: Words that it may list.
    """
    kind = pa.list_(pa.int8(), len(findings))
    lists = cells.translate(column, states, kind, expected=expected, words=words)
    codes = lists.flatten().to_numpy().reshape(-1, len(findings))
    return {f"{schema.LABEL_PREFIX}{finding}": pa.array(codes[:, i]) for i, finding in enumerate(findings)}


def select_views(
    rows: pa.Table, views: Literal["both", "frontal", "lateral"], *, is_lateral: Column | None = None
) -> pa.Table:
    """The rows of the projections to read; one that is not known to be lateral is frontal.

    Args:
        rows: Of the index.
        views: Which to read.
        is_lateral: Of each row, where the source says it apart from the view position.

    Raises:
        BadInputError: No row is left.
    """
    if views == "both":
        return rows
    if is_lateral is None:
        is_lateral = pc.is_in(rows["view_position"], value_set=pa.array(["lateral"]))
    is_read: Column = is_lateral if views == "lateral" else pc.invert(is_lateral)
    selected = rows.filter(is_read)
    if not selected.num_rows:
        raise BadInputError(f"data.views is {views}, and the tables list no such image; choose another")
    return selected


def count_lateral(rows: pa.Table) -> int:
    """Rows whose projection is lateral."""
    return rows["view_position"].to_pylist().count("lateral")
