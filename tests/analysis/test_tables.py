import csv
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.analysis import tables
from medssl.analysis.tables import Cell, Column


def a_table(rows, *, grouped=False):
    columns = [tables.text("Group"), tables.text("Name"), Column("Value")]
    return tables.build("some", "A caption.", columns, rows, grouped=grouped)


def test_every_text_is_escaped_in_captions_headers_cells_and_notes():
    hostile = '<img src="x" onerror=alert(1)>&'
    table = tables.build("some", hostile, [tables.text(hostile), Column(hostile)], [[hostile, Cell("1", hostile)]])
    html = tables.to_html(table)
    assert "<img" not in html
    assert html.count("&lt;img src=&quot;x&quot; onerror=alert(1)&gt;&amp;") == 5


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_words_survive_the_way_through_csv(words):
    table = tables.build("some", "", [tables.text("a")], [[word] for word in words])
    rows = list(csv.reader(io.StringIO(tables.to_csv(table), newline="")))
    for (cell, _), word in zip(rows[1:], words, strict=True):
        assert cell in (word, f"'{word}")
        assert not cell.startswith(("=", "@", "\t", "\r", "\n"))


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+1+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\t=1", "\r=1",
        " =1", "\u00a0=1", "＝1", "＋x", "－x", "＠x", "-", "+", "--1", "-x",
    ],
)  # fmt: skip
def test_no_cell_header_or_note_of_a_csv_is_a_formula(cell):
    table = tables.build("some", "", [tables.text(cell), Column("v")], [[cell, Cell("1", cell)]])
    found = list(csv.reader(io.StringIO(tables.to_csv(table), newline="")))
    assert found == [[f"'{cell}", "v", "notes"], [f"'{cell}", "1", f"'{cell}"]]


@pytest.mark.parametrize("cell", ["-0.012 [-0.030, 0.006]", "-1", "+2.5", "-1e-05", "-3.2 %", "a=b", "(-1)", "x-y", ""])
def test_numbers_and_other_words_of_a_csv_stay_as_they_are(cell):
    assert tables.no_formula(cell) == cell


def test_rows_that_share_the_first_cell_stand_under_it_as_one_heading():
    html = tables.to_html(a_table([["A", "x", 1], ["A", "y", 2], ["B", "x", 3]], grouped=True))
    headings = re.findall(r'<th scope="rowgroup" colspan="2">(.)</th>', html)
    assert headings == ["A", "B"]
    assert html.count("<tbody>") == 2
    assert re.findall(r'<th scope="row">(.)</th>', html) == ["x", "y", "x"]


def test_equal_notes_share_one_footnote_and_its_mark():
    rows = [["A", "x", Cell("1", "first")], ["A", "y", Cell("2", "second")], ["B", "x", Cell("3", "first")]]
    html = tables.to_html(a_table(rows))
    assert re.findall(r"(\d)<sup>(\w)</sup>", html) == [("1", "a"), ("2", "b"), ("3", "a")]
    assert re.findall(r"<li><b>(\w)</b> (\w+)</li>", html) == [("a", "first"), ("b", "second")]


def test_more_than_26_footnotes_have_distinct_marks():
    html = tables.to_html(a_table([["A", "x", Cell("1", f"note {i}")] for i in range(60)]))
    marks = re.findall(r"<li><b>(\w+)</b>", html)
    assert len(set(marks)) == 60
    assert marks[25:28] == ["z", "aa", "ab"]


def test_numbers_are_aligned_and_words_are_not():
    html = tables.to_html(a_table([["A", "x", 1234567]]))
    assert '<td class="n">1,234,567</td>' in html
    assert "<td>x</td>" in html


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("-0.012 [-0.030, 0.006]", "−0.012 [−0.030, 0.006]"),
        ("40-60", "40-60"),
        ("1e-05", "1e-05"),
        ("AP-1 to -2", "AP-1 to −2"),
        ("ImageNet-&gt;Derm", "ImageNet-&amp;gt;Derm"),
    ],
)
def test_only_the_sign_of_a_number_becomes_a_minus_sign(written, shown):
    assert f">{shown}</td>" in tables.to_html(a_table([["A", written, 1]]))


def test_an_absent_value_says_why():
    cell = tables.real(None, decimals=3, reason="no positives")
    assert cell == Cell("not evaluable", "no positives")
    assert 'class="n absent">not evaluable<sup>a</sup>' in tables.to_html(a_table([["A", "x", cell]]))
    assert tables.to_csv(a_table([["A", "x", cell]])).splitlines()[1] == "A,x,not evaluable,no positives"


@given(st.floats(0, 1))
def test_a_share_reads_as_its_percentage(share):
    number, sign = tables.percent(share).split(" ")
    assert sign == "%"
    assert math.isclose(float(number), 100 * share, rel_tol=5e-4)


def test_a_share_shows_no_digits_of_binary_rounding():
    assert [tables.percent(share) for share in (0.1, 3 * 0.1, 0.625, 1.0)] == ["10 %", "30 %", "62.5 %", "100 %"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 rows have 2 cells, expected 3"):
        a_table([["A", "x", 1], ["A", "x"]])
