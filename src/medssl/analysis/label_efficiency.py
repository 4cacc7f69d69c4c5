"""At which share of the labels an arm is as good as a baseline with all of them.

The arm's metric at each label fraction is a curve, linear between fractions against the logarithm of the fraction. The
matching fraction is the first at which the curve reaches the baseline's value. It is censored on the left where the
smallest fraction already does, and on the right where none does: then no number is given, and the reason says which.

Censored values are carried through resampling as -inf and inf, so that a percentile interval can be open at an end.

Shape suffixes: R replicates, F label fractions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medssl.analysis.runs import Row
from medssl.metrics import Floats

MATCHING, SAVED = "matching_label_fraction", "labels_saved"  # as the metrics table names them
ALL_LABELS = 1.0
LEFT, RIGHT = -np.inf, np.inf  # of the smallest fraction, and of the largest


@dataclass(frozen=True)
class Matching:
    """A label fraction, with its interval.

    Attributes:
        estimate: In 0-1; `LEFT` or `RIGHT` where censored, None where not defined.
        ci_low: Lower end, `LEFT` where censored; None when withheld.
        ci_high: Upper end, `RIGHT` where censored; None when withheld.
        n_replicates: Replicates behind the interval.
    """

    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    n_replicates: int


def matching_fractions(fractions: Sequence[float], curve_RF: Floats, target_R: Floats) -> Floats:
    """The smallest label fraction at which each curve reaches its target.

    Args:
        fractions: F label fractions, increasing, in 0-1.
        curve_RF: The arm's metric; higher is better.
        target_R: The baseline's metric at all labels.

    Returns:
        Shape (R,): `LEFT` where the first point reaches the target, `RIGHT` where none does, NaN where the target or a
        point of the curve is NaN.
    """
    reached_RF = curve_RF >= target_R[:, None]
    first_R = np.argmax(reached_RF, axis=1)
    rows = np.arange(len(curve_RF))
    before_R = np.maximum(first_R - 1, 0)
    below, above = curve_RF[rows, before_R], curve_RF[rows, first_R]
    rise = np.where(above > below, above - below, 1.0)
    log_fractions = np.log(np.asarray(fractions))
    step = log_fractions[first_R] - log_fractions[before_R]
    found = np.exp(log_fractions[before_R] + (target_R - below) / rise * step)
    found = np.where(reached_RF.any(axis=1), np.where(reached_RF[:, 0], LEFT, found), RIGHT)
    missing = np.isnan(target_R) | np.isnan(curve_RF).any(axis=1)
    matched: Floats = np.where(missing, np.nan, found)
    return matched


def with_interval(estimate: float, draws_R: Floats, *, alpha: float, max_missing: float) -> Matching:
    """The matching fraction of the full sample with the percentile interval of its replicates.

    Args:
        estimate: `LEFT` or `RIGHT` where censored.
        draws_R: Of the replicates; NaN where not defined.
        alpha: One minus the level, in 0-1.
        max_missing: Largest share of replicates that may be NaN, above which the interval is withheld.
    """
    known = draws_R[~np.isnan(draws_R)]
    if np.isnan(estimate):
        return Matching(None, None, None, known.size)
    if not known.size or draws_R.size - known.size > max_missing * draws_R.size:
        return Matching(float(estimate), None, None, known.size)
    low, high = _quantile(known, alpha / 2, up=False), _quantile(known, 1 - alpha / 2, up=True)
    return Matching(float(estimate), low, high, known.size)


def _quantile(values: Floats, share: float, *, up: bool) -> float:
    """Linear between order statistics, as numpy's; beside a censored one the outer of the two (`up`: the upper)."""
    ordered = np.sort(values)
    position = share * (values.size - 1)
    below, above = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    if np.isfinite(below) and np.isfinite(above):
        return float(below + (position - np.floor(position)) * (above - below))
    return float(above if up else below)


def labels_saved(matching: Matching) -> Matching:
    """One minus the matching fraction; the ends change places."""
    low, high = matching.ci_low, matching.ci_high
    return replace(
        matching,
        estimate=None if matching.estimate is None else 1 - matching.estimate,
        ci_low=None if high is None else 1 - high,
        ci_high=None if low is None else 1 - low,
    )


@dataclass(frozen=True, eq=False)
class Point:
    """The primary metric of one arm's selected model at one label fraction.

    Attributes:
        row: Its row in the metrics, with what was resampled.
        draws_R: On the resamples; those of all points are the same ones. NaN where not defined.
    """

    row: Row
    draws_R: Floats


# Label fraction, draw of the patients who make it up, and arm.
Points = Mapping[tuple[float, int, str], Point]


