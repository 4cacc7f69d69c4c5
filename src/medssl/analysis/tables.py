"""Tables of the report: one description, written as HTML for readers, as CSV for programs and as LaTeX for papers.

A table is text by then; whoever builds it has decided on decimals and units. Everything is escaped here, at the one
place where text becomes markup, because titles and names come from the study file.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

NOT_EVALUABLE = "not evaluable"
TOO_SMALL = "too few patients"
NOT_RUN = "not run"
# The first characters of OWASP's page on CSV injection, also in full width, and behind spaces.
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
_NUMBERS = re.compile(r"[-+]\d[-+\d.,e%\[\] ]*")
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
# Two hyphens as in e-5 or 40-60 stay: the sign of a number is the one that follows no letter or digit.


@dataclass(frozen=True)
class Cell:
    """What one cell shows.

    Attributes:
        text: The value as it reads.
        note: Why there is no value, or what the value leaves out; becomes a footnote of the table.
        strong: Whether the row's reader should see this cell first.
        task: The task of the study that made the value, where it is not that of its table.
        anchor: Of the cell within the page, where something links to it.
    """

    text: str
    note: str = ""
    strong: bool = False
    task: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Column:
    """A column; numbers are right-aligned with figures of equal width."""

    label: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: Lower-case words and hyphens: its CSV file and its anchor in the page.
        caption: What it shows, in a sentence or two.
        columns: Left to right; the first one, or with `grouped` the second one, heads the rows.
        rows: As many cells as columns.
        grouped: Whether rows that share the first cell stand together under it as a heading.
        task: The task of the study that made the numbers, where a cell names no other; "" where none did.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    grouped: bool = False
    task: str = ""


def text(label: str) -> Column:
    """A column of words."""
    return Column(label, numeric=False)


def build(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Iterable[Any]],
    *,
    grouped: bool = False,
    task: str = "",
) -> Table:
    """A table of cells, words and integers, which get a separator at thousands.

    Raises:
        ValueError: A row has another number of cells than there are columns.
    """
    cells = tuple(tuple(_cell(value) for value in row) for row in rows)
    if wrong := [len(row) for row in cells if len(row) != len(columns)]:
        raise ValueError(f"table {name}: {len(wrong)} rows have {wrong[0]} cells, expected {len(columns)}")
    return Table(name, caption, tuple(columns), cells, grouped, task)


def _cell(value: Cell | str | int) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(f"{value:,}" if isinstance(value, int) else value)


def real(value: float | None, *, decimals: int, reason: str = "") -> Cell:
    """A number, or the words that there is none, with the reason."""
    return Cell(NOT_EVALUABLE, reason or "no reason was recorded") if value is None else Cell(f"{value:.{decimals}f}")


def setting(value: float | int) -> str:
    """A hyper-parameter in the fewest digits that tell it apart."""
    return f"{value:.6g}"


def percent(share: float) -> str:
    """A share of 0-1 as a percentage without needless digits: 0.1 is "10 %"."""
    return f"{100 * share:.4g} %"


def is_absent(cell: Cell) -> bool:
    """Whether the cell stands for a value that could not be had."""
    return cell.text in (NOT_EVALUABLE, TOO_SMALL, NOT_RUN)


def to_csv(table: Table) -> str:
    """The table as RFC 4180 has it, with its footnotes in a last column, and nothing in it that would be computed."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*(no_formula(column.label) for column in table.columns), "notes"])
    for row in table.rows:
        notes = dict.fromkeys(cell.note for cell in row if cell.note)
        writer.writerow([*(no_formula(cell.text) for cell in row), no_formula("; ".join(notes))])
    return out.getvalue()


def no_formula(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that begins like a formula gets an apostrophe, as is usual.

    Numbers and intervals keep their sign. Names of conditions and sites come from tables that others wrote.
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell) else cell


_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        "≥": r"$\geq$",
        "→": r"$\rightarrow$",
        "–": "--",
        "\n": " ",
        "\r": " ",
    }
)


def to_latex(table: Table) -> str:
    """The table as a `longtable` without further packages than that; every word is escaped, so none is a command."""
    columns = table.columns[1:] if table.grouped else table.columns
    width = len(columns)
    lines = [
        rf"\begin{{longtable}}{{{''.join('r' if column.numeric else 'l' for column in columns)}}}",
        rf"\caption{{{_latex(table.caption)}}} \\ \hline",
        " & ".join(_latex(column.label) for column in columns) + r" \\ \hline \endhead",
    ]
    mark = marks(table)
    heading = None
    for row in table.rows:
        if table.grouped and row[0] != heading:
            heading = row[0]
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{{_latex_cell(heading, mark)}}} \\")
        lines.append(" & ".join(_latex_cell(cell, mark) for cell in row[-width:]) + r" \\")
    notes = [rf"\multicolumn{{{width}}}{{l}}{{{letter}: {_latex(note)}}} \\" for note, letter in mark.items()]
    return "\n".join([*lines, r"\hline", *notes, r"\end{longtable}", ""])


