"""The report's figures, from metrics and training curves to what is drawn and how it is captioned."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.analysis import groups, population, published
from medssl.analysis.comparisons import difference_rows, pair_name
from medssl.analysis.drawing import About, Entry, Line, Panel
from medssl.analysis.figures import lines, rows
from medssl.analysis.page import Figure
from medssl.analysis.results import (
    COMPARE,
    DECIMALS,
    SUBGROUPS,
    Evaluation,
    Labels,
    Results,
    arm_rows,
    sentence,
    slug,
    words,
)
from medssl.analysis.tables import percent
from medssl.metrics import Metric

Curve = tuple[list[int], list[float]]  # steps and values

# What is drawn of a pretraining run, with the title of its panel.
PRETRAINING_METRICS = {
    "loss": "Contrastive loss",
    "contrastive_accuracy": "Contrastive accuracy",
    "projection_std": "Projection spread (0: collapsed)",
}
# Names of fine-tuning runs: the arm, then "fraction0.1-draw0-repeat0-…".
FINETUNING_RUN = re.compile(r"(?P<arm>\S+) fraction(?P<fraction>[\d.e-]+?)-draw")
_MAX_FOREST = 48  # differences; with more, only those at the largest label fraction are drawn
_ANCHORS = "B.5"  # the table that prints values at several label fractions


def methods(results: Results, arms: pa.Table) -> dict[str, dict[str, str]]:
    """For each architecture, its arms by name of their method: within a panel that tells them apart."""
    found: dict[str, dict[str, str]] = {}
    for arm, row in arm_rows(results, arms).items():
        found.setdefault(row["architecture"], {})[arm] = row["method"]
    return {
        architecture: {
            arm: f"{method} ({arm})" if list(names.values()).count(method) > 1 else method
            for arm, method in names.items()
        }
        for architecture, names in found.items()
    }


def label_efficiency(
    results: Results,
    where: Evaluation,
    arms: pa.Table,
    metrics: Sequence[Metric],
    *,
    name: str = "",
    left_out: Collection[str] = (),
) -> Figure | None:
    """Metrics against the label fraction, a panel an architecture and metric; None where nowhere evaluable.

    Hollow marks are the values of the paper's table B.5, on the study's own test split.

    Args:
        results: The metrics.
        where: Data set and split.
        arms: schema.ARMS.
        metrics: A panel each.
        name: Of the figure, before the evaluation.
        left_out: Arms that another figure shows.
    """
    panels = [
        panel
        for architecture, names in methods(results, arms).items()
        for metric in metrics
        if (
            panel := efficiency_panel(
                results, where, architecture, {a: n for a, n in names.items() if a not in left_out}, metric
            )
        )
    ]
    if not panels:
        return None
    what = sentence(" and ".join(words(metric.name, metric.k) for metric in metrics))
    title = f"{what} on {results.place(where)} by share of training labels"
    caption = f"{title}. Points are means over repeats, bars one standard deviation to each side."
    if any(line.marks for panel in panels for line in panel.lines):
        caption += f" Large hollow marks: what the paper's table {_ANCHORS} prints for the same names."
    return _points(panels, f"{name or 'label-efficiency'}-{slug(where)}", title, caption)


def efficiency_panel(
    results: Results, where: Evaluation, architecture: str, names: Mapping[str, str], metric: Metric
) -> Panel | None:
    """One metric of an architecture's arms against the label fraction."""
    fractions = sorted({labels.fraction for labels in results.labels})
    drawn = []
    for arm, name in names.items():
        line = line_of(name, {f: results.spread(where, arm, f, metric) for f in fractions})
        marks = _anchors(architecture, name, metric) if where.split == "test" else ()
        if line:
            drawn.append(Line(line.name, line.x, line.y, line.low, line.high, marks))
    if any(len(line.x) > 1 for line in drawn):  # an arm at one fraction alone has no curve
        drawn = [line for line in drawn if len(line.x) > 1]
    ticks = [(fraction, f"{100 * fraction:.4g}") for fraction in fractions]
    y_label = f"{sentence(words(metric.name, metric.k))} on {results.place(where)}"
    return Panel(architecture, "Share of the training labels, %", y_label, drawn, ticks) if drawn else None


def line_of(name: str, spreads: Mapping[float, Any]) -> Line | None:
    """Means with one standard deviation to each side, of what is known by x; None where nothing is."""
    known = {x: (spread.mean, spread.std or 0.0) for x, spread in spreads.items() if spread}
    if not known:
        return None
    means, stds = zip(*known.values(), strict=True)
    return Line(name, list(known), means, np.subtract(means, stds).tolist(), np.add(means, stds).tolist())


def _anchors(architecture: str, method: str, metric: Metric) -> tuple[tuple[float, float], ...]:
    """Published points of the same names, by label fraction."""
    values = published.of_table(_ANCHORS)
    return tuple(
        (value.label_fraction, value.value)
        for value in values
        if (value.metric.name, value.metric.k) == (metric.name, metric.k)
        and published.matches(value, architecture=architecture, method=method, augmentation=None)
    )


def _points(panels: Sequence[Panel], name: str, title: str, caption: str) -> Figure:
    return Figure(name, lines.points(panels, About(name, title, describe(panels))), caption, COMPARE)


def describe(panels: Sequence[Panel]) -> str:
    """The first and last value of every line, for those who cannot see the figure."""
    return " ".join(
        f"{panel.title}{', ' if panel.title and panel.y_label else ''}{panel.y_label}: "
        + ", ".join(_told(line) for line in panel.lines)
        + "."
        for panel in panels
    )


