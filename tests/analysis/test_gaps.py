"""Gaps between groups: what the correction and the interval do when the truth is known."""

import math

import numpy as np
import pytest

from medssl.analysis.bootstrap import paired_bootstrap
from medssl.analysis.gaps import difference_interval, gap, resampled_gaps

EQUAL = (0.0, 0.0, 0.0, 0.0)
APART = (0.0, 4.0, 4.0, 8.0)


def simulated(means, *, num_trials=250, num_replicates=200, correlation=0.0, seed=0):
    """Estimates of groups with standard error 1, and errors as a bootstrap shows them, trial by trial."""
    rng = np.random.default_rng(seed)
    means = np.asarray(means)
    for _ in range(num_trials):
        shared = np.sqrt(correlation) * rng.normal(size=(num_replicates + 1, 1))
        noise = shared + np.sqrt(1 - correlation) * rng.normal(size=(num_replicates + 1, means.size))
        yield means + noise[0], noise[1:] - noise[1:].mean(axis=0)


def cross_fitted_slowly(estimates, errors):
    """Three quarters that choose and one that measures, written out."""
    values = []
    for error in [*errors, *-errors]:
        choosing, measuring = estimates + error / np.sqrt(3), estimates - error * np.sqrt(3)
        values.append(measuring[int(np.argmax(choosing))] - measuring[int(np.argmin(choosing))])
    return float(np.mean(values))


def test_the_corrected_gap_is_the_mean_over_parts_that_choose_and_measure():
    ((estimates, errors),) = simulated((0.0, 0.5, 1.0), num_trials=1)
    found = gap(estimates, errors, alpha=0.05)
    assert found.corrected == pytest.approx(cross_fitted_slowly(estimates, errors), abs=1e-12)
    assert found.raw == estimates.max() - estimates.min()
    slowly = [cross_fitted_slowly(estimates + error, errors[:64]) for error in errors]
    assert resampled_gaps(estimates, errors) == pytest.approx(slowly, abs=1e-12)


def test_the_corrected_gap_of_two_groups_has_a_closed_form():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(100_000, 2)) / np.sqrt(2)  # of d, the difference, with standard deviation 1
    for d in (0.0, 0.5, 1.0, 3.0):
        # With x = d sqrt(3): d (2 Phi(x) - 1) - 2 sqrt(3) phi(x).
        x = d * math.sqrt(3)
        expected = d * math.erf(x / math.sqrt(2)) - 2 * math.sqrt(3 / (2 * math.pi)) * math.exp(-(x**2) / 2)
        assert gap(np.array([d, 0.0]), errors, alpha=0.05).corrected == pytest.approx(expected, abs=0.02)


def test_without_noise_the_gap_is_known_exactly():
    found = gap(np.array([0.7, 0.9, 0.8]), np.zeros((50, 3)), alpha=0.05)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.2, 0.2))
    assert (found.corrected, found.shown) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_equal_groups_have_a_raw_gap_of_two_errors_and_a_corrected_one_centred_at_zero(correlation):
    found = [gap(*trial, alpha=0.05) for trial in simulated(EQUAL, correlation=correlation)]
    scale = np.sqrt(1 - correlation)  # what the groups have in common is no noise of the gap
    # The range of four normal variables has a mean of 2.06.
    assert np.mean([one.raw for one in found]) == pytest.approx(2.06 * scale, abs=0.2 * scale)
    assert np.mean([one.corrected for one in found]) == pytest.approx(0, abs=0.25 * scale)


def test_a_gap_that_stands_out_is_nearly_unbiased_when_corrected():
    found = [gap(*trial, alpha=0.05) for trial in simulated(APART)]
    assert np.mean([one.corrected for one in found]) == pytest.approx(8, abs=0.3)


def test_the_corrected_gap_is_not_above_the_true_one_on_average_where_groups_are_hard_to_tell():
    for means in ((0.0, 1.0), (0.0, 0.7, 1.3, 2.0), (0.0, 0.0, 0.0, 2.0)):
        found = [gap(*trial, alpha=0.05) for trial in simulated(means)]
        assert max(means) - 1.1 < np.mean([one.corrected for one in found]) < max(means) + 0.1
        assert np.mean([one.raw for one in found]) > max(means) + 0.3