def _latex(words: str) -> str:
    return words.translate(_LATEX)


def _latex_cell(cell: Cell, mark: Mapping[str, str]) -> str:
    shown = _latex(_MINUS.sub("−", cell.text))
    return f"{shown}$^{{{mark[cell.note]}}}$" if cell.note else shown


def to_html(table: Table) -> str:
    """The table in a container that scrolls by itself, with its footnotes below it."""
    mark = marks(table)
    columns = table.columns[1:] if table.grouped else table.columns
    head = "".join(f'<th scope="col"{_align(column)}>{escape(column.label)}</th>' for column in columns)
    caption_id = f"caption-{table.name}"
    parts = [
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{caption_id}">',
        f'<table id="table-{table.name}">',
        f'<caption id="{caption_id}"><span>{escape(table.caption)}</span></caption>',
        f"<thead><tr>{head}</tr></thead>",
        *_bodies(table, columns, mark),
        "</table></div>",
    ]
    if mark:
        items = "".join(f"<li><b>{letter}</b> {escape(note)}</li>" for note, letter in mark.items())
        parts.append(f'<ul class="footnotes">{items}</ul>')
    return "\n".join(parts)


def _bodies(table: Table, columns: Sequence[Column], mark: Mapping[str, str]) -> Iterator[str]:
    if not table.grouped:
        yield f"<tbody>{''.join(_row(row, columns, mark, table.task) for row in table.rows)}</tbody>"
        return
    for heading, rows in groupby(table.rows, lambda row: row[0]):
        first = f'<tr><th scope="rowgroup" colspan="{len(columns)}">{_show(heading, mark)}</th></tr>'
        yield f"<tbody>{first}{''.join(_row(row[1:], columns, mark, table.task) for row in rows)}</tbody>"


def _row(cells: Sequence[Cell], columns: Sequence[Column], mark: Mapping[str, str], task: str) -> str:
    """One row; numbers link to the task that made them, but not that which heads the row: it is what was asked."""
    parts = []
    for place, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        linked = cell.task or (task if place and column.numeric else "")
        shown = _show(cell, mark, linked if re.search(r"\d", cell.text) or cell.task else "")
        anchor = f' id="{escape(cell.anchor)}"' if cell.anchor else ""
        inside = f"{anchor}{_align(column, absent=is_absent(cell))}>{shown}"
        parts.append(f"<td{inside}</td>" if place else f'<th scope="row"{inside}</th>')
    return f"<tr>{''.join(parts)}</tr>"


def _align(column: Column, *, absent: bool = False) -> str:
    classes = " ".join(["n"] * column.numeric + ["absent"] * absent)
    return f' class="{classes}"' if classes else ""


def _show(cell: Cell, mark: Mapping[str, str], task: str = "") -> str:
    shown = escape(_MINUS.sub("−", cell.text))
    shown = f"<strong>{shown}</strong>" if cell.strong else shown
    shown = link(task, shown) if task else shown
    return f"{shown}<sup>{mark[cell.note]}</sup>" if cell.note else shown


def link(task: str, markup: str) -> str:
    """Markup that leads to the row of a task in the page's lineage; `page.with_links` turns it to where it is kept."""
    return f'<a href="#{task_anchor(task)}" data-task="{escape(task)}">{markup}</a>'


def task_anchor(task: str) -> str:
    """The id of a task's row; different tasks have different ones."""
    plain = "".join(c if re.fullmatch(r"[A-Za-z0-9_-]", c) else ":" if c == " " else f".{ord(c):x}." for c in task)
    return f"task-{plain}"


def marks(table: Table) -> dict[str, str]:
    """The mark of each footnote."""
    return dict(zip(_notes(table), _letters(), strict=False))


def _notes(table: Table) -> list[str]:
    return list(dict.fromkeys(cell.note for row in table.rows for cell in row if cell.note))


def _letters() -> Iterator[str]:
    """The marks a to z, then aa, ab and so on without end."""
    place = 0
    while True:
        place += 1
        name, rest = "", place
        while rest:
            rest, digit = divmod(rest - 1, 26)
            name = chr(ord("a") + digit) + name
        yield name
