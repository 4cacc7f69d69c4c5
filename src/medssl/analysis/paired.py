"""Differences of contenders on one split, with intervals on common resamples and p values adjusted by families."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.analysis import multiplicity
from medssl.analysis.bootstrap import Interval, Replicates
from medssl.analysis.contenders import Field
from medssl.analysis.crosscheck import DeLong
from medssl.analysis.label_efficiency import Point
from medssl.analysis.measures import Bootstrap, is_primary, measures, resampled_as, with_interval
from medssl.analysis.runs import Row
from medssl.config import FamilyConfig

# Name of a family, and for the family of a study that declares none, where it is tested.
Family = tuple[Any, ...]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """What is compared, and how; see `compare`."""

    pairs: Sequence[tuple[str, str]]
    bootstrap: Bootstrap
    max_replicates: int
    families: Sequence[FamilyConfig]
    label_efficiency: Sequence[tuple[str, str]]


def _difference(row_a: Row, row_b: Row) -> Row:
    """The row of a minus b; units and truth are those of both."""
    undefined = next((row for row in (row_a, row_b) if row["estimate"] is None), None)
    parts = dict.fromkeys([*row_a["reason"].split("; "), *row_b["reason"].split("; ")])
    row = row_a | {"arm_b": row_b["arm_a"], "reason": "; ".join(filter(None, parts))}
    if undefined is not None:
        return row | {"estimate": None, "status": undefined["status"], "reason": undefined["reason"]}
    status = "partial" if "partial" in (row_a["status"], row_b["status"]) else row_a["status"]
    return row | {"estimate": row_a["estimate"] - row_b["estimate"], "status": status}


def _over_common_classes(row: Row, interval: Interval) -> Row:
    """A difference over the classes that both models define, as its interval is; each alone may define more."""
    if row["estimate"] is None or interval.estimate is not None:
        return row if row["estimate"] is None else row | {"estimate": interval.estimate}
    reason = "; ".join(filter(None, (row["reason"], "no class is evaluable for both")))
    return row | {"estimate": None, "status": "not_evaluable", "reason": reason}


def differences(field: Field, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Row]]:
    """The differences of the pairs that are here, without intervals."""
    here = field.contenders
    return {
        (a, b): [_difference(x, y) for x, y in zip(here[a].rows, here[b].rows, strict=True)]
        for a, b in pairs
        if a in here and b in here
    }


def _family(row: Row, field: Field, families: Sequence[FamilyConfig]) -> Family | None:
    """The family that a difference is adjusted in, or None."""
    if row["estimate"] is None:
        return None
    if families:
        name = multiplicity.family_of(row, families)
        return (name,) if name else None
    where = (row["dataset"], row["split"], row["label_fraction"], row["draw"])
    return (multiplicity.DEFAULT_FAMILY, *where) if is_primary(row, field.first) else None


@dataclass(frozen=True)
class Tested:
    """A difference with its interval, the family that it is adjusted in and the replicates that were drawn."""

    row: Row
    family: Family
    num_replicates: int


@dataclass(frozen=True)
class Compared:
    """What one resampling unit gives on one field."""

    rows: list[Row]
    tested: list[Tested]
    points: dict[tuple[float, int, str], Point]


def compare_field(
    field: Field, families: Mapping[Pair, Sequence[Family | None]], unit: str, settings: Settings, bootstrap: Bootstrap
) -> Compared:
    """Intervals of all contenders and their differences on common resamples of one kind of unit.

    Args:
        field: Who is compared.
        families: Of each difference, or None.
        unit: "patient", or the unit_kind of the runs.
        settings: What is compared.
        bootstrap: With as many replicates as the families need.
    """
    resampled = resampled_as(field.first, unit)
    replicates = bootstrap.replicates(field.runs, unit)
    clusters = field.first.patients if unit == "patient" else np.arange(field.first.units.size)
    delong = DeLong.of(field.runs, clusters, listed=measures(field.first, specificity=bootstrap.specificity))

    def finished(rows: Sequence[Row], *names: str) -> list[Row]:
        places = [field.place(name) for name in names]
        intervals = bootstrap.intervals(replicates, field.first, *places)
        if len(names) == 2:
            rows = [_over_common_classes(*pair) for pair in zip(rows, intervals, strict=True)]
        resampled_rows = [
            with_interval(row, interval, resampled) for row, interval in zip(rows, intervals, strict=True)
        ]
        return delong.fill(resampled_rows, *places, alpha=bootstrap.alpha)

    singles = {name: finished(one.rows, name) for name, one in field.contenders.items()}
    compared = {pair: finished(rows, *pair) for pair, rows in differences(field, settings.pairs).items()}
    tested = [
        Tested(row, family, bootstrap.num_replicates)
        for pair, rows in compared.items()
        for row, family in zip(rows, families[pair], strict=True)
        if family and row["p"] is not None
    ]
    points = _points(field, singles, replicates, bootstrap) if settings.label_efficiency else {}
    return Compared([row for rows in (*singles.values(), *compared.values()) for row in rows], tested, points)


def families_of(field: Field, settings: Settings) -> dict[Pair, list[Family | None]]:
    """The family of each difference, in the order of `differences`."""
    return {
        pair: [_family(row, field, settings.families) for row in rows]
        for pair, rows in differences(field, settings.pairs).items()
    }


def enough_replicates(
    families: Iterable[Sequence[Family | None]], sizes: Mapping[Family, int], settings: Settings
) -> Bootstrap:
    """The bootstrap with the replicates that the largest family of a field takes, of those within the study's limit.

    More replicates would not help a family beyond the limit: it is not resolvable with any number allowed.
    """
    bootstrap = settings.bootstrap
    here = {family for of_pair in families for family in of_pair if family}
    needed = [multiplicity.required_replicates(sizes[family], bootstrap.alpha) for family in here]
    allowed = [bootstrap.num_replicates, *(number for number in needed if number <= settings.max_replicates)]
    return replace(bootstrap, num_replicates=max(allowed))


def _points(
    field: Field, singles: Mapping[str, Sequence[Row]], replicates: Replicates, bootstrap: Bootstrap
) -> dict[tuple[float, int, str], Point]:
    """The primary metric of each contender on the full sample and on the resamples."""
    listed = measures(field.first, specificity=bootstrap.specificity)
    at = next(i for i, item in enumerate(listed) if is_primary({"metric": item.metric, "k": item.k}, field.first))
    points = {}
    for name, rows in singles.items():
        values_RQ: NDArray[np.float64] = replicates.values[:, field.place(name), list(listed[at].quantities)]
        defined = values_RQ[:, ~np.isnan(replicates.estimates[field.place(name), list(listed[at].quantities)])]
        counted_R = np.count_nonzero(~np.isnan(defined), axis=1)
        draws_R = np.divide(
            np.nansum(defined, axis=1), counted_R, out=np.full(len(defined), np.nan), where=counted_R > 0
        )
        if rows[at]["status"] == "interval_withheld":
            draws_R[:] = np.nan
        points[field.first.label_fraction, field.first.draw, name] = Point(rows[at], draws_R)
    return points


def adjust(tested: Iterable[Tested], alpha: float) -> None:
    """Fill in the adjusted p values, family by family."""
    families: dict[Family, list[Tested]] = defaultdict(list)
    for one in tested:
        families[one.family].append(one)
    for key, members in families.items():
        needed = multiplicity.required_replicates(len(members), alpha)
        p_values = [one.row["p"] for one in members]
        by_holm, by_share = multiplicity.holm(p_values), multiplicity.benjamini_hochberg(p_values)
        for one, p_adjusted, p_fdr in zip(members, by_holm, by_share, strict=True):
            one.row.update(family=key[0], p_adjusted=p_adjusted, p_fdr=p_fdr)
            if one.num_replicates < needed:
                told = f"not resolvable: {len(members)} comparisons need {needed} replicates"
                one.row.update(p_adjusted=None, status="not_resolvable")
                one.row["reason"] = "; ".join(filter(None, (one.row["reason"], told)))
