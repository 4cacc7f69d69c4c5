import gc
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from medssl.analysis import quantities
from medssl.analysis.bootstrap import paired_bootstrap, two_sided_p
from medssl.analysis.quantities import RANKED, Calibration
from medssl.analysis.resampling import resample_weights


def sample(*, num_patients=60, num_classes=3, num_models=2, digits=1, seed=0):
    """Clustered images with tied scores and some unknown truths."""
    rng = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(num_patients), rng.integers(1, 5, size=num_patients))
    y_true = (rng.random((patient_N.size, num_classes)) < 0.3).astype(float)
    scores = np.round(y_true + rng.normal(size=(num_models, *y_true.shape)), digits)
    y_true[rng.random(y_true.shape) < 0.1] = np.nan
    return y_true, scores, patient_N


def slow_auc(y_true, y_score, weights):
    """Repeat the rows, then scikit-learn."""
    rows = np.repeat(np.arange(y_true.size), weights)
    rows = rows[~np.isnan(y_true[rows])]
    return roc_auc_score(y_true[rows], y_score[rows])


def slow_average_precision(y_true, y_score, weights):
    rows = np.repeat(np.arange(y_true.size), weights)
    rows = rows[~np.isnan(y_true[rows])]
    return average_precision_score(y_true[rows], y_score[rows])


def slow_sensitivity(y_true, y_score, weights, specificity):
    rows = np.repeat(np.arange(y_true.size), weights)
    rows = rows[~np.isnan(y_true[rows])]
    false_positive_rates, sensitivities, _ = roc_curve(y_true[rows], y_score[rows], drop_intermediate=False)
    return sensitivities[1 - false_positive_rates >= specificity].max()


def all_weights(clusters, *, num_replicates, seed):
    return np.concatenate(list(resample_weights(clusters, num_replicates=num_replicates, seed=seed)))


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("specificity", [0.0, 0.9, 0.95, 1.0])
def test_ranked_quantities_equal_scikit_learn_on_repeated_rows(digits, specificity):
    y_true, scores, patient_N = sample(num_patients=90, digits=digits)
    replicates = paired_bootstrap(
        *(y_true, scores, patient_N), num_replicates=70, seed=1, ranked=RANKED, specificity=specificity
    )
    weights = [*all_weights(patient_N, num_replicates=70, seed=1), np.ones(patient_N.size, int)]
    values = [*replicates.values, replicates.estimates]
    assert len(replicates.quantities) == replicates.values.shape[2] == 9
    place = replicates.quantities.place
    for m, c in ((0, 0), (1, 2)):
        truth, score = y_true[:, c], scores[m, :, c]
        for of_replicate, w in list(zip(values, weights, strict=True))[::10]:
            assert of_replicate[m, place("auc", c)] == pytest.approx(slow_auc(truth, score, w), abs=1e-12)
            expected = slow_average_precision(truth, score, w)
            assert of_replicate[m, place("average_precision", c)] == pytest.approx(expected, abs=1e-12)
            expected = slow_sensitivity(truth, score, w, specificity)
            assert of_replicate[m, place("sensitivity_at_specificity", c)] == pytest.approx(expected, abs=1e-12)


def peak_of(call):
    """Bytes that a call has at most, beside what there was, and what it returns."""
    gc.collect()
    tracemalloc.start()
    try:
        returned = call()
        return tracemalloc.get_traced_memory()[1], returned
    finally:
        tracemalloc.stop()


def test_replicates_lie_in_memory_once_and_an_interval_copies_its_own_quantities_alone():
    y_true, scores, patient_N = sample()
    y_true, scores = np.tile(y_true, (1, 4)), np.tile(scores, (3, 1, 4))
    settings = {"num_replicates": 6000, "seed": 0, "ranked": RANKED, "pooled": [0, 2]}
    paired_bootstrap(y_true, scores, patient_N, **settings | {"num_replicates": 1})  # compiles
    peak, replicates = peak_of(lambda: paired_bootstrap(y_true, scores, patient_N, **settings))
    assert replicates.values.shape == (6000, 6, 37)
    assert peak < 1.2 * replicates.values.nbytes
    one_quantity = replicates.values[:, :2, 0].nbytes
    assert peak_of(lambda: replicates.intervals(0, 1, alpha=0.05, means=[[4]]))[0] < 8 * one_quantity


