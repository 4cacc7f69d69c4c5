"""Figures of series: few points with error bars, many with bands, and reliability curves."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medssl.analysis.drawing import About, Drawing, Line, Panel
from medssl.analysis.figures.canvas import INK, Style, drawn, grid, name_ends, styled, styles

_CROWDED = 0.13  # neighbouring ticks nearer than this share of the range of x run into one another
_SHIFT = 0.008  # between lines at one x, share of the range of x


def points(panels: Sequence[Panel], about: About) -> Drawing:
    """Few points a series, with markers and error bars; large hollow markers are the marks of another source."""
    with styled():
        figure, axes, look = _panels(panels)
        for axis, panel in zip(axes, panels, strict=True):
            positions = [x for x, _ in panel.x_ticks]
            width = (max(positions) - min(positions)) or 1.0
            for place, line in enumerate(panel.lines):
                # Shifted a little, so that the bars of lines do not hide one another.
                shift = (place - (len(panel.lines) - 1) / 2) * _SHIFT * width
                _draw_points(axis, line, look[line.name], shift)
            axis.set_xlim(min(positions) - 0.05 * width, max(positions) + 0.05 * width)
        _share_scales(axes, panels)
        for axis, panel in zip(axes, panels, strict=True):
            _name_lines(axis, panel.lines, look)
        return drawn(figure, about)


def _draw_points(axis: Axes, line: Line, style: Style, shift: float) -> None:
    x = [value + shift for value in line.x]
    bars = None
    if line.low:
        down = [y - low for y, low in zip(line.y, line.low, strict=True)]
        up = [high - y for y, high in zip(line.y, line.high, strict=True)]
        bars = (down, up)
    axis.errorbar(
        x, line.y, bars, color=style.colour, marker=style.marker, linestyle=style.dash, capsize=2.5, markersize=5
    )
    if line.marks:
        marked_x, marked_y = zip(*line.marks, strict=True)
        shifted = [value + shift for value in marked_x]
        axis.plot(shifted, marked_y, style.marker, color=style.colour, markerfacecolor="none", markersize=9)


def _share_scales(axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Panels of the same quantity get the same scale."""
    for quantity in {panel.y_label for panel in panels}:
        same = [axis for axis, panel in zip(axes, panels, strict=True) if panel.y_label == quantity]
        low, high = min(axis.get_ylim()[0] for axis in same), max(axis.get_ylim()[1] for axis in same)
        for axis in same:
            axis.set_ylim(low, high)


def curves(panels: Sequence[Panel], about: About) -> Drawing:
    """Many points a series, with bands instead of bars: training curves."""
    with styled():
        figure, axes, look = _panels(panels)
        for axis, panel in zip(axes, panels, strict=True):
            for line in panel.lines:
                style = look[line.name]
                axis.plot(line.x, line.y, color=style.colour, linestyle=style.dash, linewidth=1.5)
                if line.low:
                    axis.fill_between(line.x, line.low, line.high, color=style.colour, alpha=0.18, linewidth=0)
            axis.margins(x=0.02)
            _name_lines(axis, panel.lines, look)
        return drawn(figure, about)


def reliability(panels: Sequence[Panel], about: About) -> Drawing:
    """Share of positives against the mean score of bins, beside the diagonal on which scores are probabilities."""
    with styled():
        figure, axes, look = _panels(panels)
        for axis, panel in zip(axes, panels, strict=True):
            axis.plot((0, 1), (0, 1), color=INK, linewidth=0.8, alpha=0.6)
            for line in panel.lines:
                style = look[line.name]
                axis.plot(line.x, line.y, color=style.colour, marker=style.marker, linestyle=style.dash, markersize=3.5)
            axis.set_xlim(-0.02, 1.02)
            axis.set_ylim(-0.02, 1.02)
            _name_lines(axis, panel.lines, look)
        return drawn(figure, about)


def _panels(panels: Sequence[Panel]) -> tuple[Figure, list[Axes], dict[str, Style]]:
    figure, axes = grid(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        axis.grid(axis="y")
        if panel.x_ticks:
            positions = [x for x, _ in panel.x_ticks]
            axis.set_xticks(positions, [label for _, label in panel.x_ticks])
            if any(right - left < _CROWDED * (positions[-1] - positions[0]) for left, right in pairwise(positions)):
                axis.tick_params(axis="x", labelrotation=60)
    return figure, axes, styles(line.name for panel in panels for line in panel.lines)


def _name_lines(axis: Axes, lines: Sequence[Line], look: dict[str, Style]) -> None:
    name_ends(axis, [(line.name, line.x[-1], line.y[-1]) for line in lines if line.y], look)
