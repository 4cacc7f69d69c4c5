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
    nothing,
    remark,
    with_interval,
    with_spread,
)
from medssl.analysis.tables import Cell, Column, Table

VALIDATION = "validation"
GAP = "mean_auc_gap"


def overview(results: Results, where: Evaluation, label_sets: Sequence[Labels], name: str) -> Table:
    """Mean AUC of every arm at some label fractions: over repeats, and of the model that validation chose."""
    place = results.place(where)
    validation = Evaluation(where.dataset, VALIDATION)
    rows = [
        (
            results.arms[arm],
            results.name(labels),
            results.num_repeats(where, arm, labels),
            with_spread(results.row(where, arm, labels, repeat="mean", metric="mean_auc")),
            with_interval(results.selected(where, arm, labels, metric="mean_auc")),
            with_spread(results.row(validation, arm, labels, repeat="mean", metric="mean_auc")),
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
    caption = f"Mean AUC over the findings on {place}, by arm and share of the training labels."
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


def difference_rows(results: Results, where: Evaluation, *, metric: str) -> list[Row]:
    """Metrics rows of paired differences, by pair, label fraction, finding and resampling unit."""
    found = [
        row
        for row in results.rows
        if row["arm_b"] is not None and row["metric"] == metric and (row["dataset"], row["split"]) == where
    ]

    def order(row: Row) -> tuple[int, float, int, int, bool, str]:
        finding = list(results.findings).index(row["class"]) if row["class"] in results.findings else 0
        unit = row["resampling_unit"]
        place = list(results.pairs).index((row["arm_a"], row["arm_b"]))
        return (place, row["label_fraction"], row["draw"], finding, unit != results.resampling_unit, unit)

    return sorted(found, key=order)


def differences(results: Results, where: Evaluation, *, metric: str) -> Table:
    """Paired differences of selected models, in "mean_auc" with adjusted p values or in "auc" per finding."""
    whole = metric == "mean_auc"
    rows = [
        (
            f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}",
            results.name(Labels(row["label_fraction"], row["draw"])),
            "mean" if whole else row["class"],
            row["resampling_unit"] or "–",
            with_interval(row),
            _p(row["p"]),
            _p(row["p_adjusted"]) if whole else "–",
            row["n_replicates"] or "–",
            verdict(row, alpha=results.alpha),
        )
        for row in difference_rows(results, where, metric=metric)
    ]
    columns = [
        tables.text("Pair"),
        Column("Labels"),
        tables.text("Finding"),
        tables.text("Resampled"),
        Column(f"Difference [{results.level} interval]"),
        Column("p"),
        Column("p (Holm)"),
        Column("Replicates"),
        tables.text("In words"),
    ]
    kept = [c for c in range(len(columns)) if c != (2 if whole else 6)]
    what = "mean AUC" if whole else "AUC per finding; these p values are not adjusted"
    return tables.build(
        f"differences-{'mean' if whole else 'findings'}-{slug(where)}",
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
    return {row["subgroup"].partition("=")[0] for row in results.rows if _is_subgroup(row, where)}


def _is_subgroup(row: Row, where: Evaluation) -> bool:
    return row["subgroup"] != "all" and (row["dataset"], row["split"]) == where


def subgroups(results: Results, where: Evaluation, attribute: str, labels: Labels) -> Table:
    """Mean AUC of each arm's selected model within the groups of one attribute, and the gap between groups."""
    by_group: dict[str, Row] = {}
    for row in results.rows:
        group = row["subgroup"].removeprefix(f"{attribute}=")
        at = Labels(row["label_fraction"], row["draw"])
        if _is_subgroup(row, where) and group != row["subgroup"] and row["metric"] == "mean_auc" and at == labels:
            by_group.setdefault(group, row)
    arms = [arm for arm in results.arms if results.num_repeats(where, arm, labels)]
    rows: list[list[Any]] = []
    for group in sorted(by_group, key=_group_order):
        keys = {"metric": "mean_auc", "subgroup": f"{attribute}={group}"}
        cells = [with_interval(results.selected(where, arm, labels, **keys)) for arm in arms]
        rows.append([group, by_group[group]["n_units"], by_group[group]["n_patients"], *cells])
    gaps = [results.selected(where, arm, labels, metric=GAP, subgroup=attribute) for arm in arms]
    rows.append(["Gap (largest − smallest)", "", "", *(_gap(row, attribute) for row in gaps)])
    name = f"subgroups-{slug(where)}-{attribute}-{labels.fraction:g}-{labels.draw}"
    caption = (
        f"Mean AUC [{results.level} interval] on {results.place(where)} by {attribute.replace('_', ' ')}, "
        f"selected models trained with {results.name(labels)} of the labels."
    )
    columns = [tables.text("Group"), Column("Images"), Column("Patients"), *(Column(results.arms[arm]) for arm in arms)]
    return tables.build(name.replace(".", "-").replace("_", "-"), caption, columns, rows)


def _gap(row: Row | None, attribute: str) -> Cell:
    cell = (
        nothing(row) if row is None or row["estimate"] is None else Cell(f"{row['estimate']:.{DECIMALS}f}", remark(row))
    )
    groups, separator, left_out = cell.note.replace(f"{attribute}=", "").partition("left out: ")
    if attribute == "age_band":
        left_out = ", ".join(sorted(left_out.split(", "), key=_group_order))
    return Cell(cell.text, f"{groups}{separator}{left_out}")


def _group_order(group: str) -> tuple[bool, float, bool, str]:
    """Ages by number with "<40" before "40-60"; names by alphabet; the unknown last."""
    number = re.search(r"\d+(\.\d+)?", group)
    return group == "unknown", float(number[0]) if number else 0.0, not group.startswith("<"), group


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
        once = row["status"] != "too_small" or row["metric"] == "mean_auc"
        if row["status"] in status and row["repeat"] in ("mean", "selected") and once:
            what = row["class"] or {GAP: "gap"}.get(row["metric"], "mean AUC")
            group = "all" if row["subgroup"] == "all" else row["subgroup"].replace("_", " ")
            place = results.place(Evaluation(row["dataset"], row["split"]))
            key = (status[row["status"]], place, group, what, remark(row) or "no reason recorded")
            count[key] = count.get(key, 0) + 1
    columns = [*map(tables.text, ("Outcome", "Split", "Subgroup", "Metric", "Reason")), Column("Values")]
    caption = "Values and intervals that could not be had. The last column counts arms, label fractions and pairs."
    return tables.build(
        "not-evaluable", caption, columns, [(*key, count[key]) for key in sorted(count, key=_by_age)], grouped=True
    )