def test_classes_ranked_together_equal_scikit_learn_on_repeated_rows():
    y_true, scores, patient_N = sample(digits=1)
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=70, seed=1, ranked=(), pooled=[0, 2])
    weights = [*all_weights(patient_N, num_replicates=70, seed=1), np.ones(patient_N.size, int)]
    for w, values in list(zip(weights, [*replicates.values, replicates.estimates], strict=True))[::10]:
        together = y_true[:, [0, 2]].ravel(), scores[1][:, [0, 2]].ravel(), np.repeat(w, 2)
        assert values[1, 0] == pytest.approx(slow_auc(*together), abs=1e-12)


def test_only_what_is_asked_for_is_computed_and_each_as_if_alone():
    y_true, scores, patient_N = sample()
    both = paired_bootstrap(y_true, scores, patient_N, num_replicates=20, seed=0, ranked=RANKED)
    for i, name in enumerate(RANKED):
        alone = paired_bootstrap(y_true, scores, patient_N, num_replicates=20, seed=0, ranked=[name])
        assert len(alone.quantities) == 3
        np.testing.assert_array_equal(alone.values, both.values[:, :, 3 * i : 3 * i + 3])
    assert paired_bootstrap(y_true, scores, patient_N, num_replicates=20, seed=0, ranked=()).values.shape == (20, 2, 0)


def test_the_auc_is_exact_where_the_sums_of_pairs_need_more_than_32_bits():
    y_true = np.tile([0.0, 1.0], 100_000)
    scores = np.arange(200_000) % 97.0
    replicates = paired_bootstrap(y_true[:, None], scores[None, :, None], np.arange(200_000), num_replicates=1, seed=0)
    weights = all_weights(np.arange(200_000), num_replicates=1, seed=0)[0]
    for found, w in ((replicates.estimates, np.ones(200_000, int)), (replicates.values[0], weights)):
        positives, negatives = (np.bincount(scores[y_true == t].astype(int), w[y_true == t]) for t in (1, 0))
        below = np.concatenate([[0], np.cumsum(negatives)[:-1]])
        pairs = sum(int(p) * int(2 * b + n) for p, b, n in zip(positives, below, negatives, strict=True))
        assert pairs > 2**33
        assert found[0, 0] == pairs / (2 * int(positives.sum()) * int(negatives.sum()))


def test_the_auc_is_exact_where_one_patient_has_most_images():
    # A patient drawn several times makes the sums within a block of units large.
    y_true, scores, _ = sample(num_patients=300)
    patient_N = np.where(np.arange(len(y_true)) < 500, 0, np.arange(len(y_true)))
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=200, seed=0)
    weights = all_weights(patient_N, num_replicates=200, seed=0)
    assert weights.max() >= 5
    for w, values in zip(weights, replicates.values, strict=True):
        assert values[0, 0] == pytest.approx(slow_auc(y_true[:, 0], scores[0, :, 0], w), abs=1e-12)


def test_zeros_of_both_signs_are_ties():
    y_true = np.array([[0.0], [1.0], [0.0]])
    scores = np.array([[[0.0], [-0.0], [-1.0]]])
    assert paired_bootstrap(y_true, scores, np.arange(3), num_replicates=1, seed=0).estimates[0, 0] == 0.75


def test_quantities_are_nan_where_a_class_has_no_weight():
    y_true = np.array([[1.0], [0.0], [np.nan]])
    scores = np.array([[[0.5], [0.2], [0.1]]])
    replicates = paired_bootstrap(y_true, scores, np.arange(3), num_replicates=50, seed=0, ranked=RANKED)
    weights = all_weights(np.arange(3), num_replicates=50, seed=0)
    has_positive, has_negative = weights[:, 0] > 0, weights[:, 1] > 0
    assert 0 < (has_positive & has_negative).sum() < 50
    assert has_positive.any() > (has_positive & has_negative).any() - 1
    both = np.where(has_positive & has_negative, 1.0, np.nan)
    expected = [both, np.where(has_positive, 1.0, np.nan), both]
    np.testing.assert_array_equal(replicates.values[:, 0], np.transpose(expected))


def slow_calibration_error(y_true, y_score, weights, num_bins):
    """Bin by bin with repeated units, then the definition."""
    units = [(t, s) for t, s, w in zip(y_true, y_score, weights, strict=True) for _ in range(w) if t == t]
    total = 0.0
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    for b in range(num_bins):
        own = [t - s for t, s in units if sum(s > edge for edge in inner_edges) == b]
        total += abs(sum(own))
    return total / len(units)


