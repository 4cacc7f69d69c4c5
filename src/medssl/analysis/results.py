"""The metrics table as the report reads it: rows by key, orders and names, and a value as one cell.

No number is computed here that the metrics table holds. Only a mean over several draws of a label fraction is,
because that table keeps draws apart.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from medssl.analysis.runs import CHOICE_SPLITS, GROUP_KINDS, ROW_KEY, attributes_of
from medssl.analysis.tables import NOT_EVALUABLE, TOO_SMALL, Cell, percent
from medssl.metrics import OTHER, PRIMARY, Metric, named, unit_kind

Row = Mapping[str, Any]

DECIMALS = 3  # of every AUC, difference and p value
COMPARE, SUBGROUPS = "compare", "analyze_subgroups"  # the tasks that make metrics
_STANDS_FOR = re.compile(r"(?:^|; )(\S+) stands for it\b")  # as `contenders` says which arm stands for a group
_WORDS = {"mean_auc": "mean AUC", "auc": "AUC"}


class Labels(NamedTuple):
    """A label fraction and the draw that chose its patients."""

    fraction: float
    draw: int


class Evaluation(NamedTuple):
    """A data set and the split of it on which models are evaluated."""

    dataset: str
    split: str


class Spread(NamedTuple):
    """Mean of a metric over runs with its standard deviation (n - 1), None for a single run."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Results:
    """The metrics table with the orders and names in which the report lists things.

    Attributes:
        rows: Every metrics row, in the table's order.
        arms: arm_id to the name shown, in the study's order.
        unit_kind: What a prediction is of, image or case.
        findings: Or conditions, in the study's order.
        pairs: Compared arms (a, b), in the study's order.
        alpha: One minus the level of the intervals.
        resampling_units: As the study names them. The first is that of the intervals shown beside results; others
            appear in comparisons.
    """

    rows: Sequence[Row]
    arms: Mapping[str, str]
    unit_kind: str
    findings: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    alpha: float
    resampling_units: Sequence[str]

    @cached_property
    def _by_key(self) -> dict[tuple[Any, ...], Row]:
        return {tuple(row[name] for name in ROW_KEY): row for row in self.rows}

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Where models are reported, test splits first; splits that chose models only where there is no other."""
        every = {Evaluation(row["dataset"], row["split"]) for row in self.rows}
        found = {where for where in every if where.split not in CHOICE_SPLITS} or every
        return sorted(found, key=lambda where: (where.split != "test", where))

    @cached_property
    def labels(self) -> list[Labels]:
        """Every label fraction and draw, the largest fraction last."""
        return sorted({Labels(row["label_fraction"], row["draw"]) for row in self.rows})

    @cached_property
    def largest(self) -> Labels:
        """The first draw of the largest label fraction."""
        return min(labels for labels in self.labels if labels.fraction == self.labels[-1].fraction)

    @property
    def primary(self) -> Metric:
        """The metric by which models are chosen, differences tested and subgroups compared."""
        return PRIMARY[self.unit_kind]

    @property
    def primary_words(self) -> str:
        """The primary metric as shown, within a sentence."""
        return words(self.primary.name, self.primary.k)

    @property
    def class_word(self) -> str:
        """What a class is: a finding of an image, a condition of a case."""
        return "condition" if self.unit_kind == "case" else "finding"

    def group_kind(self, where: Evaluation) -> str:
        """What the patients of a data set stand for, as its resamples tell: "lesion" where it names no patient."""
        # An image is a unit of its own right too, unless patients were asked for and images came.
        kinds = [kind for kind in GROUP_KINDS if kind != "image" or "patient" in self.resampling_units]
        return next((kind for kind in kinds if kind in self._resampled[where]), "patient")

    def resampled(self, where: Evaluation) -> str:
        """What the intervals shown beside results resampled."""
        first = self.resampling_units[0]
        return self.group_kind(where) if first == "patient" else first

    @cached_property
    def _resampled(self) -> dict[Evaluation, set[str]]:
        found: dict[Evaluation, set[str]] = {where: set() for where in self.evaluations}
        for row in self.rows:
            if row["resampling_unit"]:
                found[Evaluation(row["dataset"], row["split"])].add(row["resampling_unit"])
        return found

    @cached_property
    def by_attribute(self) -> dict[tuple[Evaluation, Labels, str], dict[str, list[Row]]]:
        """Rows of groups: evaluation, labels and attributes ("sex", "sex & age_band") to group to its rows."""
        found: dict[tuple[Evaluation, Labels, str], dict[str, list[Row]]] = {}
        names: dict[str, str] = {"all": ""}
        for row in self.rows:
            group = row["subgroup"]
            if group not in names:
                names[group] = " & ".join(attributes_of(group))
            if name := names[group]:
                where, labels = Evaluation(row["dataset"], row["split"]), Labels(row["label_fraction"], row["draw"])
                found.setdefault((where, labels, name), {}).setdefault(group, []).append(row)
        return found

    @cached_property
    def of_whole_splits(self) -> dict[tuple[Evaluation, str], list[Row]]:
        """Rows of whole splits by evaluation and metric, those of gaps among them."""
        found: dict[tuple[Evaluation, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            if "=" not in row["subgroup"]:
                found[Evaluation(row["dataset"], row["split"]), row["metric"]].append(row)
        return dict(found)

    @property
    def level(self) -> str:
        """The level of the intervals, such as "95 %"."""
        return percent(1 - self.alpha)

    def name(self, labels: Labels) -> str:
        """The label fraction as shown; the draw is told where the fraction has several."""
        several = sum(other.fraction == labels.fraction for other in self.labels) > 1
        return percent(labels.fraction) + (f", draw {labels.draw}" if several else "")

    def place(self, where: Evaluation) -> str:
        """The split as shown; the data set is told where there are several."""
        several = len({dataset for dataset, _ in self.evaluations}) > 1
        return f"{where.split} ({where.dataset})" if several else where.split

    def row(self, where: Evaluation, arm: str, labels: Labels, *, repeat: str, metric: str, **rest: Any) -> Row | None:
        """One metrics row; `rest` gives further key columns (k, class, subgroup, arm_b, resampling_unit)."""
        key = {"k": None, "class": "", "subgroup": "all", "arm_b": None, "resampling_unit": ""} | rest
        key |= {**where._asdict(), "arm_a": arm, "label_fraction": labels.fraction, "draw": labels.draw}
        key |= {"repeat": repeat, "metric": metric}
        return self._by_key.get(tuple(key[name] for name in ROW_KEY))

    def selected(self, where: Evaluation, arm: str, labels: Labels, *, metric: str, **rest: Any) -> Row | None:
        """The row of the model that validation chose, with its interval.

        `rest` as in `row`. Rows that were not resampled (a gap, a group that is too small) have no unit.
        """
        for unit in (self.resampled(where), self.group_kind(where), ""):
            keys = {"resampling_unit": unit, **rest}
            if row := self.row(where, arm, labels, repeat="selected", metric=metric, **keys):
                return row
        return None

    @cached_property
    def _runs(self) -> dict[tuple[Any, ...], list[float | None]]:
        found: dict[tuple[Any, ...], list[float | None]] = defaultdict(list)
        for row in self.rows:
            if row["repeat"].isdigit() and row["subgroup"] == "all":
                labels = Labels(row["label_fraction"], row["draw"])
                where = Evaluation(row["dataset"], row["split"])
                found[where, row["arm_a"], labels, row["metric"], row["k"], row["class"]].append(row["estimate"])
        return dict(found)

    def _values(
        self, where: Evaluation, arm: str, labels: Labels, metric: Metric, class_name: str = ""
    ) -> list[float | None]:
        return self._runs.get((where, arm, labels, metric.name, metric.k, class_name), [])

    def num_repeats(self, where: Evaluation, arm: str, labels: Labels) -> int:
        """Fine-tuned models behind a mean over repeats."""
        return len(self._values(where, arm, labels, self.primary))

    def spread(
        self, where: Evaluation, arm: str, fraction: float, metric: Metric | None = None, class_name: str = ""
    ) -> Spread | None:
        """A metric over all runs of an arm at a label fraction, draws pooled; None where not evaluable.

        Args:
            where: Data set and split.
            arm: By its name.
            fraction: Of the labels.
            metric: By default the primary one.
            class_name: Of a metric of one class.
        """
        values = [
            value
            for labels in self.labels
            if labels.fraction == fraction
            for value in self._values(where, arm, labels, metric or self.primary, class_name)
            if value is not None
        ]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def read(metrics: pa.Table, arms: pa.Table, *, study: Mapping[str, Any] | None = None) -> Results:
    """The metrics in the order in which the study lists arms and findings; without a study, as the tables do.

    Args:
        metrics: schema.METRICS, of compare and of subgroups together.
        arms: schema.ARMS.
        study: The study as plain values.
    """
    shown = {row["arm_id"]: row["display_name"] for row in arms.to_pylist()}
    rows = metrics.to_pylist()
    order = [arm["name"] for arm in study["arms"]] if study else list(shown)
    mentioned = dict.fromkeys(row[side] for side in ("arm_a", "arm_b") for row in rows if row[side])
    order += [arm for arm in mentioned if arm not in order]
    names = [shown.get(arm, arm) for arm in order]
    classes = dict.fromkeys(row["class"] for row in rows if row["class"])
    compared = dict.fromkeys((row["arm_a"], row["arm_b"]) for row in rows if row["arm_b"])
    kind = unit_kind({row["metric"] for row in rows})
    if kind == "case":  # a study lists no conditions: those that predictions have, the unnamed ones last
        findings = [*named(list(classes)), *(name for name in classes if name == OTHER)]
    else:
        findings = list(study["task"]["findings"] if study else classes)
    listed = [(a, b) for a, b in study["compare"]["pairs"]] if study else []
    return Results(
        rows=rows,
        # Two arms may differ in what a display name does not tell.
        arms={
            arm: f"{name} ({arm})" if names.count(name) > 1 else name for arm, name in zip(order, names, strict=True)
        },
        unit_kind=kind,
        findings=findings,
        pairs=listed + [pair for pair in compared if pair not in listed],
        alpha=study["compare"]["alpha"] if study else 0.05,
        resampling_units=study["compare"]["resampling_units"] if study else ("patient",),
    )


def arm_rows(results: Results, arms: pa.Table) -> dict[str, Row]:
    """What each arm is, in the order of the results."""
    rows = {row["arm_id"]: row for row in arms.to_pylist()}
    return {arm: rows[arm] for arm in results.arms if arm in rows}


def words(metric: str, k: int | None) -> str:
    """A metric as shown within a sentence: "mean AUC", "top-3 accuracy"."""
    return _WORDS.get(metric) or metric.replace("_k_", f"-{k} ").replace("_", " ")


def slug(where: Evaluation) -> str:
    """An evaluation as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{where.dataset}-{where.split}".lower())


