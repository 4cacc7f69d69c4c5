"""The card of a registered model: what it is for, what it was made from, how good it is for whom, and its limits.

After Mitchell et al. 2019, Model Cards for Model Reporting, in the sections that a promotion can fill. It holds sums
over patients only, never a row of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from medssl.analysis import markdown, page, tables
from medssl.analysis.groups import group_order, in_words
from medssl.analysis.page import Heading, Note, Part, Section
from medssl.analysis.results import DECIMALS, Row, sentence, with_interval, words
from medssl.analysis.runs import attributes_of
from medssl.analysis.tables import Cell, Column, Table, percent
from medssl.metrics import PRIMARY

ALL = "all"  # the subgroup of all patients
NOT_ASSESSED = "not assessed"
# The calibration error of each kind of unit, as the metrics table names it.
_CALIBRATION: Mapping[str, str] = MappingProxyType({"image": "mean_ece", "case": "top_label_ece"})
# Metrics as they are logged to their words.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "mean_ece": "mean calibration error",
        "top_label_ece": "calibration error of the likeliest class",
        **{metric.log_name: words(metric.name, metric.k) for metric in PRIMARY.values()},
    }
)
_SHOWN = {"image": "chest radiographs", "case": "cases of one or more photographs of skin"}


@dataclass(frozen=True)
class ModelCard:
    """Everything that a card tells.

    Attributes:
        model_name: In the registry.
        version: In the registry.
        arm: As displayed.
        label_fraction: Of the training labels that it saw, in 0-1.
        unit_kind: What it scores, image or case.
        classes: Findings or conditions that it scores.
        truth: How labels were read, in sentences.
        data: What is counted to its count as shown, such as "Training patients" to "5,321".
        digests: SHA-256 of each artifact behind it, by role; its own among them.
        scores: Its rows of schema.METRICS, as `scores_of` finds them.
        level: Of all intervals, in 0-1.
        decision: Of its promotion, in JSON types: verdict, reasons (a sentence each), and checks, each with cohort,
            subgroup, metric, kind, margin, candidate, champion, estimate, ci_low, ci_high, n_units, n_patients, status
            and reason; estimate is candidate minus champion, and values are None where they could not be had.
        num_test_uses: How often its test set has been used, by predictions and promotions, this one counted.
    """

    model_name: str
    version: str
    arm: str
    label_fraction: float
    unit_kind: str
    classes: Sequence[str]
    truth: str
    data: Mapping[str, str]
    digests: Mapping[str, str]
    scores: Sequence[Row]
    level: float
    decision: Mapping[str, Any]
    num_test_uses: int


def scores_of(metrics: pa.Table, *, arm_id: str, label_fraction: float, draw: int) -> list[Row]:
    """The rows of a card: what decides and calibration, over all and by one attribute, each with its interval.

    Args:
        metrics: schema.METRICS of compare and of subgroups together.
        arm_id: Of the model.
        label_fraction: Of the model.
        draw: Of the model.
    """
    key = {"arm_a": arm_id, "arm_b": None, "label_fraction": label_fraction, "draw": draw, "repeat": "selected"}
    wanted = {(metric.name, metric.k) for metric in PRIMARY.values()} | {(name, None) for name in _CALIBRATION.values()}
    found: dict[tuple[Any, ...], Row] = {}
    for row in metrics.to_pylist():
        if (row["metric"], row["k"]) in wanted and all(row[name] == value for name, value in key.items()):
            place = (row["dataset"], row["split"], row["subgroup"], row["metric"])
            # Of several units, patients are what intervals of a card resample; "" has no interval.
            if len(attributes_of(row["subgroup"])) < 2 and row["resampling_unit"] not in ("image", "case"):
                found.setdefault(place, row)
    return list(found.values())


def section(card: ModelCard) -> Section:
    """The card as the last section of a report's page."""
    return Section("model-card", f"Model card: {card.model_name}, version {card.version}", tuple(_parts(card)))


def to_markdown(card: ModelCard) -> str:
    """The card as a text of its own."""
    return markdown.of_section(section(card))


def to_page(card: ModelCard, html: str) -> str:
    """A report's page with the card at its end."""
    return page.with_section(html, section(card))


def _parts(card: ModelCard) -> Iterator[Part]:
    yield _summary(card)
    yield Heading("Intended use")
    yield Note(
        "For research on pretraining without labels. It is no medical device, was not tried in care, and no decision "
        "on a patient may rest on it."
    )
    yield f"It gives {_SHOWN[card.unit_kind]} a score for each of: {', '.join(card.classes)}."
    yield Heading("Data")
    yield card.truth
    columns = [tables.text("What"), Column("Number")]
    yield tables.build("card-data", "What it was trained and tested on.", columns, list(card.data.items()))
    yield Heading("Results")
    yield _scores(card)
    yield Heading("Promotion")
    yield " ".join(card.decision["reasons"])
    if card.decision["checks"]:
        yield _checks(card)
    yield Heading("Limits")
    yield from _limits(card)
    yield Heading("Made from")
    columns = [tables.text("Artifact"), tables.text("SHA-256")]
    yield tables.build("card-digests", "Artifacts by their content.", columns, sorted(card.digests.items()))


