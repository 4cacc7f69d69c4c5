"""Drops from the test split to external sets."""

from dataclasses import replace

import numpy as np
import pytest

from medssl.analysis.measures import Bootstrap, measure
from medssl.analysis.runs import Run
from medssl.analysis.shift import drops
from tests.analysis.test_subgroups import find

SETTINGS = Bootstrap(200, 0.1, 3)
CLASSES = ("Edema", "Effusion", "Nodule")
SKILL = {"good": 2.0, "poor": 1.0}


def make_group(dataset, split, *, seed=0, num_patients=60, ease=1.0, classes=CLASSES, arms=SKILL, unit_kind="image"):
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 2)
    if unit_kind == "case":
        y_true = np.eye(len(classes))[rng.integers(len(classes), size=patients.size)]
    else:
        y_true = (rng.random((patients.size, len(classes))) < 0.4).astype(float)
    noise = rng.normal(size=y_true.shape)
    logits = {arm: skill * ease * y_true + noise + 0.3 * rng.normal(size=noise.shape) for arm, skill in arms.items()}
    scores = {arm: 1 / (1 + np.exp(-logit)) for arm, logit in logits.items()}
    return {
        arm: Run(
            dataset=dataset, split=split, label_fraction=1.0, draw=0, arm_id=arm, repeat=0, is_selected=True,
            unit_kind=unit_kind, group_kind="patient", classes=tuple(classes), units=np.arange(patients.size),
            patients=patients, y_true=y_true, y_score=scores[arm], rows=np.arange(patients.size),
        )
        for arm in arms
    }  # fmt: skip


def estimate(run, metric, name=""):
    (row,) = [row for row in measure(run) if (row["metric"], row["class"]) == (metric, name) and row["k"] in (None, 1)]
    return row["estimate"]


def without(group, name):
    """The set does not assess one class."""
    return {
        arm: replace(run, y_true=np.where(np.array(run.classes) == name, np.nan, run.y_true))
        for arm, run in group.items()
    }


@pytest.fixture(scope="module")
def groups():
    return [make_group("own", "test"), without(make_group("nih", "external", seed=1, ease=0.5), "Nodule")]


@pytest.fixture(scope="module")
def rows(groups):
    return drops(groups, arm_pairs=[("good", "poor")], settings=SETTINGS)


def test_a_drop_is_the_value_on_the_test_split_minus_that_on_the_external_set(groups, rows):
    own, nih = groups
    for arm in SKILL:
        (row,) = find(rows, metric="auc_drop", arm_a=arm, arm_b=None, **{"class": "Edema"})
        expected = estimate(own[arm], "auc", "Edema") - estimate(nih[arm], "auc", "Edema")
        assert row["estimate"] == pytest.approx(expected, abs=1e-12)
        assert (row["dataset"], row["split"], row["repeat"]) == ("nih", "external", "selected")
        assert (row["status"], row["resampling_unit"], row["n_patients"]) == ("ok", "patient", 60)
        assert row["ci_low"] < row["estimate"] < row["ci_high"]


def test_a_mean_covers_the_classes_of_both_sets_and_names_the_others(groups, rows):
    own, nih = groups
    (row,) = find(rows, metric="mean_auc_drop", arm_a="good", arm_b=None)
    values = [estimate(own["good"], "auc", name) - estimate(nih["good"], "auc", name) for name in CLASSES[:2]]
    assert row["estimate"] == pytest.approx(np.mean(values), abs=1e-12)
    assert (row["status"], row["reason"]) == ("partial", "not evaluable on both sets: Nodule")
    (row,) = find(rows, metric="auc_drop", arm_a="good", arm_b=None, **{"class": "Nodule"})
    assert (row["status"], row["estimate"], row["ci_low"], row["p"]) == ("not_evaluable", None, None, None)
    assert row["reason"] == "nih: no positives and no negatives"


def test_the_difference_of_drops_is_the_drop_of_the_difference(groups, rows):
    (difference,) = find(rows, metric="mean_auc_drop", arm_b="poor")
    one, other = (find(rows, metric="mean_auc_drop", arm_a=arm, arm_b=None)[0]["estimate"] for arm in SKILL)
    assert difference["arm_a"] == "good"
    assert difference["estimate"] == pytest.approx(one - other, abs=1e-12)
    assert difference["p"] is not None
    (turned,) = find(
        drops(groups, arm_pairs=[("poor", "good")], settings=SETTINGS), metric="mean_auc_drop", arm_b="good"
    )
    assert turned["estimate"] == pytest.approx(-difference["estimate"], abs=1e-12)
    assert (turned["ci_low"], turned["ci_high"]) == pytest.approx((-difference["ci_high"], -difference["ci_low"]))


def test_the_error_of_a_drop_is_that_of_two_independent_sets(groups, rows):
    own, nih = groups
    (row,) = find(rows, metric="auc_drop", arm_a="good", arm_b=None, **{"class": "Edema"})
    variances = [SETTINGS.replicates(list(g.values()), "patient").values[:, 0, 0].var() for g in (own, nih)]
    normal = 2 * 1.645 * np.sqrt(sum(variances))
    assert row["ci_high"] - row["ci_low"] == pytest.approx(normal, rel=0.25)


