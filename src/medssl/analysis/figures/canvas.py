"""What all figures share: style, colours, and the way from Matplotlib to SVG and PNG.

The same data give the same bytes, and text in SVG follows the page's light or dark colour. Series differ in colour
(Okabe and Ito's palette, told apart by colour-blind readers) and in marker or dash, and carry their names beside them,
so that nothing depends on colour alone.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from medssl.analysis.drawing import About, Drawing

# Okabe and Ito 2008, less black (it is the text's) and yellow (too faint on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
# Matplotlib knows no currentColor; this colour, used by nothing else, stands for the page's text colour.
INK = "#010203"
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
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_PANEL_IN = (5.4, 3.3)  # width and height of one panel, inches
_PX_PER_PT = 4 / 3  # of CSS; matplotlib draws in points
_PNG_DPI = 110
_PAD_IN = 0.1  # around all that is drawn
_DOTS = (0, (1, 2))  # of leaders to names: no dash of a series
_NAME_AT = 1.04  # where names of lines begin, share of the panel's width
_LABEL_GAP = 0.065  # least distance of two names, share of the panel's height


class Style(NamedTuple):
    """How a series is told apart."""

    colour: str
    marker: str
    dash: str


@contextmanager
def styled() -> Iterator[None]:
    """The shared style, while a figure is made and drawn."""
    with matplotlib.rc_context(_STYLE):
        yield


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The style of each name, in order: different for at least 24 names."""
    return {
        name: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def grid(num_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels, two in a row."""
    num_columns = min(2, num_panels)
    num_rows = -(-num_panels // num_columns)
    spacing = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)  # inches
    figure = Figure(figsize=(_PANEL_IN[0] * num_columns, _PANEL_IN[1] * num_rows), layout=spacing)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axis in axes[num_panels:]:
        axis.remove()
    return figure, axes[:num_panels]


def name_ends(axis: Axes, ends: Sequence[tuple[str, float, float]], look: dict[str, Style]) -> None:
    """Write each name right of its line's last point (x, y), moved apart where two would overlap.

    The axes must have their scales by now: thin dots lead from the point to its name, which lies outside of them.
    """
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    placed = sorted(((y - low) / (high - low), (x - left) / (right - left), name) for name, x, y in ends)
    gap = min(_LABEL_GAP, 1 / max(1, len(placed)))
    heights = [height for height, *_ in placed]
    for upper in range(1, len(heights)):
        heights[upper] = max(heights[upper], heights[upper - 1] + gap)
    if heights and heights[-1] > 1:  # pushed out above: push back down
        heights[-1] = 1.0
        for lower, upper in reversed(list(pairwise(range(len(heights))))):
            heights[lower] = min(heights[lower], heights[upper] - gap)
    for height, (y, x, name) in zip(heights, placed, strict=True):
        leader = Line2D((x, _NAME_AT), (y, height), color=look[name].colour, linewidth=0.8, alpha=0.8)
        leader.set(linestyle=_DOTS, transform=axis.transAxes, clip_on=False)
        axis.add_line(leader)
        axis.text(_NAME_AT + 0.005, height, name, transform=axis.transAxes, va="center", size=8.5)


def drawn(figure: Figure, about: About) -> Drawing:
    """The figure as an <svg> element with a title and a description for those who cannot see it, and as PNG."""
    # Layout and edges are found once; to find them for each file would take most of the time.
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    edges = figure.get_tightbbox().padded(_PAD_IN)
    return Drawing(_svg(figure, about, edges), _png(figure, edges))


def _png(figure: Figure, edges: Bbox) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_PNG_DPI, facecolor="white", bbox_inches=edges, metadata={"Software": None})
    return out.getvalue()


def _svg(figure: Figure, about: About, edges: Bbox) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, bbox_inches=edges, metadata=nothing)
    body = out.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # Several figures share a page: their ids must differ.
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{about.name}-", body)
    body = body.replace(INK, "currentColor")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    assert size is not None  # matplotlib always writes it
    ids = f"{about.name}-title", f"{about.name}-desc"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]} '
        f'width="{float(size[1]) * _PX_PER_PT:.0f}" height="{float(size[2]) * _PX_PER_PT:.0f}" role="img" '
        f'aria-labelledby="{" ".join(ids)}">\n'
        f'<title id="{ids[0]}">{escape(about.title)}</title>\n<desc id="{ids[1]}">{escape(about.description)}</desc>'
    )
    return re.sub(r"<svg\b[^>]*>", lambda _: opening, body, count=1).strip() + "\n"
