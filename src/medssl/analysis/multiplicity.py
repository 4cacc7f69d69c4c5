"""Adjustment of p values for how many differences are tested together, and the replicates that this takes.

A family is the set of differences over which a wrong finding is guarded against. A difference belongs to one family at
most; one that belongs to none has no adjusted p value.
"""

import math
from collections.abc import Mapping, Sequence
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
        smallest = min(smallest, p_values[by_size[place]] * len(p_values) / (place + 1))
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


def check_names(families: Sequence[FamilyConfig], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a family that names a metric in which nothing is compared: it would silently adjust nothing.

    Raises:
        ValueError: Names the metrics that there are.
    """
    known = {metric_name(row) for row in rows}
    for family in families:
        if known and (unknown := sorted(set(family.metrics) - known)):
            raise ValueError(
                f"compare.families: {family.name}: metrics {unknown} are not compared; possible: {sorted(known)}"
            )
