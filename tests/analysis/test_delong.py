"""DeLong's and Obuchowski's variances against their definitions, and their coverage."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medssl.analysis.compare import compare
from medssl.analysis.delong import AucCovariance, auc_covariance, mean_auc_covariance, normal_interval, place
from tests.analysis.test_compare import SETTINGS, prediction_rows, table


def sample(seed=0, *, num_clusters=25, num_models=3, digits=1):
    """Units in clusters of one to four that hold both classes, ties, some unknown."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(num_clusters), rng.integers(1, 5, size=num_clusters))
    y_true = (rng.random(clusters.size) < 0.4).astype(float)
    shared = rng.normal(size=num_clusters)[clusters]
    scores = np.round(y_true + shared + rng.normal(size=(num_models, clusters.size)), digits)
    y_true[rng.random(clusters.size) < 0.1] = np.nan
    return y_true, scores, rng.permutation(100)[clusters]


def kernel(positive, negative):
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def slow_covariance(y_true, scores, clusters):
    """Obuchowski 1997, equations (3) to (6), by loops over pairs."""
    positives = [i for i, truth in enumerate(y_true) if truth == 1]
    negatives = [i for i, truth in enumerate(y_true) if truth == 0]
    m, n = len(positives), len(negatives)
    v10 = [{i: sum(kernel(s[i], s[j]) for j in negatives) / n for i in positives} for s in scores]
    v01 = [{j: sum(kernel(s[i], s[j]) for i in positives) / m for j in negatives} for s in scores]
    theta = [sum(v.values()) / m for v in v10]
    names = sorted({clusters[i] for i in positives + negatives})

    def centred(values, units, r):
        return {c: sum(values[r][i] - theta[r] for i in units if clusters[i] == c) for c in names}

    x = [centred(v10, positives, r) for r in range(len(scores))]
    y = [centred(v01, negatives, r) for r in range(len(scores))]
    i10, i01 = (len({clusters[i] for i in units}) for units in (positives, negatives))
    total = len(names)
    found = np.empty((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = i10 / ((i10 - 1) * m) * sum(x[r][c] * x[s][c] for c in names)
            s01 = i01 / ((i01 - 1) * n) * sum(y[r][c] * y[s][c] for c in names)
            s11, s11_swapped = (
                total / (total - 1) * sum(x[a][c] * y[b][c] for c in names) for a, b in ((r, s), (s, r))
            )
            found[r, s] = s10 / m + s01 / n + (s11 + s11_swapped) / (m * n)
    return theta, found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("digits", [0, 8])
def test_the_covariance_equals_loops_over_pairs_of_units(seed, digits):
    y_true, scores, clusters = sample(seed, digits=digits)
    for grouping in (clusters, np.arange(clusters.size)):
        found = auc_covariance(place(y_true, scores), grouping)
        aucs, covariance = slow_covariance(y_true, scores, grouping)
        np.testing.assert_allclose(found.aucs, aucs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=1e-12)
    known = ~np.isnan(y_true)
    assert found.aucs[0] == pytest.approx(roc_auc_score(y_true[known], scores[0, known]), abs=1e-12)


def test_single_units_give_delongs_covariance_of_placements():
    y_true, scores, _ = sample(digits=8)
    placements = place(y_true, scores)
    found = auc_covariance(placements, np.arange(y_true.size))
    of_positives, of_negatives = placements.of_positives_MP, placements.of_negatives_MQ
    delong = np.cov(of_positives) / of_positives.shape[1] + np.cov(of_negatives) / of_negatives.shape[1]
    np.testing.assert_allclose(found.covariance, delong, rtol=0, atol=1e-14)


def test_a_small_example_without_ties_by_hand():
    # Positives 3 and 1, negatives 2 and 0: placements 1, 1/2 and 1/2, 1; both variances are 1/8.
    found = auc_covariance(place(np.array([1.0, 1, 0, 0]), np.array([[3.0, 1, 2, 0]])), np.arange(4))
    assert found.aucs.tolist() == [0.75]
    assert found.covariance[0, 0] == pytest.approx(1 / 8 / 2 + 1 / 8 / 2)


def test_a_patient_repeated_tenfold_weighs_as_one():
    y_true, scores, _ = sample(digits=8)
    units = np.arange(y_true.size)
    once = auc_covariance(place(y_true, scores), units)
    tenfold = auc_covariance(place(np.repeat(y_true, 10), np.repeat(scores, 10, axis=1)), np.repeat(units, 10))
    np.testing.assert_allclose(tenfold.covariance, once.covariance, rtol=1e-10)
    np.testing.assert_allclose(tenfold.aucs, once.aucs, rtol=1e-12)


def test_the_mean_of_equal_classes_varies_as_one_of_them():
    y_true, scores, clusters = sample()
    placements = place(y_true, scores)
    one, three = mean_auc_covariance([placements], clusters), mean_auc_covariance([placements] * 3, clusters)
    np.testing.assert_allclose(three.covariance, one.covariance, rtol=1e-12)
    single = auc_covariance(placements, clusters)
    np.testing.assert_allclose(one.covariance, single.covariance, rtol=0.1)


def test_the_variance_of_a_mean_of_independent_classes_falls_with_their_number():
    rng = np.random.default_rng(0)
    y_true = (rng.random((4, 4000)) < 0.5).astype(float)
    placed = [place(truth, (truth + rng.normal(size=4000))[None]) for truth in y_true]
    units = np.arange(4000)
    each = [auc_covariance(placements, units).covariance[0, 0] for placements in placed]
    mean = mean_auc_covariance(placed, units)
    assert mean.covariance[0, 0] == pytest.approx(sum(each) / 16, rel=0.1)
    assert mean.aucs[0] == pytest.approx(np.mean([placements.aucs[0] for placements in placed]))


def test_too_few_clusters_of_a_class_have_no_variance():
    y_true = np.array([1.0, 1, 0, 0])
    scores = np.arange(4.0)[None]
    assert auc_covariance(place(y_true, scores), np.array([0, 0, 1, 2])) is None
    assert mean_auc_covariance([place(y_true, scores)], np.array([0, 1, 2, 2])) is None
    assert place(np.zeros(4), scores) is None


def test_intervals_are_normal_cut_to_what_an_auc_can_be_and_equal_models_have_p_one():
    found = AucCovariance(np.array([0.9, 0.8]), np.array([[0.01, 0.005], [0.005, 0.01]]))
    single, difference = normal_interval(found, 0, alpha=0.05), normal_interval(found, 0, 1, alpha=0.05)
    assert (single.low, single.high, single.p) == (pytest.approx(0.9 - 0.1 * 1.959964, abs=1e-6), 1.0, None)
    assert difference.p == pytest.approx(2 * NormalDist().cdf(-1.0))
    assert difference.high == pytest.approx(0.1 + 0.1 * 1.959964, abs=1e-6)
    same = AucCovariance(np.full(2, 0.9), np.full((2, 2), 0.01))
    assert normal_interval(same, 0, 1, alpha=0.05).p == 1
    apart = AucCovariance(np.array([1.0, 0.0]), np.zeros((2, 2)))
    assert normal_interval(apart, 0, 1, alpha=0.05).p is None


def test_clustered_intervals_cover_the_true_difference_where_plain_ones_do_not():
    rng = np.random.default_rng(4)
    truth = NormalDist().cdf(1.2 / 2**0.5) - NormalDist().cdf(0.7 / 2**0.5)
    covered = np.zeros(2)
    for _ in range(300):
        patients = np.repeat(np.arange(60), 6)
        y_true = np.repeat((rng.random(60) < 0.5).astype(float), 6)
        noise = math.sqrt(0.7) * rng.normal(size=(2, 60))[:, patients] + math.sqrt(0.3) * rng.normal(size=(2, 360))
        placements = place(y_true, np.array([[1.2], [0.7]]) * y_true + noise)
        for i, clusters in enumerate((patients, np.arange(360))):
            interval = normal_interval(auc_covariance(placements, clusters), 0, 1, alpha=0.05)
            covered[i] += interval.low <= truth <= interval.high
    assert 0.91 <= covered[0] / 300 <= 0.985
    assert covered[1] / 300 < 0.75


def test_rows_of_aucs_and_their_mean_carry_delongs_intervals_and_no_others_do():
    metrics = compare(table(prediction_rows(repeats=(0,))), **SETTINGS | {"num_replicates": 400})
    for row in metrics:
        is_auc = row["metric"] in ("auc", "mean_auc") and row["repeat"] == "selected"
        assert (row["delong_low"] is not None) == is_auc
        assert (row["delong_p"] is not None) == (is_auc and row["arm_b"] is not None)
        if is_auc:
            width = row["ci_high"] - row["ci_low"]
            assert [row["delong_low"], row["delong_high"]] == pytest.approx(
                [row["ci_low"], row["ci_high"]], abs=0.15 * width
            )