@pytest.mark.parametrize("means", [(0.0, 0.0), EQUAL, (0.0,) * 12, (0.0, 4.0), APART, (0.0, 0.0, 0.0, 2.0)], ids=str)
def test_the_interval_covers_the_true_gap_at_its_level_or_more(means):
    found = [gap(*trial, alpha=0.1) for trial in simulated(means)]
    covered = np.mean([one.ci_low <= max(means) <= one.ci_high for one in found])
    # Three standard errors of 250 trials below 90 %.
    assert covered > 0.84
    assert all(one.ci_low <= one.shown <= one.ci_high for one in found)


def test_the_interval_of_two_groups_far_apart_is_not_too_wide():
    found = [gap(*trial, alpha=0.1) for trial in simulated((0.0, 9.0))]
    widths = [one.ci_high - one.ci_low for one in found]
    assert np.mean(widths) == pytest.approx(2 * 1.645 * np.sqrt(2), rel=0.05)


def test_a_percentile_interval_of_the_raw_gap_never_covers_equal_groups():
    covered = []
    for estimates, errors in simulated(EQUAL, num_trials=50):
        low, _ = np.quantile(np.ptp(estimates + errors, axis=1), (0.05, 0.95))
        covered.append(low <= 0)
    assert not any(covered)


@pytest.mark.parametrize(("a", "b"), [(EQUAL, EQUAL), (APART, EQUAL), ((0.0, 4.0), (3.0, 0.0))], ids=str)
def test_the_interval_of_a_difference_of_gaps_covers_it_at_its_level_or_more(a, b):
    pairs = zip(simulated(a, num_trials=150), simulated(b, num_trials=150, seed=1), strict=True)
    intervals = [difference_interval(resampled_gaps(*of_a), resampled_gaps(*of_b), alpha=0.1) for of_a, of_b in pairs]
    true = (max(a) - min(a)) - (max(b) - min(b))
    assert np.mean([low <= true <= high for low, high, _ in intervals]) > 0.82
    if true == 0:
        assert np.mean([p < 0.1 for *_, p in intervals]) < 0.15


def test_an_arm_and_its_copy_have_equal_gaps():
    ((estimates, errors),) = simulated(APART, num_trials=1)
    draws = resampled_gaps(estimates, errors)
    assert difference_interval(draws, draws, alpha=0.05) == (0, 0, 1)


def test_the_order_of_groups_changes_nothing():
    ((estimates, errors),) = simulated(APART, num_trials=1)
    one, other = gap(estimates, errors, alpha=0.05), gap(estimates[::-1], errors[:, ::-1], alpha=0.05)
    assert (one.raw, one.ci_low, one.ci_high) == pytest.approx((other.raw, other.ci_low, other.ci_high), abs=1e-12)
    assert one.corrected == pytest.approx(other.corrected, abs=1e-12)


def test_on_resampled_patients_equal_groups_have_no_gap_and_unequal_ones_theirs():
    rng = np.random.default_rng(5)
    num_patients, num_groups = 160, 4
    patients = np.repeat(np.arange(num_patients), 3)
    group = patients % num_groups
    for accuracies in ((0.7, 0.7, 0.7, 0.7), (0.9, 0.7, 0.7, 0.4)):
        corrected, covered = [], []
        for seed in range(40):
            # Patients differ, so that the three images of one are alike.
            ease = rng.beta(6 * np.array(accuracies)[group[::3]], 6 * (1 - np.array(accuracies)[group[::3]]))
            is_hit = (rng.random(patients.size) < ease[patients]).astype(float)
            hits = np.where(group[:, None] == np.arange(num_groups), is_hit[:, None], np.nan)
            found = paired_bootstrap(
                np.zeros((patients.size, 0)), np.zeros((1, patients.size, 0)), patients,
                num_replicates=200, seed=seed, hits=hits[None],
            )  # fmt: skip
            errors = found.values[:, 0] - found.values[:, 0].mean(axis=0)
            one = gap(found.estimates[0], errors, alpha=0.1)
            corrected.append(one.corrected)
            covered.append(one.ci_low <= np.ptp(accuracies) <= one.ci_high)
        assert np.mean(corrected) == pytest.approx(np.ptp(accuracies), abs=0.03)
        assert np.mean(covered) > 0.78
