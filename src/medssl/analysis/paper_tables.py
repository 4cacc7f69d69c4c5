"""Tables B.1 to B.6 of the paper's supplement: each printed value beside this study's, and their difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medssl.analysis import published, tables
from medssl.analysis.published import Published
from medssl.analysis.results import (
    Evaluation,
    Results,
    arm_rows,
    sentence,
    slug,
    with_interval,
    with_spread,
    words,
)
from medssl.analysis.tables import NOT_RUN, Cell, Column, Table, percent

DECIMALS = 4  # as printed
SELECTED = "B.1"  # the one table of best models instead of means over runs
_TITLES: Mapping[str, str] = {
    "B.1": "best models against BiT",
    "B.2": "MICLe with full and with partial augmentation",
    "B.3": "dermatology by architecture and pretraining",
    "B.4": "MICLe against SimCLR",
    "B.5": "dermatology with 10, 50 and 90 % of the labels",
    "B.6": "CheXpert, AUC per pathology",
}


@dataclass(frozen=True)
class Beside:
    """A table of the supplement beside this study.

    Attributes:
        name: "B.1" to "B.6".
        title: What it is about.
        num_values: Printed and derived.
        num_here: Of them with a value of this study.
        table: None where no arm of the study is in it.
    """

    name: str
    title: str
    num_values: int
    num_here: int
    table: Table | None


def beside(results: Results, where: Evaluation, arms: pa.Table, groups: Mapping[str, Sequence[str]]) -> list[Beside]:
    """The tables about this study's kind of unit, in order.

    Args:
        results: The metrics.
        where: The study's own test split.
        arms: schema.ARMS.
        groups: Name to arms that are variants of one method; a group whose arms match stands in their place.
    """
    names = [name for name, kind in published.TABLES.items() if kind == results.unit_kind]
    return [_beside(name, results, where, arms, groups) for name in names]


def _beside(
    name: str, results: Results, where: Evaluation, arms: pa.Table, groups: Mapping[str, Sequence[str]]
) -> Beside:
    described = arm_rows(results, arms)
    values = published.of_table(name)
    rows, num_here = [], 0
    is_matched = False
    for value in sorted(values, key=lambda v: _order(v, values)):
        matching = _arms_of(value, described, groups)
        is_matched |= bool(matching)
        is_here = False
        for arm in matching or [""]:
            own, number = _own(value, results, where, arm)
            is_here |= number is not None
            rows.append(_row(value, own, number, results.arms.get(arm, "") if len(matching) > 1 else ""))
        num_here += is_here
    columns = [tables.text(""), tables.text("Method"), Column("Published"), Column("Here"), Column("Difference")]
    ours = "the selected model [its interval]" if name == SELECTED else "mean ± standard deviation over repeats"
    caption = f"Table {name} of the supplement, {_TITLES[name]}: as printed, and {ours} on {results.place(where)} here."
    file = f"paper-{name.lower().replace('.', '')}-{slug(where)}"
    table = tables.build(file, caption, columns, rows, grouped=True) if is_matched else None
    return Beside(name, _TITLES[name], len(values), num_here, table)


def _order(value: Published, values: Sequence[Published]) -> tuple[int, ...]:
    """By architecture and metric, in the order of print, so that methods stand below one another."""
    firsts = [list(dict.fromkeys(key(v) for v in values)) for key in (_architecture, _what)]
    return firsts[0].index(_architecture(value)), firsts[1].index(_what(value)), values.index(value)


def _architecture(value: Published) -> str:
    return value.architecture


def _what(value: Published) -> str:
    """The metric as shown: of a finding its AUC, of what is not printed that it is derived."""
    name = sentence(words(value.metric.name, value.metric.k))
    return f"{name}, {value.class_name}" if value.class_name else f"{name} (derived)" if value.is_derived else name


def _arms_of(
    value: Published, described: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """The arms, or the groups of them, that a value is about."""
    found = [
        arm
        for arm, row in described.items()
        if published.matches(
            value, architecture=row["architecture"], method=row["method"], augmentation=row["augmentation"]
        )
    ]
    for group, members in groups.items():
        if set(members) & set(found):
            found = [group, *(arm for arm in found if arm not in members)]
    return found


def _own(value: Published, results: Results, where: Evaluation, arm: str) -> tuple[Cell, float | None]:
    """This study's cell and number for a value; without an arm, or an evaluation of it, "not run"."""
    labels = [one for one in results.labels if abs(one.fraction - value.label_fraction) < 1e-9]
    keys: dict[str, Any] = {"metric": value.metric.name, "k": value.metric.k, "class": value.class_name}
    for one in labels[:1] if arm else ():
        if value.table == SELECTED:
            row, make = results.selected(where, arm, one, **keys), with_interval
        else:
            row, make = results.row(where, arm, one, repeat="mean", **keys), with_spread
        if row is not None:
            return make(row, decimals=DECIMALS), row["estimate"]
    return Cell(NOT_RUN), None


def _row(value: Published, own: Cell, number: float | None, arm: str) -> tuple[Cell | str, ...]:
    plus_minus = f" ± {value.plus_minus}" if value.plus_minus else ""
    notes = [value.source] if value.is_derived else []
    notes += [f"published ±: {value.plus_minus_is}"] if value.plus_minus else []
    method = value.method + (f", {value.augmentation} augmentation" if value.augmentation else "")
    method += f", {percent(value.label_fraction)} of labels" if value.table == "B.5" else ""
    return (
        f"{value.architecture}: {_what(value)}",
        f"{method} ({arm})" if arm else method,
        Cell(f"{value.printed}{plus_minus}", "; ".join(notes), task=""),
        own,
        Cell("–") if number is None else Cell(f"{number - value.value:+.{DECIMALS}f}", task=own.task),
    )
