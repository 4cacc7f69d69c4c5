"""The set-valued truth of cases: the conditions that the rows of a table state, as label columns of the index.

A case's conditions are the union over its rows (spec 2.1, 3.1: a case may have several primary diagnoses).
"""

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import ConfigError
from medssl.data.cells import Cells, Column
from medssl.exit_codes import BadInputError

MAX_CONDITIONS = 1000  # the paper's source has 419 (spec 2.1)
MAX_CHARACTERS = 100
EXPECTED = f'names of at most {MAX_CHARACTERS} printable characters, several separated by "|" or ";", or blank'
_SEPARATOR = re.compile(r"[|;]")


def check_names(names: Mapping[str, str]) -> None:
    """Refuse names that a study gives to conditions and that no table could hold.

    Args:
        names: The set's own name -> the study's.

    Raises:
        ConfigError: How many are wrong, and what is expected.
    """
    if wrong := sum(not _is_name(name) for name in names.values()):
        raise ConfigError(
            f"data.condition_names: {wrong} of {len(names)} names cannot be used; expected one condition each, at most "
            f'{MAX_CHARACTERS} printable characters without "|" and ";"'
        )


def labels(
    cells: Cells, column: str, case: NDArray[np.int32], names: Mapping[str, str]
) -> tuple[dict[str, Column], dict[str, int]]:
    """States of each condition for each row, and what was counted on the way.

    Args:
        cells: The table, N rows.
        column: Header of the conditions.
        case: Number of each row's case, shape (N,), from 0 without a gap.
        names: The set's own name of a condition -> the study's; one that is not listed stays.

    Returns:
        int8 columns of N states, by condition in the order of their names. In every row of a case: POSITIVE for the
        conditions that any row of it states, NEGATIVE for the others, NOT_ASSESSED throughout where no row states one.

    Raises:
        BadInputError: A cell holds no names, there are none at all or too many, or two differ in capitals only.
    """
    meaning = functools.partial(_conditions, names=names)
    stated: Column = cells.translate(column, meaning, pa.list_(pa.string()), expected=EXPECTED)
    parents: Column = pc.list_parent_indices(stated)
    flat: Column = pc.list_flatten(stated)
    row, encoded = parents.to_numpy(), flat.dictionary_encode()
    conditions, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    _check(cells, column, conditions, row, codes)
    # One number for each pair of a case and a condition that a row of it states.
    pairs = np.unique(case[row].astype(np.int64) * len(conditions) + codes)
    case_of_pair, code_of_pair = np.divmod(pairs, len(conditions))
    num_in_case = np.bincount(case_of_pair, minlength=int(case.max()) + 1)
    others = np.where(num_in_case > 0, schema.NEGATIVE, schema.NOT_ASSESSED).astype(np.int8)
    columns: dict[str, Column] = {}
    for code in sorted(range(len(conditions)), key=conditions.__getitem__):
        states = others.copy()
        states[case_of_pair[code_of_pair == code]] = schema.POSITIVE
        columns[conditions[code]] = pa.array(states[case])
    return columns, _counts(case, np.bincount(row, minlength=case.size), num_in_case)


def _conditions(text: str, names: Mapping[str, str]) -> list[str]:
    """The distinct conditions of a cell under the study's names, sorted; none where it is blank."""
    if not text:
        return []
    found = {names.get(name, name) for name in (part.strip() for part in _SEPARATOR.split(text))}
    if not all(_is_name(name) for name in found):
        raise ValueError
    return sorted(found)


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_CHARACTERS and name.isprintable() and not _SEPARATOR.search(name)


def _check(
    cells: Cells, column: str, conditions: Sequence[str], row: NDArray[np.int64], codes: NDArray[np.int32]
) -> None:
    if not conditions:
        raise BadInputError(
            f'{cells.name}: column "{column}" is blank throughout; give the column of conditions as data.columns: '
            "{condition: HEADER}, or read the set without labels: data.dataset: images"
        )
    if len(conditions) > MAX_CONDITIONS:
        raise BadInputError(
            f'{cells.name}: column "{column}" holds {len(conditions)} distinct conditions, more than '
            f"{MAX_CONDITIONS}; most likely it is another column: give that of the conditions as data.columns: "
            "{condition: HEADER}, or join rare ones by data.condition_names"
        )
    folded = [" ".join(name.casefold().split()) for name in conditions]
    is_ambiguous = np.array([folded.count(name) > 1 for name in folded])
    wrong = np.zeros(cells.rows.size, dtype=bool)
    wrong[row[is_ambiguous[codes]]] = True
    cells.reject(
        wrong,
        f'column "{column}" holds conditions that differ in capitals or spaces only,',
        "give each one spelling, in the table or by data.condition_names",
    )


def _counts(case: NDArray[np.int32], num_in_row: NDArray[np.int64], num_in_case: NDArray[np.int64]) -> dict[str, int]:
    num_in_its_case = num_in_case[case]
    # A row states no more than its case's union, so it differs from another row exactly where it states fewer.
    disagrees = (num_in_row > 0) & (num_in_row < num_in_its_case)
    return {
        "cases_with_several_conditions": int((num_in_case > 1).sum()),
        "cases_whose_rows_disagreed": int(np.unique(case[disagrees]).size),
        "cases_without_condition": int((num_in_case == 0).sum()),
        "rows_labelled_by_others_of_their_case": int(((num_in_row == 0) & (num_in_its_case > 0)).sum()),
    }