def test_calibration_errors_equal_those_of_a_slow_loop():
    y_true, scores, patient_N = sample(num_patients=40)
    rng = np.random.default_rng(4)
    certain = rng.choice([0.0, 1.0, 0.05, 0.55], size=(2, len(y_true), 2)) * (rng.random((2, len(y_true), 1)) < 0.9)
    truth = np.where(rng.random(certain.shape) < 0.2, np.nan, rng.random(certain.shape) < 0.2 + 0.5 * certain)
    calibration = Calibration(truth, certain, num_bins=10)
    replicates = paired_bootstrap(
        *(y_true, scores, patient_N), num_replicates=30, seed=5, hits=hits_of(y_true), calibration=calibration
    )
    weights = [*all_weights(patient_N, num_replicates=30, seed=5), np.ones(patient_N.size, int)]
    for values, w in zip([*replicates.values, replicates.estimates], weights, strict=True):
        for m in range(2):
            for e in range(2):
                expected = slow_calibration_error(truth[m, :, e], certain[m, :, e], w, 10)
                found = values[m, replicates.quantities.calibration_error(e)]
                assert found == pytest.approx(expected, abs=1e-12)
    assert replicates.quantities.calibration_error(1) == values.shape[1] - 1


def test_intervals_equal_those_of_a_slow_loop():
    y_true, scores, patient_N = sample(num_patients=40)
    weights = all_weights(patient_N, num_replicates=60, seed=5)
    slow = np.array([[[slow_auc(y_true[:, c], s[:, c], w) for c in range(3)] for s in scores] for w in weights])
    differences = np.column_stack([slow[:, 0] - slow[:, 1], (slow[:, 0] - slow[:, 1]).mean(axis=1)])
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=60, seed=5)
    for interval, d in zip(replicates.intervals(0, 1, alpha=0.1), differences.T, strict=True):
        assert [interval.ci_low, interval.ci_high] == pytest.approx(list(np.percentile(d, [5, 95])), abs=1e-12)
        assert interval.p == pytest.approx(min(1, 2 * (1 + min((d <= 0).sum(), (d >= 0).sum())) / 61))
    of_model = replicates.intervals(1, alpha=0.1)[-1]
    expected = np.percentile(slow[:, 1].mean(axis=1), [5, 95])
    assert [of_model.ci_low, of_model.ci_high] == pytest.approx(list(expected), abs=1e-12)
    assert of_model.p is None
    assert of_model.estimate_b is None


