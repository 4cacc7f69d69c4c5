"""From predictions to metrics: every run, the mean over repeats, the selected runs and their differences.

A table in, rows out, no files and no clock: the same predictions in any row order give the same rows. An
undefined value is None with a status and a reason, never NaN.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.analysis.bootstrap import Interval, Replicates, paired_bootstrap
from medssl.metrics import evaluate_auc, mean_auc

Row = dict[str, Any]
Progress = Callable[[int, int, str], None]

FAMILY = "all pairs at this label fraction"
# Splits on which choices were made: an interval there would flatter the choice.
CHOICE_SPLITS = frozenset({"train", "validation"})

RUN_COLUMNS = ("dataset", "split", "label_fraction", "draw", "arm_id", "repeat")
_KEY_COLUMNS = (*RUN_COLUMNS, "unit_id", "class")
_WHOLE_COLUMNS = (
    *_KEY_COLUMNS,
    "study_id",
    "dataset_digest",
    "unit_kind",
    "patient_id",
    "y_score",
    "is_selected",
)
# The first twelve columns of a metrics row are its key.
ROW_KEY = (
    *("dataset", "split", "metric", "k", "class", "subgroup", "arm_a", "arm_b"),
    *("label_fraction", "draw", "repeat", "resampling_unit"),
)
_VALUE_COLUMNS = ("estimate", "std", "ci_low", "ci_high", "p", "p_adjusted")
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

    def name_row(self) -> Row:
        """An empty metrics row with the run's data set, split, arm, label fraction and draw."""
        names = {"dataset": self.dataset, "split": self.split, "arm_a": self.arm_id}
        return _EMPTY_ROW | names | {"label_fraction": self.label_fraction, "draw": self.draw}


@dataclass(frozen=True)
class Bootstrap:
    """Settings of every interval: replicates, one minus the level, seed."""

    num_replicates: int
    alpha: float
    seed: int

    def replicates(self, runs: Sequence[Run], resampling_unit: str) -> Replicates:
        """AUCs of the runs on common resamples of patients, or of their units.

        Raises:
            ValueError: For a resampling unit that the predictions do not have.
        """
        first = runs[0]
        if resampling_unit not in ("patient", first.unit_kind):
            raise ValueError(
                f"resampling unit {resampling_unit!r}: predictions on {first.dataset}, {first.split} are of "
                f"kind {first.unit_kind!r}; use it or 'patient'"
            )
        clusters = first.patients if resampling_unit == "patient" else np.arange(first.units.size)
        scores = np.stack([run.y_score for run in runs])
        return paired_bootstrap(first.y_true, scores, clusters, num_replicates=self.num_replicates, seed=self.seed)


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
        raise ValueError(f"predictions: columns {missing} are missing; re-run predict")
    nulls = {name: n for name in _WHOLE_COLUMNS if (n := table[name].null_count)}
    if nulls:
        raise ValueError(f"predictions: nulls where none are allowed, by column: {nulls}; re-run predict")
    for name in ("study_id", "dataset_digest"):
        pairs = table.select(["dataset", name]).group_by(["dataset", name]).aggregate([])
        if len(pairs) != len(pairs["dataset"].unique()):
            raise ValueError(f"predictions: a data set has several values of {name}; compare one at a time")


