"""Tables of the report that compare arms: paired differences, their cross-check, and the labels that an arm saves."""

import re
from collections.abc import Sequence

from medssl.analysis import tables
from medssl.analysis.label_efficiency import MATCHING, SAVED
from medssl.analysis.multiplicity import DEFAULT_FAMILY
from medssl.analysis.results import (
    COMPARE,
    DECIMALS,
    Evaluation,
    Labels,
    Results,
    Row,
    p_value,
    sentence,
    slug,
    with_interval,
    words,
)
from medssl.analysis.tables import Cell, Column, Table
from medssl.metrics import Metric


def difference_rows(results: Results, where: Evaluation, *, metrics: Sequence[Metric]) -> list[Row]:
    """Metrics rows of paired differences, by pair, label fraction, metric, finding and resampling unit."""
    places = {(metric.name, metric.k): place for place, metric in enumerate(metrics)}
    names = dict.fromkeys(metric.name for metric in metrics)
    found = [
        row
        for name in names
        for row in results.of_whole_splits.get((where, name), ())
        if row["arm_b"] is not None and (row["metric"], row["k"]) in places
    ]
    first = results.resampled(where)

    def order(row: Row) -> tuple[int, float, int, int, int, bool, str]:
        finding = list(results.findings).index(row["class"]) if row["class"] in results.findings else 0
        unit = row["resampling_unit"]
        place = list(results.pairs).index((row["arm_a"], row["arm_b"]))
        metric = places[row["metric"], row["k"]]
        return (place, row["label_fraction"], row["draw"], metric, finding, unit != first, unit)

    return sorted(found, key=order)


def families(results: Results, where: Evaluation) -> list[str]:
    """Names of the declared families that differences on a split were adjusted in."""
    primary = difference_rows(results, where, metrics=[results.primary])
    return [name for name in dict.fromkeys(row["family"] for row in primary) if name not in ("", DEFAULT_FAMILY)]


def differences(results: Results, where: Evaluation) -> Table:
    """Paired differences of selected models in the primary metric, with adjusted p values."""
    rows = difference_rows(results, where, metrics=[results.primary])
    what = results.primary_words
    return _differences(results, where, rows, name="mean" if results.primary.part else "primary", what=what, by="")


def secondary_differences(results: Results, where: Evaluation, metrics: Sequence[Metric]) -> Table:
    """Paired differences of selected models per finding, or in several metrics; adjusted where a family says so."""
    rows = difference_rows(results, where, metrics=metrics)
    per_class = any(row["class"] for row in rows)
    what = f"{words(metrics[0].name, metrics[0].k)} per {results.class_word}" if per_class else "other metrics"
    if not any(row["family"] for row in rows):
        what += "; these p values are not adjusted"
    by, name = (results.class_word.capitalize(), f"{results.class_word}s") if per_class else ("Metric", "metrics")
    return _differences(results, where, rows, name=name, what=what, by=by)


def _differences(results: Results, where: Evaluation, found: Sequence[Row], *, name: str, what: str, by: str) -> Table:
    """Rows of differences; `by` heads the column of findings or metrics, or is ""."""
    declared = families(results, where)
    is_adjusted = any(row["family"] for row in found)
    columns: dict[Column, list[Cell | str | int]] = {
        tables.text("Pair"): [pair_name(results, row) for row in found],
        Column("Labels"): [results.name(Labels(row["label_fraction"], row["draw"])) for row in found],
    }
    if by:
        columns[tables.text(by)] = [row["class"] or sentence(words(row["metric"], row["k"])) for row in found]
    columns[tables.text("Resampled")] = [row["resampling_unit"] or "–" for row in found]
    columns[Column(f"Difference [{results.level} interval]")] = [with_interval(row) for row in found]
    columns[Column("p")] = [p_value(row["p"]) for row in found]
    if is_adjusted:
        columns[Column("p (Holm)")] = [_adjusted(row) for row in found]
        columns[Column("p (FDR)")] = [p_value(row["p_fdr"]) for row in found]
    columns[Column("Replicates")] = [row["n_replicates"] or "–" for row in found]
    columns[tables.text("In words")] = [verdict(row, alpha=results.alpha, declared=bool(declared)) for row in found]
    if is_adjusted and declared:
        columns[tables.text("Family")] = [row["family"] or "none" for row in found]
    return tables.build(
        f"differences-{name}-{slug(where)}",
        f"Differences on {results.place(where)} between selected models, on the same resamples: {what}.",
        list(columns),
        list(zip(*columns.values(), strict=True)),
        grouped=True,
        task=COMPARE,
    )


def pair_name(results: Results, row: Row) -> str:
    """The two arms of a difference."""
    return f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}"


