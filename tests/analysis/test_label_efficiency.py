"""Matching label fractions: closed-form curves, censoring, rows, and coverage."""

import numpy as np
import pytest

from medssl.analysis.compare import compare
from medssl.analysis.label_efficiency import Point, rows
from medssl.analysis.matching import LEFT, RIGHT, labels_saved, matching_fractions, with_interval
from medssl.analysis.runs import ROW_KEY
from tests.analysis.case_predictions import case_rows, table

FRACTIONS = (0.1, 0.2, 0.5, 1.0)


def find(found, **values):
    return [row for row in found if all(row[name] == value for name, value in values.items())]


def matched(curve, target):
    return matching_fractions(FRACTIONS, np.array([curve]), np.array([target]))[0]


@pytest.mark.parametrize("share", [0.12, 0.2, 0.33, 0.5, 0.7, 1.0])
def test_a_curve_that_is_linear_in_the_logarithm_is_solved_exactly(share):
    curve = 0.8 + 0.05 * np.log(FRACTIONS)
    assert matched(curve, 0.8 + 0.05 * np.log(share)) == pytest.approx(share, rel=1e-12)


def test_halfway_between_two_points_is_their_geometric_mean():
    assert matched([0.5, 0.6, 0.8, 0.9], 0.7) == pytest.approx((0.2 * 0.5) ** 0.5)
    assert matched([0.5, 0.6, 0.8, 0.9], 0.8) == 0.5


def test_the_first_crossing_counts_though_the_curve_falls_again():
    assert matched([0.5, 0.7, 0.6, 0.9], 0.65) == pytest.approx(np.exp(np.log(0.1) + 0.75 * np.log(2)))
    assert matched([0.5, 0.6, 0.6, 0.6], 0.6) == pytest.approx(0.2)


def test_what_is_reached_at_once_or_never_is_censored_and_what_is_unknown_stays_so():
    assert matched([0.7, 0.6, 0.8, 0.9], 0.7) == LEFT
    assert matched([0.7, 0.6, 0.8, 0.9], 0.95) == RIGHT
    assert np.isnan(matched([0.5, np.nan, 0.8, 0.9], 0.7))
    assert np.isnan(matched([0.5, 0.6, 0.8, 0.9], np.nan))


def test_a_better_arm_never_needs_more_labels():
    rng = np.random.default_rng(0)
    curves, targets = rng.random((500, 4)), rng.random(500)
    needed = matching_fractions(FRACTIONS, curves, targets)
    assert (matching_fractions(FRACTIONS, curves + 0.05, targets) <= needed).all()
    assert (matching_fractions(FRACTIONS, curves, targets + 0.05) >= needed).all()


def test_percentiles_are_numpys_where_nothing_is_censored():
    draws = np.random.default_rng(0).random(400)
    found = with_interval(0.5, draws, alpha=0.1, max_missing=0.05)
    assert [found.ci_low, found.ci_high] == pytest.approx(np.percentile(draws, [5, 95]).tolist(), abs=1e-12)
    saved = labels_saved(found)
    assert [saved.estimate, saved.ci_low, saved.ci_high] == [0.5, 1 - found.ci_high, 1 - found.ci_low]


@pytest.mark.parametrize(("num_left", "num_right"), [(0, 30), (30, 0), (2, 2), (30, 30), (0, 99), (99, 0)])
def test_an_end_is_censored_when_more_than_its_share_of_replicates_is(num_left, num_right):
    draws = np.linspace(0.2, 0.8, 101)
    draws[:num_left], draws[101 - num_right :] = LEFT, RIGHT
    found = with_interval(0.5, draws, alpha=0.1, max_missing=0.05)
    assert (found.ci_low == LEFT) == (num_left > 5)
    assert (found.ci_high == RIGHT) == (num_right > 5)
    assert found.ci_low <= found.ci_high


def test_the_interval_is_withheld_when_many_replicates_are_undefined():
    draws = np.linspace(0.2, 0.8, 100)
    draws[:6] = np.nan
    found = with_interval(0.5, draws, alpha=0.1, max_missing=0.05)
    assert (found.estimate, found.ci_low, found.ci_high, found.n_replicates) == (0.5, None, None, 94)
    assert with_interval(0.5, draws, alpha=0.1, max_missing=0.06).ci_low is not None


NAMES = dict.fromkeys(ROW_KEY) | {"dataset": "d", "split": "test", "subgroup": "all", "repeat": "selected"}


def points_of(curves, *, draws=1, noise=0.0, seed=0):
    """Points of arms with the curves given; all labels are one draw."""
    rng = np.random.default_rng(seed)
    found = {}
    for arm, curve in curves.items():
        for fraction, value in zip(FRACTIONS, curve, strict=True):
            for draw in range(draws if fraction < 1 else 1):
                row = NAMES | {"arm_a": arm, "label_fraction": fraction, "draw": draw, "reason": "", "status": "ok"}
                shifted = value + 0.01 * draw
                row |= {"estimate": shifted, "n_units": 9, "n_patients": 3}
                found[fraction, draw, arm] = Point(row, shifted + noise * rng.normal(size=300))
    return found