def rows(points: Points, pairs: Sequence[tuple[str, str]], *, alpha: float, max_missing: float) -> list[Row]:
    """Matching label fraction and labels saved of each [arm, baseline], on one split with one resampling unit.

    One row a draw, and over several draws their mean, which is censored as soon as one of them is.

    Args:
        points: Of all arms, label fractions and draws.
        pairs: Arm and baseline.
        alpha: One minus the level, in 0-1.
        max_missing: See `with_interval`.
    """
    found: list[Row] = []
    for arm, baseline in pairs:
        target = points.get((ALL_LABELS, 0, baseline))
        of_draw = {}
        for draw in sorted({draw for _, draw, name in points if name == arm and len(_curve(points, arm, draw)) > 1}):
            curve = _curve(points, arm, draw)
            if target is not None and all(p.row["estimate"] is not None for p in (target, *curve.values())):
                of_draw[draw] = _matched(curve, target)
        if target is None or not of_draw:
            found += _not_evaluable(points, arm, baseline)
            continue
        fractions = sorted({fraction for fraction, _, name in points if name == arm})
        note = f"{baseline} with all labels: {target.row['estimate']:.4f}"
        named = target.row | _names(arm, baseline)
        ends = (fractions[0], fractions[-1])
        for draw, draws in of_draw.items():
            matching = with_interval(draws[0], draws[1:], alpha=alpha, max_missing=max_missing)
            found += _rows_of(named | {"draw": draw}, matching, ends, note)
        if len(of_draw) > 1:
            num = min(map(len, of_draw.values()))
            # A draw that is censored makes the mean so; one on either side leaves it undefined.
            with np.errstate(invalid="ignore"):
                mean = np.mean([draws[:num] for draws in of_draw.values()], axis=0)
            matching = with_interval(mean[0], mean[1:], alpha=alpha, max_missing=max_missing)
            found += _rows_of(named | {"repeat": "mean"}, matching, ends, f"mean over {len(of_draw)} draws; {note}")
    return found


def _curve(points: Points, arm: str, draw: int) -> dict[float, Point]:
    """The arm's points of a draw by label fraction; all labels are one set of patients, that of draw 0."""
    return {
        fraction: point
        for (fraction, of_draw, name), point in sorted(points.items(), key=lambda item: item[0])
        if name == arm and of_draw == (0 if fraction == ALL_LABELS else draw)
    }


def _matched(curve: Mapping[float, Point], target: Point) -> Floats:
    """The matching fraction of the full sample, then that of each replicate, shape (1 + R,)."""
    num = min(point.draws_R.size for point in (target, *curve.values()))
    columns = [np.append(point.row["estimate"], point.draws_R[:num]) for point in (*curve.values(), target)]
    return matching_fractions(list(curve), np.column_stack(columns[:-1]), columns[-1])


def _rows_of(named: Row, matching: Matching, ends: tuple[float, float], note: str) -> list[Row]:
    """The two rows of one matching fraction; what is censored is null, and told."""
    smallest, largest = ends
    saved_ends = (f"{1 - smallest:g} or more", f"less than {1 - largest:g}")
    return [
        _row(named | {"metric": MATCHING}, matching, (f"{smallest:g} or less", f"more than {largest:g}"), note),
        _row(named | {"metric": SAVED}, labels_saved(matching), saved_ends, note),
    ]


def _row(named: Row, found: Matching, bounds: tuple[str, str], note: str) -> Row:
    """One row; `bounds` are the words for what is censored on the left and on the right."""
    sign = 1 if named["metric"] == MATCHING else -1
    values = {"estimate": found.estimate, "ci_low": found.ci_low, "ci_high": found.ci_high}
    told = []
    for name, words in zip(values, ("censored", "lower end", "upper end"), strict=True):
        value = values[name]
        if value is not None and np.isinf(value):
            told.append(f"{words}: {bounds[int(sign * value > 0)]}")
            values[name] = None
    is_withheld = found.ci_low is None
    if found.estimate is None:
        told.append("some draws are censored on the left and others on the right")
    elif is_withheld:
        told.append("too few replicates in which every label fraction is evaluable")
    status = "interval_withheld" if is_withheld else "ok"
    return {
        **named,
        **values,
        **dict.fromkeys(("std", "p", "p_adjusted", "p_fdr", "delong_low", "delong_high", "delong_p")),
        "k": None,
        "n_replicates": found.n_replicates,
        "status": "censored" if told and not (is_withheld and found.estimate is not None) else status,
        "reason": "; ".join([*told, note]),
    }


def _names(arm: str, baseline: str) -> Row:
    return {"arm_a": arm, "arm_b": baseline, "class": "", "family": ""}


def _not_evaluable(points: Points, arm: str, baseline: str) -> list[Row]:
    """Rows that say what is missing, named after the largest label fraction that there is."""
    present = {name for _, _, name in points}
    absent = [repr(name) for name in (arm, baseline) if name not in present]
    reason = (
        f"no predictions of {' and '.join(absent)}"
        if absent
        else ("needs the baseline with all labels and two label fractions of the arm, all of them evaluable")
    )
    row = points[max(points)].row | _names(arm, baseline)
    undefined = Matching(None, None, None, 0)
    return [
        _row(row | {"metric": metric}, undefined, ("", ""), "") | {"status": "not_evaluable", "reason": reason}
        for metric in (MATCHING, SAVED)
    ]
