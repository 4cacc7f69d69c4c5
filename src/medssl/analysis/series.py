"""What the report's figures draw, from metrics and training curves."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medssl.analysis.figures import Difference, Line, Panel
from medssl.analysis.outcomes import difference_rows
from medssl.analysis.results import Evaluation, Labels, Results
from medssl.analysis.tables import percent

Curve = tuple[list[int], list[float]]  # steps and values

# What is drawn of a pretraining run, with the title of its panel.
PRETRAINING_METRICS = {
    "loss": "Contrastive loss",
    "contrastive_accuracy": "Contrastive accuracy",
    "projection_std": "Projection spread (0: collapsed)",
}
VALIDATION_METRIC = "validation_mean_auc"
# Names of fine-tuning runs: the arm, then "fraction0.1-draw0-repeat0-…".
FINETUNING_RUN = re.compile(r"(?P<arm>\S+) fraction(?P<fraction>[\d.e-]+?)-draw")


def methods(results: Results, arms: pa.Table) -> dict[str, dict[str, str]]:
    """For each architecture, its arms by name of their method: within a panel that tells them apart."""
    rows = {row["arm_id"]: row for row in arms.to_pylist()}
    found: dict[str, dict[str, str]] = {}
    for arm in (arm for arm in results.arms if arm in rows):
        found.setdefault(rows[arm]["architecture"], {})[arm] = rows[arm]["method"]
    return {
        architecture: {
            arm: f"{method} ({arm})" if list(names.values()).count(method) > 1 else method
            for arm, method in names.items()
        }
        for architecture, names in found.items()
    }


def label_efficiency(results: Results, where: Evaluation, arms: pa.Table) -> list[Panel]:
    """Mean AUC against label fraction with one standard deviation over repeats, a panel an architecture."""
    fractions = sorted({labels.fraction for labels in results.labels})
    panels = []
    for architecture, names in methods(results, arms).items():
        lines = []
        for arm, name in names.items():
            spreads = {fraction: results.spread(where, arm, fraction) for fraction in fractions}
            known = {fraction: (s.mean, s.std or 0.0) for fraction, s in spreads.items() if s}
            if known:
                means, stds = zip(*known.values(), strict=True)
                low, high = np.subtract(means, stds).tolist(), np.add(means, stds).tolist()
                lines.append(Line(name, list(known), means, low, high))
        ticks = [(fraction, f"{100 * fraction:.4g}") for fraction in fractions]
        if lines:
            y_label = f"Mean AUC on {results.place(where)}"
            panels.append(Panel(architecture, "Share of the training labels, %", y_label, lines, ticks))
    return panels


def forest(results: Results, where: Evaluation) -> list[Difference]:
    """Differences in mean AUC, one row a label fraction, under the pair as heading."""
    return [
        Difference(
            f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}",
            f"{results.name(Labels(row['label_fraction'], row['draw']))} of labels",
            row["estimate"],
            None if row["ci_low"] is None else (row["ci_low"], row["ci_high"]),
        )
        for row in difference_rows(results, where, metric="mean_auc")
        if row["estimate"] is not None and row["resampling_unit"] == results.resampling_unit
    ]


def pretraining(history: pa.Table, runs: Sequence[str]) -> list[Panel]:
    """Curves of the pretraining runs, a panel a metric."""
    curves = _curves(history)
    panels = []
    for metric, title in PRETRAINING_METRICS.items():
        lines = [Line(run, *curves[run, metric]) for run in runs if (run, metric) in curves]
        if lines:
            panels.append(Panel(title, "Step", "", lines))
    return panels


def finetuning(history: pa.Table, results: Results, arms: pa.Table) -> list[Panel]:
    """Validation score while fine-tuning, at the smallest and the largest label fraction.

    A panel is an architecture at a fraction; a line is the mean over the runs of an arm, in a band from the smallest
    to the largest.
    """
    groups: dict[tuple[str, float], list[Curve]] = defaultdict(list)
    for (run, metric), curve in _curves(history).items():
        match = FINETUNING_RUN.match(run)
        if match and metric == VALIDATION_METRIC:
            groups[match["arm"], float(match["fraction"])].append(curve)
    fractions = sorted({fraction for _, fraction in groups})
    panels = []
    for architecture, names in methods(results, arms).items():
        for fraction in dict.fromkeys((*fractions[:1], *fractions[-1:])):
            lines = [_band(name, groups[arm, fraction]) for arm, name in names.items() if (arm, fraction) in groups]
            title = f"{architecture}, {percent(fraction)} of labels"
            if lines:
                panels.append(Panel(title, "Step", "Mean AUC on validation", lines))
    return panels


def _curves(history: pa.Table) -> dict[tuple[str, str], Curve]:
    curves: dict[tuple[str, str], Curve] = {}
    for row in history.sort_by("step").to_pylist():
        steps, values = curves.setdefault((row["run"], row["metric"]), ([], []))
        steps.append(row["step"])
        values.append(row["value"])
    return curves


def _band(name: str, curves: Sequence[Curve]) -> Line:
    """Mean, smallest and largest of curves at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    values_RS = np.array([[dict(zip(*curve, strict=True))[step] for step in steps] for curve in curves])
    mean, low, high = values_RS.mean(axis=0), values_RS.min(axis=0), values_RS.max(axis=0)
    return Line(name, steps, mean.tolist(), low.tolist(), high.tolist())
