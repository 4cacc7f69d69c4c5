"""Figures whose rows are named at their left: differences against 0, and bars."""

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medssl.analysis.drawing import About, Drawing, Entry
from medssl.analysis.figures.canvas import COLOURS, INK, MARKERS, drawn, styled, styles

_ROW_IN, _MARGIN_IN = 0.27, 0.9  # height of a row, and of what stands around all


def forest(entries: Sequence[Entry], about: About, *, x_label: str) -> Drawing:
    """Values with their intervals against 0; a filled marker where the interval excludes 0."""
    with styled():
        figure, (axis,), places = _rows(entries, 1)
        for heading, y, count in places.headings:
            axis.plot((0, 0), (y + 0.5, y + count + 0.5), color=INK, linewidth=1)
            _head(axis, heading, y)
        for entry, y in zip(entries, places.entries, strict=True):
            excludes_zero = entry.ends is not None and not entry.ends[0] <= 0 <= entry.ends[1]
            if entry.ends:
                axis.plot(entry.ends, (y, y), color=COLOURS[0], linewidth=2)
            marker = MARKERS[0] if entry.ends else MARKERS[-1]
            face = COLOURS[0] if excludes_zero else "none"
            axis.plot(
                entry.estimate, y, marker, color=COLOURS[0], markerfacecolor=face, markersize=6.5, markeredgewidth=1.5
            )
        axis.set_xlabel(x_label)
        return drawn(figure, about)


def bars(columns: Sequence[tuple[str, Sequence[Entry]]], about: About) -> Drawing:
    """Bars from 0 with intervals; columns (x label, entries) hold the same rows of several metrics side by side."""
    with styled():
        figure, axes, places = _rows(columns[0][1], len(columns))
        for (x_label, entries), axis in zip(columns, axes, strict=True):
            look = styles(entry.name for entry in entries)
            for heading, y, _ in places.headings:
                _head(axis, heading, y)
            for entry, y in zip(entries, places.entries, strict=True):
                axis.barh(y, entry.estimate, height=0.72, color=look[entry.name].colour, alpha=0.75)
                if entry.ends:
                    axis.plot(entry.ends, (y, y), color=INK, linewidth=1.4)
            axis.set_xlabel(x_label)
            axis.set_xlim(left=0)
        return drawn(figure, about)


def dots(entries: Sequence[tuple[str, dict[str, float]]], about: About, *, x_label: str) -> Drawing:
    """A row a name with one dot a series: shares of the splits beside one another."""
    with styled():
        figure = Figure(figsize=(8.6, _MARGIN_IN + _ROW_IN * len(entries)), layout="constrained")
        axis = figure.subplots()
        names = dict.fromkeys(name for _, values in entries for name in values)
        look = styles(names)
        for name in names:
            known = [(values[name], y) for y, (_, values) in enumerate(entries) if name in values]
            x, y = zip(*known, strict=True)
            axis.plot(
                x, y, look[name].marker, color=look[name].colour, markerfacecolor="none", markersize=7, label=name
            )
        axis.set_yticks(range(len(entries)), [what for what, _ in entries])
        axis.set_ylim(len(entries) - 0.4, -0.6)
        axis.grid(axis="both")
        axis.set_xlabel(x_label)
        figure.legend(loc="outside upper left", ncols=len(names), frameon=False, fontsize=9)
        return drawn(figure, about)


class _Places:
    """Where rows stand: headings as (words, y, rows below), entries as y."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.headings: list[tuple[str, float, int]] = []
        self.entries: list[float] = []
        self.names: list[tuple[float, str]] = []
        y = 0.0
        for heading, below in groupby(entries, lambda entry: entry.heading):
            listed = list(below)
            self.headings.append((heading, y, len(listed)))
            self.names.append((y, ""))
            for entry in listed:
                y += 1
                self.entries.append(y)
                self.names.append((y, entry.name))
            y += 1


def _rows(entries: Sequence[Entry], num_columns: int) -> tuple[Figure, list[Axes], _Places]:
    """A figure with a row an entry and a row a heading, the first at the top."""
    places = _Places(entries)
    num_rows = len(places.names)
    figure = Figure(figsize=(8.6 if num_columns == 1 else 10.8, _MARGIN_IN + _ROW_IN * num_rows), layout="constrained")
    axes = list(figure.subplots(1, num_columns, squeeze=False, sharey=True).flat)
    axes[0].set_yticks([y for y, _ in places.names], [name for _, name in places.names])
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
    axes[0].set_ylim(num_rows - 0.4, -0.6)
    return figure, axes, places


def _head(axis: Axes, heading: str, y: float) -> None:
    axis.annotate(
        heading, (0, y), (4, 0), ("axes fraction", "data"), "offset points", weight="bold", va="center", size=9
    )