def _told(line: Line) -> str:
    last = f"{line.y[-1]:.{DECIMALS}f}"
    return f"{line.name} {last}" if len(line.y) == 1 else f"{line.name} from {line.y[0]:.{DECIMALS}f} to {last}"


def forest(results: Results, where: Evaluation) -> Figure | None:
    """Differences in the primary metric with their intervals; None where there is none."""
    found = [
        row
        for row in difference_rows(results, where, metrics=[results.primary])
        if row["estimate"] is not None and row["resampling_unit"] == results.resampled(where)
    ]
    is_cut = len(found) > _MAX_FOREST
    if is_cut:
        found = [row for row in found if Labels(row["label_fraction"], row["draw"]) == results.largest]
    if not found:
        return None
    entries = [
        Entry(
            pair_name(results, row),
            f"{results.name(Labels(row['label_fraction'], row['draw']))} of labels",
            row["estimate"],
            None if row["ci_low"] is None else (row["ci_low"], row["ci_high"]),
        )
        for row in found
    ]
    title = f"Differences in {results.primary_words} on {results.place(where)}"
    caption = (
        f"{title}, {results.level} intervals over {results.resampled(where)}s. Filled circles: the interval excludes "
        "0. Crosses: the interval is withheld. Right of 0 the first arm is better."
    )
    if is_cut:
        caption += f" Other label fractions than {results.name(results.largest)} stand in the table alone."
    about = About(f"differences-{slug(where)}", title, describe_entries(entries))
    drawing = rows.forest(entries, about, x_label=f"Difference in {results.primary_words}")
    return Figure(about.name, drawing, caption, COMPARE)


def describe_entries(entries: Iterable[Entry]) -> str:
    """Every row in words."""
    return "; ".join(
        f"{entry.heading}, {entry.name}: {entry.estimate:.{DECIMALS}f}"
        + (f" from {entry.ends[0]:.{DECIMALS}f} to {entry.ends[1]:.{DECIMALS}f}" if entry.ends else ", no interval")
        for entry in entries
    )


def gaps(results: Results, where: Evaluation) -> Figure | None:
    """Corrected gaps between the groups of each attribute, at the largest label fraction; None where there is none."""
    entries = []
    for attribute in groups.attributes(results, where):
        for arm, name in results.arms.items():
            row = groups.gap_row(results, where, attribute, results.largest, arm)
            if row and row["estimate"] is not None and " & " not in attribute:
                ends = None if row["ci_low"] is None else (row["ci_low"], row["ci_high"])
                entries.append(Entry(sentence(groups.in_words(attribute)), name, row["estimate"], ends))
    if not entries:
        return None
    title = f"Gaps in {results.primary_words} between groups on {results.place(where)}"
    caption = f"{title}: largest minus smallest group, corrected for its bias, with {results.level} intervals."
    about = About(f"gaps-{slug(where)}", title, describe_entries(entries))
    return Figure(about.name, rows.forest(entries, about, x_label="Gap"), caption, SUBGROUPS)


def balance(splits_summary: Mapping[str, Any], findings: Sequence[str]) -> Figure | None:
    """Shares of images in each split beside the whole; None where they are not known."""
    entries = population.shares(splits_summary, findings)
    if not entries:
        return None
    about = About(
        "balance",
        "Balance of the splits",
        "; ".join(
            f"{what}: " + ", ".join(f"{part} {value:.1f} %" for part, value in values.items())
            for what, values in entries
        ),
    )
    drawing = rows.dots(entries, about, x_label="Share of the images, %")
    caption = "Balance of the splits: marks of a row that lie on one another mean equal composition."
    return Figure(about.name, drawing, caption, "assign_splits")


def pretraining(history: pa.Table, runs: Sequence[str]) -> Figure | None:
    """Curves of the pretraining runs, a panel a metric; None where none were recorded."""
    curves = _curves(history)
    panels = []
    for metric, title in PRETRAINING_METRICS.items():
        drawn = [Line(run, *curves[run, metric]) for run in runs if (run, metric) in curves]
        if drawn:
            panels.append(Panel(title, "Step", "", drawn))
    task = f"pretrain {runs[0]}" if len(runs) == 1 else ""
    return _training_figure("pretraining", "Pretraining", panels, "One line a pretraining run.", task)


def finetuning(history: pa.Table, results: Results, arms: pa.Table) -> Figure | None:
    """Validation score while fine-tuning, at the smallest and the largest label fraction; None where not recorded.

    A panel is an architecture at a fraction; a line is the mean over the runs of an arm, in a band from the smallest
    to the largest.
    """
    found: dict[tuple[str, float], list[Curve]] = defaultdict(list)
    for (run, metric), curve in _curves(history).items():
        match = FINETUNING_RUN.match(run)
        if match and metric == f"validation_{results.primary.log_name}":
            found[match["arm"], float(match["fraction"])].append(curve)
    fractions = sorted({fraction for _, fraction in found})
    panels = []
    for architecture, names in methods(results, arms).items():
        for fraction in dict.fromkeys((*fractions[:1], *fractions[-1:])):
            drawn = [_band(name, found[arm, fraction]) for arm, name in names.items() if (arm, fraction) in found]
            title = f"{architecture}, {percent(fraction)} of labels"
            if drawn:
                panels.append(Panel(title, "Step", f"{sentence(results.primary_words)} on validation", drawn))
    caption = "Mean over the runs of an arm at the smallest and the largest label fraction; the band spans all of them."
    return _training_figure("finetuning", "Fine-tuning", panels, caption, "")


def _training_figure(name: str, title: str, panels: Sequence[Panel], caption: str, task: str) -> Figure | None:
    if not panels:
        return None
    return Figure(name, lines.curves(panels, About(name, title, describe(panels))), f"{title}. {caption}", task)


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