def test_identical_models_differ_by_exactly_zero_with_p_one():
    y_true, scores, patient_N = sample()
    replicates = paired_bootstrap(y_true, scores[[0, 0]], patient_N, num_replicates=50, seed=0)
    for interval in replicates.intervals(0, 1, alpha=0.05):
        assert (interval.estimate, interval.ci_low, interval.ci_high, interval.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_model_better_in_every_resample_has_the_smallest_p():
    y_true = np.tile([0.0, 1.0], 30)[:, None]
    replicates = paired_bootstrap(y_true, np.stack([y_true, -y_true]), np.arange(60), num_replicates=200, seed=0)
    interval = replicates.intervals(0, 1, alpha=0.05)[0]
    assert (interval.estimate, interval.ci_low, interval.ci_high, interval.p) == (1.0, 1.0, 1.0, 2 / 201)


def test_p_value_counts_both_tails_and_zeros():
    assert two_sided_p(np.array([-1.0, 1, 1, 1, 1, 1, 1, 1])) == 2 * 2 / 9
    assert two_sided_p(np.array([1.0, -1, -1, -1, 0])) == 2 * 3 / 6
    assert two_sided_p(np.array([0.0, 0, 1, -1])) == 1.0
    assert two_sided_p(np.ones(999)) == 2 / 1000


def test_monotone_transforms_of_the_scores_change_nothing():
    y_true, scores, patient_N = sample()
    plain = paired_bootstrap(y_true, scores, patient_N, num_replicates=50, seed=0)
    bent = paired_bootstrap(y_true, np.exp(scores) * 3 - 7, patient_N, num_replicates=50, seed=0)
    np.testing.assert_array_equal(plain.values, bent.values)


def test_the_order_of_units_changes_nothing():
    y_true, scores, patient_N = sample()
    order = np.random.default_rng(8).permutation(patient_N.size)
    plain = paired_bootstrap(y_true, scores, patient_N, num_replicates=50, seed=0)
    mixed = paired_bootstrap(y_true[order], scores[:, order], patient_N[order], num_replicates=50, seed=0)
    np.testing.assert_array_equal(plain.values, mixed.values)


def test_a_class_that_the_sample_lacks_is_left_out_of_the_mean():
    y_true, scores, patient_N = sample()
    y_true[:, 1] = np.where(np.isnan(y_true[:, 1]), np.nan, 1)
    *_, lacking, _, mean = paired_bootstrap(y_true, scores, patient_N, num_replicates=50, seed=0).intervals(
        0, 1, alpha=0.05
    )
    assert (lacking.estimate, lacking.ci_low, lacking.p, lacking.n_replicates) == (None, None, None, 0)
    without = paired_bootstrap(y_true[:, [0, 2]], scores[:, :, [0, 2]], patient_N, num_replicates=50, seed=0)
    assert mean == without.intervals(0, 1, alpha=0.05)[-1]


def test_replicates_that_lack_a_class_average_over_the_others():
    y_true, scores, _ = sample(num_patients=100, num_classes=2)
    y_true[:, 1] = 0
    y_true[:4, 1] = 1  # 4 positives: about 2 % of resamples have none
    units = np.arange(len(y_true))
    replicates = paired_bootstrap(y_true, scores, units, num_replicates=1000, seed=0)
    _, rare, mean = replicates.intervals(0, 1, alpha=0.05)
    lacking = int(np.isnan(replicates.values[:, 0, 1]).sum())
    assert 5 <= lacking <= 40
    assert (rare.n_lacking, rare.n_replicates) == (lacking, 1000 - lacking)
    assert (mean.n_lacking, mean.n_replicates) == (lacking, 1000)
    draws = np.nanmean(replicates.values, axis=2) @ [1, -1]
    assert [mean.ci_low, mean.ci_high] == pytest.approx(list(np.percentile(draws, [2.5, 97.5])), abs=1e-12)


def test_the_interval_is_withheld_when_many_replicates_lack_a_class():
    y_true, scores, _ = sample(num_classes=1)
    y_true[:, 0] = 0
    y_true[0, 0] = 1  # 37 % of resamples miss a single unit
    replicates = paired_bootstrap(y_true, scores, np.arange(len(y_true)), num_replicates=200, seed=0)
    interval = replicates.intervals(0, 1, alpha=0.05)[0]
    assert interval.estimate is not None
    assert (interval.ci_low, interval.ci_high, interval.p) == (None, None, None)
    assert interval.reason == f"{interval.n_lacking} of 200 replicates lack a class"


def hits_of(y_true, *, num_shares=3, seed=0):
    """What two models hit, of units that only some shares count."""
    rng = np.random.default_rng(seed)
    hits = (rng.random((2, len(y_true), num_shares)) < 0.6).astype(float)
    hits[:, rng.random((len(y_true), num_shares)) < 0.3] = np.nan
    return hits


def slow_share(hits, weights):
    """Repeat the units, then count."""
    counted = [hit for hit, weight in zip(hits, weights, strict=True) for _ in range(weight) if hit == hit]
    return sum(counted) / len(counted)


def test_shares_equal_those_of_a_slow_loop_on_the_resamples_of_the_aucs():
    y_true, scores, patient_N = sample(num_patients=30)
    hits = hits_of(y_true)
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=40, seed=5, hits=hits)
    weights = all_weights(patient_N, num_replicates=40, seed=5)
    slow = [[[slow_share(hits[m, :, s], w) for s in range(3)] for m in range(2)] for w in weights.tolist()]
    np.testing.assert_array_equal(replicates.values[:, :, 3:], slow)
    once = [[slow_share(hits[m, :, s], [1] * len(y_true)) for s in range(3)] for m in range(2)]
    np.testing.assert_array_equal(replicates.estimates[:, 3:], once)
    plain = paired_bootstrap(y_true, scores, patient_N, num_replicates=40, seed=5)
    np.testing.assert_array_equal(replicates.values[:, :, :3], plain.values)