def test_the_same_patients_under_another_name_are_drawn_anew():
    own = make_group("own", "test")
    copy = {arm: replace(run, dataset="copy", split="external") for arm, run in own.items()}
    (row,) = find(drops([own, copy], arm_pairs=[], settings=SETTINGS), metric="mean_auc_drop", arm_a="good")
    assert row["estimate"] == 0
    assert row["ci_low"] < -0.01
    assert row["ci_high"] > 0.01
    assert row["p"] > 0.5


def test_the_interval_covers_the_drop_and_no_drop_is_rejected_at_the_nominal_rate():
    found = []
    for seed in range(60):
        sets = [
            make_group(*place, seed=2 * seed + i, arms={"good": 1.0}, classes=CLASSES[:1])
            for i, place in enumerate((("own", "test"), ("nih", "external")))
        ]
        found += find(drops(sets, arm_pairs=[], settings=SETTINGS), metric="mean_auc_drop", arm_a="good")
    assert 0.8 < np.mean([row["ci_low"] <= 0 <= row["ci_high"] for row in found]) <= 0.98
    assert np.mean([row["p"] < 0.1 for row in found]) < 0.2


def test_images_are_compared_on_common_classes_and_cases_on_the_same_ones_only():
    for kind, expected in (("image", "ok"), ("case", "not_evaluable")):
        own = make_group("own", "test", unit_kind=kind)
        other = make_group("other", "external", classes=(*CLASSES[1:], "Other"), unit_kind=kind)
        found = drops([own, other], arm_pairs=[], settings=SETTINGS)
        assert {row["status"] for row in found} == {expected}
    assert {row["metric"] for row in found} == {"top_k_accuracy_drop"}
    same = make_group("other", "external", unit_kind="case")
    found = drops([own, same], arm_pairs=[], settings=SETTINGS)
    (row,) = find(found, metric="top_k_accuracy_drop", arm_a="good", k=1)
    expected = estimate(own["good"], "top_k_accuracy") - estimate(same["good"], "top_k_accuracy")
    assert row["estimate"] == pytest.approx(expected, abs=1e-12)


def test_only_arms_and_label_fractions_of_both_sets_have_drops(groups):
    own, nih = groups
    found = drops([own, {"poor": nih["poor"]}], arm_pairs=[("good", "poor")], settings=SETTINGS)
    assert {(row["arm_a"], row["arm_b"]) for row in found} == {("poor", None)}
    half = {arm: replace(run, label_fraction=0.5) for arm, run in nih.items()}
    assert drops([own, half], arm_pairs=[], settings=SETTINGS) == []
    assert drops([own], arm_pairs=[], settings=SETTINGS) == []


def test_the_order_of_sets_and_arms_changes_nothing(groups, rows):
    turned = [dict(reversed(group.items())) for group in reversed(groups)]
    assert drops(turned, arm_pairs=[("good", "poor")], settings=SETTINGS) == rows


def test_two_test_sets_beside_an_external_one_are_refused(groups):
    with pytest.raises(ValueError, match=r"2 data sets have a test split, \['own', 'twin'\]"):
        drops([*groups, make_group("twin", "test")], arm_pairs=[], settings=SETTINGS)


def as_logits(group, *arms):
    return {arm: replace(run, y_score=20 * run.y_score - 10) if arm in arms else run for arm, run in group.items()}


def test_a_drop_is_undefined_where_the_scores_of_either_side_or_of_either_arm_are_no_probabilities():
    own, nih = make_group("own", "test"), make_group("nih", "external", seed=1)
    both = as_logits(own, *SKILL), as_logits(nih, *SKILL)
    for test, external, arms in ((own, both[1], SKILL), (both[0], nih, SKILL), (own, as_logits(nih, "poor"), ["poor"])):
        found = drops([test, external], arm_pairs=[("good", "poor")], settings=SETTINGS)
        for row in found:
            is_calibration = "brier" in row["metric"] or "ece" in row["metric"]
            is_undefined = is_calibration and bool({row["arm_a"], row["arm_b"]} & set(arms))
            numbers = {row[name] is None for name in ("estimate", "ci_low", "p")}
            assert (row["status"], numbers) == ("not_evaluable" if is_undefined else "ok", {is_undefined})
            assert ("scores are no probabilities" in row["reason"]) == is_undefined


def test_a_drop_has_no_interval_where_either_set_has_few_patients():
    few, many = make_group("few", "test", num_patients=9), make_group("many", "external", seed=1)
    for test, external in ((few, many), (make_group("own", "test"), make_group("nih", "external", num_patients=9))):
        found = drops([test, external], arm_pairs=[("good", "poor")], settings=SETTINGS)
        for row in find(found, metric="mean_auc_drop"):
            assert (row["status"], row["ci_low"], row["p"]) == ("interval_withheld", None, None)
            assert row["estimate"] is not None
            assert row["reason"] == "9 patients count, an interval takes at least 10"
            assert row["n_patients"] == (60 if external is many else 9)