def read_runs(predictions: pa.Table) -> list[Run]:
    """Sort the predictions into runs, in the order of their keys.

    Raises:
        ValueError: On missing columns or values, scores that are not finite, truths other than 0, 1 and null,
            a unit predicted twice or not for every class, and runs on one split that cover different units
            or disagree on the truth.
    """
    _check_table(predictions)
    if not len(predictions):
        return []
    coded = {name: _codes(predictions[name]) for name in (*_KEY_COLUMNS, "patient_id", "unit_kind")}
    keys = [coded[name] for name in _KEY_COLUMNS]
    key = np.ravel_multi_index([codes for codes, _ in keys], [len(values) for _, values in keys])
    order = np.argsort(key, kind="stable")
    repeated = int(np.count_nonzero(np.diff(key[order]) == 0))
    if repeated:
        raise ValueError(f"predictions: {repeated} rows repeat a unit and class of their run; re-run predict")
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
    bad_truths = np.count_nonzero(~np.isin(y_true, (0, 1)) & ~np.isnan(y_true))
    if bad_scores or bad_truths:
        raise ValueError(
            f"predictions: {bad_scores} scores are not finite, {bad_truths} truths are not 0, 1 or null; re-run predict"
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
    at = {name: coded[name][1][coded[name][0][rows[0]]] for name in (*RUN_COLUMNS, "unit_kind")}
    codes = {name: coded[name][0][rows] for name in ("unit_id", "class", "patient_id", "unit_kind")}
    where = f"predictions of {at['arm_id']!r} on {at['dataset']}, {at['split']}, repeat {at['repeat']}"
    num_classes, num_units = np.unique(codes["class"]).size, np.unique(codes["unit_id"]).size
    if rows.size != num_units * num_classes:
        raise ValueError(
            f"{where}: {rows.size} rows for {num_units} units and {num_classes} classes; expected one each"
        )
    grid = rows.reshape(num_units, num_classes)
    patients = codes["patient_id"].reshape(grid.shape)
    if np.ptp(patients, axis=1).any() or np.ptp(codes["unit_kind"]) or np.ptp(selected[rows].astype(int)):
        raise ValueError(
            f"{where}: expected one patient a unit, one unit_kind and one is_selected a run, found several"
        )
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
                f"{len(first.classes)} and {len(run.classes)} classes; expected the same: re-run predict"
            )
        differing = int((~((run.y_true == first.y_true) | (np.isnan(run.y_true) & np.isnan(first.y_true)))).sum())
        if differing or not np.array_equal(run.patients, first.patients):
            raise ValueError(f"{where} differ in {differing} truths, or in the patients of units; re-run predict")


def measure(run: Run) -> list[Row]:
    """Rows of one run: AUC of each class, in the order of `run.classes`, then their mean."""
    per_class = {name: evaluate_auc(run.y_true[:, c], run.y_score[:, c]) for c, name in enumerate(run.classes)}
    known = ~np.isnan(run.y_true)
    covered = [*known.T, known.any(axis=1)]
    named = [*(("auc", name, e) for name, e in per_class.items()), ("mean_auc", "", mean_auc(per_class))]
    return [
        run.name_row()
        | {
            "metric": metric,
            "class": class_name,
            "estimate": evaluation.value,
            "n_units": int(units.sum()),
            "n_patients": np.unique(run.patients[units]).size,
            "status": "not_evaluable" if evaluation.value is None else "partial" if evaluation.reason else "ok",
            "reason": evaluation.reason,
        }
        for (metric, class_name, evaluation), units in zip(named, covered, strict=True)
    ]


def with_interval(row: Row, interval: Interval, resampling_unit: str) -> Row:
    """The row with an interval, or with why there is none."""
    row = row | {"resampling_unit": resampling_unit}
    if row["estimate"] is None:
        return row
    return row | {
        "ci_low": interval.ci_low,
        "ci_high": interval.ci_high,
        "p": interval.p,
        "n_replicates": interval.n_replicates,
        "status": row["status"] if interval.ci_low is not None else "interval_withheld",
        "reason": "; ".join(filter(None, (row["reason"], interval.reason))),
    }


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
                f"of each arm, found {dict(list(wrong.items())[:5])}; re-run select and predict"
            )
        selected.append({arm_id: repeats[0] for arm_id, repeats in chosen.items()})
    return selected


