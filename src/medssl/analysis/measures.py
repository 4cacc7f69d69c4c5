"""What is measured on a run, as rows of the metrics table, and the intervals of these rows.

A row and its interval come from one list of measures, which says what each row is the mean of: so the bootstrap and
the full sample cannot disagree about what a row means.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl import metrics
from medssl.analysis.bootstrap import Interval, Replicates, paired_bootstrap
from medssl.analysis.runs import ROW_KEY, Row, Run
from medssl.metrics import PRIMARY, TOP_K, Evaluation


@dataclass(frozen=True)
class Measure:
    """A metric of a run, of one class or over several.

    Attributes:
        metric: As the metrics table names it.
        k: Of a top-k metric.
        class_name: "" for a metric over several classes.
        quantities: Places, among the quantities of the bootstrap, of those that it is the mean of: C AUCs, then for
            cases the top-k accuracies and, k by k, C sensitivities.
    """

    metric: str
    k: int | None
    class_name: str
    quantities: tuple[int, ...]


def measures(run: Run) -> list[Measure]:
    """What is measured on a run: of images AUCs, of cases top-k accuracies and sensitivities too (spec 3.1, 3.2)."""
    classes = run.classes
    found = [Measure("auc", None, name, (c,)) for c, name in enumerate(classes)]
    found.append(Measure("mean_auc", None, "", tuple(range(len(classes)))))
    if run.unit_kind != "case":
        return found
    found += [Measure("top_k_accuracy", k, "", (len(classes) + i,)) for i, k in enumerate(TOP_K)]
    named = set(metrics.named(classes))
    for i, k in enumerate(TOP_K):
        start = len(classes) + len(TOP_K) + i * len(classes)
        found += [Measure("top_k_sensitivity", k, name, (start + c,)) for c, name in enumerate(classes)]
        averaged = tuple(start + c for c, name in enumerate(classes) if name in named)
        found.append(Measure("mean_top_k_sensitivity", k, "", averaged))
    return found


def hits(run: Run) -> NDArray[np.float64]:
    """The shares among the quantities of a run, shape (n, S): 1 or 0, NaN for a unit that the share leaves out."""
    if run.unit_kind != "case":
        return np.empty((run.units.size, 0))
    accuracies = [metrics.top_k_hits(run.y_true, run.y_score, k=k) for k in TOP_K]
    recalls = [metrics.top_k_recalls(run.y_true, run.y_score, k=k) for k in TOP_K]
    return np.column_stack([*accuracies, *recalls])


def measure(run: Run) -> list[Row]:
    """Rows of one run, in the order of `measures`."""
    evaluations = _evaluations(run)
    # Units that each quantity counts.
    counted = np.column_stack([~np.isnan(run.y_true), ~np.isnan(hits(run))])
    rows = []
    for item, evaluation in zip(measures(run), evaluations, strict=True):
        units = counted[:, item.quantities].any(axis=1)
        rows.append(
            run.name_row()
            | {
                "metric": item.metric,
                "k": item.k,
                "class": item.class_name,
                "estimate": evaluation.value,
                "n_units": int(units.sum()),
                "n_patients": np.unique(run.patients[units]).size,
                "status": "not_evaluable" if evaluation.value is None else "partial" if evaluation.reason else "ok",
                "reason": evaluation.reason,
            }
        )
    return rows


def _evaluations(run: Run) -> list[Evaluation]:
    """The values of a run, in the order of `measures`."""
    aucs = [metrics.evaluate_auc(run.y_true[:, c], run.y_score[:, c]) for c in range(len(run.classes))]
    found = [*aucs, metrics.mean_auc(dict(zip(run.classes, aucs, strict=True)))]
    if run.unit_kind != "case":
        return found
    found += [metrics.top_k_accuracy(run.y_true, run.y_score, k=k) for k in TOP_K]
    for k in TOP_K:
        sensitivities = metrics.top_k_sensitivity(run.y_true, run.y_score, k=k)
        of_class = dict(zip(run.classes, sensitivities, strict=True))
        found += [*sensitivities, metrics.mean_top_k_sensitivity(of_class)]
    return found


def primary_row(rows: Iterable[Row], run: Run) -> Row:
    """The row, of those of one run or one difference, by which things are decided; see `metrics.PRIMARY`."""
    primary = PRIMARY[run.unit_kind]
    return next(row for row in rows if (row["metric"], row["k"]) == (primary.name, primary.k))


@dataclass(frozen=True)
class Bootstrap:
    """Settings of every interval: replicates, one minus the level, seed."""

    num_replicates: int
    alpha: float
    seed: int

    def replicates(self, runs: Sequence[Run], resampling_unit: str) -> Replicates:
        """The quantities of the runs on common resamples of patients, or else of their units."""
        first = runs[0]
        clusters = first.patients if resampling_unit == "patient" else np.arange(first.units.size)
        return paired_bootstrap(
            first.y_true,
            np.stack([run.y_score for run in runs]),
            clusters,
            num_replicates=self.num_replicates,
            seed=self.seed,
            hits=np.stack([hits(run) for run in runs]),
        )

    def intervals(self, replicates: Replicates, run: Run, a: int, b: int | None = None) -> list[Interval]:
        """Intervals of the rows of model `a`, or of `a` minus `b`, in the order of `measures`."""
        return replicates.intervals(a, b, alpha=self.alpha, means=[item.quantities for item in measures(run)])


def resampled_as(run: Run, resampling_unit: str) -> str:
    """The name of what is drawn: for "patient" what the set's patients stand for, "lesion" where it names none.

    Raises:
        ValueError: For a resampling unit that the predictions do not have.
    """
    if resampling_unit not in ("patient", run.unit_kind):
        raise ValueError(
            f"resampling unit {resampling_unit!r}: predictions on {run.dataset}, {run.split} are of "
            f"kind {run.unit_kind!r}; use it or 'patient'"
        )
    return run.group_kind if resampling_unit == "patient" else resampling_unit


def with_interval(row: Row, interval: Interval, resampled: str) -> Row:
    """The row with its interval over what was resampled, or with why there is none."""
    row = row | {"resampling_unit": resampled}
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


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of their key; None comes first."""
    return sorted(rows, key=lambda row: [(value is not None, value) for value in (row[name] for name in ROW_KEY)])
