from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medssl.analysis.bootstrap import paired_bootstrap, resample_weights, two_sided_p, weighted_auc


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


def binormal_sample(rng, num_patients, *, images_each, shared):
    """Scores of two models of different separation, sharing a part of their noise within a patient."""
    patient_N = np.repeat(np.arange(num_patients), images_each)
    y_true = np.repeat((rng.random(num_patients) < 0.5).astype(float), images_each)

    def noise():
        of_patient = rng.normal(size=num_patients)[patient_N]
        return np.sqrt(shared) * of_patient + np.sqrt(1 - shared) * rng.normal(size=patient_N.size)

    common = noise()
    scores = np.stack([d * y_true + np.sqrt(0.5) * (common + noise()) for d in (1.2, 0.7)])
    return y_true[:, None], scores[:, :, None], patient_N


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_weighted_auc_equals_scikit_learn_on_repeated_rows(digits):
    y_true, scores, patient_N = sample(digits=digits)
    weights = next(resample_weights(patient_N, num_replicates=40, seed=1))
    fast = weighted_auc(y_true[:, 0], scores[0, :, 0], weights)
    slow = [slow_auc(y_true[:, 0], scores[0, :, 0], w) for w in weights]
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-12)


def test_weighted_auc_is_exact_where_32_bits_would_overflow():
    y_true = np.tile([0.0, 1.0], 20_000)
    y_score = np.arange(40_000) % 97.0
    heavy = np.full((1, 40_000), 255, dtype=np.uint8)
    assert weighted_auc(y_true, y_score, heavy) == weighted_auc(y_true, y_score, heavy // 255)


def test_weighted_auc_is_nan_where_a_class_has_no_weight():
    weights = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=np.uint8)
    aucs = weighted_auc(np.array([1.0, 0.0, np.nan]), np.array([0.5, 0.2, 0.1]), weights)
    np.testing.assert_array_equal(aucs, [np.nan, 1.0, np.nan])


def test_weights_count_whole_patients_drawn_with_replacement():
    patient_N = np.array([7, 3, 7, 3, 5, 9])
    weights = np.concatenate(list(resample_weights(patient_N, num_replicates=4000, seed=0)))
    np.testing.assert_array_equal(weights[:, [0, 1]], weights[:, [2, 3]])
    np.testing.assert_array_equal(weights[:, [0, 1, 4, 5]].sum(axis=1), 4)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)


def test_weights_do_not_depend_on_the_size_of_the_blocks(monkeypatch):
    whole = list(resample_weights(np.arange(100), num_replicates=30, seed=3))
    monkeypatch.setattr("medssl.analysis.bootstrap._BLOCK_BYTES", 700)
    blocks = list(resample_weights(np.arange(100), num_replicates=30, seed=3))
    assert [len(b) for b in whole] == [30]
    assert [len(b) for b in blocks] == [7, 7, 7, 7, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole[0])


def test_intervals_equal_those_of_a_slow_loop():
    y_true, scores, patient_N = sample(num_patients=40)
    weights = next(resample_weights(patient_N, num_replicates=60, seed=5))
    slow = np.array([[[slow_auc(y_true[:, c], s[:, c], w) for c in range(3)] for s in scores] for w in weights])
    differences = np.column_stack([slow[:, 0] - slow[:, 1], (slow[:, 0] - slow[:, 1]).mean(axis=1)])
    replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=60, seed=5)
    for interval, d in zip(replicates.intervals(0, 1, alpha=0.1), differences.T, strict=True):
        assert [interval.ci_low, interval.ci_high] == pytest.approx(list(np.percentile(d, [5, 95])), abs=1e-12)
        assert interval.p == pytest.approx(max(1 / 60, min(1, 2 * min((d <= 0).mean(), (d >= 0).mean()))))
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
    assert (interval.estimate, interval.ci_low, interval.ci_high, interval.p) == (1.0, 1.0, 1.0, 1 / 200)


def test_p_value_counts_both_tails_and_zeros():
    assert two_sided_p(np.array([-1.0, 1, 1, 1, 1, 1, 1, 1])) == 0.25
    assert two_sided_p(np.array([0.0, 0, 1, -1])) == 1.0


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


def test_patient_intervals_are_wider_than_image_intervals_on_clustered_images():
    rng = np.random.default_rng(0)
    y_true, scores, patient_N = binormal_sample(rng, 100, images_each=5, shared=0.8)
    widths = []
    for clusters in (patient_N, np.arange(patient_N.size)):
        replicates = paired_bootstrap(y_true, scores, clusters, num_replicates=500, seed=0)
        widths.append([i.ci_high - i.ci_low for i in (replicates.intervals(m, alpha=0.05)[0] for m in (0, 1))])
    assert np.all(np.divide(*widths) > 1.4)


def test_95_percent_intervals_cover_the_true_difference_at_about_that_rate():
    rng = np.random.default_rng(2)
    # Closed form of the AUC of two normal distributions: Phi(d / sqrt 2); the noise has unit variance.
    true_difference = NormalDist().cdf(1.2 / 2**0.5) - NormalDist().cdf(0.7 / 2**0.5)
    covered = 0
    for simulation in range(150):
        y_true, scores, patient_N = binormal_sample(rng, 80, images_each=3, shared=0.6)
        replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=300, seed=simulation)
        interval = replicates.intervals(0, 1, alpha=0.05)[0]
        covered += interval.ci_low <= true_difference <= interval.ci_high
    assert 0.90 <= covered / 150 <= 0.99


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
    weights = np.concatenate(list(resample_weights(patient_N, num_replicates=40, seed=5)))
    slow = [[[slow_share(hits[m, :, s], w) for s in range(3)] for m in range(2)] for w in weights.tolist()]
    np.testing.assert_array_equal(replicates.values[:, :, 3:], slow)
    once = [[slow_share(hits[m, :, s], [1] * len(y_true)) for s in range(3)] for m in range(2)]
    np.testing.assert_array_equal(replicates.estimates[:, 3:], once)
    plain = paired_bootstrap(y_true, scores, patient_N, num_replicates=40, seed=5)
    np.testing.assert_array_equal(replicates.values[:, :, :3], plain.values)


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
