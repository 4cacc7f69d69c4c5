"""From predictions to metrics: every run, the mean over repeats, the selected runs and their differences.

A table in, rows out, no files and no clock: the same predictions in any row order give the same rows. An
undefined value is None with a status and a reason, never NaN.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.analysis import label_efficiency as efficiency
from medssl.analysis import multiplicity, paired
from medssl.analysis.bootstrap import MAX_LACKING_SHARE
from medssl.analysis.contenders import Field, fields
from medssl.analysis.measures import Bootstrap, measure, reliability_rows, resampled_as, sort_rows
from medssl.analysis.runs import CHOICE_SPLITS, ROW_KEY, Row, Run, read_runs, selected_runs
from medssl.config import MAX_REPLICATES, SPECIFICITY, FamilyConfig
from medssl.metrics import PRIMARY

Progress = Callable[[int, int, str], None]


def _mean_over_repeats(point_rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation (n - 1) over the repeats of an arm, draw by draw."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in point_rows:
        groups[tuple(row[name] for name in ROW_KEY if name != "repeat")].append(row)
    means = []
    for rows in groups.values():
        undefined = [row for row in rows if row["estimate"] is None]
        row = (undefined or rows)[0] | {"repeat": "mean"}
        if not undefined:
            values = [r["estimate"] for r in rows]
            row["estimate"] = float(np.mean(values))
            row["std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            count = f"{len(values)} repeats" if len(values) > 1 else "1 repeat, no standard deviation"
            row["reason"] = "; ".join(filter(None, (count, row["reason"])))
        means.append(row)
    return means


def _means_of_groups(found: Sequence[Field], means: Iterable[Row]) -> Iterator[Row]:
    """The means over the repeats of the arms that stand for groups, under the names of the groups."""
    of_arm: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    key = ("dataset", "split", "label_fraction", "draw", "arm_a")
    for row in means:
        of_arm[tuple(row[name] for name in key)].append(row)
    for field in found:
        for contender in (one for one in field.contenders.values() if one.note):
            run = contender.run
            for row in of_arm[run.dataset, run.split, run.label_fraction, run.draw, run.arm_id]:
                yield row | {
                    "arm_a": contender.name,
                    "reason": "; ".join(filter(None, (row["reason"], contender.note))),
                }


def _absent_rows(field: Field, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each pair that lacks an arm or a group here."""
    primary = PRIMARY[field.first.unit_kind]
    rows = []
    for a, b in pairs:
        absent = sorted({a, b} - set(field.contenders))
        if absent:
            arms = [repr(name) for name in absent if name not in field.absent]
            reasons = [f"no predictions of {' and '.join(arms)}"] if arms else []
            reasons += [f"{name}: {field.absent[name]}" for name in absent if name in field.absent]
            values = {"metric": primary.name, "k": primary.k, "arm_a": a, "arm_b": b, "repeat": "selected"}
            values |= {"status": "not_evaluable", "reason": "; ".join(reasons)}
            rows.append(field.first.name_row() | values)
    return rows


def _units_of(field: Field, units: Sequence[str], kinds: Set[str]) -> list[str]:
    """Those of the resampling units that a data set has: several data sets may be of images and of cases.

    Raises:
        ValueError: For a unit that no data set has, or a data set that has none of them.
    """
    known = [unit for unit in units if unit in ("patient", field.first.unit_kind)]
    for unit in units:
        if not known or unit not in ("patient", *kinds):
            resampled_as(field.first, unit)
    return known


def _selected_rows(
    found: Sequence[Field], settings: paired.Settings, units: Sequence[str], report: Callable[[int, str], None]
) -> list[Row]:
    """All rows of selected models: with intervals, differences with adjusted p values, and label efficiency."""
    families = [paired.families_of(field, settings) for field in found]
    sizes = Counter(family for of_field in families for row in of_field.values() for family in row if family)
    units_of = [_units_of(field, units, {one.first.unit_kind for one in found}) for field in found]
    rows: list[Row] = []
    tested: dict[str, list[paired.Tested]] = {unit: [] for unit in units}
    points: dict[tuple[str, str, str], dict[tuple[float, int, str], efficiency.Point]] = defaultdict(dict)
    for f, field in enumerate(found):
        rows += _absent_rows(field, settings.pairs)
        bootstrap = paired.enough_replicates(families[f].values(), sizes, settings)
        named: set[str] = set()
        for u, unit in enumerate(units):
            if unit in units_of[f] and (resampled := resampled_as(field.first, unit)) not in named:
                compared = paired.compare_field(field, families[f], unit, settings, bootstrap)
                rows += compared.rows
                tested[unit] += compared.tested
                points[field.first.dataset, field.first.split, unit] |= compared.points
                named.add(resampled)
            report(f * len(units) + u + 1, f"resampled by {unit}")
    for of_unit in tested.values():
        paired.adjust(of_unit, settings.bootstrap.alpha)
    for of_split in filter(None, points.values()):
        rows += efficiency.rows(
            of_split, settings.label_efficiency, alpha=settings.bootstrap.alpha, max_missing=MAX_LACKING_SHARE
        )
    return rows


