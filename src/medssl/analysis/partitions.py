"""The units of a split by attributes of patients or images, such as sex or view position, and by pairs of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.analysis.runs import Run

# Attribute to the column of the predictions that holds it.
ATTRIBUTES = {
    "sex": "sex",
    "age_band": "age_years",
    "view_position": "view_position",
    "skin_type": "skin_type",
    "skin_type_group": "skin_type",
    "site": "site",
}
UNKNOWN, UNMAPPED = "unknown", "unmapped"


@dataclass(frozen=True)
class Grouping:
    """How values become groups.

    Attributes:
        age_edges: Edges of the age bands in years, strictly increasing.
        skin_type_groups: Group to its skin types, each type in one; a type in none is `UNMAPPED`.
    """

    age_edges: Sequence[float]
    skin_type_groups: Mapping[str, Sequence[str]]

    def of_units(self, predictions: pa.Table, run: Run, attribute: str) -> NDArray[np.str_]:
        """Group of each unit of a run, shape (n,); null, empty and "unknown" in any case are `UNKNOWN`."""
        column = predictions[ATTRIBUTES[attribute]].take(pa.array(run.rows, type=pa.int64()))
        if attribute == "age_band":
            ages = column.cast(pa.float64()).to_numpy().astype(np.float64)
            return age_bands(ages, age_edges=self.age_edges)
        texts = ("" if value is None else str(value).strip() for value in column.to_pylist())
        names = [UNKNOWN if text.lower() in ("", UNKNOWN) else text for text in texts]
        if attribute == "skin_type_group":
            group_of = {skin_type: group for group, types in self.skin_type_groups.items() for skin_type in types}
            names = [name if name == UNKNOWN else group_of.get(name, UNMAPPED) for name in names]
        return np.array(names)


def age_bands(age_years: NDArray[np.float64], *, age_edges: Sequence[float]) -> NDArray[np.str_]:
    """Name the band of each age: for edges 40 and 60, "<40", "40-60" (60 excluded) and "60+"; NaN: "unknown".

    Args:
        age_years: Shape (n,).
        age_edges: Strictly increasing, in years; at least one.

    Raises:
        ValueError: When the edges do not increase, or are none.
    """
    if not age_edges or any(low >= high for low, high in pairwise(age_edges)):
        raise ValueError(f"age_edges must be one or more increasing ages in years, got {list(age_edges)}")
    names = [
        f"<{age_edges[0]:g}",
        *(f"{low:g}-{high:g}" for low, high in pairwise(age_edges)),
        f"{age_edges[-1]:g}+",
    ]
    bands = np.array(names)[np.searchsorted(age_edges, age_years, side="right").clip(max=len(age_edges))]
    return np.where(np.isnan(age_years), UNKNOWN, bands)


@dataclass(frozen=True, eq=False)
class Partition:
    """The units of a split by one attribute, or by two at once.

    Attributes:
        name: "sex", or "sex & age_band".
        labels: Shape (n,), the group of each unit: "sex=female", "sex=female & age_band=40-60".
        told_by: Of two attributes the one that tells the groups alone, the other being the same for all units; else "".
    """

    name: str
    labels: NDArray[np.str_]
    told_by: str


def partitions(
    predictions: pa.Table,
    run: Run,
    grouping: Grouping,
    *,
    by: Sequence[str],
    attribute_pairs: Sequence[tuple[str, str]],
) -> Iterator[Partition]:
    """The units of a run by each attribute, then by each pair of attributes."""
    groups_of = {attribute: grouping.of_units(predictions, run, attribute) for attribute in by}
    named = {attribute: np.char.add(f"{attribute}=", groups) for attribute, groups in groups_of.items()}
    for attribute, labels in named.items():
        yield Partition(attribute, labels, "")
    for a, b in attribute_pairs:
        told_by = next((other for one, other in ((a, b), (b, a)) if np.unique(named[one]).size == 1), "")
        yield Partition(f"{a} & {b}", np.char.add(np.char.add(named[a], " & "), named[b]), told_by)


def check_attributes(predictions: pa.Table, by: Sequence[str], attribute_pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse attributes that do not exist or are named twice, and pairs that are not two of them.

    Raises:
        ValueError: For such attributes or pairs, or where their columns are missing.
    """
    unknown = sorted(set(by) - set(ATTRIBUTES))
    if unknown or len(set(by)) != len(by):
        raise ValueError(f"by: expected distinct ones of {sorted(ATTRIBUTES)}, got {list(by)}")
    pairs = {frozenset(pair) for pair in attribute_pairs}
    if len(pairs) != len(attribute_pairs) or any(len(pair & set(by)) != 2 for pair in pairs):
        raise ValueError(f"attribute_pairs: expected distinct pairs of {list(by)}, got {list(attribute_pairs)}")
    absent = sorted({ATTRIBUTES[attribute] for attribute in by} - set(predictions.column_names))
    if absent:
        raise ValueError(f"predictions: columns {absent} are missing; re-run predict")
