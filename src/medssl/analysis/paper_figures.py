"""The figures of the paper's supplement that the label-efficiency figure is not: B.4, B.5, B.7, B.9, and the shift."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from medssl.analysis import groups, series
from medssl.analysis.drawing import About, Entry, Line, Panel
from medssl.analysis.external import external_sets, test_split
from medssl.analysis.figures import lines, rows
from medssl.analysis.page import Figure
from medssl.analysis.published import base
from medssl.analysis.results import COMPARE, SUBGROUPS, Evaluation, Results, arm_rows, sentence, slug, words
from medssl.metrics import TOP_K, Metric

SUPERVISED = "Supervised"  # the first word of the method that figure B.5 compares with


def step_series(results: Results, arms: pa.Table) -> dict[tuple[str, str], dict[int, str]]:
    """Arms that differ in their number of pretraining steps alone: (architecture, method) to steps to arm.

    Methods are compared without what stands in brackets, at the same batch size; imported weights, whose steps are not
    known, make no series.
    """
    found: dict[tuple[str, str, int | None], dict[int, str]] = {}
    for arm, row in arm_rows(results, arms).items():
        if row["num_steps"]:
            key = (row["architecture"], base(row["method"]), row["batch_size"])
            found.setdefault(key, {}).setdefault(row["num_steps"], arm)
    return {
        (architecture, method): dict(sorted(by_steps.items()))
        for (architecture, method, _), by_steps in found.items()
        if len(by_steps) > 1
    }


def by_steps(results: Results, where: Evaluation, arms: pa.Table) -> Figure | None:
    """Figure B.4: the primary metric against pretraining steps, with all labels, a panel an architecture."""
    found = step_series(results, arms)
    y_label = f"{sentence(results.primary_words)} on {results.place(where)}"
    panels = []
    for architecture in dict.fromkeys(name for name, _ in found):
        drawn: list[Line] = []
        ticks: set[int] = set()
        for (name, method), arm_of in found.items():
            spreads = {float(s): results.spread(where, a, results.largest.fraction) for s, a in arm_of.items()}
            line = series.line_of(method, spreads) if name == architecture else None
            if line:
                drawn.append(line)
                ticks |= set(arm_of)
        if drawn:
            shown = [(float(step), f"{step:,}") for step in sorted(ticks)]
            panels.append(Panel(architecture, "Pretraining steps", y_label, drawn, shown))
    if not panels:
        return None
    title = f"{sentence(results.primary_words)} by pretraining steps"
    caption = f"{title}, all else equal. Points are means over repeats, bars one standard deviation to each side."
    about = About(f"pretraining-steps-{slug(where)}", title, series.describe(panels))
    return Figure(about.name, lines.points(panels, about), caption, COMPARE)


def longer_training(results: Results, where: Evaluation, arms: pa.Table) -> Figure | None:
    """Figure B.5: the primary metric against the label fraction, for the shortest and the longest pretraining."""
    found = step_series(results, arms)
    described = arm_rows(results, arms)
    panels = []
    for architecture in dict.fromkeys(name for name, _ in found):
        names = {
            arm: f"{method}, {steps:,} steps"
            for (name, method), arm_of in found.items()
            if name == architecture
            for steps, arm in (min(arm_of.items()), max(arm_of.items()))
        }
        names |= {
            arm: row["method"]
            for arm, row in described.items()
            if row["architecture"] == architecture and row["method"].startswith(SUPERVISED)
        }
        panel = series.efficiency_panel(results, where, architecture, names, results.primary)
        if panel and any(len(line.x) > 1 for line in panel.lines):
            panels.append(panel)
    if not panels:
        return None
    title = f"{sentence(results.primary_words)} by share of training labels, for short and long pretraining"
    caption = f"{title}. Points are means over repeats, bars one standard deviation to each side."
    about = About(f"longer-training-{slug(where)}", title, series.describe(panels))
    return Figure(about.name, lines.points(panels, about), caption, COMPARE)


def skin_types(results: Results, where: Evaluation, attribute: str, order: Sequence[str]) -> Figure | None:
    """Figure B.7: top-1 and top-3 accuracy of selected models by skin type, at the largest label fraction."""
    columns: list[tuple[str, list[Entry]]] = []
    for k in TOP_K:
        metric = Metric("top_k_accuracy", k, "")
        found = groups.group_entries(results, where, attribute, results.largest, metric, order)
        entries = [
            Entry(f"{group} (n = {count:,})", results.arms[arm], row["estimate"], _ends(row))
            for group, count, by_arm in found
            for arm, row in by_arm.items()
        ]
        columns.append((sentence(words(metric.name, k)), entries))
    if not columns[0][1]:
        return None
    title = f"Accuracy by skin type on {results.place(where)}"
    told = "; ".join(f"{name}: {series.describe_entries(entries)}" for name, entries in columns)
    about = About(f"skin-types-{slug(where)}", title, told)
    caption = f"{title}: selected models with all labels, {results.level} intervals; without groups that are too small."
    return Figure(about.name, rows.bars(columns, about), caption, SUBGROUPS)


def _ends(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if row["ci_low"] is None else (row["ci_low"], row["ci_high"])


def per_finding(results: Results, where: Evaluation, arms: pa.Table) -> list[Figure]:
    """Figure B.9: AUC of each finding against the label fraction, a figure an architecture."""
    fractions = sorted({labels.fraction for labels in results.labels})
    auc = Metric("auc", None, "")
    ticks = [(fraction, f"{100 * fraction:.4g}") for fraction in fractions]
    found = []
    for number, (architecture, names) in enumerate(series.methods(results, arms).items()):
        panels = []
        for finding in results.findings:
            made = (
                series.line_of(name, {f: results.spread(where, arm, f, auc, finding) for f in fractions})
                for arm, name in names.items()
            )
            drawn = [line for line in made if line and len(line.x) > 1]
            if drawn:
                y_label = f"AUC, {finding}"  # findings differ too much for one scale
                panels.append(Panel(finding, "Share of the training labels, %", y_label, drawn, ticks))
        if panels:
            title = f"AUC per {results.class_word} on {results.place(where)} by share of labels, {architecture}"
            caption = f"{title}. Points are means over repeats, bars one standard deviation to each side."
            about = About(f"findings-by-labels-{number + 1}-{slug(where)}", title, series.describe(panels))
            found.append(Figure(about.name, lines.points(panels, about), caption, COMPARE))
    return found


def shift(results: Results, arms: pa.Table) -> list[Figure]:
    """The primary metric of selected models on the test split and on each external set, with intervals."""
    own = test_split(results)
    found = []
    for where in external_sets(results) if own else ():
        assert own is not None
        panels = []
        ticks = [(0.0, "test"), (1.0, where.dataset)]
        y_label = sentence(results.primary_words)
        for architecture, names in series.methods(results, arms).items():
            drawn = []
            for arm, name in names.items():
                keys: dict[str, Any] = {"metric": results.primary.name, "k": results.primary.k}
                sides = [results.selected(place, arm, results.largest, **keys) for place in (own, where)]
                known = [row for row in sides if row is not None and row["estimate"] is not None]
                if len(known) == len(sides):
                    ends = [_ends(row) or (row["estimate"], row["estimate"]) for row in known]
                    low, high = zip(*ends, strict=True)
                    drawn.append(Line(name, [0.0, 1.0], [row["estimate"] for row in known], low, high))
            if drawn:
                panels.append(Panel(architecture, "Evaluated on", y_label, drawn, ticks))
        if panels:
            title = f"Distribution shift from test to {where.dataset}"
            caption = (
                f"{title}: {results.primary_words} of unchanged models with all labels, {results.level} intervals. The "
                "sets may define different classes; the drop in the table covers those of both."
            )
            about = About(f"shift-{slug(where)}", title, series.describe(panels))
            found.append(Figure(about.name, lines.points(panels, about), caption, COMPARE))
    return found
