"""Adjustment of p values for how many differences are tested together, and the replicates that this takes.

A family is the set of differences over which a wrong finding is guarded against. A difference belongs to one family at
most; one that belongs to none has no adjusted p value.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from medssl.config import FamilyConfig

# What there is where the study declares no family: the pairs of arms, in the primary metric.
DEFAULT_FAMILY = "all pairs at this label fraction"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given: controls the chance of any wrong rejection."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Step-up adjustment (Benjamini and Hochberg 1995), in the order given: controls the share of wrong rejections.

    It holds for independent and for positively dependent tests, such as differences on the same units.
    """
    adjusted = [0.0] * len(p_values)
    smallest = 1.0
    by_size = sorted(range(len(p_values)), key=p_values.__getitem__)
    for place in reversed(range(len(p_values))):
        p = p_values[by_size[place]]
        # Rounding must not take the largest, whose factor is one, below itself.
        smallest = min(smallest, max(p, p * len(p_values) / (place + 1)))
        adjusted[by_size[place]] = smallest
    return adjusted


def required_replicates(num_comparisons: int, alpha: float) -> int:
    """Replicates B with 2 / (B + 1) <= alpha / m: with fewer, Holm rejects none of m comparisons, whatever the data.

    2 / (B + 1) is the smallest p value of B replicates.
    """
    # Rounding must not ask for one more: 2 * 25 / 0.05 is 1000.0000000000001 in some orders of operation.
    return max(1, math.ceil(2 * num_comparisons / alpha - 1e-6) - 1)


def covers(family: FamilyConfig, row: Mapping[str, Any]) -> bool:
    """Whether a metrics row of a difference belongs to the family."""
    return all(
        not wanted or value in wanted
        for wanted, value in (
            ([frozenset(pair) for pair in family.pairs], frozenset((row["arm_a"], row["arm_b"]))),
            (family.label_fractions, row["label_fraction"]),
            (family.metrics, metric_name(row)),
            (family.datasets, row["dataset"]),
            (family.splits, row["split"]),
        )
    )


def metric_name(row: Mapping[str, Any]) -> str:
    """A row's metric as families name it, with its k: "mean_auc", "top_3_accuracy"."""
    name: str = row["metric"]
    return name if row["k"] is None else name.replace("_k_", f"_{row['k']}_")


def family_of(row: Mapping[str, Any], families: Sequence[FamilyConfig]) -> str:
    """Name of the declared family that a difference belongs to, or "".

    Raises:
        ValueError: It belongs to several.
    """
    names = [family.name for family in families if covers(family, row)]
    if len(names) > 1:
        raise ValueError(
            f"compare.families: {names} hold the difference of {row['arm_a']} and {row['arm_b']} in "
            f"{metric_name(row)}; a difference belongs to one family at most"
        )
    return names[0] if names else ""


def check_families(
    families: Sequence[FamilyConfig], rows: Sequence[Mapping[str, Any]], study_names: Collection[str]
) -> None:
    """Refuse a family that would silently adjust nothing: of a metric in which nothing is compared, or of no rows.

    Args:
        families: As declared.
        rows: Of all differences.
        study_names: Arms and groups of the study. A family of these alone may be without rows, since some of them were
            not run; see `idle_families`.

    Raises:
        ValueError: Names what there is.
    """
    known = {metric_name(row) for row in rows}
    for family in families:
        if known and (unknown := sorted(set(family.metrics) - known)):
            raise ValueError(
                f"compare.families: {family.name}: metrics {unknown} are not compared; possible: {sorted(known)}"
            )
        arms = {name for pair in family.pairs for name in pair}
        excused = bool(study_names) and arms <= set(study_names)
        if not excused and not any(covers(family, row) for row in rows):
            raise ValueError(
                f'compare.families: "{family.name}" holds none of the {len(rows)} differences of the table'
                f"{_there_is(rows)}"
            )


def _there_is(rows: Sequence[Mapping[str, Any]]) -> str:
    """What differences there are, at most five of each kind."""
    found = {
        "pairs": {(row["arm_a"], row["arm_b"]) for row in rows},
        "label fractions": {row["label_fraction"] for row in rows},
        "datasets": {row["dataset"] for row in rows},
        "splits": {row["split"] for row in rows},
    }
    listed = (
        f"{name} {[list(v) if isinstance(v, tuple) else v for v in sorted(values)[:5]]}"
        + (f" and {len(values) - 5} more" if len(values) > 5 else "")
        for name, values in found.items()
    )
    return f"; there are {', '.join(listed)}" if rows else ""


def idle_families(families: Sequence[FamilyConfig], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence on each family in which no difference was adjusted; `rows` are those of the metrics table."""
    used = {row["family"] for row in rows}
    return [
        f'family "{family.name}" adjusts nothing: no difference that it holds has a p value'
        for family in families
        if family.name not in used
    ]
