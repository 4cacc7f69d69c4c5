"""Rows of the metrics table about gaps between groups: of each arm, and the difference between two arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.analysis import gaps
from medssl.analysis.bootstrap import MAX_LACKING_SHARE, MIN_CLUSTERS
from medssl.analysis.measures import Bootstrap, primary_row, resampled_as
from medssl.analysis.partitions import Partition
from medssl.analysis.permutation import OUTSIDE, p_of_equal_groups
from medssl.analysis.runs import Row, Run
from medssl.metrics import PRIMARY

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Group:
    """One group of units.

    Attributes:
        label: "sex=female".
        rows: Of each run, in the order of `measures.measures`.
        assessed: What the primary metric covers, see `assessed`.
        estimates: Primary metric of each of the M runs, shape (M,); empty where it is not defined.
        values: The same on the resamples, shape (R, M); NaN where a class is lacking.
    """

    label: str
    rows: list[list[Row]]
    assessed: frozenset[str]
    estimates: Floats
    values: Floats

    @property
    def lacks_often(self) -> bool:
        """Whether so many resamples lack a class that the others do not stand for all."""
        return bool(np.isnan(self.values).any(axis=1).mean() > MAX_LACKING_SHARE)


def assessed(rows: Sequence[Row], run: Run) -> frozenset[str]:
    """What the primary metric covers: the classes that a mean over classes averages, and "" for itself.

    The truth decides, so it is the same for all models.
    """
    part = PRIMARY[run.unit_kind].part
    parts = {row["class"] for row in rows if row["metric"] == part and row["estimate"] is not None}
    return frozenset(parts | ({""} if primary_row(rows, run)["estimate"] is not None else set()))


@dataclass(frozen=True, eq=False)
class Comparable:
    """The groups of a partition whose primary metrics cover what that of the whole set does.

    A mean AUC of a group that lacks a class averages over the others, easier or harder ones; it is not comparable. Nor
    is a group that lacks a class in too many resamples, or has too few patients, to be told from noise.

    Attributes:
        groups: Two or more, by name, or none.
        note: What is left out, or why nothing is left.
        is_part: Whether some groups are left out.
        codes: Shape (n,), the place in `groups` of each unit with a known truth, else `OUTSIDE`.
        classes: Places of the classes that the metric averages over.
    """

    groups: tuple[Group, ...]
    note: str
    is_part: bool
    codes: NDArray[np.int16]
    classes: tuple[int, ...]


def comparable(partition: Partition, groups: Sequence[Group], run: Run, whole: frozenset[str]) -> Comparable:
    """What may be compared of the groups of a partition; `whole` is what is assessed on the whole set."""
    kept = [
        group
        for group in groups
        if whole
        and group.assessed == whole
        and not group.lacks_often
        and primary_row(group.rows[0], run)["n_patients"] >= MIN_CLUSTERS
    ]
    left_out = ", ".join(group.label for group in groups if group not in kept)
    note = f"left out: {left_out}" if left_out else ""
    if len(kept) < 2:
        note = _joined(f"{len(kept)} comparable groups, 2 are needed", note)
        kept = []
    codes = np.full(run.units.size, OUTSIDE, dtype=np.int16)
    known = ~np.isnan(run.y_true).all(axis=1)
    for place, group in enumerate(kept):
        codes[(partition.labels == group.label) & known] = place
    classes = tuple(c for c, name in enumerate(run.classes) if name in whole)
    note = f"the groups are those of {partition.told_by}" if partition.told_by else note
    return Comparable(tuple(kept), note, bool(left_out), codes, classes)


def gap_rows(
    partition: Partition,
    compared: Comparable,
    runs: Sequence[Run],
    *,
    place: Mapping[str, int],
    arm_pairs: Sequence[tuple[str, str]],
    settings: Bootstrap,
) -> list[Row]:
    """The gap of each run, corrected and raw, and the difference of the gaps of each pair of arms.

    Args:
        partition: The units by attribute.
        compared: Its groups.
        runs: Of the arms, on these units.
        place: Name of each arm, and of each group of arms, to the place of the run that stands for it.
        arm_pairs: Names of arms or groups of arms.
        settings: Of the bootstrap.
    """
    primary, first = PRIMARY[runs[0].unit_kind], runs[0]
    base = {"metric": f"{primary.name}_gap", "k": primary.k, "subgroup": partition.name, "repeat": "selected"}
    if not compared.groups:
        base |= {"status": "not_evaluable", "reason": compared.note}
        return [run.name_row() | base for run in runs]
    counted = compared.codes != OUTSIDE
    base |= {"n_units": int(counted.sum()), "n_patients": np.unique(first.patients[counted]).size}
    base |= {"status": "partial" if compared.is_part else "ok", "reason": compared.note}
    raw = [_raw(run.name_row() | base, compared.groups, m) for m, run in enumerate(runs)]
    values_RMG = np.stack([group.values for group in compared.groups], axis=2)
    complete_RMG = values_RMG[~np.isnan(values_RMG).any(axis=(1, 2))]
    num_lacking = len(values_RMG) - len(complete_RMG)
    if num_lacking > MAX_LACKING_SHARE * len(values_RMG):
        reason = f"{num_lacking} of {len(values_RMG)} replicates lack a class in a group, too many to correct the gap"
        base |= {"status": "not_evaluable", "reason": reason}
        return raw + [run.name_row() | base for run in runs]
    errors_MRG = np.moveaxis(complete_RMG - complete_RMG.mean(axis=0), 1, 0)
    estimates_MG = np.stack([group.estimates for group in compared.groups], axis=1)
    found = [gaps.gap(*of_run, alpha=settings.alpha) for of_run in zip(estimates_MG, errors_MRG, strict=True)]
    p_values = p_of_equal_groups(
        runs, compared.codes, classes=compared.classes, num_permutations=settings.num_replicates, seed=settings.seed
    )
    base |= {"resampling_unit": resampled_as(first, "patient"), "n_replicates": len(complete_RMG)}
    lacking = f"{num_lacking} of {len(values_RMG)} replicates lack a class" if num_lacking else ""
    rows = []
    for run, gap, p_value, raw_row in zip(runs, found, p_values, raw, strict=True):
        numbers = {"estimate": gap.shown, "ci_low": gap.ci_low, "ci_high": gap.ci_high, "p": float(p_value)}
        rows.append(run.name_row() | base | numbers | {"reason": _joined(raw_row["reason"], lacking)})
    base |= {"metric": f"{primary.name}_gap_difference", "reason": _joined(compared.note, lacking)}
    pairs = [(a, b) for a, b in arm_pairs if a in place and b in place]
    used = {place[name] for pair in pairs for name in pair}
    draws = {m: gaps.resampled_gaps(estimates_MG[m], errors_MRG[m]) for m in used}
    for a, b in pairs:
        low, high, p = gaps.difference_interval(draws[place[a]], draws[place[b]], alpha=settings.alpha)
        difference = found[place[a]].corrected - found[place[b]].corrected
        numbers = {"estimate": difference, "ci_low": low, "ci_high": high, "p": p}
        rows.append(first.name_row() | base | numbers | {"arm_a": a, "arm_b": b})
    return raw + rows


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _raw(row: Row, groups: Sequence[Group], model: int) -> Row:
    """The gap as it stands, and which groups are extreme."""
    # Ties go by name, so that the reason is the same in every run.
    ordered = sorted((float(group.estimates[model]), group.label) for group in groups)
    extremes = f"largest {ordered[-1][1]}, smallest {ordered[0][1]}"
    estimate, reason = ordered[-1][0] - ordered[0][0], _joined(extremes, row["reason"])
    return row | {"metric": f"{row['metric']}_raw", "estimate": estimate, "reason": reason}
