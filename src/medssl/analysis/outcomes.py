"""Tables of the report that show what came out: results of arms, and what could not be evaluated."""

from collections.abc import Sequence
from typing import Any

from medssl.analysis import tables
from medssl.analysis.groups import group_order
from medssl.analysis.results import (
    COMPARE,
    Evaluation,
    Labels,
    Results,
    Row,
    is_of,
    remark,
    sentence,
    slug,
    with_interval,
    with_spread,
    words,
)
from medssl.analysis.tables import Cell, Column, Table

VALIDATION = "validation"


def overview(results: Results, where: Evaluation, label_sets: Sequence[Labels], name: str) -> Table:
    """Primary metric of every arm at some label fractions: over repeats, and of the model that validation chose."""
    place = results.place(where)
    keys: dict[str, Any] = {"metric": results.primary.name, "k": results.primary.k}
    validation = Evaluation(where.dataset, VALIDATION)
    rows = [
        (
            results.arms[arm],
            results.name(labels),
            results.num_repeats(where, arm, labels),
            with_spread(results.row(where, arm, labels, repeat="mean", **keys)),
            with_interval(results.selected(where, arm, labels, **keys)),
            with_spread(results.row(validation, arm, labels, repeat="mean", **keys)),
        )
        for arm, labels in reported(results, where, label_sets)
    ]
    columns = [
        tables.text("Arm"),
        Column("Labels"),
        Column("Repeats"),
        Column(f"On {place}: mean ± SD"),
        Column(f"On {place}: selected model [{results.level} interval]"),
        Column("On validation, used for choices: mean ± SD"),
    ]
    over = " over the findings" if results.primary.part else ""
    caption = f"{sentence(results.primary_words)}{over} on {place}, by arm and share of the training labels."
    return tables.build(f"{name}-{slug(where)}", caption, columns, rows, grouped=len(label_sets) > 1, task=COMPARE)


def per_finding(
    results: Results, where: Evaluation, label_sets: Sequence[Labels], name: str, *, selected: bool
) -> Table:
    """AUC of each finding at some label fractions: mean over repeats, or of the selected model."""

    def cell(arm: str, labels: Labels, finding: str) -> Cell:
        keys = {"class": finding}
        if selected:
            return with_interval(results.selected(where, arm, labels, metric="auc", **keys))
        return with_spread(results.row(where, arm, labels, repeat="mean", metric="auc", **keys))

    rows = [
        (results.arms[arm], results.name(labels), *(cell(arm, labels, finding) for finding in results.findings))
        for arm, labels in reported(results, where, label_sets)
    ]
    what = f"selected model [{results.level} interval]" if selected else "mean ± standard deviation over repeats"
    caption = f"AUC per finding on {results.place(where)}: {what}."
    columns = [tables.text("Arm"), Column("Labels"), *(Column(finding) for finding in results.findings)]
    return tables.build(f"{name}-{slug(where)}", caption, columns, rows, grouped=len(label_sets) > 1, task=COMPARE)


def reported(results: Results, where: Evaluation, label_sets: Sequence[Labels]) -> list[tuple[str, Labels]]:
    """Arms with the label fractions, of those given, at which they were evaluated."""
    return [(arm, labels) for arm in results.arms for labels in label_sets if results.num_repeats(where, arm, labels)]


def _what(row: Row, results: Results) -> str:
    """The value of a row in words; of cases also which metric of a condition it is."""
    if "_gap" in row["metric"] or row["metric"].endswith("_drop"):
        return words(row["metric"].removeprefix(f"{results.primary.name}_"), row["k"])
    if not row["class"]:
        return words(row["metric"], row["k"])
    return row["class"] if results.unit_kind == "image" else f"{words(row['metric'], row['k'])}, {row['class']}"


def _by_age(key: tuple[str, str, str, str, str]) -> tuple[object, ...]:
    """Sorts as the words do, but groups of age by age."""
    outcome, place, group, *rest = key
    attribute, _, name = group.partition("=")
    return outcome, place, attribute, group_order(name), *rest


def not_evaluated(results: Results) -> Table:
    """Everything that has no value or no interval, with the reason and in how many rows of the metrics."""
    count: dict[tuple[str, str, str, str, str], int] = {}
    status = {
        "not_evaluable": tables.NOT_EVALUABLE,
        "too_small": "subgroup too small",
        "interval_withheld": "interval withheld",
        "not_resolvable": "adjusted p not resolvable",
    }
    for row in results.rows:
        once = row["status"] != "too_small" or is_of(row, results.primary)
        if row["status"] in status and row["repeat"] in ("mean", "selected") and once:
            what = _what(row, results)
            group = "all" if row["subgroup"] == "all" else row["subgroup"].replace("_", " ")
            place = results.place(Evaluation(row["dataset"], row["split"]))
            key = (status[row["status"]], place, group, what, remark(row) or "no reason recorded")
            count[key] = count.get(key, 0) + 1
    columns = [*map(tables.text, ("Outcome", "Split", "Subgroup", "Metric", "Reason")), Column("Values")]
    caption = "Values and intervals that could not be had. The last column counts arms, label fractions and pairs."
    rows = [(*key, count[key]) for key in sorted(count, key=_by_age)]
    return tables.build("not-evaluable", caption, columns, rows, grouped=True, task=COMPARE)
