"""From predictions to metrics: every run, the mean over repeats, the selected runs and their differences.

A table in, rows out, no files and no clock: the same predictions in any row order give the same rows. An
undefined value is None with a status and a reason, never NaN.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.analysis.measures import Bootstrap, measure, primary_row, resampled_as, sort_rows, with_interval
from medssl.analysis.runs import ROW_KEY, Row, Run, read_runs, selected_runs
from medssl.metrics import PRIMARY

Progress = Callable[[int, int, str], None]

FAMILY = "all pairs at this label fraction"


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
    some_run = next(iter(group.values()))
    resampled = resampled_as(some_run, unit)
    replicates = settings.replicates(list(group.values()), unit)
    index = {arm_id: m for m, arm_id in enumerate(group)}
    rows = []
    for arm_id, m in index.items():
        intervals = settings.intervals(replicates, some_run, m)
        rows += [with_interval(r, i, resampled) for r, i in zip(measured[arm_id], intervals, strict=True)]
    family = []
    for a, b in pairs:
        if a not in group or b not in group:
            continue
        intervals = settings.intervals(replicates, some_run, index[a], index[b])
        differences = [_difference(r, s) for r, s in zip(measured[a], measured[b], strict=True)]
        differences = [with_interval(r, i, resampled) for r, i in zip(differences, intervals, strict=True)]
        rows += differences
        deciding = primary_row(differences, some_run)
        if deciding["p"] is not None:
            family.append(deciding)
    for row, p_adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
        row |= {"p_adjusted": p_adjusted, "family": FAMILY}
    return rows


def _absent_rows(group: dict[str, Run], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each pair that lacks an arm in this group."""
    some_run = next(iter(group.values()))
    primary = PRIMARY[some_run.unit_kind]
    rows = []
    for a, b in pairs:
        absent = sorted({a, b} - set(group))
        if absent:
            reason = f"no predictions of {' and '.join(repr(arm_id) for arm_id in absent)}"
            values = {"metric": primary.name, "k": primary.k, "arm_a": a, "arm_b": b, "repeat": "selected"}
            rows.append(some_run.name_row() | values | {"status": "not_evaluable", "reason": reason})
    return rows


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
    difference a minus b on the same resamples. Holm's adjustment covers the differences in the primary metric
    (the mean AUC of images, the top-1 accuracy of cases) of one data set, split, label fraction, draw and
    resampling unit; those in other metrics are not adjusted.

    What is resampled as "patient" is named after what the set's patients stand for, such as "lesion". Where these
    are the units themselves, the two resampling units are one.

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
        named: set[str] = set()
        for u, unit in enumerate(resampling_units):
            resampled = resampled_as(next(iter(group.values())), unit)
            if resampled not in named:
                rows += _group_rows(group, chosen, pairs, unit, settings)
            named.add(resampled)
            report(len(runs) + g * len(resampling_units) + u + 1, num_steps, f"resampled by {unit}")
    return sort_rows(rows)
