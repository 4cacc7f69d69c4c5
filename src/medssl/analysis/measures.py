"""What is measured on a run, as rows of the metrics table, and the intervals of these rows.

A row and its interval come from one list of measures, which says what each row is the mean of: so the bootstrap and
the full sample cannot disagree about what a row means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl import metrics
from medssl.analysis import calibration
from medssl.analysis.bootstrap import Interval, Replicates, paired_bootstrap
from medssl.analysis.runs import ROW_KEY, Row, Run
from medssl.config import SPECIFICITY
from medssl.metrics import OTHER, PRIMARY, TOP_K, Evaluation

NOT_RESAMPLED = Interval(None, None, None, None, None, None, 0, 0, "not resampled")


class Part(NamedTuple):
    """A metric of one class, or of all at once: what a row is the value or the mean of.

    Attributes:
        metric: As the metrics table names it.
        k: Of a top-k metric.
        column: Place of the class; None for a metric of all classes at once.
    """

    metric: str
    k: int | None
    column: int | None


@dataclass(frozen=True)
class Measure:
    """A metric of a run, of one class or over several.

    Attributes:
        metric: As the metrics table names it.
        k: Of a top-k metric.
        class_name: "" for a metric over several classes.
        parts: What it is the mean of; one alone is the measure itself.
        quantities: Places of the parts among the quantities of the bootstrap; () where one of them is not resampled.
    """

    metric: str
    k: int | None
    class_name: str
    parts: tuple[Part, ...]
    quantities: tuple[int, ...]


def at_specificity(specificity: float) -> str:
    """The name of the sensitivity at this specificity, which tells its threshold wherever it stands."""
    return f"sensitivity_at_specificity_{specificity:g}"


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
    listed += [(part.metric, part.k, "", (part,)) for part in _of_all_classes(run)]
    place = {part: q for q, part in enumerate(_resampled(run))}
    return [
        Measure(metric, k, name, parts, tuple(place[part] for part in parts) if place.keys() >= set(parts) else ())
        for metric, k, name, parts in listed
    ]


def _of_all_classes(run: Run) -> list[Part]:
    if run.unit_kind != "case":
        return []
    names = ("micro_auc", "multiclass_brier", "top_label_ece")
    return [*(Part("top_k_accuracy", k, None) for k in TOP_K), *(Part(name, None, None) for name in names)]


def _resampled(run: Run) -> list[Part]:
    """The quantities of the bootstrap in its order: the AUC of each class, then the shares.

    Average precision, sensitivity at a specificity, calibration errors and the micro-averaged AUC are no quantities of
    the bootstrap, so they have no interval; each that becomes one is added here.
    """
    return [*(Part("auc", None, c) for c in range(len(run.classes))), *_shares(run)]


def _shares(run: Run) -> dict[Part, NDArray[np.float64]]:
    """What is a mean over units, as the term of each unit: shape (n,), NaN for a unit that is left out."""
    y_true, y_score = run.y_true, run.y_score
    shares = {
        Part("brier", None, c): calibration.brier_terms(y_true[:, c], y_score[:, c]) for c in range(len(run.classes))
    }
    if run.unit_kind == "case":
        for k in TOP_K:
            shares[Part("top_k_accuracy", k, None)] = metrics.top_k_hits(y_true, y_score, k=k)
            recalls = metrics.top_k_recalls(y_true, y_score, k=k)
            shares |= {Part("top_k_sensitivity", k, c): recalls[:, c] for c in range(len(run.classes))}
        shares[Part("multiclass_brier", None, None)] = calibration.multiclass_brier_terms(y_true, y_score)
    return shares


def hits(run: Run) -> NDArray[np.float64]:
    """The shares among the quantities of a run, shape (n, S); NaN for a unit that the share leaves out."""
    return np.column_stack(list(_shares(run).values()))


def measure(run: Run, *, specificity: float = SPECIFICITY) -> list[Row]:
    """Rows of one run, in the order of `measures`."""
    evaluations = _evaluations(run, specificity)
    shares = _shares(run)
    is_known = ~np.isnan(run.y_true)
    _, patients = np.unique(run.patients, return_inverse=True)
    rows = []
    for item in measures(run, specificity=specificity):
        of_class = {run.classes[p.column]: evaluations[p] for p in item.parts if p.column is not None}
        single = item.class_name or not of_class
        evaluation = evaluations[item.parts[0]] if single else metrics.class_mean(of_class)
        units = np.zeros(run.units.size, dtype=bool)
        for part in item.parts:
            # A share says itself which units it counts; all else needs the truth.
            known = is_known.all(axis=1) if part.column is None else is_known[:, part.column]
            units |= ~np.isnan(shares[part]) if part in shares else known
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


def _evaluations(run: Run, specificity: float) -> Mapping[Part, Evaluation]:
    """The value of each part of the measures of a run."""
    found: dict[Part, Evaluation] = {}
    for c in range(len(run.classes)):
        y_true, y_score = run.y_true[:, c], run.y_score[:, c]
        ranking = metrics.rank(y_true, y_score)
        found[Part("auc", None, c)] = ranking.auc()
        found[Part("average_precision", None, c)] = ranking.average_precision()
        found[Part(at_specificity(specificity), None, c)] = ranking.sensitivity(specificity=specificity)
        found[Part("brier", None, c)] = calibration.brier(calibration.brier_terms(y_true, y_score), y_score)
        found[Part("ece", None, c)] = calibration.calibration_error(y_true, y_score)
    return found | _evaluations_of_cases(run) if run.unit_kind == "case" else found


def _evaluations_of_cases(run: Run) -> dict[Part, Evaluation]:
    y_true, y_score = run.y_true, run.y_score
    found: dict[Part, Evaluation] = {}
    for k in TOP_K:
        found[Part("top_k_accuracy", k, None)] = metrics.top_k_accuracy(y_true, y_score, k=k)
        sensitivities = metrics.top_k_sensitivity(y_true, y_score, k=k)
        found |= {Part("top_k_sensitivity", k, c): value for c, value in enumerate(sensitivities)}
    named = [run.classes.index(name) for name in metrics.named(run.classes)]
    found[Part("micro_auc", None, None)] = metrics.evaluate_auc(y_true[:, named].ravel(), y_score[:, named].ravel())
    terms = calibration.multiclass_brier_terms(y_true, y_score)
    found[Part("multiclass_brier", None, None)] = calibration.brier(terms, y_score)
    found[Part("top_label_ece", None, None)] = calibration.calibration_error(*calibration.top_label(y_true, y_score))
    return found


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
        listed = measures(run, specificity=self.specificity)
        means = [item.quantities for item in listed if item.quantities]
        found = iter(replicates.intervals(a, b, alpha=self.alpha, means=means))
        return [next(found) if item.quantities else NOT_RESAMPLED for item in listed]


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


def reliability_rows(run: Run) -> list[Row]:
    """The reliability curve of a run as rows of the calibration table, bin by bin; none without probabilities.

    Of images one curve a finding, of cases that of the class with the highest score.
    """
    curves = {name: (run.y_true[:, c], run.y_score[:, c]) for c, name in enumerate(run.classes)}
    if run.unit_kind == "case":
        curves = {"": calibration.top_label(run.y_true, run.y_score)}
    names = {name: getattr(run, name) for name in ("dataset", "split", "arm_id", "label_fraction", "draw")}
    edges = calibration.edges()
    rows = []
    for class_name, (y_true, y_score) in curves.items():
        if not calibration.are_probabilities(y_score):
            continue
        curve = calibration.reliability(y_true, y_score)
        for b, count in enumerate(curve.n_units.tolist()):
            rows.append(
                names
                | {"class": class_name, "bin": b, "score_low": edges[b], "score_high": edges[b + 1], "n_units": count}
                | {"mean_score": curve.sum_score[b] / count if count else None}
                | {"share_positive": curve.sum_positive[b] / count if count else None}
            )
    return rows
