"""Predictions as runs: one fine-tuned model on one split, checked and arranged as units by classes."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.metrics import PRIMARY
from medssl.schema import EXTERNAL, SPLITS

Row = dict[str, Any]

# Splits on which choices were made: an interval there would flatter the choice.
CHOICE_SPLITS = frozenset({"train", "validation"})

RUN_COLUMNS = ("dataset", "split", "label_fraction", "draw", "arm_id", "repeat")
_KEY_COLUMNS = (*RUN_COLUMNS, "unit_id", "class")
_WHOLE_COLUMNS = (
    *_KEY_COLUMNS,
    "study_id",
    "dataset_digest",
    "unit_kind",
    "group_kind",
    "patient_id",
    "y_score",
    "is_selected",
)
# Predictions are the study's own, or a table that another program wrote.
_REMEDY = "correct the table, or re-run predict if the study made it"
# Squares of larger scores, summed over units, could leave the range of numbers.
_MAX_SCORE = 1e100
_MAX_EXAMPLES = 5  # in a message
# What patient_id stands for; a finer unit where the set names no patient.
GROUP_KINDS = ("patient", "lesion", "image")
# The first twelve columns of a metrics row are its key.
ROW_KEY = (
    *("dataset", "split", "metric", "k", "class", "subgroup", "arm_a", "arm_b"),
    *("label_fraction", "draw", "repeat", "resampling_unit"),
)
_VALUE_COLUMNS = (
    *("estimate", "std", "ci_low", "ci_high", "p", "p_adjusted", "p_fdr"),
    *("delong_low", "delong_high", "delong_p"),
)
_EMPTY_ROW: Row = dict.fromkeys((*ROW_KEY, *_VALUE_COLUMNS)) | {
    "class": "",
    "subgroup": "all",
    "resampling_unit": "",
    "family": "",
    "n_units": 0,
    "n_patients": 0,
    "n_replicates": 0,
    "status": "ok",
    "reason": "",
}


@dataclass(frozen=True, eq=False)
class Run:
    """Predictions of one fine-tuned model on one split: units in rows, classes in columns, sorted by name.

    Attributes:
        unit_kind: image or case.
        group_kind: What `patients` are, of `GROUP_KINDS`.
        classes: C names.
        units: Shape (n,), codes of the unit_ids, the same in all runs.
        patients: Shape (n,), codes of the patient_ids.
        y_true: Shape (n, C), 1, 0, or NaN where not known.
        y_score: Shape (n, C), finite.
        rows: Shape (n,), a row of the table for each unit, to look up what is constant within a unit.
    """

    dataset: str
    split: str
    label_fraction: float
    draw: int
    arm_id: str
    repeat: int
    is_selected: bool
    unit_kind: str
    group_kind: str
    classes: tuple[str, ...]
    units: NDArray[np.int64]
    patients: NDArray[np.int64]
    y_true: NDArray[np.float64]
    y_score: NDArray[np.float64]
    rows: NDArray[np.int64]

    def subset(self, chosen: NDArray[np.bool_]) -> "Run":
        """The run on the chosen units, shape (n,)."""
        names = ("units", "patients", "y_true", "y_score", "rows")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def of_classes(self, names: Sequence[str]) -> "Run":
        """The run on some of its classes, in their order."""
        places = [self.classes.index(name) for name in names]
        return replace(self, classes=tuple(names), y_true=self.y_true[:, places], y_score=self.y_score[:, places])

    def masked(self, chosen: NDArray[np.bool_]) -> "Run":
        """The run with the truth known on the chosen units only: the others count nowhere, but are resampled too."""
        return replace(self, y_true=np.where(chosen[:, None], self.y_true, np.nan))

    def name_row(self) -> Row:
        """An empty metrics row with the run's data set, split, arm, label fraction and draw."""
        names = {"dataset": self.dataset, "split": self.split, "arm_a": self.arm_id}
        return _EMPTY_ROW | names | {"label_fraction": self.label_fraction, "draw": self.draw}


def _codes(column: "pa.ChunkedArray[Any]") -> tuple[NDArray[np.int64], list[Any]]:
    """Each value's place among the sorted distinct values, and these values."""
    encoded = cast("pa.DictionaryArray[Any, Any]", column.dictionary_encode().combine_chunks())
    values: list[Any] = encoded.dictionary.to_pylist()
    place = {value: i for i, value in enumerate(sorted(values))}
    codes = np.array([place[value] for value in values], dtype=np.int64)
    return codes[encoded.indices.to_numpy(zero_copy_only=False)], list(place)


