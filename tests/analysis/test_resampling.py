import math

import numpy as np
import pytest

from medssl.analysis.resampling import MAX_CLUSTERS, _ends, resample_weights, resamples


def counts(num_clusters, num_replicates, seed=0):
    """All resamples, shape (replicates, clusters)."""
    return np.concatenate(
        list(resample_weights(np.arange(num_clusters), num_replicates=num_replicates, seed=seed))
    ).astype(np.int64)


def chi_square(observed, expected):
    """Upper-tail probability of Pearson's statistic, by the Wilson-Hilferty normal approximation."""
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    z = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def binomial(n, k, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 17, 64, 1000])
def test_every_resample_has_as_many_clusters_as_there_are(num_clusters):
    np.testing.assert_array_equal(counts(num_clusters, 130).sum(axis=1), num_clusters)


@pytest.mark.parametrize("num_clusters", [2, 5, 40, 3000])
def test_a_clusters_count_has_the_binomial_distribution(num_clusters):
    # Far apart clusters are all but independent, those of few are thinned to one a resample.
    drawn = counts(num_clusters, 40_000 if num_clusters < 1000 else 300)
    drawn = drawn[:, 0] if num_clusters < 1000 else drawn[:, :: num_clusters // 300].ravel()
    top = min(num_clusters, 5)
    expected = [binomial(num_clusters, k, 1 / num_clusters) for k in range(top)]
    expected = np.array([*expected, 1 - sum(expected)]) * drawn.size
    observed = np.bincount(np.minimum(drawn, top), minlength=top + 1)
    assert chi_square(observed, expected) > 1e-3


def test_resamples_of_three_clusters_have_the_multinomial_distribution():
    drawn = counts(3, 60_000)
    outcomes = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]
    expected = np.array([6 / math.prod(map(math.factorial, o)) / 27 for o in outcomes]) * len(drawn)
    observed = np.array([(drawn == o).all(axis=1).sum() for o in outcomes])
    assert observed.sum() == len(drawn)
    assert chi_square(observed, expected) > 1e-3


def test_counts_of_two_clusters_are_correlated_by_minus_one_over_n_less_one():
    n = 8
    drawn = counts(n, 100_000)
    covariance = np.cov(drawn.T)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / n, atol=0.02)
    off = covariance[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(off, -1 / n, atol=0.015)
    np.testing.assert_allclose(off.mean(), -1 / n, atol=1e-3)


def test_replicates_are_independent_of_each_other():
    # Neighbours share random words and blocks; 128 replicates of 5,000 clusters have 8,128 correlations.
    drawn = counts(5000, 128)
    correlation = np.corrcoef(drawn)[np.triu_indices(128, 1)] * math.sqrt(5000)
    assert abs(correlation.mean()) < 5 / math.sqrt(8128)
    assert abs(correlation.var() - 1) < 5 * math.sqrt(2 / 8128)
    assert np.abs(correlation).max() < 5.5
    assert len(np.unique(counts(50, 2000), axis=0)) == 2000


def test_replicates_do_not_depend_on_how_many_there_are():
    many = counts(100, 200, seed=3)
    for num in (1, 63, 64, 65, 150):
        np.testing.assert_array_equal(counts(100, num, seed=3), many[:num])
    assert (counts(100, 64, seed=4) != many[:64]).any(axis=1).all()


def test_the_resamples_of_a_seed_stay_what_they_are():
    """A study is repeatable only as long as this holds on every machine."""
    drawn = counts(2000, 100, seed=7)
    weights = np.arange(1, 2001)
    assert (int((drawn @ weights).sum()), drawn.max()) == (200312542, 8)


@pytest.mark.parametrize("num_clusters", [1, 10, 300, 30_000, MAX_CLUSTERS])
def test_ends_of_common_and_rare_counts_add_up_to_the_poisson_distribution(num_clusters):
    common, rare = _ends(num_clusters, 6)
    mean = max(0.25, 1 - 2 / math.sqrt(num_clusters))
    share_rare = 1 - common[-1] / 2**16
    of_rare = np.diff([0, *(int(end) / 2**64 for end in rare), 1])
    chances = np.concatenate([np.diff([0, *common.tolist()]) / 2**16, np.zeros(15)]) + share_rare * of_rare
    expected = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(21)]
    np.testing.assert_allclose(chances, expected, rtol=1e-12, atol=1e-18)
    assert share_rare < 1 / 1000


def test_no_count_is_above_the_bound_that_a_block_gives():
    for num_clusters in (1, 2, 50, 5000):
        for block in resamples(num_clusters, num_replicates=300, seed=0):
            assert block.count_CL.max() <= block.heaviest


def test_weights_count_whole_patients_drawn_with_replacement():
    patient_N = np.array([7, 3, 7, 3, 5, 9])
    weights = np.concatenate(list(resample_weights(patient_N, num_replicates=4000, seed=0)))
    np.testing.assert_array_equal(weights[:, [0, 1]], weights[:, [2, 3]])
    np.testing.assert_array_equal(weights[:, [0, 1, 4, 5]].sum(axis=1), 4)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)


def test_no_clusters_or_replicates_are_refused():
    for num_clusters, num_replicates in ((0, 5), (5, 0), (MAX_CLUSTERS + 1, 5)):
        with pytest.raises(ValueError, match=f"got {num_clusters} clusters and num_replicates={num_replicates}"):
            next(resamples(num_clusters, num_replicates=num_replicates, seed=0))