CURVES = {"good": [0.5, 0.6, 0.8, 0.9], "poor": [0.3, 0.4, 0.5, 0.55], "base": [0.4, 0.5, 0.6, 0.7]}


def rows_of(pairs, **options):
    return rows(points_of(CURVES, **options), pairs, alpha=0.05, max_missing=0.05)


def test_rows_tell_the_fraction_and_what_is_saved():
    matching, saved = rows_of([("good", "base")], noise=0.001)
    assert (matching["metric"], saved["metric"]) == ("matching_label_fraction", "labels_saved")
    assert matching["estimate"] == pytest.approx(0.1**0.5)
    assert matching["ci_low"] < matching["estimate"] < matching["ci_high"]
    assert saved["estimate"] == pytest.approx(1 - 0.1**0.5)
    assert (matching["arm_a"], matching["arm_b"], matching["label_fraction"]) == ("good", "base", 1.0)
    assert (matching["status"], matching["reason"]) == ("ok", "base with all labels: 0.7000")


def test_what_is_censored_is_null_and_told_on_either_side():
    never = rows_of([("poor", "base")], noise=0.001)
    assert {(row["estimate"], row["ci_low"], row["ci_high"], row["status"]) for row in never} == {
        (None, None, None, "censored")
    }
    assert "censored: more than 1;" in never[0]["reason"]
    assert "censored: less than 0;" in never[1]["reason"]
    at_once = rows_of([("good", "poor")], noise=0.04)
    assert "lower end: 0.1 or less" in at_once[0]["reason"]
    assert "upper end: 0.9 or more" in at_once[1]["reason"]
    assert at_once[0]["ci_low"] is at_once[1]["ci_high"] is None
    assert at_once[0]["ci_high"] == pytest.approx(1 - at_once[1]["ci_low"])


def test_draws_have_rows_of_their_own_and_a_mean_unless_one_is_censored():
    found = rows_of([("good", "base"), ("poor", "base")], draws=3, noise=0.001)
    of_draws = find(found, arm_a="good", metric="matching_label_fraction", repeat="selected")
    assert [row["draw"] for row in of_draws] == [0, 1, 2]
    (mean,) = find(found, arm_a="good", metric="matching_label_fraction", repeat="mean")
    assert mean["estimate"] == pytest.approx(np.mean([row["estimate"] for row in of_draws]))
    assert mean["reason"].startswith("mean over 3 draws")
    assert {row["status"] for row in find(found, arm_a="poor", repeat="mean")} == {"censored"}


def draws_at(*matches):
    """Points of an arm whose draws reach the baseline at these label fractions, below the first or above the last."""
    found = {}
    for draw, match in enumerate(matches):
        for fraction in FRACTIONS:
            if fraction == 1 and draw:
                continue
            # All draws share their last point, which is below the baseline where a draw never reaches it.
            value = 0.7 + 0.1 * np.log(fraction / match) if fraction < 1 else (0.69 if max(matches) > 1 else 0.95)
            row = NAMES | {"arm_a": "a", "label_fraction": fraction, "draw": draw, "reason": "", "status": "ok"}
            row |= {"estimate": value, "n_units": 9, "n_patients": 3}
            found[fraction, draw, "a"] = Point(row, np.full(300, value))
    base = found[1.0, 0, "a"].row | {"arm_a": "base", "estimate": 0.7}
    return found | {(1.0, 0, "base"): Point(base, np.full(300, 0.7))}


@pytest.mark.parametrize(
    ("matches", "matching", "saved"),
    [
        ((0.15, 0.3), None, None),
        ((0.15, 0.05, 0.3), (0.15 + 0.1 + 0.3) / 3, "or less"),
        ((0.05, 0.08), 0.1, "or less"),
        ((0.15, 0.3, 1.2), (0.15 + 0.3 + 1) / 3, "more than"),
        ((0.15, 0.05, 1.2), (0.15 + 0 + 1) / 3, "more than"),
    ],
)
def test_censored_draws_bound_the_mean_over_draws(matches, matching, saved):
    found = rows(draws_at(*matches), [("a", "base")], alpha=0.05, max_missing=0.05)
    mean, mean_saved = find(found, repeat="mean")
    if matching is None:
        assert (mean["estimate"], mean["status"]) == (pytest.approx(np.mean(matches)), "ok")
        return
    assert {(row["estimate"], row["ci_low"], row["status"]) for row in (mean, mean_saved)} == {(None, None, "censored")}
    words = {"or less": f"{matching:g} or less", "more than": f"more than {matching:g}"}[saved]
    assert mean["reason"].startswith(f"censored: {words}; lower end: {words}; upper end: {words}; mean over ")
    words = {"or less": f"{1 - matching:g} or more", "more than": f"less than {1 - matching:g}"}[saved]
    assert mean_saved["reason"].startswith(f"censored: {words};")
    num_censored = sum(not 0.1 < match <= 1 for match in matches)
    assert f"mean over {len(matches)} draws; {num_censored} of them censored; base" in mean["reason"]


