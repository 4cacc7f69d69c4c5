"""Parts of the report as Markdown, for places that show no page of ours, such as a model registry.

All words are escaped: what a study file, a table or another program wrote stays text.
"""

import re
from collections.abc import Iterable

from medssl.analysis.page import Heading, Note, Section
from medssl.analysis.tables import Cell, Table, marks

# Of CommonMark and of tables and links in GitHub's Markdown; within words, and at the start of a paragraph.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&#!@]|:(?=//))")
_OPENING = re.compile(r"^(\d*)([-+=.)])")


def of_section(section: Section, *, level: int = 1) -> str:
    """A section of texts and tables as Markdown.

    Args:
        section: Without figures or what is folded.
        level: Of its heading; those within are one lower.

    Raises:
        ValueError: A part is neither text nor table.
    """
    parts = [f"{'#' * level} {escaped(section.heading)}", *_parts(section, level + 1)]
    return "\n\n".join(parts) + "\n"


def _parts(section: Section, level: int) -> Iterable[str]:
    for part in section.parts:
        match part:
            case str():
                yield _paragraph(part)
            case Heading(words):
                yield f"{'#' * level} {escaped(words)}"
            case Note(words):
                yield f"> {_paragraph(words)}"
            case Table():
                yield _table(part)
            case _:
                raise ValueError(f"section {section.name}: a {type(part).__name__} has no form in Markdown")


def escaped(words: str) -> str:
    """Words in which nothing is markup, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(words.split()))


def _paragraph(words: str) -> str:
    """Words that begin no list and underline no heading."""
    return _OPENING.sub(r"\1\\\2", escaped(words))


def _table(table: Table) -> str:
    mark = marks(table)

    def shown(cell: Cell) -> str:
        words = f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text)
        return f"{words} ({mark[cell.note]})" if cell.note else words

    lines = [
        _row(escaped(column.label) for column in table.columns),
        _row("--:" if column.numeric else ":--" for column in table.columns),
        *(_row(map(shown, row)) for row in table.rows),
    ]
    notes = [f"({letter}) {escaped(note)}" for note, letter in mark.items()]
    return "\n\n".join([_paragraph(table.caption), "\n".join(lines), *notes])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
