"""The drop of a metric from the test split of a study to an external set, for the unchanged model (spec 3.6)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medssl.analysis.bootstrap import Interval, Replicates
from medssl.analysis.measures import Bootstrap, Measure, measure, measures, resampled_as, with_interval
from medssl.analysis.runs import Row, Run
from medssl.metrics import PRIMARY, Floats
from medssl.schema import EXTERNAL

TEST = "test"


def drops(
    groups: Sequence[Mapping[str, Run]], *, arm_pairs: Sequence[tuple[str, str]], settings: Bootstrap
) -> list[Row]:
    """How much lower each metric is on each external set than on the test split, and how arms differ in it.

    Rows have the external set as `dataset`, "external" as `split`, and "mean_auc_drop" for the metric "mean_auc": the
    value on the test split minus that on the external set, of the model that validation chose at one label fraction
    and draw. A mean over classes covers those that both sets define, and `reason` names the others. Units and patients
    are those of the external set. With `arm_b` the row is the drop of a minus that of b; a pair that lacks an arm on
    either set has none.

    The sets are independent, so patients of each are resampled apart, and in each all arms see the same resamples.

    Args:
        groups: On each data set, split, label fraction and draw, the run of each arm or group of arms by its name.
        arm_pairs: Of these names.
        settings: Of the bootstrap.

    Raises:
        ValueError: When several data sets have a test split, so that it is open with which one to compare.
    """
    of_split: dict[str, list[Mapping[str, Run]]] = {TEST: [], EXTERNAL: []}
    for group in groups:
        of_split.setdefault(_any(group).split, []).append(group)
    tests = {(_any(group).label_fraction, _any(group).draw): group for group in of_split[TEST]}
    if of_split[EXTERNAL] and len(tests) < len(of_split[TEST]):
        names = sorted({_any(group).dataset for group in of_split[TEST]})
        raise ValueError(
            f"predictions: {len(names)} data sets have a test split, {names[:5]}; an external set is compared "
            "with one: analyse the others apart"
        )
    rows: list[Row] = []
    for external in of_split[EXTERNAL]:
        test = tests.get((_any(external).label_fraction, _any(external).draw), {})
        if arms := sorted(test.keys() & external.keys()):
            rows += _rows(arms, [test[arm] for arm in arms], [external[arm] for arm in arms], arm_pairs, settings)
    return rows


def _any(group: Mapping[str, Run]) -> Run:
    return next(iter(group.values()))


def _rows(
    names: Sequence[str],
    tests: Sequence[Run],
    externals: Sequence[Run],
    arm_pairs: Sequence[tuple[str, str]],
    settings: Bootstrap,
) -> list[Row]:
    """Drops of the same arms on two sets."""
    common = _common_classes(tests[0], externals[0])
    if not common:
        primary = PRIMARY[externals[0].unit_kind]
        base = {"metric": f"{primary.name}_drop", "k": primary.k, "repeat": "selected", "status": "not_evaluable"}
        reason = f"{tests[0].dataset} and {externals[0].dataset} have other classes or units"
        return [externals[0].name_row() | base | {"arm_a": name, "reason": reason} for name in names]
    tests, externals = ([run.of_classes(common) for run in runs] for runs in (tests, externals))
    drop = _differences(tests, externals, settings)
    items = measures(tests[0], specificity=settings.specificity)
    measured = [
        [measure(run, specificity=settings.specificity) for run in sides]
        for sides in zip(tests, externals, strict=True)
    ]
    place = {name: m for m, name in enumerate(names)}
    absent = len(externals)  # the model without a drop
    pairs = [(place[a], place[b]) for a, b in arm_pairs if a in place and b in place]
    resampled = resampled_as(externals[0], "patient")
    rows = []
    for a, b in [*((m, absent) for m in place.values()), *pairs]:
        models = [a] if b == absent else [a, b]
        intervals = settings.intervals(drop, tests[0], a, b)
        for i, (item, interval) in enumerate(zip(items, intervals, strict=True)):
            sides = [of_run[i] for m in models for of_run in measured[m]]
            row = _drop_row(item, items, drop.estimates[models], sides) | {"estimate": interval.estimate}
            row |= dict(zip(("arm_a", "arm_b"), (names[m] for m in models), strict=False))
            rows.append(_with_interval(row, interval, resampled, sides))
    return rows


def _common_classes(test: Run, external: Run) -> tuple[str, ...]:
    """Classes on which both sets can be compared; a case gets one of all classes, so these must be the same."""
    if test.unit_kind != external.unit_kind or (test.unit_kind == "case" and test.classes != external.classes):
        return ()
    return tuple(name for name in test.classes if name in external.classes)


def _differences(tests: Sequence[Run], externals: Sequence[Run], settings: Bootstrap) -> Replicates:
    """Every quantity on the test split minus that on the external set, and as the last model one without any drop."""
    first = externals[0]
    text = f"{settings.seed} {first.dataset} {first.split}"
    # Equal seeds would draw patients of both sets alike.
    other_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    inside = settings.replicates(tests, "patient")
    outside = replace(settings, seed=other_seed).replicates(externals, "patient")
    estimates, values = inside.estimates - outside.estimates, inside.values - outside.values
    none = np.zeros_like(estimates[:1]), np.zeros_like(values[:, :1])
    return replace(
        inside, estimates=np.concatenate([estimates, none[0]]), values=np.concatenate([values, none[1]], axis=1)
    )


def _with_interval(row: Row, interval: Interval, resampled: str, sides: Sequence[Row]) -> Row:
    """The row of a drop with its interval, for which both sets need enough patients."""
    fewest = min(sides, key=lambda side: side["n_patients"])
    narrow = with_interval(row | {"n_patients": fewest["n_patients"]}, interval, resampled)
    return narrow | {"n_patients": row["n_patients"]}


def _drop_row(item: Measure, items: Sequence[Measure], estimates_MQ: Floats, sides: Sequence[Row]) -> Row:
    """The row of one metric without its estimate; what a mean leaves out, or why nothing is left, is said.

    Args:
        item: The metric.
        items: All metrics, which tell the classes of quantities.
        estimates_MQ: The drop of each quantity for the model, or the two models compared; NaN where either set does
            not define it.
        sides: The rows of the metric on the test split and on the external set, model after model.
    """
    class_of = {other.quantities[0]: other.class_name for other in items if other.class_name}
    defined = {q: not np.isnan(estimates_MQ[:, q]).any() for q in item.quantities}
    left_out = [class_of.get(q, "") for q, is_defined in defined.items() if not is_defined]
    external = sides[1]
    row = external | {"metric": f"{item.metric}_drop", "repeat": "selected"}
    if not any(defined.values()):
        reasons = dict.fromkeys(f"{side['dataset']}: {side['reason']}" for side in sides if side["status"] != "ok")
        return row | {"status": "not_evaluable", "reason": "; ".join(reasons)}
    note = f"not evaluable on both sets: {', '.join(left_out)}" if left_out else ""
    return row | {"status": "partial" if left_out else "ok", "reason": note}
