"""Intervals cover the truth about as often as they say: simulations with a known truth and fixed seeds."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from medssl.analysis.bootstrap import paired_bootstrap

SEPARATIONS = (1.2, 0.7)  # of the scores of positives and negatives, in standard deviations, for two models
NUM_SIMULATIONS = 400
# Of a share of simulations where 95 % are true.
STANDARD_ERROR = math.sqrt(0.95 * 0.05 / NUM_SIMULATIONS)


def true_auc(separation):
    """Of two normal distributions of unit variance."""
    return NormalDist().cdf(separation / math.sqrt(2))


TRUTHS = (*map(true_auc, SEPARATIONS), true_auc(SEPARATIONS[0]) - true_auc(SEPARATIONS[1]))


def binormal_sample(rng, num_patients, *, images_each, shared):
    """Scores of two models of different separation, sharing a part of their noise within a patient."""
    patient_N = np.repeat(np.arange(num_patients), images_each)
    y_true = np.repeat((rng.random(num_patients) < 0.5).astype(float), images_each)

    def noise():
        of_patient = rng.normal(size=num_patients)[patient_N]
        return np.sqrt(shared) * of_patient + np.sqrt(1 - shared) * rng.normal(size=patient_N.size)

    common = noise()
    scores = np.stack([d * y_true + np.sqrt(0.5) * (common + noise()) for d in SEPARATIONS])
    return y_true[:, None], scores[:, :, None], patient_N


def coverage(*, num_patients, images_each, shared, by_patient):
    """Share of simulations in which each of the 95 % intervals holds its truth: two AUCs and their difference."""
    rng = np.random.default_rng(2)
    covered = np.zeros(3)
    for simulation in range(NUM_SIMULATIONS):
        y_true, scores, patient_N = binormal_sample(rng, num_patients, images_each=images_each, shared=shared)
        clusters = patient_N if by_patient else np.arange(patient_N.size)
        replicates = paired_bootstrap(y_true, scores, clusters, num_replicates=500, seed=simulation)
        for i, models in enumerate(((0,), (1,), (0, 1))):
            interval = replicates.intervals(*models, alpha=0.05, means=[[0]])[0]
            covered[i] += interval.ci_low <= TRUTHS[i] <= interval.ci_high
    return covered / NUM_SIMULATIONS


def test_intervals_of_independent_units_cover_at_the_nominal_rate():
    found = coverage(num_patients=200, images_each=1, shared=0, by_patient=False)
    assert np.abs(found - 0.95).max() < 3 * STANDARD_ERROR, found


def test_patient_intervals_of_clustered_images_cover_at_the_nominal_rate():
    found = coverage(num_patients=150, images_each=4, shared=0.7, by_patient=True)
    assert np.abs(found - 0.95).max() < 3 * STANDARD_ERROR, found


def test_image_intervals_of_clustered_images_cover_markedly_too_seldom():
    found = coverage(num_patients=150, images_each=4, shared=0.7, by_patient=False)
    assert found.max() < 0.85, found


def test_intervals_of_shares_cover_at_the_nominal_rate_by_patient_only():
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for simulation in range(NUM_SIMULATIONS):
        # Each patient has an accuracy of its own, 0.7 on average (a beta distribution).
        hits = (rng.random((120, 5)) < rng.beta(1.4, 0.6, size=(120, 1))).astype(float).ravel()
        for by_patient in covered:
            clusters = np.arange(600) // 5 if by_patient else np.arange(600)
            replicates = paired_bootstrap(
                *(np.zeros((600, 0)), np.zeros((1, 600, 0)), clusters),
                **{"num_replicates": 500, "seed": simulation, "hits": hits[None, :, None]},
            )
            (interval,) = replicates.intervals(0, alpha=0.05)[:1]
            covered[by_patient] += interval.ci_low <= 0.7 <= interval.ci_high
    assert covered[True] / NUM_SIMULATIONS == pytest.approx(0.95, abs=3 * STANDARD_ERROR)
    assert covered[False] / NUM_SIMULATIONS < 0.85


def test_a_difference_of_equal_models_is_significant_as_seldom_as_it_should():
    rng = np.random.default_rng(5)
    num_significant = 0
    for simulation in range(NUM_SIMULATIONS):
        y_true, scores, patient_N = binormal_sample(rng, 150, images_each=2, shared=0.5)
        scores[1] = scores[1] + (SEPARATIONS[0] - SEPARATIONS[1]) * y_true
        replicates = paired_bootstrap(y_true, scores, patient_N, num_replicates=500, seed=simulation)
        num_significant += replicates.intervals(0, 1, alpha=0.05, means=[[0]])[0].p <= 0.05
    assert num_significant / NUM_SIMULATIONS == pytest.approx(0.05, abs=3 * STANDARD_ERROR)
