"""At which share of the labels an arm is as good as a baseline with all of them.

The arm's metric at each label fraction is a curve that reaches the baseline's value somewhere (see `matching`): at a
fraction, or censored, at the smallest one or below, or above the largest. Then there is no number, and the reason tells
the bound.

Shape suffixes: R replicates, D draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medssl.analysis.matching import LEFT, RIGHT, Matching, labels_saved, matching_fractions, with_interval
from medssl.analysis.runs import Row, Run
from medssl.metrics import Floats

MATCHING, SAVED = "matching_label_fraction", "labels_saved"  # as the metrics table names them
ALL_LABELS = 1.0


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

    One row a draw, and over several draws their mean. A censored draw enters the mean as its bound, and the mean is
    censored too: null, with the bound in words.

    Args:
        points: Of all arms, label fractions and draws.
        pairs: Arm and baseline.
        alpha: One minus the level, in 0-1.
        max_missing: See `with_interval`.
    """
    found: list[Row] = []
    for arm, baseline in pairs:
        target = points.get((ALL_LABELS, 0, baseline))
        of_draw: dict[int, _Draw] = {}
        for draw in sorted({draw for _, draw, name in points if name == arm and len(_curve(points, arm, draw)) > 1}):
            curve = _curve(points, arm, draw)
            if target is not None and all(p.row["estimate"] is not None for p in (target, *curve.values())):
                of_draw[draw] = _Draw(_matched(curve, target), (min(curve), max(curve)), _why_withheld(curve, target))
        if target is None or not of_draw:
            found += _not_evaluable(points, arm, baseline)
            continue
        note = f"{baseline} with all labels: {target.row['estimate']:.4f}"
        named = target.row | _names(arm, baseline)
        for number, one in of_draw.items():
            matching = with_interval(one.matched_R[0], one.matched_R[1:], alpha=alpha, max_missing=max_missing)
            bounds = one.at_least(matching), one.at_most(matching)
            found += _rows_of(named | {"draw": number}, *bounds, note, one.why_withheld)
        if len(of_draw) > 1:
            mean = _mean(list(of_draw.values()), alpha=alpha, max_missing=max_missing)
            num_censored = sum(bool(np.isinf(one.matched_R[0])) for one in of_draw.values())
            note = f"{num_censored} of them censored; {note}" if num_censored else note
            note = f"mean over {len(of_draw)} draws; {note}"
            why = "; ".join(dict.fromkeys(one.why_withheld for one in of_draw.values()))
            found += _rows_of(named | {"repeat": "mean"}, *mean, note, why)
    return found


def check_draws(runs: Iterable[Run]) -> None:
    """Refuse several draws of all labels, which are one set of patients.

    Raises:
        ValueError: Says how to number them.
    """
    if numbers := sorted({run.draw for run in runs if run.label_fraction == ALL_LABELS} - {0}):
        raise ValueError(
            f"predictions: draws {numbers[:5]} at label fraction 1; all labels are one set of patients, so label "
            "efficiency takes draw 0 there: number models that differ by their seed as repeats"
        )


@dataclass(frozen=True, eq=False)
class _Draw:
    """Where the curve of one draw reaches its target.

    Attributes:
        matched_R: On the full sample, then in each replicate.
        ends: The smallest and the largest label fraction of the curve.
        why_withheld: Why there is no interval, should there be none.
    """

    matched_R: Floats
    ends: tuple[float, float]
    why_withheld: str

    def at_least(self, found: Matching) -> Matching:
        """What is surely not above: 0 for `LEFT`, and the largest fraction for `RIGHT`."""
        return _carried(found, 0.0, self.ends[1])

    def at_most(self, found: Matching) -> Matching:
        """What is surely not below: the smallest fraction for `LEFT`, and no number for `RIGHT`."""
        return _carried(found, self.ends[0], np.inf)


def _carried(found: Matching, left: float, right: float) -> Matching:
    """What is censored on the left and on the right replaced by numbers."""
    values = {name: getattr(found, name) for name in ("estimate", "ci_low", "ci_high")}
    place = {LEFT: left, RIGHT: right}
    return replace(found, **{name: place.get(value, value) for name, value in values.items()})


def _mean(draws: Sequence[_Draw], *, alpha: float, max_missing: float) -> tuple[Matching, Matching]:
    """What the mean over draws is at least, and at most, with the ends of their intervals."""
    num = min(draw.matched_R.size for draw in draws)
    found = []
    for lefts, rights in (
        (np.zeros(len(draws)), [draw.ends[1] for draw in draws]),
        ([draw.ends[0] for draw in draws], np.full(len(draws), np.inf)),
    ):
        matched_DR = np.stack([draw.matched_R[:num] for draw in draws])
        matched_DR = np.where(matched_DR == RIGHT, np.array(rights)[:, None], matched_DR)
        mean_R = np.where(matched_DR == LEFT, np.array(lefts)[:, None], matched_DR).mean(axis=0)
        found.append(with_interval(mean_R[0], mean_R[1:], alpha=alpha, max_missing=max_missing))
    return found[0], found[1]


def _why_withheld(curve: Mapping[float, Point], target: Point) -> str:
    """Why replicates cannot give an interval: what withholds one of the metric itself, or of the curve."""
    reasons: list[str] = [p.row["reason"] for p in (*curve.values(), target) if p.row["status"] == "interval_withheld"]
    return (reasons or ["too few replicates in which every label fraction is evaluable"])[0]


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


def _rows_of(named: Row, at_least: Matching, at_most: Matching, note: str, why_withheld: str) -> list[Row]:
    """The two rows of one matching fraction; what is censored is null, and its bound told."""
    saved = labels_saved(at_most), labels_saved(at_least)
    return [
        _row(named | {"metric": MATCHING}, at_least, at_most, note, why_withheld),
        _row(named | {"metric": SAVED}, *saved, note, why_withheld),
    ]


def _row(named: Row, at_least: Matching, at_most: Matching, note: str, why_withheld: str) -> Row:
    """One row: numbers where both bounds are the same, else the bound in words that says something."""
    values, told = {}, []
    for name, words in (("estimate", "censored"), ("ci_low", "lower end"), ("ci_high", "upper end")):
        low, high = getattr(at_least, name), getattr(at_most, name)
        values[name] = low if low == high else None
        if low != high:
            told.append(f"{words}: {_bound(named['metric'], low, high)}")
    is_withheld = at_least.ci_low is None
    status = "interval_withheld" if is_withheld else "censored" if told else "ok"
    return {
        **named,
        **values,
        **dict.fromkeys(("std", "p", "p_adjusted", "p_fdr", "delong_low", "delong_high", "delong_p")),
        "k": None,
        "n_replicates": at_least.n_replicates,
        "status": status,
        "reason": "; ".join([*told, *([why_withheld] if is_withheld else []), note]),
    }


def _bound(metric: str, low: float, high: float) -> str:
    """A fraction of which the smallest one bounds it from above, or the largest one from below; what is saved turns."""
    if metric == MATCHING:
        return f"{high:g} or less" if np.isfinite(high) else f"more than {low:g}"
    return f"{low:g} or more" if np.isfinite(low) else f"less than {high:g}"


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
        _row(row | {"metric": metric}, undefined, undefined, "", "") | {"status": "not_evaluable", "reason": reason}
        for metric in (MATCHING, SAVED)
    ]
