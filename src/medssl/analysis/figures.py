"""Figures of the report as SVG: the same data give the same bytes, and text follows the page's light or dark colour.

Series differ in colour (Okabe and Ito's palette, told apart by colour-blind readers) and in marker or dash, and
carry their names beside them, so that nothing depends on colour alone.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito 2008, less black (it is the text's) and yellow (too faint on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
# Matplotlib knows no currentColor; this colour, used by nothing else, stands for the page's text colour.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "medssl",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_PANEL_IN = (5.4, 3.3)  # width and height of one panel, inches
_PX_PER_PT = 4 / 3  # of CSS; matplotlib draws in points
_LABEL_GAP = 0.065  # least distance of two names, share of the panel's height
_SHIFT = 0.008  # between arms at one label fraction, share of the range of x


@dataclass(frozen=True)
class Line:
    """A series: for each x a value and the ends of its bar or band; empty ends mean that there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """Series on common axes.

    Attributes:
        title: Above the panel; may be "".
        x_label: With its unit.
        y_label: With its unit.
        lines: In the order of their colours.
        x_ticks: Position and text of each tick; empty leaves the choice to the axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Difference:
    """One row of a forest plot; without ends its interval is withheld."""

    heading: str
    name: str
    estimate: float
    ends: tuple[float, float] | None


def points(panels: Sequence[Panel], *, name: str, title: str, description: str) -> str:
    """Few points a series, with markers and error bars, all panels on one scale: the label-efficiency figure."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(panels)
        styles = _styles(panels)
        for axis, panel in zip(axes, panels, strict=True):
            positions = [x for x, _ in panel.x_ticks]
            width = (max(positions) - min(positions)) or 1.0
            for place, line in enumerate(panel.lines):
                colour, marker, dash = styles[line.name]
                # Shifted a little, so that the bars of arms do not hide one another.
                shift = (place - (len(panel.lines) - 1) / 2) * _SHIFT * width
                down = [y - low for y, low in zip(line.y, line.low, strict=True)]
                up = [high - y for y, high in zip(line.y, line.high, strict=True)]
                x = [value + shift for value in line.x]
                axis.errorbar(
                    x, line.y, (down, up), color=colour, marker=marker, linestyle=dash, capsize=2.5, markersize=5
                )
            axis.set_xlim(min(positions) - 0.05 * width, max(positions) + 0.05 * width)
        low = min(axis.get_ylim()[0] for axis in axes)
        high = max(axis.get_ylim()[1] for axis in axes)
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_ylim(low, high)
            _name_lines(axis, panel.lines, styles)
        return _svg(figure, name=name, title=title, description=description)


def curves(panels: Sequence[Panel], *, name: str, title: str, description: str) -> str:
    """Many points a series, with bands instead of bars: training curves."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(panels)
        styles = _styles(panels)
        for axis, panel in zip(axes, panels, strict=True):
            for line in panel.lines:
                colour, _, dash = styles[line.name]
                axis.plot(line.x, line.y, color=colour, linestyle=dash, linewidth=1.5)
                if line.low:
                    axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            axis.margins(x=0.02)
            _name_lines(axis, panel.lines, styles)
        return _svg(figure, name=name, title=title, description=description)


def forest(differences: Sequence[Difference], *, x_label: str, name: str, title: str, description: str) -> str:
    """Differences with their intervals against 0; a filled marker where the interval excludes 0."""
    with matplotlib.rc_context(_STYLE):
        groups = [(heading, list(rows)) for heading, rows in groupby(differences, lambda row: row.heading)]
        num_rows = len(differences) + len(groups)
        figure = Figure(figsize=(8.6, 0.9 + 0.27 * num_rows), layout="constrained")
        axis = figure.subplots()
        ticks: list[tuple[float, str]] = []
        for heading, rows in groups:
            y = float(len(ticks))
            axis.annotate(
                heading, (0, y), (4, 0), ("axes fraction", "data"), "offset points", weight="bold", va="center", size=9
            )
            ticks.append((y, ""))
            axis.plot((0, 0), (y + 0.5, y + len(rows) + 0.5), color=_INK, linewidth=1)
            for row in rows:
                ticks.append((float(len(ticks)), row.name))
                _draw_difference(axis, row, ticks[-1][0])
        axis.set_yticks([y for y, _ in ticks], [label for _, label in ticks])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_ylim(num_rows - 0.4, -0.6)
        axis.set_xlabel(x_label)
        axis.grid(axis="x")
        return _svg(figure, name=name, title=title, description=description)


def _draw_difference(axis: Axes, row: Difference, y: float) -> None:
    excludes_zero = row.ends is not None and not row.ends[0] <= 0 <= row.ends[1]
    if row.ends:
        axis.plot(row.ends, (y, y), color=COLOURS[0], linewidth=2)
    marker = MARKERS[0] if row.ends else MARKERS[-1]
    face = COLOURS[0] if excludes_zero else "none"
    axis.plot(row.estimate, y, marker, color=COLOURS[0], markerfacecolor=face, markersize=6.5, markeredgewidth=1.5)


def _panels(panels: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    num_columns = min(2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    spacing = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)  # inches
    figure = Figure(figsize=(_PANEL_IN[0] * num_columns, _PANEL_IN[1] * num_rows), layout=spacing)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        axis.grid(axis="y")
        if panel.x_ticks:
            axis.set_xticks([x for x, _ in panel.x_ticks], [label for _, label in panel.x_ticks])
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure, axes[: len(panels)]


def _styles(panels: Sequence[Panel]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dash of each name: the same in all panels, and different for at least 24 names."""
    names = dict.fromkeys(line.name for panel in panels for line in panel.lines)
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, name in enumerate(names)
    }


def _name_lines(axis: Axes, lines: Sequence[Line], styles: dict[str, tuple[str, str, str]]) -> None:
    """Write each name right of its line's end, moved apart where two would overlap."""
    low, high = axis.get_ylim()
    ends = sorted(((line.y[-1] - low) / (high - low), line.x[-1], line.name) for line in lines if line.y)
    gap = min(_LABEL_GAP, 1 / max(1, len(ends)))
    heights = [height for height, _, _ in ends]
    for upper in range(1, len(heights)):
        heights[upper] = max(heights[upper], heights[upper - 1] + gap)
    if heights and heights[-1] > 1:  # pushed out above: push back down
        heights[-1] = 1.0
        for lower, upper in reversed(list(pairwise(range(len(heights))))):
            heights[lower] = min(heights[lower], heights[upper] - gap)
    for height, (_, x, name) in zip(heights, ends, strict=True):
        y = next(line.y[-1] for line in lines if line.name == name)
        arrow = {"arrowstyle": "-", "color": styles[name][0], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3}
        arrow |= {"relpos": (0, 0.5)}  # to the left end of the name, never through it
        axis.annotate(
            name, (x, y), (1.04, height), "data", "axes fraction", arrow, annotation_clip=False, va="center", size=8.5
        )


def _svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element with a title and a description for those who cannot see it."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    body = out.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # Several figures share a page: their ids must differ.
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = body.replace(_INK, "currentColor")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    assert size is not None  # matplotlib always writes it
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]} '
        f'width="{float(size[1]) * _PX_PER_PT:.0f}" height="{float(size[2]) * _PX_PER_PT:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return re.sub(r"<svg\b[^>]*>", lambda _: opening, body, count=1).strip() + "\n"
