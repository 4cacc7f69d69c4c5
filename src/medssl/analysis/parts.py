"""The metrics of one class or of all at once, of which every row of the metrics table is the value or the mean.

Their values on the full sample and their places among the quantities of the bootstrap stand side by side here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl import metrics
from medssl.analysis import calibration
from medssl.analysis.quantities import RANKED, SENSITIVITY, Calibration
from medssl.analysis.runs import Run
from medssl.metrics import TOP_K, Evaluation


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


def at_specificity(specificity: float) -> str:
    """The name of the sensitivity at this specificity, which tells its threshold wherever it stands."""
    return f"sensitivity_at_specificity_{specificity:g}"


def of_all_classes(run: Run) -> list[Part]:
    """Metrics that see all classes of a unit at once: only cases have them."""
    if run.unit_kind != "case":
        return []
    names = ("micro_auc", "multiclass_brier", "top_label_ece")
    return [*(Part("top_k_accuracy", k, None) for k in TOP_K), *(Part(name, None, None) for name in names)]


def resampled(run: Run, specificity: float) -> list[Part]:
    """The quantities of the bootstrap in its order: what ranks units, shares, calibration errors, micro average."""
    columns = range(len(run.classes))
    ranked = (at_specificity(specificity) if name == SENSITIVITY else name for name in RANKED)
    of_all = [Part("micro_auc", None, None)] if run.unit_kind == "case" else []
    ranked_parts = [Part(name, None, c) for name in ranked for c in columns]
    return [*ranked_parts, *shares(run), *calibration_errors(run), *of_all]


def calibration_errors(run: Run) -> list[Part]:
    """Of each finding of images, of the class with the highest score of cases."""
    if run.unit_kind == "case":
        return [Part("top_label_ece", None, None)]
    return [Part("ece", None, c) for c in range(len(run.classes))]


def calibrated(runs: Sequence[Run]) -> Calibration:
    """What the calibration errors of the runs are computed from; without probabilities no unit counts."""
    truths, scores = [], []
    for run in runs:
        y_true, y_score = run.y_true, run.y_score
        usable = [calibration.are_probabilities(column) for column in y_score.T]
        if run.unit_kind == "case":
            usable = [calibration.are_distributions(y_score)]
            y_true, y_score = (column[:, None] for column in calibration.top_label(y_true, y_score))
        truths.append(np.where(usable, y_true, np.nan))
        scores.append(np.where(usable, y_score, 0.0))
    return Calibration(np.stack(truths), np.stack(scores))


def shares(run: Run) -> list[Part]:
    """Metrics that are means over units."""
    columns = range(len(run.classes))
    found = [Part("brier", None, c) for c in columns]
    if run.unit_kind == "case":
        found += [Part("top_k_accuracy", k, None) for k in TOP_K]
        found += [Part("top_k_sensitivity", k, c) for k in TOP_K for c in columns]
        found.append(Part("multiclass_brier", None, None))
    return found


def undefined_shares(run: Run) -> set[Part]:
    """The shares that mean nothing for a run, since its scores are no probabilities."""
    found = {Part("brier", None, c) for c, y in enumerate(run.y_score.T) if not calibration.are_probabilities(y)}
    if run.unit_kind == "case" and not calibration.are_distributions(run.y_score):
        found.add(Part("multiclass_brier", None, None))
    return found


def terms_of(run: Run) -> dict[Part, NDArray[np.float64]]:
    """What each of the `shares` averages: the term of each unit, shape (n,), NaN for a unit that is left out."""
    y_true, y_score = run.y_true, run.y_score
    columns = range(len(run.classes))
    terms = {Part("brier", None, c): calibration.brier_terms(y_true[:, c], y_score[:, c]) for c in columns}
    if run.unit_kind == "case":
        for k in TOP_K:
            terms[Part("top_k_accuracy", k, None)] = metrics.top_k_hits(y_true, y_score, k=k)
            recalls = metrics.top_k_recalls(y_true, y_score, k=k)
            terms |= {Part("top_k_sensitivity", k, c): recalls[:, c] for c in columns}
        terms[Part("multiclass_brier", None, None)] = calibration.multiclass_brier_terms(y_true, y_score)
    return terms


def evaluations(run: Run, specificity: float) -> Mapping[Part, Evaluation]:
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
    found[Part("top_label_ece", None, None)] = calibration.top_label_error(y_true, y_score)
    return found