def test_a_draw_without_the_smallest_fraction_is_bounded_by_its_own():
    points = {key: point for key, point in draws_at(0.15, 0.05).items() if key[:2] != (0.1, 1)}
    matching = find(rows(points, [("a", "base")], alpha=0.05, max_missing=0.05), metric="matching_label_fraction")
    assert matching[1]["reason"].startswith("censored: 0.2 or less;")
    assert matching[2]["reason"].startswith("censored: 0.175 or less;")


def test_what_withholds_an_interval_of_the_metric_withholds_that_of_its_labels():
    points = draws_at(0.15)
    row = points[0.2, 0, "a"].row | {"status": "interval_withheld", "reason": "no interval of 9 patients"}
    points[0.2, 0, "a"] = Point(row, np.full(300, np.nan))
    for row in rows(points, [("a", "base")], alpha=0.05, max_missing=0.05):
        assert (row["status"], row["ci_low"]) == ("interval_withheld", None)
        assert row["estimate"] is not None
        assert row["reason"].startswith("no interval of 9 patients; base")


def test_a_second_draw_of_all_labels_is_refused():
    rows_of_draws = [row | {"draw": draw} for draw in (0, 3) for row in case_rows(num_patients=12, repeats=(0,))]
    settings = {"pairs": [], "num_replicates": 100, "alpha": 0.1, "resampling_units": ["patient"], "seed": 0}
    with pytest.raises(ValueError, match=r"draws \[3\] at label fraction 1; .* as repeats"):
        compare(table(rows_of_draws), **settings, label_efficiency=[("micle", "random")])
    assert {row["draw"] for row in compare(table(rows_of_draws), **settings)} == {0, 3}


def test_missing_arms_and_fractions_are_told():
    (row, _) = rows_of([("good", "bit")])
    assert (row["status"], row["reason"]) == ("not_evaluable", "no predictions of 'bit'")
    short = {key: point for key, point in points_of(CURVES).items() if key[0] == 1}
    (row, _) = rows(short, [("good", "base")], alpha=0.05, max_missing=0.05)
    assert (
        row["reason"] == "needs the baseline with all labels and two label fractions of the arm, all of them evaluable"
    )


def test_intervals_cover_the_true_fraction_at_about_the_nominal_rate():
    rng = np.random.default_rng(5)
    # Shares of hits with the success rates of the curve, on the same units; the truth lies at the geometric mean.
    rates, target = np.array([0.5, 0.6, 0.8, 0.9]), 0.7
    truth, covered, num = (0.2 * 0.5) ** 0.5, 0, 300
    for _ in range(num):
        skill = rng.random(400)
        hits = (np.clip(np.append(rates, target)[:, None] + 0.1 * (skill - 0.5), 0, 1) > rng.random((5, 400))).astype(
            float
        )
        weights = rng.multinomial(400, np.full(400, 1 / 400), size=300)
        draws = weights @ hits.T / 400
        once = hits.mean(axis=1)
        estimate = matching_fractions(FRACTIONS, once[None, :4], once[4:])[0]
        found = with_interval(
            estimate, matching_fractions(FRACTIONS, draws[:, :4], draws[:, 4]), alpha=0.1, max_missing=0.05
        )
        covered += found.ci_low <= truth <= found.ci_high
    assert 0.86 <= covered / num <= 0.94


@pytest.fixture(scope="module")
def compared():
    arms = {"micle": 2.5, "random": 1.0}
    predictions = case_rows(num_patients=60, repeats=(0,), fractions=(0.1, 0.5, 1.0), splits=("test",), arms=arms)
    return compare(
        table(predictions),
        pairs=[],
        num_replicates=100,
        alpha=0.1,
        resampling_units=["patient", "case"],
        seed=0,
        label_efficiency=[("micle", "random"), ("random", "micle")],
    )


def test_a_comparison_holds_the_rows_of_both_resampling_units(compared):
    found = find(compared, metric="labels_saved")
    assert {(row["arm_a"], row["resampling_unit"]) for row in found} == {
        (arm, unit) for arm in ("micle", "random") for unit in ("patient", "case")
    }
    assert {row["status"] for row in find(found, arm_a="random")} == {"censored"}


def test_the_estimate_is_that_of_the_curve_of_selected_rows(compared):
    keys = {"metric": "top_k_accuracy", "k": 1, "repeat": "selected", "resampling_unit": "patient"}
    curve = [find(compared, arm_a="micle", label_fraction=f, **keys)[0]["estimate"] for f in (0.1, 0.5, 1.0)]
    (target,) = find(compared, arm_a="random", label_fraction=1.0, **keys)
    expected = matching_fractions((0.1, 0.5, 1.0), np.array([curve]), np.array([target["estimate"]]))[0]
    (row,) = find(compared, metric="matching_label_fraction", arm_a="micle", resampling_unit="patient")
    assert row["estimate"] == (None if np.isinf(expected) else pytest.approx(expected))
    assert row["n_replicates"] == 100