def _mean_over_repeats(point_rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation (n - 1) over the repeats of an arm, draw by draw."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in point_rows:
        groups[tuple(row[name] for name in ROW_KEY if name != "repeat")].append(row)
    means = []
    for rows in groups.values():
        # All repeats share units and truth, so a class is evaluable in all of them or in none.
        row = rows[0] | {"repeat": "mean"}
        if row["estimate"] is not None:
            values = [r["estimate"] for r in rows]
            row["estimate"] = float(np.mean(values))
            row["std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            count = f"{len(values)} repeats" if len(values) > 1 else "1 repeat, no standard deviation"
            row["reason"] = "; ".join(filter(None, (count, row["reason"])))
        means.append(row)
    return means


def _difference(row_a: Row, row_b: Row) -> Row:
    """The row of a minus b; units, truth and so status are those of both."""
    row = row_a | {"arm_b": row_b["arm_a"]}
    if row["estimate"] is not None:
        row["estimate"] -= row_b["estimate"]
    return row


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of the p values of one family (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _group_rows(
    group: dict[str, Run],
    measured: dict[str, list[Row]],
    pairs: Sequence[tuple[str, str]],
    unit: str,
    settings: Bootstrap,
) -> list[Row]:
    """Selected runs and their differences on common resamples of one kind of unit."""
    replicates = settings.replicates(list(group.values()), unit)
    index = {arm_id: m for m, arm_id in enumerate(group)}
    rows = []
    for arm_id, m in index.items():
        intervals = replicates.intervals(m, alpha=settings.alpha)
        rows += [with_interval(r, i, unit) for r, i in zip(measured[arm_id], intervals, strict=True)]
    family = []
    for a, b in pairs:
        if a not in group or b not in group:
            continue
        intervals = replicates.intervals(index[a], index[b], alpha=settings.alpha)
        differences = [_difference(r, s) for r, s in zip(measured[a], measured[b], strict=True)]
        rows += [with_interval(r, i, unit) for r, i in zip(differences, intervals, strict=True)]
        if rows[-1]["p"] is not None:
            family.append(rows[-1])
    for row, p_adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
        row |= {"p_adjusted": p_adjusted, "family": FAMILY}
    return rows


def _absent_rows(group: dict[str, Run], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each pair that lacks an arm in this group."""
    some_run = next(iter(group.values()))
    rows = []
    for a, b in pairs:
        absent = sorted({a, b} - set(group))
        if absent:
            reason = f"no predictions of {' and '.join(repr(arm_id) for arm_id in absent)}"
            values = {"metric": "mean_auc", "arm_a": a, "arm_b": b, "repeat": "selected"}
            rows.append(some_run.name_row() | values | {"status": "not_evaluable", "reason": reason})
    return rows


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of their key; None comes first."""
    return sorted(rows, key=lambda row: [(value is not None, value) for value in (row[name] for name in ROW_KEY)])


def compare(
    predictions: pa.Table,
    *,
    pairs: Sequence[tuple[str, str]],
    num_replicates: int,
    alpha: float,
    resampling_units: Sequence[str],
    seed: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate every run and compare arms pair by pair.

    Rows by `repeat`: "0", "1", ... one run each; "mean" over the repeats of a draw, with their standard
    deviation; "selected" the run that validation chose, with percentile intervals, and with `arm_b` the
    difference a minus b on the same resamples. Holm's adjustment covers the differences of the mean AUC of
    one data set, split, label fraction, draw and resampling unit; those of single classes are not adjusted.

    Args:
        predictions: The predictions table, rows in any order.
        pairs: Arms (a, b); an arm without predictions gives a row that says so.
        num_replicates: 1,000 in the paper (supplement B.1.1).
        alpha: 0.05 for 95 % intervals.
        resampling_units: "patient", and "image" or "case" as the unit_kind of the predictions.
        seed: Of the resamples; all arms and label fractions share them.
        progress: Called with steps done, steps in all, and what is done.

    Raises:
        ValueError: As `read_runs` and `selected_runs`; for a resampling unit that the predictions do not
            have, a repeated pair or resampling unit, or settings out of range.
    """
    for name, values in (("pairs", pairs), ("resampling_units", resampling_units)):
        if len(set(values)) != len(values):
            raise ValueError(f"{name}: {len(values)} given, {len(set(values))} different; name each once")
    settings = Bootstrap(num_replicates, alpha, seed)
    runs = read_runs(predictions)
    groups = selected_runs(runs)
    num_steps = len(runs) + len(groups) * len(resampling_units)
    report = progress or (lambda done, total, detail: None)
    measured: dict[Run, list[Row]] = {}
    for run in runs:
        measured[run] = measure(run)
        report(len(measured), num_steps, "runs evaluated")
    points = [row | {"repeat": str(run.repeat)} for run, rows in measured.items() for row in rows]
    rows = points + _mean_over_repeats(points)
    for g, group in enumerate(groups):
        chosen = {arm_id: [r | {"repeat": "selected"} for r in measured[run]] for arm_id, run in group.items()}
        rows += _absent_rows(group, pairs)
        for u, unit in enumerate(resampling_units):
            rows += _group_rows(group, chosen, pairs, unit, settings)
            report(len(runs) + g * len(resampling_units) + u + 1, num_steps, f"resampled by {unit}")
    return sort_rows(rows)
