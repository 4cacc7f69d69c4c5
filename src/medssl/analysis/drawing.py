"""What a figure is drawn from, and what comes out: numbers and names, without a library that draws."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Drawing:
    """A drawn figure.

    Attributes:
        svg: An <svg> element with a title and a description, in the page's text colour.
        png: The same as an image on white.
    """

    svg: str
    png: bytes


@dataclass(frozen=True)
class About:
    """What a figure is called, and told to those who cannot see it.

    Attributes:
        name: Lower-case words and hyphens: of its files and its ids.
        title: In a few words.
        description: What is to be seen, with its numbers.
    """

    name: str
    title: str
    description: str


@dataclass(frozen=True)
class Line:
    """A series: for each x a value and the ends of its bar or band; empty ends mean that there is none.

    `marks` are single points (x, y) of the same series that another source gives, such as the paper.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marks: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """Series on common axes.

    Attributes:
        title: Above the panel; may be "".
        x_label: With its unit.
        y_label: With its unit; panels that share it share their scale.
        lines: In the order of their colours.
        x_ticks: Position and text of each tick; empty leaves the choice to the axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Entry:
    """One row of a figure of rows: a difference, a gap, or a bar; without ends its interval is withheld.

    Attributes:
        heading: Rows that share it stand under it.
        name: Of the row.
        estimate: The value.
        ends: Of its interval.
    """

    heading: str
    name: str
    estimate: float
    ends: tuple[float, float] | None = None
