"""The values that the paper's supplement prints, tables B.1 to B.6, kept as CSV files in the folder beside this module.

They are facts to compare with, never targets: the data, the splits and much of the settings are not the paper's.
"""

import csv
import functools
import io
import re
from dataclasses import dataclass
from importlib.resources import files

from medssl.metrics import Metric

_FOLDER = "published"
# What kind of unit a table is about: B.6 is of radiographs, the others are of dermatology's cases.
TABLES: dict[str, str] = {"B.1": "case", "B.2": "case", "B.3": "case", "B.4": "case", "B.5": "case", "B.6": "image"}
# As arms.parquet names the augmentation of the last pretraining run, and as table B.2 does.
AUGMENTATIONS = {"micle_partial": "partial", "simclr": "full"}


@dataclass(frozen=True)
class Published:
    """One printed value.

    Attributes:
        table: "B.1" to "B.6".
        architecture: As an arm's architecture is displayed.
        method: As an arm's method is.
        augmentation: "full" or "partial" in table B.2, else "".
        metric: As the metrics table names it.
        class_name: The finding in table B.6, else "".
        label_fraction: In 0-1.
        printed: With the digits of the print.
        plus_minus: What stands behind ±, as printed; "" where nothing does.
        plus_minus_is: What it is; the paper says so of B.1 alone.
        source: Where it is printed.
        is_derived: Whether it is not printed but computed from what is.
    """

    table: str
    architecture: str
    method: str
    augmentation: str
    metric: Metric
    class_name: str
    label_fraction: float
    printed: str
    plus_minus: str
    plus_minus_is: str
    source: str
    is_derived: bool

    @property
    def value(self) -> float:
        """The printed number."""
        return float(self.printed)


@functools.cache
def of_table(name: str) -> tuple[Published, ...]:
    """All values of a table, as ordered in print; those derived from it come last.

    Raises:
        ValueError: There is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"table {name!r} is not kept; expected one of {sorted(TABLES)}")
    stem = f"table_{name.lower().replace('.', '')}"
    folder = files(__package__) / _FOLDER
    found = []
    for file in (folder / f"{stem}.csv", folder / f"{stem}_derived.csv"):
        if file.is_file():
            found += [_value(row) for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))]
    return tuple(found)


def _value(row: dict[str, str]) -> Published:
    return Published(
        table=row["table"],
        architecture=row["architecture"],
        method=row["method"],
        augmentation=row["augmentation"],
        metric=Metric(row["metric"], int(row["k"]) if row["k"] else None, ""),
        class_name=row["class"],
        label_fraction=float(row["label_fraction"]),
        printed=row["value"],
        plus_minus=row["plus_minus"],
        plus_minus_is=row["plus_minus_is"],
        source=row["source"],
        is_derived=row["source"].startswith("derived"),
    )


def plain(method: str) -> str:
    """A method's name as tables are matched by: "MICLE ImageNet → Derm" and "MICLe ImageNet->Derm" are one."""
    arrows = re.sub(r"\s*(?:->|→)\s*", "->", method)
    return re.sub(r"(?i)^micle\b", "MICLe", " ".join(arrows.split()))


def base(method: str) -> str:
    """A method's name without what stands in brackets behind it, such as its number of steps."""
    return plain(re.sub(r"\s*\([^()]*\)\s*$", "", method))


def matches(value: Published, *, architecture: str, method: str, augmentation: str | None) -> bool:
    """Whether an arm is what a published value is about.

    Names decide, in full; in table B.2, which tells arms apart by augmentation, that and the name without brackets.

    Args:
        value: Of a table.
        architecture: Of the arm, as displayed.
        method: Of the arm, as displayed.
        augmentation: Of the arm's last pretraining run, as arms.parquet has it.
    """
    if architecture != value.architecture:
        return False
    if value.augmentation:
        return base(method) == value.method and AUGMENTATIONS.get(augmentation or "") == value.augmentation
    return plain(method) == value.method