def _check_table(table: pa.Table) -> None:
    missing = sorted({*_WHOLE_COLUMNS, "y_true"} - set(table.column_names))
    if missing:
        raise ValueError(f"predictions: columns {missing} are missing; {_REMEDY}")
    nulls = {name: n for name in _WHOLE_COLUMNS if (n := table[name].null_count)}
    if nulls:
        raise ValueError(f"predictions: nulls where none are allowed, by column: {nulls}; {_REMEDY}")
    for name, known in (("unit_kind", tuple(PRIMARY)), ("group_kind", GROUP_KINDS)):
        if wrong := len(set(table[name].unique().to_pylist()) - set(known)):
            raise ValueError(f"predictions: {wrong} values of {name} are unknown, expected one of {list(known)}")
    _check_splits_and_fractions(table)
    for name in ("study_id", "dataset_digest", "unit_kind", "group_kind"):
        pairs = table.select(["dataset", name]).group_by(["dataset", name]).aggregate([])
        if len(pairs) != len(pairs["dataset"].unique()):
            raise ValueError(f"predictions: a data set has several values of {name}; compare one at a time")


def _check_splits_and_fractions(table: pa.Table) -> None:
    splits: set[Any] = set(table["split"].unique().to_pylist())
    known = (*SPLITS, EXTERNAL)
    if unknown := sorted(splits - set(known)):
        # Many are no splits at all; a column of something else may name patients.
        named = f": {unknown}" if len(unknown) <= _MAX_EXAMPLES else ""
        raise ValueError(
            f"predictions: {len(unknown)} values of split are unknown{named}; expected one of {list(known)}: {_REMEDY}"
        )
    fractions: list[Any] = table["label_fraction"].unique().to_pylist()
    if wrong := [value for value in fractions if not 0 < value <= 1]:
        raise ValueError(
            f"predictions: {len(wrong)} values of label_fraction are not above 0 and up to 1, such as "
            f"{sorted(wrong)[:_MAX_EXAMPLES]}; divide percentages by 100, and write 1 for all labels"
        )


def read_runs(predictions: pa.Table) -> list[Run]:
    """Sort the predictions into runs, in the order of their keys.

    Raises:
        ValueError: On missing columns or values, unknown splits, label fractions outside 0-1, scores that are not
            finite or too large to sum, truths other than 0, 1 and null, a unit predicted twice or not for every class,
            a case with a truth that holds no condition or is known in part, and runs on one split that cover different
            units or disagree on the truth.
    """
    _check_table(predictions)
    if not len(predictions):
        return []
    coded = {name: _codes(predictions[name]) for name in (*_KEY_COLUMNS, "patient_id", "unit_kind", "group_kind")}
    keys = [coded[name] for name in _KEY_COLUMNS]
    sizes = [len(values) for _, values in keys]
    if math.prod(sizes) >= 2**63:
        named = dict(zip(_KEY_COLUMNS, sizes, strict=True))
        raise ValueError(f"predictions: too many different values for one table, by column: {named}; part the table")
    key = np.ravel_multi_index([codes for codes, _ in keys], sizes)
    order = np.argsort(key, kind="stable")
    repeated = int(np.count_nonzero(np.diff(key[order]) == 0))
    if repeated:
        raise ValueError(f"predictions: {repeated} rows repeat a unit and class of their run; {_REMEDY}")
    run_of_row = key[order] // (len(coded["unit_id"][1]) * len(coded["class"][1]))
    y_true, y_score = _truths_and_scores(predictions)
    selected = predictions["is_selected"].to_numpy()
    runs = [
        _run_of_rows(rows, coded, y_true, y_score, selected)
        for rows in np.split(order, np.flatnonzero(np.diff(run_of_row)) + 1)
    ]
    _check_same_units(runs)
    return runs


