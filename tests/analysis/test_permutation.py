"""The permutation test of equal groups, against direct counts and under hypotheses that hold and that do not."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from medssl.analysis.permutation import OUTSIDE, Exchange, p_of_equal_groups, permuted_codes
from medssl.analysis.runs import Run


def make_run(y_true, y_score, patients, *, unit_kind="image"):
    num_units, num_classes = y_true.shape
    return Run(
        dataset="d", split="test", label_fraction=1.0, draw=0, arm_id="a", repeat=0, is_selected=True,
        unit_kind=unit_kind, group_kind="patient", classes=tuple(f"c{c}" for c in range(num_classes)),
        units=np.arange(num_units), patients=np.asarray(patients), y_true=np.asarray(y_true, float),
        y_score=np.asarray(y_score, float), rows=np.arange(num_units),
    )  # fmt: skip


def clustered_run(rng, *, num_patients=60, shift_of_patient=0.0, prevalence_of_patient=0.4):
    """One to three images a patient, alike in score; truth of two classes."""
    sizes = rng.integers(1, 4, size=num_patients)
    patients = np.repeat(np.arange(num_patients), sizes)
    prevalence, shift = (np.broadcast_to(x, num_patients)[patients] for x in (prevalence_of_patient, shift_of_patient))
    y_true = (rng.random((patients.size, 2)) < prevalence[:, None]).astype(float)
    own = rng.normal(size=(num_patients, 2))[patients]
    y_score = (1 + shift)[:, None] * y_true + 0.7 * own + 0.7 * rng.normal(size=y_true.shape)
    return make_run(y_true, y_score, patients)


def all_codes(run, codes, num_permutations, seed=0):
    blocks = permuted_codes(run, codes, num_permutations=num_permutations, seed=seed)
    return np.concatenate(list(blocks), axis=1).T


def test_a_permutation_keeps_patients_whole_and_the_units_and_positive_labels_of_groups():
    rng = np.random.default_rng(0)
    run = clustered_run(rng)
    codes = (rng.integers(3, size=60) - 1)[run.patients].astype(np.int16)
    permuted = all_codes(run, codes, 200)
    assert (permuted[0] == codes).all()
    assert (permuted[:, codes == OUTSIDE] == OUTSIDE).all()
    assert len({row.tobytes() for row in permuted}) == 201
    for row in permuted:
        assert all(np.unique(row[run.patients == patient]).size == 1 for patient in range(60))
        for g in (0, 1):
            assert (row == g).sum() == (codes == g).sum()
            assert run.y_true[row == g].sum() == run.y_true[codes == g].sum()
            assert np.unique(run.patients[row == g]).size == np.unique(run.patients[codes == g]).size


def test_groups_within_patients_move_among_units_of_equal_patients():
    # Two patients with two units each, one positive each, and one like no other.
    run = make_run(np.array([[1], [0], [0], [1], [1]]), np.zeros((5, 1)), [0, 0, 1, 1, 2])
    codes = np.array([0, 1, 0, 0, 1], np.int16)
    seen = {tuple(row) for row in all_codes(run, codes, 300).tolist()}
    # Who gets both groups, and which of two units which one: all are reached, and the fifth never moves.
    assert seen == {(0, 1, 0, 0, 1), (1, 0, 0, 0, 1), (0, 0, 0, 1, 1), (0, 0, 1, 0, 1)}


def test_every_assignment_is_equally_likely():
    run = make_run(np.ones((4, 1)), np.zeros((4, 1)), [0, 1, 2, 3])
    counts = Counter(map(tuple, all_codes(run, np.array([0, 0, 1, 2], np.int16), 6000)[1:].tolist()))
    assert set(counts) == set(permutations((0, 0, 1, 2)))
    assert max(abs(count - 500) for count in counts.values()) < 5 * np.sqrt(500)


def test_units_of_a_patient_stand_together_in_the_exchange():
    rng = np.random.default_rng(1)
    run = clustered_run(rng, num_patients=30)
    mixed = run.subset(np.ones(run.units.size, dtype=bool))
    exchange = Exchange.of(mixed, np.zeros(run.units.size, np.int16))
    assert sorted(exchange.units.tolist()) == list(range(run.units.size))
    assert (np.diff(exchange.set_of_patient) >= 0).all()
    for _ in range(5):
        place = exchange.permuted(rng)
        assert sorted(place.tolist()) == list(range(run.units.size))
        # The units of one patient get those of one patient, with as many units and positive labels.
        owners = run.patients[exchange.units[place]]
        for patient in range(30):
            (owner,) = np.unique(owners[run.patients[exchange.units] == patient])
            for of in (np.ones_like(run.y_true), run.y_true):
                assert of[run.patients == patient].sum() == of[run.patients == owner].sum()


def mean_auc_gap(run, codes):
    means = []
    for g in range(codes.max() + 1):
        chosen = codes == g
        values = []
        for y_true, y_score in zip(run.y_true[chosen].T, run.y_score[chosen].T, strict=True):
            pairs = np.subtract.outer(y_score[y_true == 1], y_score[y_true == 0])
            values += [(pairs > 0).mean() + (pairs == 0).mean() / 2] if pairs.size else []
        if values:
            means.append(np.mean(values))
    return max(means) - min(means)


def test_p_is_the_share_of_permutations_with_a_gap_at_least_as_large():
    rng = np.random.default_rng(2)
    run = clustered_run(rng, num_patients=24)
    codes = rng.integers(3, size=24)[run.patients].astype(np.int16)
    gaps = [mean_auc_gap(run, row) for row in all_codes(run, codes, 99, seed=7)]
    expected = np.mean([gap >= gaps[0] - 1e-12 for gap in gaps])
    (p,) = p_of_equal_groups([run], codes, classes=(0, 1), num_permutations=99, seed=7)
    assert p == expected
    other = clustered_run(np.random.default_rng(2), num_patients=24)
    both = p_of_equal_groups([other, run], codes, classes=(0, 1), num_permutations=99, seed=7)
    assert both.tolist() == [p, p]


def test_p_of_cases_counts_hits():
    rng = np.random.default_rng(3)
    y_true = np.eye(3)[rng.integers(3, size=40)]
    run = make_run(y_true, rng.random((40, 3)) + 0.4 * y_true, np.arange(40), unit_kind="case")
    is_hit = run.y_score.argmax(axis=1) == y_true.argmax(axis=1)
    codes = rng.integers(2, size=40).astype(np.int16)
    gaps = np.array([abs(is_hit[row == 0].mean() - is_hit[row == 1].mean()) for row in all_codes(run, codes, 199)])
    (p,) = p_of_equal_groups([run], codes, classes=(), num_permutations=199, seed=0)
    assert p == (gaps >= gaps[0] - 1e-12).mean()


def p_values(*, num_trials, **differing):
    found = []
    for seed in range(num_trials):
        rng = np.random.default_rng([seed, 1])
        group = (np.arange(60) % 3).astype(np.int16)
        by_group = {name: np.array(values)[group] for name, values in differing.items()}
        run = clustered_run(rng, **by_group)
        found.append(p_of_equal_groups([run], group[run.patients], classes=(0, 1), num_permutations=99, seed=seed)[0])
    return np.array(found)


@pytest.mark.parametrize("prevalence", [(0.4, 0.4, 0.4), (0.15, 0.4, 0.6)], ids=str)
def test_equal_groups_are_rejected_at_the_nominal_rate_even_where_findings_differ_in_frequency(prevalence):
    p = p_values(num_trials=150, prevalence_of_patient=prevalence)
    # 10 % of 150, with three standard errors to either side.
    assert 0.03 < (p <= 0.1).mean() < 0.18


def test_a_group_in_which_the_model_is_worse_is_found():
    p = p_values(num_trials=40, shift_of_patient=(1.5, 1.5, -1.0))
    assert (p <= 0.05).mean() > 0.8
