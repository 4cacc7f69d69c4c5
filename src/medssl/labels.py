"""Reading an index's label states as targets, under the study's policies for uncertain and blank labels (spec 2.3).

The index keeps what the source says; the policies apply here, at read time, so that changing one re-reads no data.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl import schema
from medssl.config import TaskConfig
from medssl.exit_codes import BadInputError

# The map of Neyshabur et al. 2020, which the paper compares itself with; every other finding becomes negative.
UNCERTAIN_IS_POSITIVE = frozenset({"Atelectasis", "Edema"})
_UNCERTAIN_IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "u_ones": "count as positive",
        "u_zeros": "count as negative",
        "u_ignore": "are left out of training and evaluation",
    }
)


def targets(index: pa.Table, task: TaskConfig) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The target of each image and finding, and whether it is known.

    Args:
        index: Schema INDEX, or rows of it; N images.
        task: C findings and the policies.

    Returns:
        Values, float32 (N, C), 0 or 1, and 0 where unknown. Known, bool (N, C): false where the source did not
        assess the finding and where a policy leaves the label out; such entries count in no loss and no metric.

    Raises:
        BadInputError: The index has no column for a finding.
    """
    present = schema.label_columns(index)
    absent = [finding for finding in task.findings if finding not in present]
    if absent:
        raise BadInputError(
            f"task.findings: the data set has no label for {', '.join(absent)}; it has {', '.join(present) or 'none'}"
        )
    states = np.empty((index.num_rows, len(task.findings)), dtype=np.int8)
    for column, finding in enumerate(task.findings):
        states[:, column] = index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy()
    is_uncertain = states == schema.UNCERTAIN
    positive_if_uncertain = np.array([_uncertain_is_positive(finding, task) for finding in task.findings])
    values = (states == schema.POSITIVE) | (is_uncertain & positive_if_uncertain)
    known = (states == schema.POSITIVE) | (states == schema.NEGATIVE)
    if task.uncertain != "u_ignore":
        known |= is_uncertain
    if task.blank == "negative":
        known |= states == schema.BLANK
    return values.astype(np.float32), known


def describe(task: TaskConfig) -> str:
    """The policies in one sentence, for the report."""
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
