"""Tables of the report that show outcomes: results, differences, subgroups, and what could not be evaluated."""

import re
from collections.abc import Sequence
from typing import Any

from medssl.analysis import tables
from medssl.analysis.results import (
    DECIMALS,
    Evaluation,
    Labels,
    Results,
    Row,
    is_of,
    remark,
    sentence,
    with_interval,
    with_spread,
    words,
)
from medssl.analysis.runs import attributes_of
from medssl.analysis.tables import Cell, Column, Table
from medssl.metrics import Metric

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
    return tables.build(f"{name}-{slug(where)}", caption, columns, rows, grouped=len(label_sets) > 1)


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
    return tables.build(f"{name}-{slug(where)}", caption, columns, rows, grouped=len(label_sets) > 1)


def reported(results: Results, where: Evaluation, label_sets: Sequence[Labels]) -> list[tuple[str, Labels]]:
    """Arms with the label fractions, of those given, at which they were evaluated."""
    return [(arm, labels) for arm in results.arms for labels in label_sets if results.num_repeats(where, arm, labels)]


def slug(where: Evaluation) -> str:
    """An evaluation as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{where.dataset}-{where.split}".lower())


def difference_rows(results: Results, where: Evaluation, *, metrics: Sequence[Metric]) -> list[Row]:
    """Metrics rows of paired differences, by pair, label fraction, metric, finding and resampling unit."""
    places = {(metric.name, metric.k): place for place, metric in enumerate(metrics)}
    found = [
        row
        for row in results.rows
        if row["arm_b"] is not None and (row["metric"], row["k"]) in places and (row["dataset"], row["split"]) == where
    ]
    first = results.resampled(where)

    def order(row: Row) -> tuple[int, float, int, int, int, bool, str]:
        finding = list(results.findings).index(row["class"]) if row["class"] in results.findings else 0
        unit = row["resampling_unit"]
        place = list(results.pairs).index((row["arm_a"], row["arm_b"]))
        metric = places[row["metric"], row["k"]]
        return (place, row["label_fraction"], row["draw"], metric, finding, unit != first, unit)

    return sorted(found, key=order)


def differences(results: Results, where: Evaluation) -> Table:
    """Paired differences of selected models in the primary metric, with adjusted p values."""
    rows = difference_rows(results, where, metrics=[results.primary])
    what = results.primary_words
    return _differences(results, where, rows, name="mean" if results.primary.part else "primary", what=what, by="")


def secondary_differences(results: Results, where: Evaluation, metrics: Sequence[Metric]) -> Table:
    """Paired differences of selected models without adjusted p values: per finding, or in several metrics."""
    rows = difference_rows(results, where, metrics=metrics)
    per_class = any(row["class"] for row in rows)
    what = f"{words(metrics[0].name, metrics[0].k)} per {results.class_word}" if per_class else "other metrics"
    by, name = (results.class_word.capitalize(), f"{results.class_word}s") if per_class else ("Metric", "metrics")
    return _differences(results, where, rows, name=name, what=f"{what}; these p values are not adjusted", by=by)


def _differences(results: Results, where: Evaluation, found: Sequence[Row], *, name: str, what: str, by: str) -> Table:
    """Rows of differences; `by` heads the column of findings or metrics, or is "" for adjusted p values instead."""
    rows = [
        (
            f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}",
            results.name(Labels(row["label_fraction"], row["draw"])),
            row["class"] or sentence(words(row["metric"], row["k"])),
            row["resampling_unit"] or "–",
            with_interval(row),
            _p(row["p"]),
            _p(row["p_adjusted"]),
            row["n_replicates"] or "–",
            verdict(row, alpha=results.alpha),
        )
        for row in found
    ]
    columns = [
        tables.text("Pair"),
        Column("Labels"),
        tables.text(by),
        tables.text("Resampled"),
        Column(f"Difference [{results.level} interval]"),
        Column("p"),
        Column("p (Holm)"),
        Column("Replicates"),
        tables.text("In words"),
    ]
    kept = [c for c in range(len(columns)) if c != (6 if by else 2)]
    return tables.build(
        f"differences-{name}-{slug(where)}",
        f"Differences on {results.place(where)} between selected models, on the same resamples: {what}.",
        [columns[c] for c in kept],
        [[row[c] for c in kept] for row in rows],
        grouped=True,
    )


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    smallest = 10.0**-DECIMALS
    return f"<{smallest:.{DECIMALS}f}" if value < smallest / 2 else f"{value:.{DECIMALS}f}"


def verdict(row: Row, *, alpha: float) -> str:
    """A difference in words; the adjusted p value decides where there is one.

    Significant means that the interval of the paired difference excludes 0 (supplement B.1.1); Holm's adjustment
    for the number of pairs is stricter.
    """
    if row["estimate"] is None:
        return "not assessed"
    if row["ci_low"] is None:
        return "not assessed, interval withheld"
    if row["ci_low"] <= 0 <= row["ci_high"]:
        return "interval includes 0"
    if row["p_adjusted"] is not None and row["p_adjusted"] > alpha:
        return "excludes 0, but not after adjustment"
    return f"first arm {'higher' if row['estimate'] > 0 else 'lower'}"


def attributes(results: Results, where: Evaluation) -> set[str]:
    """Attributes by which subgroups were made."""
    named = (attributes_of(row["subgroup"]) for row in results.rows if (row["dataset"], row["split"]) == where)
    return {" & ".join(names) for names in named if names}


def subgroups(
    results: Results,
    where: Evaluation,
    attribute: str,
    labels: Labels,
    *,
    metric: Metric | None = None,
    order: Sequence[str] = (),
) -> Table:
    """A metric of each arm's selected model within the groups of one attribute, and the gap between groups.

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
    by_group: dict[str, Row] = {}
    for row in results.rows:
        place = Evaluation(row["dataset"], row["split"]), Labels(row["label_fraction"], row["draw"])
        if attributes_of(row["subgroup"]) == (attribute,) and is_of(row, shown) and place == (where, labels):
            by_group.setdefault(row["subgroup"].removeprefix(f"{attribute}="), row)
    arms = [arm for arm in results.arms if results.num_repeats(where, arm, labels)]
    rows: list[list[Any]] = []
    for group in sorted(by_group, key=lambda group: (_place(group, order), _group_order(group))):
        group_keys = keys | {"subgroup": f"{attribute}={group}"}
        cells = [with_interval(results.selected(where, arm, labels, **group_keys)) for arm in arms]
        rows.append([group, by_group[group]["n_units"], by_group[group]["n_patients"], *cells])
    name = f"subgroups-{slug(where)}-{attribute}-{labels.fraction:g}-{labels.draw}"
    if shown == results.primary:
        gap_keys: dict[str, Any] = {"metric": f"{shown.name}_gap", "k": shown.k, "subgroup": attribute}
        gaps = [results.selected(where, arm, labels, **gap_keys) for arm in arms]
        rows.append(["Gap (largest − smallest)", "", "", *(_gap(row, attribute) for row in gaps)])
    else:
        name = f"{name}-{shown.log_name}"
    caption = (
        f"{sentence(words(shown.name, shown.k))} [{results.level} interval] on {results.place(where)} by "
        f"{attribute.replace('_', ' ')}, selected models trained with {results.name(labels)} of the labels."
    )
    counts = (f"{results.unit_kind.capitalize()}s", f"{results.group_kind(where).capitalize()}s")
    columns = [tables.text("Group"), *map(Column, counts), *(Column(results.arms[arm]) for arm in arms)]
    return tables.build(name.replace(".", "-").replace("_", "-"), caption, columns, rows)