def is_of(row: Row, metric: Metric) -> bool:
    """Whether a row holds this metric."""
    return (row["metric"], row["k"]) == (metric.name, metric.k)


def sentence(text: str) -> str:
    """The text with a capital first letter and the others as they are."""
    return text[:1].upper() + text[1:]


def task_of(row: Row) -> str:
    """The task that a row's number leads to: of one arm, that which predicted; else that which compared."""
    if row["subgroup"] != "all" or row["metric"].endswith("_drop"):
        return SUBGROUPS
    if row["arm_b"] is not None:
        return COMPARE
    stands = _STANDS_FOR.search(row["reason"])
    return f"predict {stands[1] if stands else row['arm_a']}"


def with_spread(row: Row | None, *, decimals: int = DECIMALS) -> Cell:
    """A cell such as "0.812 ± 0.010"; without the spread where there is a single run."""
    if row is None or row["estimate"] is None:
        return nothing(row)
    spread = "" if row["std"] is None else f" ± {row['std']:.{decimals}f}"
    return Cell(f"{row['estimate']:.{decimals}f}{spread}", remark(row), task=task_of(row))


def with_interval(row: Row | None, *, decimals: int = DECIMALS) -> Cell:
    """A cell such as "0.812 [0.790, 0.833]"; a note says why where the interval is withheld."""
    if row is None or row["estimate"] is None:
        return nothing(row)
    estimate, task = f"{row['estimate']:.{decimals}f}", task_of(row)
    if row["ci_low"] is None:
        return Cell(estimate, f"interval withheld: {row['reason'] or 'no reason recorded'}", task=task)
    ends = f"[{row['ci_low']:.{decimals}f}, {row['ci_high']:.{decimals}f}]"
    return Cell(f"{estimate} {ends}", remark(row), task=task)


def nothing(row: Row | None) -> Cell:
    """The cell of a value that could not be had, with the reason as its note."""
    if row is None:
        return Cell(NOT_EVALUABLE, "not measured")
    words = TOO_SMALL if row["status"] == "too_small" else NOT_EVALUABLE
    return Cell(words, row["reason"] or "no reason recorded")


def p_value(value: float | None) -> str:
    """A p value as shown; a dash where there is none."""
    if value is None:
        return "–"
    smallest = 10.0**-DECIMALS
    return f"<{smallest:.{DECIMALS}f}" if value < smallest / 2 else f"{value:.{DECIMALS}f}"


def remark(row: Row) -> str:
    """What the reader of a value must know, less the count of repeats, which has its own column."""
    parts = [part for part in row["reason"].split("; ") if not re.match(r"\d+ repeats?\b", part)]
    return "; ".join(re.sub("^not evaluable: ", "the mean leaves out ", part) for part in parts)
