"""Whether a candidate takes the champion's place: better over all, no worse in any subgroup, as well calibrated.

Both models are scored on the same units, and all differences are the candidate minus the champion with percentile
intervals over common resamples of patients. What must hold, must hold on every cohort and in every subgroup at once,
so that the level of each interval is that of the decision: intervals are not widened for their number
(intersection-union test; Berger 1982).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.analysis.bootstrap import MIN_CLUSTERS, Interval
from medssl.analysis.measures import Bootstrap, measures
from medssl.analysis.partitions import Grouping, check_attributes, partitions
from medssl.analysis.runs import Run, read_runs
from medssl.metrics import PRIMARY

CANDIDATE, CHAMPION = "candidate", "champion"
# What stands for the calibration of each kind of unit, as the metrics table names it.
CALIBRATION: Mapping[str, str] = MappingProxyType({"image": "mean_ece", "case": "top_label_ece"})
ALL = "all"

Kind = Literal["better", "subgroup", "calibration"]
Status = Literal["holds", "fails", "not assessed"]
# "promote": it takes the place. "keep": something fails. "needs approval": nothing fails, but some groups could not be
# assessed. "first": there is no champion. "is champion": it is the present one. "not comparable": see the reasons.
Verdict = Literal["promote", "keep", "needs approval", "first", "is champion", "not comparable"]


@dataclass(frozen=True)
class Rules:
    """What a candidate has to show.

    Attributes:
        margin: Within a subgroup, by how much of the primary metric it may at most be worse, >= 0.
        ece_margin: By how much its calibration error may at most be larger, >= 0.
        min_patients: Subgroups with fewer patients of known truth are not assessed.
        approve_small_groups: Whether groups that are not assessed stand in no one's way.
    """

    margin: float
    ece_margin: float
    min_patients: int
    approve_small_groups: bool


@dataclass(frozen=True)
class Check:
    """One difference of candidate and champion, and whether it is as it must be.

    Attributes:
        cohort: On which units.
        kind: What has to hold: "better": `ci_low` > 0; "subgroup": `ci_low` > -`margin`; "calibration": `ci_high` <
            `margin`.
        subgroup: "all", or as in the metrics table.
        metric: As it is logged.
        margin: 0 for "better".
        candidate: Its value; None where it is not defined.
        champion: Its value.
        estimate: Their difference.
        ci_low: Lower end of its interval; None where it is withheld.
        ci_high: Upper end.
        n_units: With a known truth.
        n_patients: Of these units.
        status: Whether it holds.
        reason: The status in words.
    """

    cohort: str
    kind: Kind
    subgroup: str
    metric: str
    margin: float
    candidate: float | None
    champion: float | None
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    n_units: int
    n_patients: int
    status: Status
    reason: str

    @property
    def name(self) -> str:
        """What is checked, and where."""
        where = {"better": "over all", "calibration": "calibration", "subgroup": self.subgroup}[self.kind]
        return f"{self.cohort}, {where}"


@dataclass(frozen=True)
class Decision:
    """A verdict with all that it rests on.

    Attributes:
        verdict: What follows for the candidate.
        reasons: Why, a sentence each.
        checks: All differences, cohort by cohort; none without a champion.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "checks": [asdict(check) for check in self.checks],
        }


def paired_table(candidate: pa.Table, champion: pa.Table) -> pa.Table:
    """The predictions of both as two arms, "candidate" and "champion", of one study.

    Args:
        candidate: Predictions of one model on one split of one data set.
        champion: The same of the other, on the same units; `decide` refuses others.
    """
    shared = {"study_id": "promotion", "label_fraction": 1.0, "draw": 0, "repeat": 0, "is_selected": True}
    tables = []
    for name, table in ((CANDIDATE, candidate), (CHAMPION, champion)):
        for column, value in {**shared, "arm_id": name}.items():
            place, field = table.schema.get_field_index(column), table.schema.field(column)
            table = table.set_column(place, field, pa.repeat(pa.scalar(value, field.type), table.num_rows))
        tables.append(table)
    return pa.concat_tables(tables)


def decide(
    cohorts: Mapping[str, pa.Table],
    *,
    rules: Rules,
    by: Sequence[str],
    attribute_pairs: Sequence[tuple[str, str]],
    grouping: Grouping,
    bootstrap: Bootstrap,
) -> Decision:
    """Compare both models on every cohort.

    Args:
        cohorts: By name, predictions as `paired_table` arranges them.
        rules: What has to hold.
        by: Attributes whose groups are subgroups, of `partitions.ATTRIBUTES`.
        attribute_pairs: Two of `by` each, whose crossed groups are subgroups too.
        grouping: Ages and skin types as groups.
        bootstrap: Replicates, level and seed.

    Raises:
        ValueError: The models do not cover the same units, classes and truths, or a setting is out of range.
    """
    checks: list[Check] = []
    for name, table in cohorts.items():
        check_attributes(table, by, attribute_pairs)
        runs = {run.arm_id: run for run in read_runs(table)}
        pair = (runs[CANDIDATE], runs[CHAMPION])
        everyone = np.ones(pair[0].units.size, dtype=bool)
        checks += _overall(name, pair, everyone, rules, bootstrap)
        for partition in partitions(table, pair[0], grouping, by=by, attribute_pairs=attribute_pairs):
            for label in [] if partition.told_by else np.unique(partition.labels).tolist():
                checks.append(_subgroup(name, pair, label, partition.labels == label, rules, bootstrap))
    return Decision(*_verdict(checks, rules), tuple(checks))


