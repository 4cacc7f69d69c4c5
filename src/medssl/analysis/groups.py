"""Tables of the report about subgroups: each group, the gaps between groups, and how arms differ in them."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from medssl.analysis import tables
from medssl.analysis.results import (
    SUBGROUPS,
    Evaluation,
    Labels,
    Results,
    Row,
    is_of,
    p_value,
    sentence,
    slug,
    with_interval,
    words,
)
from medssl.analysis.tables import Cell, Column, Table
from medssl.metrics import Metric

_BOTH = " & "  # between two attributes


def attributes(results: Results, where: Evaluation) -> list[str]:
    """Attributes by which subgroups were made; pairs, such as "sex & age_band", come last."""
    found = {name for place, _, name in results.by_attribute if place == where}
    return sorted(found, key=lambda name: (_BOTH in name, name))


def in_words(attribute: str) -> str:
    """An attribute, or two, as shown."""
    return attribute.replace(_BOTH, " and ").replace("_", " ")


def subgroups(
    results: Results,
    where: Evaluation,
    attribute: str,
    labels: Labels,
    *,
    metric: Metric | None = None,
    order: Sequence[str] = (),
) -> Table:
    """A metric of each arm's selected model within the groups of one attribute or two, and the gap between groups.

    Args:
        results: The metrics.
        where: Data set and split.
        attribute: Of the subgroups.
        labels: Label fraction and draw.
        metric: By default the primary one, which alone has a gap.
        order: Groups in the order of the rows; those that it lacks follow by number and name.
    """
    shown = metric or results.primary
    keys: dict[str, Any] = {"metric": shown.name, "k": shown.k}
    arms = [arm for arm in results.arms if results.num_repeats(where, arm, labels)]
    rows: list[list[Any]] = []
    for group, subgroup, first in _groups(results, where, attribute, labels, shown, order):
        cells = [with_interval(results.selected(where, arm, labels, **keys, subgroup=subgroup)) for arm in arms]
        rows.append([group, first["n_units"], first["n_patients"], *cells])
    name = f"subgroups-{slug(where)}-{attribute}-{labels.fraction:g}-{labels.draw}"
    if shown == results.primary:
        gaps = [gap_row(results, where, attribute, labels, arm) for arm in arms]
        rows.append(["Gap (largest − smallest)", "", "", *(_gap(row, attribute) for row in gaps)])
    else:
        name = f"{name}-{shown.log_name}"
    caption = (
        f"{sentence(words(shown.name, shown.k))} [{results.level} interval] on {results.place(where)} by "
        f"{in_words(attribute)}, selected models trained with {results.name(labels)} of the labels."
    )
    counts = (f"{results.unit_kind.capitalize()}s", f"{results.group_kind(where).capitalize()}s")
    columns = [tables.text("Group"), *map(Column, counts), *(Column(results.arms[arm]) for arm in arms)]
    file = re.sub(r"[^a-z0-9]+", "-", name)
    return tables.build(file, caption, columns, rows, task=SUBGROUPS)


def _groups(
    results: Results, where: Evaluation, attribute: str, labels: Labels, metric: Metric, order: Sequence[str]
) -> Iterator[tuple[str, str, Row]]:
    """Each group as shown and as the metrics name it, with any of its rows."""
    listed = results.by_attribute.get((where, labels, attribute), {})
    named = {_BOTH.join(part.partition("=")[2] for part in name.split(_BOTH)): name for name in listed}
    for group in sorted(named, key=lambda group: (_place(group, order), *map(group_order, group.split(_BOTH)))):
        if of_metric := [row for row in listed[named[group]] if is_of(row, metric)]:
            yield group, named[group], of_metric[0]


def group_entries(
    results: Results, where: Evaluation, attribute: str, labels: Labels, metric: Metric, order: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, Row]]]:
    """Each group with its units and, where it has a value, the row of each arm's selected model."""
    for group, subgroup, first in _groups(results, where, attribute, labels, metric, order):
        found = {
            arm: row
            for arm in results.arms
            if (
                row := results.selected(where, arm, labels, metric=metric.name, k=metric.k, subgroup=subgroup)
            ) and row["estimate"] is not None
        }  # fmt: skip
        yield group, first["n_units"], found


