"""What is measured on a run, as rows of the metrics table, and the intervals of these rows.

A row and its interval come from one list of measures, which says what each row is the mean of: so the bootstrap and
the full sample cannot disagree about what a row means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl import metrics
from medssl.analysis import calibration
from medssl.analysis.bootstrap import MIN_CLUSTERS, Interval, Replicates, paired_bootstrap
from medssl.analysis.parts import (
    Part,
    at_specificity,
    calibrated,
    evaluations,
    of_all_classes,
    resampled,
    shares,
    terms_of,
    undefined_shares,
)
from medssl.analysis.quantities import RANKED
from medssl.analysis.runs import ROW_KEY, Row, Run
from medssl.config import SPECIFICITY
from medssl.metrics import OTHER, PRIMARY, TOP_K


@dataclass(frozen=True)
class Measure:
    """A metric of a run, of one class or over several.

    Attributes:
        metric: As the metrics table names it.
        k: Of a top-k metric.
        class_name: "" for a metric over several classes.
        parts: What it is the mean of; one alone is the measure itself.
        quantities: Places of the parts among the quantities of the bootstrap.
    """

    metric: str
    k: int | None
    class_name: str
    parts: tuple[Part, ...]
    quantities: tuple[int, ...]


def measures(run: Run, *, specificity: float = SPECIFICITY) -> list[Measure]:
    """What is measured on a run, class by class and as a mean over the classes (spec 3.1, 3.2).

    Means over conditions leave out `OTHER`; "mean_auc_with_other" is the one that does not, and "micro_auc" ranks the
    named conditions of all cases together.
    """
    listed: list[tuple[str, int | None, str, tuple[Part, ...]]] = []
    is_case = run.unit_kind == "case"
    averaged = metrics.named(run.classes) if is_case else list(run.classes)
    per_class: list[tuple[str, int | None]] = [("auc", None), ("average_precision", None)]
    per_class += [(at_specificity(specificity), None), ("brier", None)]
    per_class += [("top_k_sensitivity", k) for k in TOP_K] if is_case else [("ece", None)]
    for metric, k in per_class:
        of_class = {name: Part(metric, k, c) for c, name in enumerate(run.classes)}
        listed += [(metric, k, name, (part,)) for name, part in of_class.items()]
        listed.append((f"mean_{metric}", k, "", tuple(of_class[name] for name in averaged)))
        if metric == "auc" and OTHER in of_class and is_case:
            listed.append((f"mean_{metric}_with_other", k, "", tuple(of_class.values())))
    listed += [(part.metric, part.k, "", (part,)) for part in of_all_classes(run)]
    place = {part: q for q, part in enumerate(resampled(run, specificity))}
    return [Measure(metric, k, name, parts, tuple(place[part] for part in parts)) for metric, k, name, parts in listed]


def hits(run: Run) -> NDArray[np.float64]:
    """The shares among the quantities of a run, shape (n, S); NaN for a unit that the share leaves out."""
    terms = terms_of(run)
    return np.column_stack([terms[part] for part in shares(run)])


def measure(run: Run, *, specificity: float = SPECIFICITY) -> list[Row]:
    """Rows of one run, in the order of `measures`."""
    values = evaluations(run, specificity)
    terms = terms_of(run)
    is_known = ~np.isnan(run.y_true)
    _, patients = np.unique(run.patients, return_inverse=True)
    rows = []
    for item in measures(run, specificity=specificity):
        of_class = {run.classes[p.column]: values[p] for p in item.parts if p.column is not None}
        single = item.class_name or not of_class
        evaluation = values[item.parts[0]] if single else metrics.class_mean(of_class)
        units = np.zeros(run.units.size, dtype=bool)
        for part in item.parts:
            # A share says itself which units it counts; all else needs the truth.
            known = is_known.all(axis=1) if part.column is None else is_known[:, part.column]
            units |= ~np.isnan(terms[part]) if part in terms else known
        rows.append(
            run.name_row()
            | {
                "metric": item.metric,
                "k": item.k,
                "class": item.class_name,
                "estimate": evaluation.value,
                "n_units": int(units.sum()),
                "n_patients": int(np.count_nonzero(np.bincount(patients[units]))),
                "status": "not_evaluable" if evaluation.value is None else "partial" if evaluation.reason else "ok",
                "reason": evaluation.reason,
            }
        )
    return rows


def is_primary(row: Mapping[str, Any], run: Run) -> bool:
    """Whether a row is that by which things are decided; see `metrics.PRIMARY`."""
    primary = PRIMARY[run.unit_kind]
    return (row["metric"], row["k"]) == (primary.name, primary.k)


def primary_row(rows: Iterable[Row], run: Run) -> Row:
    """The row, of those of one run or one difference, by which things are decided."""
    return next(row for row in rows if is_primary(row, run))


@dataclass(frozen=True)
class Bootstrap:
    """Settings of every interval: replicates, one minus the level, seed, and the specificity of sensitivities."""

    num_replicates: int
    alpha: float
    seed: int
    specificity: float = SPECIFICITY

    def replicates(self, runs: Sequence[Run], resampling_unit: str) -> Replicates:
        """The quantities of the runs on common resamples of patients, or else of their units."""
        first = runs[0]
        named = [first.classes.index(name) for name in metrics.named(first.classes)]
        replicates = paired_bootstrap(
            first.y_true,
            np.stack([run.y_score for run in runs]),
            first.patients if resampling_unit == "patient" else np.arange(first.units.size),
            num_replicates=self.num_replicates,
            seed=self.seed,
            ranked=RANKED,
            specificity=self.specificity,
            hits=np.stack([hits(run) for run in runs]),
            calibration=calibrated(runs),
            pooled=named if first.unit_kind == "case" else None,
        )
        # Shares count the same units in all models, but what one model leaves undefined another may define.
        for m, run in enumerate(runs):
            undefined = undefined_shares(run)
            places = [q for q, part in enumerate(resampled(run, self.specificity)) if part in undefined]
            replicates.estimates[m, places] = np.nan
            replicates.values[:, m, places] = np.nan
        return replicates

    def intervals(self, replicates: Replicates, run: Run, a: int, b: int | None = None) -> list[Interval]:
        """Intervals of the rows of model `a`, or of `a` minus `b`, in the order of `measures`."""
        means = [item.quantities for item in measures(run, specificity=self.specificity)]
        return replicates.intervals(a, b, alpha=self.alpha, means=means)


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


def clusters_counted(row: Row) -> int:
    """How many of what a row's interval resamples count towards its metric."""
    counted: int = row["n_units" if row["resampling_unit"] in PRIMARY else "n_patients"]
    return counted


