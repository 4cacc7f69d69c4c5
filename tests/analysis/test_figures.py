"""What is drawn, read back from the SVG and the PNG."""

import io
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from medssl.analysis.drawing import About, Entry, Line, Panel
from medssl.analysis.figures import canvas, lines, rows

ABOUT = About("name-of-it", "A title & more", "First: a from 0.1 to 0.2 <seen>.")
FRACTIONS = [0.1, 1.0]


def panel(*drawn, title="Panel", y_label="AUC"):
    ticks = [(0.1, "10"), (1.0, "100")]
    return Panel(title, "Share", y_label, drawn, ticks)


def line(name, low=0.6, high=0.8, **more):
    return Line(name, FRACTIONS, [low, high], [low - 0.05, high - 0.05], [low + 0.05, high + 0.05], **more)


ENTRIES = [
    Entry("a minus b", "10 % of labels", 0.02, (0.01, 0.03)),
    Entry("a minus b", "100 % of labels", -0.01, (-0.03, 0.01)),
    Entry("c minus b", "100 % of labels", 0.05),
]
DRAWN = {
    "points": lambda: lines.points([panel(line("a"), line("b", 0.5))], ABOUT),
    "curves": lambda: lines.curves([panel(line("a"), line("b", 0.5))], ABOUT),
    "reliability": lambda: lines.reliability([panel(line("a", 0.1, 0.9))], ABOUT),
    "forest": lambda: rows.forest(ENTRIES, ABOUT, x_label="Difference"),
    "bars": lambda: rows.bars([("Top-1", ENTRIES[:2]), ("Top-3", ENTRIES[:2])], ABOUT),
    "dots": lambda: rows.dots([("female", {"train": 41, "test": 39}), ("old", {"train": 10})], ABOUT, x_label="%"),
}  # fmt: skip


@pytest.fixture(scope="module", params=DRAWN)
def drawing(request):
    return request.param, DRAWN[request.param]()


class Tags(HTMLParser):
    def __init__(self, svg):
        super().__init__()
        self.found = []
        self.feed(svg)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    handle_startendtag = handle_starttag


def test_a_figure_tells_its_title_and_what_is_seen_to_those_who_cannot_see_it(drawing):
    svg = drawing[1].svg
    assert 'role="img" aria-labelledby="name-of-it-title name-of-it-desc"' in svg
    assert '<title id="name-of-it-title">A title &amp; more</title>' in svg
    assert '<desc id="name-of-it-desc">First: a from 0.1 to 0.2 &lt;seen&gt;.</desc>' in svg


def test_lines_and_text_take_the_colour_of_the_page_and_the_background_is_the_pages(drawing):
    svg = drawing[1].svg
    assert "currentColor" in svg
    assert canvas.INK not in svg
    assert not re.search(r"fill: ?(#ffffff|white)", svg)


def test_ids_begin_with_the_name_and_references_lead_to_them(drawing):
    tags = Tags(drawing[1].svg).found
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(one.startswith("name-of-it-") for one in ids)
    used = {a["xlink:href"][1:] for _, a in tags if "xlink:href" in a}
    used |= {found for _, a in tags for found in re.findall(r"url\(#([^)]+)\)", " ".join(map(str, a.values())))}
    assert used <= set(ids)


def test_svg_and_png_are_the_same_bytes_each_time_and_know_neither_time_nor_program(drawing):
    name, first = drawing
    assert DRAWN[name]() == first
    assert not re.search(r"metadata|Created|\b20\d\d-\d\d", first.svg)
    image = Image.open(io.BytesIO(first.png))
    assert image.info.keys() <= {"dpi"}