def gap_row(
    results: Results, where: Evaluation, attribute: str, labels: Labels, arm: str, kind: str = ""
) -> Row | None:
    """The gap of an arm between the groups of an attribute; `kind` "_raw" is the one before correction."""
    primary = results.primary
    return results.selected(where, arm, labels, metric=f"{primary.name}_gap{kind}", k=primary.k, subgroup=attribute)


def gaps(results: Results, where: Evaluation, labels: Labels, *, pairs: bool) -> Table:
    """Largest minus smallest group for each arm: as it stands, and freed of its bias, by attribute or by two."""
    rows = []
    for attribute in (name for name in attributes(results, where) if (_BOTH in name) == pairs):
        for arm, name in results.arms.items():
            row = gap_row(results, where, attribute, labels, arm)
            if row is None:
                continue
            raw_row = gap_row(results, where, attribute, labels, arm, "_raw")
            raw = with_interval(raw_row) if raw_row else Cell("–")
            raw_cell = Cell(raw.text, raw.note.removeprefix("interval withheld: "), task=raw.task)
            rows.append((sentence(in_words(attribute)), name, raw_cell, with_interval(row), p_value(row["p"])))
    columns = [tables.text("By"), tables.text("Arm"), Column("Gap as it stands")]
    columns += [Column(f"Gap, corrected [{results.level} interval]"), Column("p of equal groups")]
    caption = (
        f"Gaps in {results.primary_words} between groups on {results.place(where)}, {results.name(labels)} of labels. "
        "As it stands, a largest difference is too large on average; the corrected one is not, and is cut at 0."
    )
    name = f"gaps{'-pairs' if pairs else ''}-{slug(where)}"
    return tables.build(name, caption, columns, rows, grouped=True, task=SUBGROUPS)


def gap_differences(results: Results, where: Evaluation, labels: Labels) -> Table:
    """How the gaps of two arms differ, on the same resamples."""
    metric = f"{results.primary.name}_gap_difference"
    found = [
        row
        for row in results.of_whole_splits.get((where, metric), ())
        if Labels(row["label_fraction"], row["draw"]) == labels
    ]
    rows = [
        (
            sentence(in_words(row["subgroup"])),
            f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}",
            with_interval(row),
            p_value(row["p"]),
        )
        for row in sorted(found, key=lambda row: (_BOTH in row["subgroup"], row["subgroup"]))
    ]
    columns = [*map(tables.text, ("By", "Pair")), Column(f"Difference of gaps [{results.level} interval]"), Column("p")]
    caption = f"Gaps of the first arm minus those of the second on {results.place(where)}; below 0 it is the more even."
    return tables.build(f"gap-differences-{slug(where)}", caption, columns, rows, grouped=True, task=SUBGROUPS)


def _place(group: str, order: Sequence[str]) -> int:
    return list(order).index(group) if group in order else len(order)


def _gap(row: Row | None, attribute: str) -> Cell:
    cell = with_interval(row)
    if row is not None and row["estimate"] is not None and row["p"] is not None:
        cell = Cell(f"{cell.text}, p {p_value(row['p'])}", cell.note, task=cell.task)
    groups, separator, left_out = cell.note.replace(f"{attribute}=", "").partition("left out: ")
    if attribute == "age_band":
        left_out = ", ".join(sorted(left_out.split(", "), key=group_order))
    return Cell(cell.text, f"{groups}{separator}{left_out}", task=cell.task)


def group_order(group: str) -> tuple[bool, float, bool, str]:
    """Ages by number with "<40" before "40-60"; names by alphabet; the unknown last."""
    number = re.search(r"\d+(\.\d+)?", group)
    return group in ("unmapped", "unknown"), float(number[0]) if number else 0.0, not group.startswith("<"), group
