"""What the report shows of calibration: reliability curves of selected models, and the errors behind them."""

from typing import Any

import pyarrow as pa

from medssl.analysis import series, tables
from medssl.analysis.calibration import NUM_BINS
from medssl.analysis.drawing import About, Line, Panel
from medssl.analysis.figures import lines
from medssl.analysis.page import Figure
from medssl.analysis.results import COMPARE, DECIMALS, Evaluation, Results, sentence, slug, with_interval
from medssl.analysis.tables import Column, Table

# Errors of all classes at once, by kind of unit.
_ERRORS = {
    "image": {"mean_ece": "Mean calibration error", "mean_brier": "Mean Brier score"},
    "case": {"top_label_ece": "Calibration error of the likeliest class", "multiclass_brier": "Brier score"},
}
_TOP_LABEL = ""  # the class of a case's one curve


def errors(results: Results, where: Evaluation) -> Table:
    """Calibration errors of each arm's selected model at the largest label fraction."""
    shown = _ERRORS[results.unit_kind]
    rows = []
    for arm, name in results.arms.items():
        cells = [results.selected(where, arm, results.largest, metric=metric) for metric in shown]
        if any(cells):
            rows.append((name, *map(with_interval, cells)))
    columns = [tables.text("Arm"), *(Column(f"{words} [{results.level} interval]") for words in shown.values())]
    caption = (
        f"Calibration on {results.place(where)}, selected models with {results.name(results.largest)} of the labels: 0 "
        f"is perfect. Calibration errors take {NUM_BINS} bins of equal width."
    )
    return tables.build(f"calibration-{slug(where)}", caption, columns, rows, task=COMPARE)


def curves(results: Results, where: Evaluation, arms: pa.Table, calibration: pa.Table) -> list[Figure]:
    """Reliability curves, a figure an architecture, a panel a finding; one panel for cases.

    Args:
        results: The metrics.
        where: Data set and split.
        arms: schema.ARMS.
        calibration: schema.CALIBRATION.
    """
    largest = results.largest
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in calibration.to_pylist():
        here = (row["dataset"], row["split"]) == where
        if here and (row["label_fraction"], row["draw"]) == largest and row["n_units"]:
            point = (row["mean_score"], row["share_positive"])
            points.setdefault((row["arm_id"], row["class"]), []).append(point)
    found = []
    for number, (architecture, names) in enumerate(series.methods(results, arms).items()):
        panels = []
        for class_name in [_TOP_LABEL] if results.unit_kind == "case" else results.findings:
            drawn = [
                Line(name, *map(list, zip(*points[arm, class_name], strict=True)))
                for arm, name in names.items()
                if (arm, class_name) in points
            ]
            if drawn:
                title = class_name or "Class with the highest score"
                panels.append(Panel(title, "Mean score of the bin", "Share of positives", drawn))
        if panels:
            title = f"Reliability on {results.place(where)}, {architecture}"
            told = _told(results, where, names, title)
            about = About(f"reliability-{number + 1}-{slug(where)}", title, told)
            caption = (
                f"{title}: selected models with {results.name(largest)} of the labels. On the diagonal scores are "
                f"probabilities. {told}"
            )
            found.append(Figure(about.name, lines.reliability(panels, about), caption, COMPARE))
    return found


def _told(results: Results, where: Evaluation, names: dict[str, str], title: str) -> str:
    """The calibration error of each curve's arm in words."""
    metric, words = next(iter(_ERRORS[results.unit_kind].items()))
    rows: dict[str, Any] = {n: results.selected(where, arm, results.largest, metric=metric) for arm, n in names.items()}
    known = [f"{n} {row['estimate']:.{DECIMALS}f}" for n, row in rows.items() if row and row["estimate"] is not None]
    return f"{sentence(words)}: {', '.join(known)}." if known else ""