def compare(predictions: pa.Table, **settings: Any) -> list[Row]:
    """Evaluate and compare what is in a predictions table, rows in any order; see `compare_runs`.

    Raises:
        ValueError: As `read_runs` and `compare_runs`.
    """
    return compare_runs(read_runs(predictions), **settings)


def compare_runs(
    runs: Sequence[Run],
    *,
    pairs: Sequence[tuple[str, str]],
    num_replicates: int,
    alpha: float,
    resampling_units: Sequence[str],
    seed: int,
    families: Sequence[FamilyConfig] = (),
    max_replicates: int = MAX_REPLICATES,
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
    label_efficiency: Sequence[tuple[str, str]] = (),
    specificity: float = SPECIFICITY,
    study_names: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate every run and compare arms pair by pair.

    Rows by `repeat`: "0", "1", ... one run each; "mean" over the repeats of a draw, with their standard
    deviation; "selected" the run that validation chose, with percentile intervals, and with `arm_b` the
    difference a minus b on the same resamples. Beside them stand DeLong's intervals and tests of AUCs.

    What is resampled as "patient" is named after what the set's patients stand for, such as "lesion". Where these
    are the units themselves, the two resampling units are one.

    Args:
        runs: Predictions, as `read_runs` arranges them.
        pairs: Arms or groups (a, b); one without predictions gives a row that says so.
        num_replicates: 1,000 in the paper (supplement B.1.1). More are drawn for a family of so many comparisons that
            none could be significant after Holm's adjustment.
        alpha: 0.05 for 95 % intervals.
        resampling_units: "patient", and "image" or "case" as the unit_kind of the predictions; of data sets of both
            kinds each has its own.
        seed: Of the resamples; all arms and label fractions share them.
        families: Differences that are adjusted together, for each resampling unit apart. Without any, those of all
            pairs in the primary metric (the mean AUC of images, the top-1 accuracy of cases) of one data set, split,
            label fraction and draw. A difference in no family is not adjusted.
        max_replicates: Where a family needs more, its differences are "not_resolvable".
        groups: Name to arms that are variants of one method; validation chooses which stands for it.
        label_efficiency: [arm, baseline]: rows "matching_label_fraction" and "labels_saved", see `label_efficiency`.
        specificity: At which sensitivities are reported, in 0-1.
        study_names: Arms and groups of the study, some of which may not have been run; see
            `multiplicity.check_families`. Without a study, a family that holds no difference is refused.
        progress: Called with steps done, steps in all, and what is done.

    Raises:
        ValueError: As `contenders.fields` and `label_efficiency.check_draws`; for a resampling unit that no
            predictions have, a repeated pair or resampling unit, families that overlap or hold no difference, or
            settings out of range.
    """
    for name, values in (("pairs", pairs), ("resampling_units", resampling_units)):
        if len(set(values)) != len(values):
            raise ValueError(f"{name}: {len(values)} given, {len(set(values))} different; name each once")
    if label_efficiency:
        efficiency.check_draws(runs)
    bootstrap = Bootstrap(num_replicates, alpha, seed, specificity)
    settings = paired.Settings(pairs, bootstrap, max_replicates, families, label_efficiency)
    report = progress or (lambda done, total, detail: None)
    # Some of the steps are not known before the runs are.
    num_fields = len({(r.dataset, r.split, r.label_fraction, r.draw) for r in runs if r.split not in CHOICE_SPLITS})
    num_steps = len(runs) + num_fields * len(resampling_units)
    measured = {}
    for run in runs:
        measured[run] = measure(run, specificity=specificity)
        report(len(measured), num_steps, "runs evaluated")
    points = [row | {"repeat": str(run.repeat)} for run, rows in measured.items() for row in rows]
    means = _mean_over_repeats(points)
    found = fields(measured, groups)
    if families:
        differences = [paired.differences(field, pairs) for field in found]
        multiplicity.check_families(families, [r for d in differences for rs in d.values() for r in rs], study_names)
    rows = [*points, *means, *_means_of_groups(found, means)]
    rows += _selected_rows(
        found, settings, resampling_units, lambda done, what: report(len(runs) + done, num_steps, what)
    )
    return sort_rows(rows)


def reliability_curves(runs: Sequence[Run]) -> list[Row]:
    """The reliability curves of all selected models, as rows of the calibration table.

    Raises:
        ValueError: As `selected_runs`.
    """
    return [row for arms in selected_runs(runs) for run in arms.values() for row in reliability_rows(run)]