def test_shares_of_real_numbers_equal_weighted_means():
    y_true, scores, patient_N = sample(num_patients=30)
    hits = hits_of(y_true, num_shares=2)
    errors = np.where(np.isnan(hits), np.nan, np.random.default_rng(0).normal(size=hits.shape))
    mixed = np.concatenate([errors[:, :, :1], hits, errors[:, :, 1:]], axis=2)
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=40, seed=5, hits=mixed, ranked=())
    weights = all_weights(patient_N, num_replicates=40, seed=5)
    for s, m in ((0, 0), (1, 1), (2, 0), (3, 1)):
        counted = ~np.isnan(mixed[m, :, s])
        expected = weights[:, counted] @ mixed[m, counted, s] / weights[:, counted].sum(axis=1)
        np.testing.assert_allclose(replicates.values[:, m, replicates.quantities.share(s)], expected, atol=1e-12)


def test_shares_are_the_same_where_fingerprints_of_units_collide(monkeypatch):
    y_true, scores, patient_N = sample(num_patients=30)
    settings = {"num_replicates": 40, "seed": 5, "hits": hits_of(y_true), "ranked": ()}
    plain = paired_bootstrap(y_true, scores, patient_N, **settings)
    assert len(quantities._cells(hits_of(y_true)[:1])[0]) <= 27
    monkeypatch.setattr("medssl.analysis.kernels.fingerprints", lambda bits_MNS, print_N: print_N.fill(7))
    assert len(quantities._cells(hits_of(y_true)[:1])[0]) == len(y_true)
    np.testing.assert_array_equal(paired_bootstrap(y_true, scores, patient_N, **settings).values, plain.values)


def test_a_mean_covers_the_quantities_that_it_names():
    y_true, scores, patient_N = sample()
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=50, seed=0, hits=hits_of(y_true))
    single, mean = replicates.intervals(0, 1, alpha=0.1, means=[[4], [3, 5]])
    draws = replicates.values[:, 0] - replicates.values[:, 1]
    for interval, of_interval in ((single, draws[:, 4]), (mean, draws[:, [3, 5]].mean(axis=1))):
        assert [interval.ci_low, interval.ci_high] == pytest.approx(list(np.percentile(of_interval, [5, 95])))


def test_the_interval_of_a_share_is_withheld_when_many_replicates_have_no_unit_for_it():
    y_true, scores, _ = sample()
    hits = np.full((2, len(y_true), 2), np.nan)
    hits[:, 0, 0] = 1
    replicates = paired_bootstrap(y_true, scores, np.arange(len(y_true)), num_replicates=200, seed=0, hits=hits)
    rare, never = replicates.intervals(0, alpha=0.05, means=[[3], [4]])
    assert (rare.estimate, rare.ci_low) == (1.0, None)
    assert rare.reason == f"{rare.n_lacking} of 200 replicates lack a class"
    assert (never.estimate, never.reason) == (None, "not evaluable on the full sample")


def test_bad_arguments_are_named():
    y_true, scores, patient_N = sample()
    with pytest.raises(ValueError, match="truth"):
        paired_bootstrap(y_true[:-1], scores, patient_N, num_replicates=5, seed=0)
    with pytest.raises(ValueError, match="num_replicates=0"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=0, seed=0)
    with pytest.raises(ValueError, match="alpha"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=5, seed=0).intervals(0, alpha=5)
    hits = np.ones((2, len(y_true), 1))
    hits[1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN in the same places"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=5, seed=0, hits=hits)
    with pytest.raises(ValueError, match="must be finite"):
        paired_bootstrap(y_true, np.where(scores > 1, np.inf, scores), patient_N, num_replicates=5, seed=0)
    with pytest.raises(ValueError, match="ranked: expected distinct ones"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=5, seed=0, ranked=["auc", "auc"])
    with pytest.raises(ValueError, match="specificity must lie in 0-1, got 90"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=5, seed=0, specificity=90)
    with pytest.raises(ValueError, match="calibration needs scores in 0-1"):
        paired_bootstrap(
            *(y_true, scores, patient_N), num_replicates=5, seed=0, calibration=Calibration(scores, scores)
        )
    wrong = Calibration(scores[:1], scores[:1])
    with pytest.raises(ValueError, match="calibration: truth"):
        paired_bootstrap(y_true, scores, patient_N, num_replicates=5, seed=0, calibration=wrong)


def test_the_compiler_is_loaded_only_where_a_bootstrap_runs():
    code = "import sys, medssl.analysis.compare, medssl.analysis.report; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