def test_the_png_is_on_white_and_holds_the_colours_of_the_series(drawing):
    name, made = drawing
    pixels = np.asarray(Image.open(io.BytesIO(made.png)).convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    assert pixels.shape[1] > 500
    blue = np.array([int(canvas.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    shown = 255 + (blue - 255) * 0.75 if name == "bars" else blue
    assert (np.abs(pixels.astype(float) - shown).max(axis=2) < 3).sum() > 20


def test_styles_of_24_series_differ_and_neighbours_differ_in_more_than_colour():
    styles = list(canvas.styles(f"series {i}" for i in range(24)).values())
    assert len(set(styles)) == 24
    assert all(one.marker != other.marker for one, other in combinations(styles[:7], 2))
    assert canvas.styles(["b", "a", "b"]).keys() == {"a", "b"}


def luminance(colour):
    """WCAG's relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_the_dark_and_the_light_page():
    for colour in canvas.COLOURS:
        for page in ("#ffffff", "#14181c"):
            bright, dark = sorted((luminance(colour), luminance(page)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) > 2.2


def test_names_at_the_ends_of_lines_do_not_overlap_even_where_lines_meet():
    with canvas.styled():
        figure, (axis,) = canvas.grid(1)
        axis.set_ylim(0, 1)
        names = [f"series {i}" for i in range(8)]
        canvas.name_ends(axis, [(name, 1.0, 0.99) for name in names], canvas.styles(names))
        canvas.drawn(figure, ABOUT)
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the arrow to the line
    assert len(boxes) == 8
    for one, other in combinations(boxes, 2):
        assert one.y1 <= other.y0 + 1 or other.y1 <= one.y0 + 1


def test_panels_of_one_quantity_share_their_scale_and_others_do_not(monkeypatch):
    caught = []
    monkeypatch.setattr(lines, "drawn", lambda figure, about: caught.append(figure))
    lines.points([panel(line("a")), panel(line("b", 0.2)), panel(line("a", 5, 6), y_label="Other")], ABOUT)
    first, second, third = (axis.get_ylim() for axis in caught[0].axes)
    assert first == second != third
    assert second[0] < 0.15 < 0.85 < first[1]


def test_marks_of_another_source_are_large_and_hollow_in_shape_and_colour_of_their_line(monkeypatch):
    caught = []
    monkeypatch.setattr(lines, "drawn", lambda figure, about: caught.append(figure))
    lines.points([panel(line("a"), line("b", 0.5, marks=((0.1, 0.55), (1.0, 0.75))))], ABOUT)
    (marks,) = (drawn for drawn in caught[0].axes[0].lines if drawn.get_markerfacecolor() == "none")
    assert list(marks.get_ydata()) == [0.55, 0.75]
    assert (marks.get_color(), marks.get_marker()) == (canvas.COLOURS[1], canvas.MARKERS[1])
    assert marks.get_markersize() > 8


@pytest.mark.parametrize(("fractions", "rotation"), [([0.1, 0.5, 1.0], 0.0), ([0.1, 0.9, 1.0], 60.0)])
def test_labels_of_ticks_that_are_near_one_another_are_turned(monkeypatch, fractions, rotation):
    caught = []
    monkeypatch.setattr(lines, "drawn", lambda figure, about: caught.append(figure))
    ticks = [(fraction, f"{100 * fraction:g}") for fraction in fractions]
    lines.points([Panel("", "Share", "AUC", [Line("a", fractions, [0.5, 0.6, 0.7])], ticks)], ABOUT)
    assert {label.get_rotation() for label in caught[0].axes[0].get_xticklabels()} == {rotation}


def test_a_difference_is_filled_where_its_interval_excludes_0_and_crossed_where_there_is_none(monkeypatch):
    caught = []
    monkeypatch.setattr(rows, "drawn", lambda figure, about: caught.append(figure))
    rows.forest(ENTRIES, ABOUT, x_label="Difference")
    drawn = [one for one in caught[0].axes[0].lines if one.get_marker() in ("o", "X")]
    assert [(one.get_marker(), one.get_markerfacecolor() != "none") for one in drawn] == [
        ("o", True), ("o", False), ("X", False)
    ]  # fmt: skip
    assert [one.get_xdata()[0] for one in drawn] == [0.02, -0.01, 0.05]