def _place(group: str, order: Sequence[str]) -> int:
    return list(order).index(group) if group in order else len(order)


def _gap(row: Row | None, attribute: str) -> Cell:
    cell = with_interval(row)
    if row is not None and row["estimate"] is not None and row["p"] is not None:
        cell = Cell(f"{cell.text}, p {_p(row['p'])}", cell.note)
    groups, separator, left_out = cell.note.replace(f"{attribute}=", "").partition("left out: ")
    if attribute == "age_band":
        left_out = ", ".join(sorted(left_out.split(", "), key=_group_order))
    return Cell(cell.text, f"{groups}{separator}{left_out}")


def _group_order(group: str) -> tuple[bool, float, bool, str]:
    """Ages by number with "<40" before "40-60"; names by alphabet; the unknown last."""
    number = re.search(r"\d+(\.\d+)?", group)
    return group in ("unmapped", "unknown"), float(number[0]) if number else 0.0, not group.startswith("<"), group


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
    return outcome, place, attribute, _group_order(name), *rest


def not_evaluated(results: Results) -> Table:
    """Everything that has no value or no interval, with the reason and in how many rows of the metrics."""
    count: dict[tuple[str, str, str, str, str], int] = {}
    status = {
        "not_evaluable": tables.NOT_EVALUABLE,
        "too_small": "subgroup too small",
        "interval_withheld": "interval withheld",
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
    return tables.build(
        "not-evaluable", caption, columns, [(*key, count[key]) for key in sorted(count, key=_by_age)], grouped=True
    )
