"""Groups of arms: validation, never test, chooses which arm stands for a method."""

import pytest

from medssl.analysis.compare import compare
from tests.analysis.case_predictions import case_rows, table

GROUPS = {"grid": ["weak", "strong"]}
SETTINGS = {
    "pairs": [("grid", "base")],
    "num_replicates": 100,
    "alpha": 0.05,
    "resampling_units": ["patient"],
    "seed": 0,
    "groups": GROUPS,
}
SKILL = {"base": 1.0, "strong": 2.5, "weak": 1.4}


def find(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def predictions(*, on_test=SKILL, on_validation=SKILL, **options):
    rows = case_rows(num_patients=25, repeats=(0,), splits=("validation",), arms=on_validation, **options)
    return rows + case_rows(num_patients=25, repeats=(0,), splits=("test",), arms=on_test, **options)


def selected(rows, arm, **values):
    return find(rows, arm_a=arm, metric="top_k_accuracy", k=1, repeat="selected", **values)


def test_the_arm_that_is_best_on_validation_stands_for_its_group():
    rows = compare(table(predictions()), **SETTINGS)
    (group,), (strong,) = selected(rows, "grid", arm_b=None), selected(rows, "strong")
    names = ("estimate", "ci_low", "ci_high", "n_units", "n_replicates")
    assert [group[name] for name in names] == [strong[name] for name in names]
    assert group["reason"].startswith("strong stands for it: best of 2 by validation top_1_accuracy (0.")
    (difference,) = selected(rows, "grid", arm_b="base")
    direct = compare(table(predictions()), **SETTINGS | {"groups": {}, "pairs": [("strong", "base")]})
    (same,) = selected(direct, "strong", arm_b="base")
    assert [difference[name] for name in (*names, "p")] == [same[name] for name in (*names, "p")]
    assert "strong stands for it" in difference["reason"]
    (mean,) = find(rows, arm_a="grid", metric="top_k_accuracy", k=1, repeat="mean")
    assert mean["estimate"] == strong["estimate"]


def test_results_on_test_have_no_say_in_the_choice():
    swapped = SKILL | {"strong": SKILL["weak"], "weak": SKILL["strong"]}
    rows = compare(table(predictions(on_test=swapped)), **SETTINGS)
    (group,), (weak,), (strong,) = selected(rows, "grid", arm_b=None), selected(rows, "weak"), selected(rows, "strong")
    assert group["estimate"] == strong["estimate"] < weak["estimate"]


def test_each_label_fraction_has_its_own_representative():
    low = case_rows(num_patients=25, repeats=(0,), fractions=(0.1,), arms=SKILL | {"weak": 3.5})
    rows = compare(table(low + predictions()), **SETTINGS)
    stands = {row["label_fraction"]: row["reason"].split(" ")[0] for row in selected(rows, "grid", arm_b=None)}
    assert stands == {0.1: "weak", 1.0: "strong"}


def test_the_choice_on_the_studys_own_validation_set_holds_on_external_sets():
    external = [row | {"dataset": "other", "split": "external"} for row in predictions() if row["split"] == "test"]
    rows = compare(table(predictions() + external), **SETTINGS)
    assert {row["dataset"] for row in selected(rows, "grid", arm_b="base")} == {"derm", "other"}
    assert all("strong stands" in row["reason"] for row in selected(rows, "grid"))


def test_equal_arms_go_by_name():
    rows = compare(table(predictions(on_test=SKILL | {"weak": 2.5}, on_validation=SKILL | {"weak": 2.5})), **SETTINGS)
    assert selected(rows, "grid", arm_b=None)[0]["reason"].startswith("strong")


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda row: row["split"] == "test", "grid: no validation score of 2 of its 2 arms"),
        (
            lambda row: row["split"] == "test" or row["arm_id"] != "weak",
            "grid: no validation score of 1 of its 2 arms",
        ),
        (lambda row: row["arm_id"] == "base", "grid: no predictions of its arms"),
    ],
)
def test_a_group_that_validation_cannot_choose_for_says_so(keep, reason):
    rows = compare(table([row for row in predictions() if keep(row)]), **SETTINGS)
    (difference,) = find(rows, arm_b="base")
    assert (difference["status"], difference["reason"]) == ("not_evaluable", reason)
    assert selected(rows, "grid", arm_b=None) == []


def test_a_group_named_like_an_arm_is_refused():
    with pytest.raises(ValueError, match=r"\['base'\] are names of arms too"):
        compare(table(predictions()), **SETTINGS | {"groups": {"base": ["weak"]}})
