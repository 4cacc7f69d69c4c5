"""Tables of the report that are made from the metrics table: results, differences, subgroups, and what is missing.

No number is computed here that the metrics table holds; only the mean over several draws of a label fraction is,
because that table keeps draws apart.
"""

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from medssl.analysis import tables
from medssl.analysis.compare import CHOICE_SPLITS, ROW_KEY
from medssl.analysis.tables import Cell, Column, Table

Row = Mapping[str, Any]

DECIMALS = 3  # of every AUC, difference and p value


class Labels(NamedTuple):
    """A label fraction and the draw that chose its patients."""

    fraction: float
    draw: int


class Evaluation(NamedTuple):
    """A data set and the split of it on which models are reported."""

    dataset: str
    split: str


class Spread(NamedTuple):
    """Mean of a metric over runs with its standard deviation (n - 1), None for a single run."""

    mean: float
    std: float | None
    num_runs: int


@dataclass(frozen=True)
class Results:
    """The metrics table with the orders and names in which the report lists things.

    Attributes:
        rows: Every metrics row, in the table's order.
        arms: arm_id to the name shown, in the study's order.
        findings: In the study's order.
        alpha: One minus the level of the intervals.
        resampling_unit: The unit of the intervals shown beside results; other units appear in comparisons.
    """

    rows: Sequence[Row]
    arms: Mapping[str, str]
    findings: Sequence[str]
    alpha: float
    resampling_unit: str

    @cached_property
    def _by_key(self) -> dict[tuple[Any, ...], Row]:
        return {tuple(row[name] for name in ROW_KEY): row for row in self.rows}

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Where models are reported: the test split first, then others, then other data sets."""
        found = {Evaluation(row["dataset"], row["split"]) for row in self.rows if row["split"] not in CHOICE_SPLITS}
        return sorted(found, key=lambda e: (e.split != "test", e))

    @cached_property
    def labels(self) -> list[Labels]:
        """Every label fraction and draw, the largest fraction last."""
        return sorted({Labels(row["label_fraction"], row["draw"]) for row in self.rows})

    @cached_property
    def largest(self) -> Labels:
        """The first draw of the largest label fraction."""
        fraction = self.labels[-1].fraction
        return next(labels for labels in self.labels if labels.fraction == fraction)

    @property
    def level(self) -> str:
        """The level of the intervals, such as "95 %"."""
        return tables.percent(1 - self.alpha)

    def name(self, labels: Labels) -> str:
        """The label fraction as shown; the draw is told where the fraction has several."""
        several = sum(other.fraction == labels.fraction for other in self.labels) > 1
        return tables.percent(labels.fraction) + (f", draw {labels.draw}" if several else "")

    def place(self, where: Evaluation) -> str:
        """The split as shown; the data set is told where there are several."""
        several = len({dataset for dataset, _ in self.evaluations}) > 1
        return f"{where.split} of {where.dataset}" if several else where.split

    def row(self, where: Evaluation, arm: str, labels: Labels, repeat: str, metric: str, **rest: Any) -> Row | None:
        """One metrics row; `rest` gives further key columns (class, subgroup, arm_b, resampling_unit)."""
        known = {
            "dataset": where.dataset, "split": where.split, "metric": metric, "arm_a": arm,
            "label_fraction": labels.fraction, "draw": labels.draw, "repeat": repeat,
        }  # fmt: skip
        key = {"k": None, "class": "", "subgroup": "all", "arm_b": None, "resampling_unit": ""} | known | rest
        return self._by_key.get(tuple(key[name] for name in ROW_KEY))

    def selected(self, where: Evaluation, arm: str, labels: Labels, metric: str, **rest: Any) -> Row | None:
        """The row of the model that validation chose, with its interval."""
        # A metric that is not evaluable was not resampled in every case, so its row may stand without a unit.
        for unit in (self.resampling_unit, ""):
            if row := self.row(where, arm, labels, "selected", metric, **{"resampling_unit": unit} | rest):
                return row
        return None

    def spread(self, where: Evaluation, arm: str, fraction: float) -> Spread | None:
        """Mean AUC over all runs of an arm at a label fraction, draws pooled; None where it is not evaluable."""
        values = self._runs.get((where, arm, fraction), [])
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @cached_property
    def _runs(self) -> dict[tuple[Evaluation, str, float], list[float]]:
        found: dict[tuple[Evaluation, str, float], list[float]] = {}
        for row in self.rows:
            whole = row["metric"] == "mean_auc" and row["subgroup"] == "all" and row["arm_b"] is None
            if whole and row["repeat"].isdigit() and row["estimate"] is not None:
                key = (Evaluation(row["dataset"], row["split"]), row["arm_a"], row["label_fraction"])
                found.setdefault(key, []).append(row["estimate"])
        return found

    def pairs(self, where: Evaluation) -> list[tuple[str, str]]:
        """Compared arms (a, b), in the order of the arms."""
        order = list(self.arms)
        found = {
            (row["arm_a"], row["arm_b"])
            for row in self.rows
            if row["arm_b"] is not None and (row["dataset"], row["split"]) == where
        }
        return sorted(found, key=lambda pair: [order.index(arm) for arm in pair])


def read(metrics: pa.Table, arms: pa.Table, *, study: Mapping[str, Any] | None = None) -> Results:
    """Order the metrics as the study lists its arms and findings; without a study, as the tables do."""
    shown = {row["arm_id"]: row["display_name"] for row in arms.to_pylist()}
    rows = metrics.to_pylist()
    order = [arm["name"] for arm in study["arms"]] if study else list(shown)
    order += [arm for arm in dict.fromkeys(row["arm_a"] for row in rows) if arm not in order]
    names = {arm: shown.get(arm, arm) for arm in order}
    doubled = {name for name in names.values() if list(names.values()).count(name) > 1}
    classes = list(dict.fromkeys(row["class"] for row in rows if row["class"]))
    return Results(
        rows=rows,
        arms={arm: f"{name} ({arm})" if name in doubled else name for arm, name in names.items()},
        findings=study["task"]["findings"] if study else classes,
        alpha=study["compare"]["alpha"] if study else 0.05,
        resampling_unit=study["compare"]["resampling_units"][0] if study else "patient",
    )


def with_spread(row: Row | None) -> Cell:
    """"0.812 ± 0.010"; without the spread where there is a single run."""
    if row is None or row["estimate"] is None:
        return _nothing(row)
    spread = "" if row["std"] is None else f" ± {row['std']:.{DECIMALS}f}"
    return Cell(f"{row['estimate']:.{DECIMALS}f}{spread}", _left_out(row))


def with_interval(row: Row | None) -> Cell:
    """"0.812 [0.790, 0.833]"; the reason as a note where the interval is withheld."""
    if row is None or row["estimate"] is None:
        return _nothing(row)
    if row["ci_low"] is None:
        return Cell(f"{row['estimate']:.{DECIMALS}f}", f"interval withheld: {row['reason'] or 'no reason was recorded'}")
    ends = f"{row['ci_low']:.{DECIMALS}f}, {row['ci_high']:.{DECIMALS}f}"
    return Cell(f"{row['estimate']:.{DECIMALS}f} [{ends}]", _left_out(row))


def _nothing(row: Row | None) -> Cell:
    reason = "no predictions" if row is None else row["reason"]
    return tables.real(None, decimals=DECIMALS, reason=reason)


def _left_out(row: Row) -> str:
    """What the reader of a value must know; the count of repeats has its own column."""
    parts = (part for part in row["reason"].split("; ") if not re.match(r"\d+ repeats?\b", part))
    return "; ".join(parts) if row["status"] != "ok" or row["n_replicates"] else ""


def overview(results: Results, where: Evaluation) -> Table:
    """Mean AUC of every arm and label fraction: over repeats, and of the model that validation chose."""
    place = results.place(where)
    validation = Evaluation(where.dataset, "validation")
    rows = [
        (
            results.arms[arm],
            results.name(labels),
            _num_repeats(results.row(where, arm, labels, "mean", "mean_auc")),
            with_spread(results.row(where, arm, labels, "mean", "mean_auc")),
            with_interval(results.selected(where, arm, labels, "mean_auc")),
            with_spread(results.row(validation, arm, labels, "mean", "mean_auc")),
        )
        for arm, labels in _reported(results, where)
    ]
    columns = [
        tables.text("Arm"), Column("Labels"), Column("Repeats"), Column(f"Mean AUC, {place}: mean ± SD"),
        Column(f"Selected model, {place} [{results.level} interval]"),
        Column("Validation (used for choices): mean ± SD"),
    ]  # fmt: skip
    caption = (
        f"Mean AUC over the findings on {place}. Mean ± standard deviation over repeated fine-tuning; the selected "
        f"model is the repeat with the best validation score, its interval is a percentile bootstrap over "
        f"{results.resampling_unit}s. Validation scores chose hyper-parameters and models: they flatter."
    )
    return tables.build(f"results-{_slug(where)}", caption, columns, rows, grouped=True)


def per_finding(results: Results, where: Evaluation, *, selected: bool) -> Table:
    """AUC of each finding: mean over repeats, or of the selected model with its interval."""
    place = results.place(where)

    def cell(arm: str, labels: Labels, finding: str) -> Cell:
        if selected:
            return with_interval(results.selected(where, arm, labels, "auc", **{"class": finding}))
        return with_spread(results.row(where, arm, labels, "mean", "auc", **{"class": finding}))

    rows = [
        (results.arms[arm], results.name(labels), *(cell(arm, labels, finding) for finding in results.findings))
        for arm, labels in _reported(results, where)
    ]
    what = f"selected model [{results.level} interval]" if selected else "mean ± standard deviation over repeats"
    columns = [tables.text("Arm"), Column("Labels"), *(Column(finding) for finding in results.findings)]
    name = f"findings-{'selected' if selected else 'repeats'}-{_slug(where)}"
    return tables.build(name, f"AUC per finding on {place}: {what}.", columns, rows, grouped=True)


def _reported(results: Results, where: Evaluation) -> Iterator[tuple[str, Labels]]:
    for arm in results.arms:
        for labels in results.labels:
            if results.row(where, arm, labels, "mean", "mean_auc"):
                yield arm, labels


def _num_repeats(row: Row | None) -> str:
    count = re.match(r"(\d+) repeat", row["reason"]) if row else None
    return count[1] if count else ""


def _slug(where: Evaluation) -> str:
    return f"{where.dataset}-{where.split}".replace("_", "-")


def differences(results: Results, where: Evaluation, *, findings: bool) -> Table:
    """Paired differences of the selected models: of the mean AUC, or finding by finding."""
    rows = []
    for a, b in results.pairs(where):
        heading = f"{results.arms[a]} minus {results.arms[b]}"
        for row in _difference_rows(results, where, a, b, findings=findings):
            labels = Labels(row["label_fraction"], row["draw"])
            extra = [row["class"]] if findings else [_p(row["p_adjusted"], row)]
            verdict = verdict_of(row, alpha=results.alpha, adjusted=not findings)
            unit = row["resampling_unit"] or "none"
            values = (with_interval(row), _p(row["p"], row), row["n_replicates"] or 0, unit, verdict)
            rows.append((heading, results.name(labels), *([*extra, *values] if findings else _insert(values, extra))))
    shared = [Column("p"), Column("Replicates"), tables.text("Resampled"), tables.text("In words")]
    difference = Column(f"Difference [{results.level} interval]")
    place = results.place(where)
    if findings:
        columns = [tables.text("Pair"), Column("Labels"), tables.text("Finding"), difference, *shared]
        caption = f"Differences in AUC per finding on {place}. Their p values are not adjusted for their number."
    else:
        columns = [tables.text("Pair"), Column("Labels"), difference, shared[0], Column("p, Holm"), *shared[1:]]
        caption = (
            f"Differences in mean AUC on {place} between selected models, on the same resamples. Holm's "
            "adjustment covers all pairs at the same label fraction and resampling unit."
        )
    name = f"differences-{'findings' if findings else 'mean'}-{_slug(where)}"
    return tables.build(name, caption, columns, rows, grouped=True)