Pair = tuple[Run, Run]


def _overall(
    cohort: str, pair: Pair, everyone: NDArray[np.bool_], rules: Rules, bootstrap: Bootstrap
) -> Iterator[Check]:
    """Whether the candidate is better on all units, and as well calibrated."""
    intervals = _intervals(pair, bootstrap)
    primary, ece = PRIMARY[pair[0].unit_kind].log_name, CALIBRATION[pair[0].unit_kind]
    better = intervals[primary]
    is_better = None if better.ci_low is None else better.ci_low > 0
    yield _check(cohort, "better", ALL, primary, 0.0, better, _counts(pair[0], everyone), is_better)
    calibration = intervals[ece]
    holds = None if calibration.ci_high is None else calibration.ci_high < rules.ece_margin
    yield _check(cohort, "calibration", ALL, ece, rules.ece_margin, calibration, _counts(pair[0], everyone), holds)


def _subgroup(
    cohort: str, pair: Pair, label: str, chosen: NDArray[np.bool_], rules: Rules, bootstrap: Bootstrap
) -> Check:
    """Whether the candidate is not much worse within one group; resamples are those of all patients."""
    metric, counts = PRIMARY[pair[0].unit_kind].log_name, _counts(pair[0], chosen)
    if counts[1] < rules.min_patients:
        reason = f"{counts[1]} {pair[0].group_kind}s, at least {rules.min_patients} are needed"
        interval, holds = Interval(None, None, None, None, None, None, 0, 0, reason), None
    else:
        interval = _intervals((pair[0].masked(chosen), pair[1].masked(chosen)), bootstrap)[metric]
        holds = None if interval.ci_low is None else interval.ci_low > -rules.margin
    return _check(cohort, "subgroup", label, metric, rules.margin, interval, counts, holds)


def _intervals(pair: Pair, bootstrap: Bootstrap) -> dict[str, Interval]:
    """By metric over all classes, the interval of candidate minus champion."""
    listed = measures(pair[0], specificity=bootstrap.specificity)
    intervals = bootstrap.intervals(bootstrap.replicates(pair, "patient"), pair[0], 0, 1)
    return {
        item.metric.replace("_k_", f"_{item.k}_"): interval
        for item, interval in zip(listed, intervals, strict=True)
        if not item.class_name
    }


def _counts(run: Run, chosen: NDArray[np.bool_]) -> tuple[int, int]:
    """Units of known truth among the chosen, and their patients."""
    known = chosen & ~np.isnan(run.y_true).all(axis=1)
    return int(known.sum()), int(np.unique(run.patients[known]).size)


def _check(
    cohort: str,
    kind: Kind,
    subgroup: str,
    metric: str,
    margin: float,
    interval: Interval,
    counts: tuple[int, int],
    holds: bool | None,
) -> Check:
    status: Status = "not assessed" if holds is None else "holds" if holds else "fails"
    reason = interval.reason or "no interval"
    if holds is not None:
        reason = (
            f"{metric} {interval.estimate:+.4f} [{interval.ci_low:+.4f}, {interval.ci_high:+.4f}]"
            f"{'' if kind == 'better' else f', margin {margin:g}'}"
        )
    values = (interval.estimate_a, interval.estimate_b, interval.estimate, interval.ci_low, interval.ci_high)
    if counts[1] < MIN_CLUSTERS and holds is not None:  # as everywhere, no interval rests on so few
        status, reason = "not assessed", f"{counts[1]} patients, an interval takes {MIN_CLUSTERS}"
        values = (*values[:3], None, None)
    return Check(cohort, kind, subgroup, metric, margin, *values, *counts, status, reason)


_NEEDED: Mapping[Kind, str] = MappingProxyType(
    {
        "better": "not better than the champion",
        "subgroup": "may be worse by more than the margin",
        "calibration": "calibration may be worse by more than the margin",
    }
)


def _verdict(checks: Sequence[Check], rules: Rules) -> tuple[Verdict, tuple[str, ...]]:
    """What follows from the checks, and why."""
    # What could not be assessed over all was not shown; a group may be too small to show anything.
    failed = [c for c in checks if c.status == "fails" or (c.status == "not assessed" and c.kind != "subgroup")]
    if failed:
        return "keep", tuple(f"{c.name}: {_NEEDED[c.kind]} ({c.reason})" for c in failed)
    small = [f"{c.name}: not assessed ({c.reason})" for c in checks if c.status == "not assessed"]
    if small and not rules.approve_small_groups:
        return "needs approval", tuple(small)
    gained = [f"{c.name}: better than the champion ({c.reason})" for c in checks if c.kind == "better"]
    return "promote", (*gained, *(f"{words}; approved by the study" for words in small))


def only_model(predictions: pa.Table, *, dataset: str, split: str, model: Mapping[str, str | float | int]) -> pa.Table:
    """The predictions of one model on one split of one data set.

    Args:
        predictions: Of any number of models.
        dataset: Name of the data set.
        split: Of it.
        model: Its arm_id, label_fraction, draw and repeat.

    Raises:
        ValueError: There are none.
    """
    chosen = (pc.field("dataset") == dataset) & (pc.field("split") == split)
    for column, value in model.items():
        chosen &= pc.field(column) == value
    found = predictions.filter(chosen)
    if not found.num_rows:
        raise ValueError(f"predictions: none of the model on {split} of {dataset}; re-run predict and compare")
    return found
