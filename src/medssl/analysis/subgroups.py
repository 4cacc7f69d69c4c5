"""Metrics of the selected models within subgroups of patients or images, and the gap between groups.

Small groups are named but not assessed: an AUC over a handful of patients says little and may single them
out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.analysis.compare import Progress
from medssl.analysis.measures import Bootstrap, measure, primary_row, resampled_as, sort_rows, with_interval
from medssl.analysis.runs import Row, Run, read_runs, selected_runs
from medssl.metrics import PRIMARY

# Attribute to the column of the predictions that holds it.
ATTRIBUTES = {
    "sex": "sex",
    "age_band": "age_years",
    "view_position": "view_position",
    "skin_type": "skin_type",
    "skin_type_group": "skin_type",
    "site": "site",
}
UNKNOWN, UNMAPPED = "unknown", "unmapped"


@dataclass(frozen=True)
class Grouping:
    """How values become groups.

    Attributes:
        age_edges: Edges of the age bands in years, strictly increasing.
        skin_type_groups: Group to its skin types, each type in one; a type in none is `UNMAPPED`.
    """

    age_edges: Sequence[float]
    skin_type_groups: Mapping[str, Sequence[str]]

    def of_units(self, predictions: pa.Table, run: Run, attribute: str) -> NDArray[np.str_]:
        """Group of each unit of a run, shape (n,); null, empty and "unknown" in any case are `UNKNOWN`."""
        column = predictions[ATTRIBUTES[attribute]].take(pa.array(run.rows, type=pa.int64()))
        if attribute == "age_band":
            ages = column.cast(pa.float64()).to_numpy().astype(np.float64)
            return age_bands(ages, age_edges=self.age_edges)
        texts = ("" if value is None else str(value).strip() for value in column.to_pylist())
        names = [UNKNOWN if text.lower() in ("", UNKNOWN) else text for text in texts]
        if attribute == "skin_type_group":
            group_of = {skin_type: group for group, types in self.skin_type_groups.items() for skin_type in types}
            names = [name if name == UNKNOWN else group_of.get(name, UNMAPPED) for name in names]
        return np.array(names)


def age_bands(age_years: NDArray[np.float64], *, age_edges: Sequence[float]) -> NDArray[np.str_]:
    """Name the band of each age: for edges 40 and 60, "<40", "40-60" (60 excluded) and "60+"; NaN: "unknown".

    Args:
        age_years: Shape (n,).
        age_edges: Strictly increasing, in years; at least one.

    Raises:
        ValueError: When the edges do not increase, or are none.
    """
    if not age_edges or any(low >= high for low, high in pairwise(age_edges)):
        raise ValueError(f"age_edges must be one or more increasing ages in years, got {list(age_edges)}")
    names = [
        f"<{age_edges[0]:g}",
        *(f"{low:g}-{high:g}" for low, high in pairwise(age_edges)),
        f"{age_edges[-1]:g}+",
    ]
    bands = np.array(names)[np.searchsorted(age_edges, age_years, side="right").clip(max=len(age_edges))]
    return np.where(np.isnan(age_years), UNKNOWN, bands)


def _too_small(rows: Sequence[Row], run: Run, n_patients: int, min_patients: int) -> list[Row]:
    """The rows without their values."""
    reason = f"{n_patients} {run.group_kind}s, at least {min_patients} are needed"
    return [row | {"estimate": None, "status": "too_small", "reason": reason} for row in rows]


def _group_rows(runs: Sequence[Run], subgroup: str, min_patients: int, settings: Bootstrap) -> list[list[Row]]:
    """Rows of each run on the units of one group, in the order of `measures.measures`."""
    n_patients = np.unique(runs[0].patients).size
    names = {"subgroup": subgroup, "repeat": "selected"}
    measured = [[row | names for row in measure(run)] for run in runs]
    if n_patients < min_patients:
        return [_too_small(rows, runs[0], n_patients, min_patients) for rows in measured]
    replicates = settings.replicates(runs, "patient")
    resampled = resampled_as(runs[0], "patient")
    return [
        [
            with_interval(row, interval, resampled)
            for row, interval in zip(rows, settings.intervals(replicates, runs[0], m), strict=True)
        ]
        for m, rows in enumerate(measured)
    ]


def _assessed(rows: Sequence[Row], run: Run) -> set[str]:
    """What the primary metric covers: the classes that a mean over classes averages, and "" for itself."""
    parts = {
        row["class"] for row in rows if row["metric"] == PRIMARY[run.unit_kind].part and row["estimate"] is not None
    }
    return parts | ({""} if primary_row(rows, run)["estimate"] is not None else set())


def _gap_row(run: Run, attribute: str, label_of_unit: NDArray[np.str_], groups: dict[str, list[Row]]) -> Row:
    """Largest minus smallest primary metric among the groups in which it covers the same as on the whole set.

    A mean AUC of a group that lacks a class averages over the others, easier or harder ones; it is not comparable.
    """
    primary = PRIMARY[run.unit_kind]
    whole = _assessed(measure(run), run)
    means = {label: primary_row(rows, run) for label, rows in groups.items() if whole and _assessed(rows, run) == whole}
    left_out = sorted(f"{attribute}={label}" for label in groups.keys() - means.keys())
    note = f"left out: {', '.join(left_out)}" if left_out else ""
    row = run.name_row() | {
        "metric": f"{primary.name}_gap",
        "k": primary.k,
        "subgroup": attribute,
        "repeat": "selected",
    }
    if len(means) < 2:
        reason = f"{len(means)} comparable groups, 2 are needed"
        return row | {"status": "not_evaluable", "reason": "; ".join(filter(None, (reason, note)))}
    # Ties go by name, so that the reason is the same in every run.
    ordered = sorted(means.values(), key=lambda mean: (mean["estimate"], mean["subgroup"]))
    extremes = f"largest {ordered[-1]['subgroup']}, smallest {ordered[0]['subgroup']}"
    counted = np.isin(label_of_unit, list(means)) & ~np.isnan(run.y_true).all(axis=1)
    return row | {
        "estimate": ordered[-1]["estimate"] - ordered[0]["estimate"],
        "n_units": int(counted.sum()),
        "n_patients": np.unique(run.patients[counted]).size,
        "status": "partial" if left_out else "ok",
        "reason": "; ".join(filter(None, (extremes, note))),
    }


def analyze(
    predictions: pa.Table,
    *,
    by: Sequence[str],
    age_edges: Sequence[float],
    skin_type_groups: Mapping[str, Sequence[str]],
    min_patients: int,
    num_replicates: int,
    alpha: float,
    seed: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate the selected run of each arm, label fraction and draw within subgroups (supplement B.1.6).

    Rows are those of `compare.compare` with `subgroup` as "sex=Female"; resamples draw patients. The row with
    metric "mean_auc_gap" (of cases "top_k_accuracy_gap") and the bare attribute as `subgroup` is the largest minus
    the smallest primary metric; it has no interval, being a maximum over groups and so biased upwards under
    resampling.

    Args:
        predictions: The predictions table, rows in any order.
        by: Attributes, of `ATTRIBUTES`.
        age_edges: Edges of the age bands in years, increasing; used by "age_band" only.
        skin_type_groups: Group to its skin types, for "skin_type_group"; a type in none is in the group "unmapped".
        min_patients: Groups with fewer get the status "too_small" and no value.
        num_replicates: 1,000 in the paper.
        alpha: 0.05 for 95 % intervals.
        seed: Of the resamples.
        progress: Called with steps done, steps in all, and what is done.

    Raises:
        ValueError: For an unknown or repeated attribute, bad age edges, and as `compare.compare`.
    """
    unknown = sorted(set(by) - set(ATTRIBUTES))
    if unknown or len(set(by)) != len(by):
        raise ValueError(f"by: expected distinct ones of {sorted(ATTRIBUTES)}, got {list(by)}")
    absent = sorted({ATTRIBUTES[attribute] for attribute in by} - set(predictions.column_names))
    if absent:
        raise ValueError(f"predictions: columns {absent} are missing; re-run predict")
    settings, grouping = Bootstrap(num_replicates, alpha, seed), Grouping(age_edges, skin_type_groups)
    groups = selected_runs(read_runs(predictions))
    rows: list[Row] = []
    for g, group in enumerate(groups):
        runs = list(group.values())
        for done, attribute in enumerate(by, start=g * len(by) + 1):
            label_of_unit = grouping.of_units(predictions, runs[0], attribute)
            of_label = {}
            for label in np.unique(label_of_unit).tolist():
                parts = [run.subset(label_of_unit == label) for run in runs]
                of_label[label] = _group_rows(parts, f"{attribute}={label}", min_patients, settings)
            for m, run in enumerate(runs):
                of_run = {label: rows_of_runs[m] for label, rows_of_runs in of_label.items()}
                rows += [row for rows_of_label in of_run.values() for row in rows_of_label]
                rows.append(_gap_row(run, attribute, label_of_unit, of_run))
            if progress:
                progress(done, len(groups) * len(by), f"grouped by {attribute}")
    return sort_rows(rows)
