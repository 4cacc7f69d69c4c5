"""The report's figures, from metrics and training curves to what is drawn and how it is captioned."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medssl.analysis import figures
from medssl.analysis.figures import Difference, Line, Panel
from medssl.analysis.outcomes import difference_rows, slug
from medssl.analysis.page import Figure
from medssl.analysis.results import DECIMALS, Evaluation, Labels, Results, sentence
from medssl.analysis.tables import percent

Curve = tuple[list[int], list[float]]  # steps and values

# What is drawn of a pretraining run, with the title of its panel.
PRETRAINING_METRICS = {
    "loss": "Contrastive loss",
    "contrastive_accuracy": "Contrastive accuracy",
    "projection_std": "Projection spread (0: collapsed)",
}
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


def label_efficiency(results: Results, where: Evaluation, arms: pa.Table) -> Figure | None:
    """Primary metric against label fraction, a panel an architecture; None where it is nowhere evaluable."""
    panels = _label_efficiency_panels(results, where, arms)
    if not panels:
        return None
    name = f"label-efficiency-{slug(where)}"
    title = f"{sentence(results.primary_words)} on {results.place(where)} by share of training labels"
    svg = figures.points(panels, name=name, title=title, description=_describe(panels))
    return Figure(name, svg, f"{title}. Points are means over repeats, bars one standard deviation to each side.")


def _describe(panels: Sequence[Panel]) -> str:
    """The last value of every line, for those who cannot see the figure."""
    return " ".join(
        f"{panel.title}: " + ", ".join(f"{line.name} ends at {line.y[-1]:.{DECIMALS}f}" for line in panel.lines) + "."
        for panel in panels
    )


def _label_efficiency_panels(results: Results, where: Evaluation, arms: pa.Table) -> list[Panel]:
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
            y_label = f"{sentence(results.primary_words)} on {results.place(where)}"
            panels.append(Panel(architecture, "Share of the training labels, %", y_label, lines, ticks))
    return panels


def forest(results: Results, where: Evaluation) -> Figure | None:
    """Differences in the primary metric with their intervals; None where there is none."""
    rows = [
        Difference(
            f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}",
            f"{results.name(Labels(row['label_fraction'], row['draw']))} of labels",
            row["estimate"],
            None if row["ci_low"] is None else (row["ci_low"], row["ci_high"]),
        )
        for row in difference_rows(results, where, metrics=[results.primary])
        if row["estimate"] is not None and row["resampling_unit"] == results.resampled(where)
    ]
    if not rows:
        return None
    name, title = f"differences-{slug(where)}", f"Differences in {results.primary_words} on {results.place(where)}"
    words = [
        f"{row.heading}, {row.name}: {row.estimate:.{DECIMALS}f}"
        + (f" from {row.ends[0]:.{DECIMALS}f} to {row.ends[1]:.{DECIMALS}f}" if row.ends else ", interval withheld")
        for row in rows
    ]
    x_label = f"Difference in {results.primary_words}"
    svg = figures.forest(rows, x_label=x_label, name=name, title=title, description="; ".join(words))
    caption = (
        f"{title}, {results.level} intervals over {results.resampled(where)}s. Filled circles: the interval excludes "
        "0. Crosses: the interval is withheld. Right of 0 the first arm is better."
    )
    return Figure(name, svg, caption)


def pretraining(history: pa.Table, runs: Sequence[str]) -> Figure | None:
    """Curves of the pretraining runs, a panel a metric; None where none were recorded."""
    curves = _curves(history)
    panels = []
    for metric, title in PRETRAINING_METRICS.items():
        lines = [Line(run, *curves[run, metric]) for run in runs if (run, metric) in curves]
        if lines:
            panels.append(Panel(title, "Step", "", lines))
    return _training_figure("pretraining", "Pretraining", panels, "One line a pretraining run.")


def finetuning(history: pa.Table, results: Results, arms: pa.Table) -> Figure | None:
    """Validation score while fine-tuning, at the smallest and the largest label fraction; None where not recorded.

    A panel is an architecture at a fraction; a line is the mean over the runs of an arm, in a band from the smallest
    to the largest.
    """
    groups: dict[tuple[str, float], list[Curve]] = defaultdict(list)
    for (run, metric), curve in _curves(history).items():
        match = FINETUNING_RUN.match(run)
        if match and metric == f"validation_{results.primary.log_name}":
            groups[match["arm"], float(match["fraction"])].append(curve)
    fractions = sorted({fraction for _, fraction in groups})
    panels = []
    for architecture, names in methods(results, arms).items():
        for fraction in dict.fromkeys((*fractions[:1], *fractions[-1:])):
            lines = [_band(name, groups[arm, fraction]) for arm, name in names.items() if (arm, fraction) in groups]
            title = f"{architecture}, {percent(fraction)} of labels"
            if lines:
                panels.append(Panel(title, "Step", f"{sentence(results.primary_words)} on validation", lines))
    caption = "Mean over the runs of an arm at the smallest and the largest label fraction; the band spans all of them."
    return _training_figure("finetuning", "Fine-tuning", panels, caption)


def _training_figure(name: str, title: str, panels: Sequence[Panel], caption: str) -> Figure | None:
    if not panels:
        return None
    svg = figures.curves(panels, name=name, title=title, description=_describe(panels))
    return Figure(name, svg, f"{title}. {caption}")


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
