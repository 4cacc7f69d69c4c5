"""Reading an index's label states as targets, under the study's policies (spec 2.1, 2.3).

The index keeps what the source says; the policies apply here, at read time, so that changing one re-reads no data.
A study predicts independent findings of each image, or one of many conditions of each case, whose truth may be a set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import PAPER_CONDITIONS, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.metrics import OTHER

# The map of Neyshabur et al. 2020, which the paper compares itself with; every other finding becomes negative.
UNCERTAIN_IS_POSITIVE = frozenset({"Atelectasis", "Edema"})
_UNCERTAIN_IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "u_ones": "count as positive",
        "u_zeros": "count as negative",
        "u_ignore": "are left out of training and evaluation",
    }
)


@dataclass(frozen=True)
class Labelled:
    """What is classified: M images, or M cases of several images each.

    Attributes:
        kind: "image" or "case".
        ids: image_id or case_id of each, shape (M,), sorted.
        unit_N: Which of the M each row of the index belongs to, shape (N,).
        row_M: The first row of the index of each, shape (M,).
        targets_MK: 0 or 1, float32; 0 where unknown. Several 1 in a row of conditions are a tied truth.
        mask_MK: Whether the label is known: false where the source did not assess it and where a policy leaves it
            out; such entries count in no loss and no metric.
    """

    kind: Literal["image", "case"]
    ids: NDArray[np.object_]
    unit_N: NDArray[np.int64]
    row_M: NDArray[np.int64]
    targets_MK: NDArray[np.float32]
    mask_MK: NDArray[np.bool_]


def classes(index: pa.Table, splits: pa.Table, task: TaskConfig) -> tuple[str, ...]:
    """Names of what is predicted, in the order of the classifier's outputs.

    For conditions: `task.conditions`; without any, the paper's 26 where the set names them all, and else every one, by
    falling number of training cases (then by name); of these at most `task.num_conditions` with `task.min_train_cases`
    cases each or more, and "Other" behind them where a training case has a condition beyond.

    Args:
        index: Schema INDEX.
        splits: Schema SPLIT_TABLE.
        task: Kind and names.

    Raises:
        BadInputError: The set lacks a finding or condition that was asked for, or fewer than two conditions have
            enough training cases.
    """
    present = schema.label_columns(index)
    if task.kind == "findings":
        if absent := [finding for finding in task.findings if finding not in present]:
            raise BadInputError(
                f"task.findings: the data set has no label for {', '.join(absent)}, and {len(present)} others; choose "
                "among those that `medssl ingest` counts, or set task.kind: conditions"
            )
        return task.findings
    rows = schema.rows_of(index, splits.filter(pc.equal(splits["split"], pa.scalar("train"))))
    num_cases = {name: _num_positive_cases(rows, name) for name in present}
    if absent := [name for name in task.conditions if name not in present]:
        raise BadInputError(f"task.conditions: the data set has no case of {', '.join(absent)}; leave them out")
    paper = [name for name in PAPER_CONDITIONS if name in present]
    candidates = task.conditions or (paper if len(paper) == len(PAPER_CONDITIONS) else present)
    ordered = sorted(candidates, key=lambda name: (-num_cases[name], name))
    kept = [name for name in ordered if num_cases[name] >= task.min_train_cases and name != OTHER]
    kept = kept[: task.num_conditions]
    has_others = any(num_cases[name] for name in present if name not in kept)
    names = (*kept, *([OTHER] if has_others else []))
    if len(names) < 2:
        most = max(num_cases.values(), default=0)
        raise BadInputError(
            f"task.min_train_cases is {task.min_train_cases}, and fewer than two conditions have as many training "
            f"cases (the most of any: {most}); lower it"
        )
    return names


def _num_positive_cases(rows: pa.Table, name: str) -> int:
    is_positive = pc.equal(rows[f"{schema.LABEL_PREFIX}{name}"], pa.scalar(schema.POSITIVE, pa.int8()))
    return len(rows["case_id"].filter(is_positive).unique())


def labelled(index: pa.Table, task: TaskConfig, names: tuple[str, ...]) -> Labelled:
    """Rows of an index as what is classified, with its truth.

    Args:
        index: Schema INDEX, or rows of it; N images.
        task: The policies.
        names: From `classes`, K of them; of an external set, what it does not assess is unknown, and a condition that
            is not told apart is "Other" where there is such a class.
    """
    if task.kind == "findings":
        ids = np.array(index["image_id"].to_pylist(), dtype=object)
        each = np.arange(index.num_rows)
        return Labelled("image", ids, each, each, *_finding_targets(index, task, names))
    ids, row_M, unit_N = np.unique(
        np.array(index["case_id"].to_pylist(), dtype=str), return_index=True, return_inverse=True
    )
    positive_NC = np.column_stack(
        [index[f"{schema.LABEL_PREFIX}{name}"].to_numpy() == schema.POSITIVE for name in schema.label_columns(index)]
    )
    column_of = {name: k for k, name in enumerate(names)}
    class_C = [column_of.get(name, column_of.get(OTHER)) for name in schema.label_columns(index)]
    targets_MK = np.zeros((ids.size, len(names)), dtype=np.float32)
    for column, k in enumerate(class_C):
        if k is not None:
            np.maximum.at(targets_MK[:, k], unit_N, positive_NC[:, column].astype(np.float32))
    known_M1 = targets_MK.max(axis=1, keepdims=True) > 0
    mask_MK = np.repeat(known_M1, len(names), axis=1)
    return Labelled("case", ids.astype(object), unit_N.astype(np.int64), row_M.astype(np.int64), targets_MK, mask_MK)


def _finding_targets(
    index: pa.Table, task: TaskConfig, names: tuple[str, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    states = np.full((index.num_rows, len(names)), schema.NOT_ASSESSED, dtype=np.int8)
    present = schema.label_columns(index)
    for column, finding in enumerate(names):
        if finding in present:  # an external set may know fewer
            states[:, column] = index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy()
    is_uncertain = states == schema.UNCERTAIN
    positive_if_uncertain = np.array([_uncertain_is_positive(finding, task) for finding in names])
    values = (states == schema.POSITIVE) | (is_uncertain & positive_if_uncertain)
    known = (states == schema.POSITIVE) | (states == schema.NEGATIVE)
    if task.uncertain != "u_ignore":
        known |= is_uncertain
    if task.blank == "negative":
        known |= states == schema.BLANK
    return values.astype(np.float32), known


def describe(task: TaskConfig) -> str:
    """The policies in a sentence or two, for the report."""
    if task.kind == "conditions":
        return (
            f"A case has one of many conditions, or several that tie. Told apart are at most {task.num_conditions} "
            f'with at least {task.min_train_cases} training cases each; every other condition is "{OTHER}".'
        )
    blank = "count as negative" if task.blank == "negative" else "are left out of training and evaluation"
    return f"Uncertain labels {_uncertain_in_words(task)}; blank labels {blank}."


def _uncertain_is_positive(finding: str, task: TaskConfig) -> bool:
    return task.uncertain == "u_ones" or (task.uncertain == "u_mixed" and finding in UNCERTAIN_IS_POSITIVE)


def _uncertain_in_words(task: TaskConfig) -> str:
    if task.uncertain != "u_mixed":
        return _UNCERTAIN_IN_WORDS[task.uncertain]
    positive = [finding for finding in task.findings if finding in UNCERTAIN_IS_POSITIVE]
    negative = [finding for finding in task.findings if finding not in UNCERTAIN_IS_POSITIVE]
    parts = [("positive", positive), ("negative", negative)]
    return " and ".join(f"count as {name} for {', '.join(findings)}" for name, findings in parts if findings)