def with_interval(row: Row, interval: Interval, resampled: str) -> Row:
    """The row with its interval over what was resampled, or with why there is none.

    Args:
        row: What counts towards its metric are `clusters_counted`.
        interval: Of the row; withheld where fewer than `MIN_CLUSTERS` count.
        resampled: Of `resampled_as`.
    """
    row = row | {"resampling_unit": resampled}
    if row["estimate"] is None:
        return row
    if (counted := clusters_counted(row)) < MIN_CLUSTERS:
        told = f"{counted} {resampled}s count, an interval takes at least {MIN_CLUSTERS}"
        return row | {"status": "interval_withheld", "reason": "; ".join(filter(None, (row["reason"], told)))}
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


def reliability_rows(run: Run) -> list[Row]:
    """The reliability curve of a run as rows of the calibration table, bin by bin; none without probabilities.

    Of images one curve a finding, of cases that of the class with the highest score.
    """
    curves = {
        name: (run.y_true[:, c], run.y_score[:, c])
        for c, name in enumerate(run.classes)
        if calibration.are_probabilities(run.y_score[:, c])
    }
    if run.unit_kind == "case":
        usable = calibration.are_distributions(run.y_score)
        curves = {"": calibration.top_label(run.y_true, run.y_score)} if usable else {}
    names = {name: getattr(run, name) for name in ("dataset", "split", "arm_id", "label_fraction", "draw")}
    edges = calibration.edges()
    rows = []
    for class_name, (y_true, y_score) in curves.items():
        curve = calibration.reliability(y_true, y_score)
        for b, count in enumerate(curve.n_units.tolist()):
            rows.append(
                names
                | {"class": class_name, "bin": b, "score_low": edges[b], "score_high": edges[b + 1], "n_units": count}
                | {"mean_score": curve.sum_score[b] / count if count else None}
                | {"share_positive": curve.sum_positive[b] / count if count else None}
            )
    return rows