def _summary(card: ModelCard) -> Table:
    rows = [
        ("Model", f"{card.model_name}, version {card.version}"),
        ("Arm", card.arm),
        ("Training labels seen", percent(card.label_fraction)),
        ("Verdict", Cell(card.decision["verdict"], strong=True)),
        ("Uses of its test set", str(card.num_test_uses)),
    ]
    return tables.build("card", "The model.", [tables.text("What"), tables.text("Value")], rows)


def _group(subgroup: str) -> str:
    attribute, _, group = subgroup.partition("=")
    return f"{sentence(in_words(attribute))}: {group}" if group else "All"


def _by_group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    attribute, _, group = row["subgroup"].partition("=")
    return row["subgroup"] != ALL, attribute, group_order(group)


def _scores(card: ModelCard) -> Table:
    """A row a set and group; what decides and calibration in columns."""
    primary, calibration = PRIMARY[card.unit_kind], _CALIBRATION[card.unit_kind]
    shown = {primary.name: _NAMES[primary.log_name], calibration: _NAMES[calibration]}
    by_place: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted(card.scores, key=lambda row: (row["split"] != "test", row["dataset"], _by_group(row))):
        by_place.setdefault((f"{row['split']} ({row['dataset']})", row["subgroup"]), {})[row["metric"]] = row
    rows = []
    for (place, subgroup), of_metric in by_place.items():
        first = next(iter(of_metric.values()))
        cells = [with_interval(of_metric[name]) if name in of_metric else "–" for name in shown]
        rows.append((place, _group(subgroup), first["n_units"], first["n_patients"], *_unlinked(cells)))
    counts = (f"{card.unit_kind.capitalize()}s", "Patients")
    columns = [*map(tables.text, ("Set", "Group")), *map(Column, counts)]
    columns += [Column(f"{sentence(name)} [{percent(card.level)} interval]") for name in shown.values()]
    return tables.build("card-results", "How good it is, and for whom.", columns, rows)


def _unlinked(cells: Sequence[Cell | str]) -> list[Cell | str]:
    """Cells that lead nowhere: a card is read without the report's tasks, too."""
    return [cell if isinstance(cell, str) else Cell(cell.text, cell.note) for cell in cells]


def _checks(card: ModelCard) -> Table:
    """What had to hold, beside the present champion."""
    rows = []
    for check in sorted(card.decision["checks"], key=lambda check: (check["cohort"], check["kind"], _by_group(check))):
        ends = (check["ci_low"], check["ci_high"])
        sides = (check["candidate"], check["champion"])
        interval = "" if None in ends else f" [{ends[0]:.{DECIMALS}f}, {ends[1]:.{DECIMALS}f}]"
        rows.append(
            (
                check["cohort"],
                _group(check["subgroup"]),
                _NAMES[check["metric"]],
                *(tables.real(value, decimals=DECIMALS, reason=check["reason"]) for value in sides),
                f"{tables.real(check['estimate'], decimals=DECIMALS).text}{interval}",
                _required(check["kind"], check["margin"]),
                Cell(check["status"], check["reason"], strong=check["status"] != "holds"),
            )
        )  # fmt: skip
    columns = [*map(tables.text, ("Cohort", "Group", "Metric")), *map(Column, ("Here", "Champion"))]
    columns += [Column(f"Difference [{percent(card.level)} interval]"), *map(tables.text, ("Had to be", "Outcome"))]
    return tables.build("card-checks", "Beside the present champion, on the same patients.", columns, rows)


def _required(kind: str, margin: float) -> str:
    return {
        "better": "lower end above 0",
        "subgroup": f"lower end above −{margin:g}",
        "calibration": f"upper end below {margin:g}",
    }[kind]


def _limits(card: ModelCard) -> Iterator[str]:
    yield (
        "Intervals tell how numbers vary with the patients drawn from these sets. They tell nothing of other "
        "hospitals, devices and times, or of patients whom the sets lack."
    )
    small = dict.fromkeys(
        _group(row["subgroup"]) for row in sorted(card.scores, key=_by_group) if row["estimate"] is None
    )
    small |= dict.fromkeys(
        _group(check["subgroup"]) for check in card.decision["checks"] if check["status"] == NOT_ASSESSED
    )
    if small:
        yield f"Not assessed, for lack of patients or labels: {'; '.join(small)}."
    if card.num_test_uses > 1:
        yield (
            f"The test set has been used {card.num_test_uses} times. Whatever is chosen by a test set looks "
            "better on it than elsewhere, the more so the more often."
        )
    if not any(row["split"] == "external" for row in card.scores):
        yield "It was not evaluated on a set from elsewhere."