def _adjusted(row: Row) -> Cell:
    if row["status"] == "not_resolvable":
        return Cell("not resolvable", row["reason"])
    return Cell(p_value(row["p_adjusted"]))


def verdict(row: Row, *, alpha: float, declared: bool = False) -> str:
    """A difference in words; the adjusted p value decides where there is one.

    Significant means that the interval of the paired difference excludes 0 (supplement B.1.1); Holm's adjustment
    for the differences of a family is stricter.

    Args:
        row: Of the difference.
        alpha: One minus the level.
        declared: Whether the study declares families, so that a difference may belong to none.
    """
    if row["estimate"] is None:
        return "not assessed"
    if row["ci_low"] is None:
        return "not assessed, interval withheld"
    if row["ci_low"] <= 0 <= row["ci_high"]:
        return "interval includes 0"
    if row["status"] == "not_resolvable":
        return "excludes 0, but its family is too large for the replicates"
    if row["p_adjusted"] is not None and row["p_adjusted"] > alpha:
        return "excludes 0, but not after adjustment"
    outcome = f"first arm {'higher' if row['estimate'] > 0 else 'lower'}"
    return f"{outcome}, not adjusted" if declared and not row["family"] else outcome


def delong(results: Results, where: Evaluation) -> Table:
    """DeLong's intervals and p values of differences in mean AUC beside the bootstrap's: a cross-check."""
    mean = Metric("mean_auc", None, "auc")
    found = [row for row in difference_rows(results, where, metrics=[mean]) if row["delong_p"] is not None]
    rows = [
        (
            pair_name(results, row),
            results.name(Labels(row["label_fraction"], row["draw"])),
            row["resampling_unit"],
            with_interval(row),
            f"[{row['delong_low']:.{DECIMALS}f}, {row['delong_high']:.{DECIMALS}f}]",
            p_value(row["p"]),
            p_value(row["delong_p"]),
        )
        for row in found
    ]
    columns = [tables.text("Pair"), Column("Labels"), tables.text("Unit"), Column("Difference [bootstrap]")]
    columns += [Column("[DeLong]"), Column("p (bootstrap)"), Column("p (DeLong)")]
    caption = (
        f"Differences in mean AUC on {results.place(where)}: the bootstrap beside DeLong's method for clustered units."
    )
    return tables.build(f"delong-{slug(where)}", caption, columns, rows, grouped=True, task=COMPARE)


def labels_saved(results: Results, where: Evaluation) -> Table:
    """At which share of the labels an arm reaches a baseline with all of them, and what it saves."""
    found = [
        row
        for row in results.of_whole_splits.get((where, MATCHING), ())
        if row["resampling_unit"] in (results.resampled(where), "")
    ]
    saved_rows = {_pair_key(row): row for row in results.of_whole_splits.get((where, SAVED), ())}
    rows = []
    for row in found:
        saved = saved_rows.get(_pair_key(row))
        draw = "mean over draws" if row["repeat"] == "mean" else f"draw {row['draw']}"
        outcome = {"ok": "reached", "censored": "censored"}.get(row["status"], row["status"].replace("_", " "))
        rows.append(
            (
                results.arms[row["arm_a"]],
                results.arms[row["arm_b"]],
                draw,
                censored(row),
                Cell("–") if saved is None else censored(saved),
                outcome,
            )
        )
    columns = [*map(tables.text, ("Arm", "Baseline with all labels", "Labels of")), Column("Share of labels needed")]
    columns += [Column("Labels saved"), tables.text("In words")]
    caption = (
        f"The share of the labels at which an arm is as good as its baseline with all labels, by "
        f"{results.primary_words} on {results.place(where)}, with {results.level} intervals. Censored: the arm reaches "
        "the baseline with fewer labels than were tried, or not at all; the words say which."
    )
    return tables.build(f"labels-saved-{slug(where)}", caption, columns, rows, task=COMPARE)


def _pair_key(row: Row) -> tuple[str, str, int, str, str]:
    return row["arm_a"], row["arm_b"], row["draw"], row["repeat"], row["resampling_unit"]


def censored(row: Row) -> Cell:
    """An estimate with its interval, in which what is censored stands in words: "[0.1 or less, 0.35]"."""
    told = dict(re.findall(r"(?:^|; )(censored|lower end|upper end): ([^;]+)", row["reason"]))
    if row["estimate"] is None and "censored" not in told:
        return Cell(tables.NOT_EVALUABLE, row["reason"])
    values = [
        told[name] if value is None and name in told else None if value is None else f"{value:.2f}"
        for name, value in (
            ("censored", row["estimate"]), ("lower end", row["ci_low"]), ("upper end", row["ci_high"])
        )
    ]  # fmt: skip
    ends = "" if None in values[1:] else f" [{values[1]}, {values[2]}]"
    return Cell(f"{values[0]}{ends}", row["reason"])