def _truths_and_scores(predictions: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y_true = predictions["y_true"].cast(pa.float64()).to_numpy()
    y_score = predictions["y_score"].to_numpy()
    bad_scores = np.count_nonzero(~np.isfinite(y_score))
    large_scores = np.count_nonzero(np.abs(y_score) > _MAX_SCORE) - np.count_nonzero(np.isinf(y_score))
    bad_truths = np.count_nonzero(~np.isin(y_true, (0, 1)) & ~np.isnan(y_true))
    if bad_scores or large_scores or bad_truths:
        raise ValueError(
            f"predictions: {bad_scores} scores are not finite and {large_scores} beyond {_MAX_SCORE:g} in size, "
            f"{bad_truths} truths are not 0, 1 or null; {_REMEDY}"
        )
    return y_true, y_score


def _run_of_rows(
    rows: NDArray[np.int64],
    coded: Mapping[str, tuple[NDArray[np.int64], list[Any]]],
    y_true: NDArray[np.float64],
    y_score: NDArray[np.float64],
    selected: NDArray[np.bool_],
) -> Run:
    """Arrange the rows of one run, sorted by unit and class, as units by classes."""
    at = {name: coded[name][1][coded[name][0][rows[0]]] for name in (*RUN_COLUMNS, "unit_kind", "group_kind")}
    codes = {name: coded[name][0][rows] for name in ("unit_id", "class", "patient_id")}
    where = f"predictions of {at['arm_id']!r} on {at['dataset']}, {at['split']}, repeat {at['repeat']}"
    num_classes, num_units = np.unique(codes["class"]).size, np.unique(codes["unit_id"]).size
    if rows.size != num_units * num_classes:
        raise ValueError(
            f"{where}: {rows.size} rows for {num_units} units and {num_classes} classes; expected one each"
        )
    grid = rows.reshape(num_units, num_classes)
    patients = codes["patient_id"].reshape(grid.shape)
    if np.ptp(patients, axis=1).any() or np.ptp(selected[rows].astype(int)):
        raise ValueError(f"{where}: expected one patient a unit and one is_selected a run, found several")
    if at["unit_kind"] == "case":
        _check_cases(y_true[grid], where)
    return Run(
        **at,
        is_selected=bool(selected[rows[0]]),
        classes=tuple(coded["class"][1][c] for c in codes["class"][:num_classes]),
        units=codes["unit_id"][::num_classes],
        patients=patients[:, 0],
        y_true=y_true[grid],
        y_score=y_score[grid],
        rows=grid[:, 0],
    )


def _check_cases(y_true_NC: NDArray[np.float64], where: str) -> None:
    """A case is labelled for all classes, with one condition at least, or not at all."""
    unknown_NC = np.isnan(y_true_NC)
    in_part = int((unknown_NC.any(axis=1) & ~unknown_NC.all(axis=1)).sum())
    without = int((y_true_NC == 0).all(axis=1).sum())
    if in_part or without:
        raise ValueError(
            f"{where}: {in_part} cases are labelled for some classes only and {without} hold no condition; expected "
            f"one condition or more of each labelled case: {_REMEDY}"
        )


def _check_same_units(runs: Iterable[Run]) -> None:
    """Paired differences need the same units, patients, classes and truths in all runs on a split."""
    first_on: dict[tuple[str, str], Run] = {}
    for run in runs:
        first = first_on.setdefault((run.dataset, run.split), run)
        where = f"predictions on {run.dataset}, {run.split}: {first.arm_id!r} and {run.arm_id!r}"
        if run.classes != first.classes or not np.array_equal(run.units, first.units):
            common = np.intersect1d(run.units, first.units).size
            raise ValueError(
                f"{where} cover {first.units.size} and {run.units.size} units, {common} in common, in "
                f"{len(first.classes)} and {len(run.classes)} classes; expected the same: {_REMEDY}"
            )
        differing = int((~((run.y_true == first.y_true) | (np.isnan(run.y_true) & np.isnan(first.y_true)))).sum())
        if differing or not np.array_equal(run.patients, first.patients):
            raise ValueError(f"{where} differ in {differing} truths, or in the patients of units; {_REMEDY}")


def attributes_of(subgroup: str) -> tuple[str, ...]:
    """The attributes that a subgroup is made by: of "sex=female & age_band=40-60" sex and age_band, of "all" none."""
    return tuple(re.findall(r"(?:^| & )(\w+)=", subgroup))


def selected_runs(runs: Iterable[Run]) -> list[dict[str, Run]]:
    """For each data set, split, label fraction and draw: arm to the run that validation chose, by arm.

    Splits on which choices were made are left out.

    Raises:
        ValueError: When not exactly one repeat of an arm is selected.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.split not in CHOICE_SPLITS:
            groups[run.dataset, run.split, run.label_fraction, run.draw][run.arm_id].append(run)
    selected: list[dict[str, Run]] = []
    for key, arms in sorted(groups.items()):
        chosen = {arm_id: [run for run in repeats if run.is_selected] for arm_id, repeats in sorted(arms.items())}
        wrong = {arm_id: len(repeats) for arm_id, repeats in chosen.items() if len(repeats) != 1}
        if wrong:
            raise ValueError(
                f"predictions on {key[0]}, {key[1]}, label fraction {key[2]}: expected one selected repeat "
                f"of each arm, found {dict(list(wrong.items())[:5])}; mark one with is_selected, or re-run select and "
                "predict if the study made the table"
            )
        selected.append({arm_id: repeats[0] for arm_id, repeats in chosen.items()})
    return selected
