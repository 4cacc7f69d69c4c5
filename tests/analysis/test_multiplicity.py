"""Adjusted p values against the definitions, and the families that they are adjusted in."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from medssl.analysis.compare import compare
from medssl.analysis.multiplicity import benjamini_hochberg, family_of, holm, idle_families, required_replicates
from medssl.config import CompareConfig, FamilyConfig
from tests.analysis.case_predictions import case_rows, table

SETTINGS = {"num_replicates": 100, "alpha": 0.05, "resampling_units": ["patient"], "seed": 0}
P_VALUES = [[], [0.2], [0.04, 0.01, 0.03, 0.02], [0.9, 0.8], [0.01, 0.01, 0.5], [0.011, 0.02, 0.04, 0.3, 0.7]]


def find(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def rejected_by_holm(p_values, level):
    """Step down: the smallest against level / m, the next against level / (m - 1), until one fails."""
    rejected = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - step):
            break
        rejected.add(i)
    return rejected


def rejected_by_share(p_values, level):
    """Step up: all up to the last whose p is at most level times its place over m."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    passing = [place for place, i in enumerate(order, start=1) if p_values[i] <= level * place / len(p_values)]
    return set(order[: max(passing, default=0)])


@pytest.mark.parametrize(("adjust", "rejected"), [(holm, rejected_by_holm), (benjamini_hochberg, rejected_by_share)])
@pytest.mark.parametrize("p_values", P_VALUES)
def test_an_adjusted_p_is_the_smallest_level_at_which_the_procedure_rejects(adjust, rejected, p_values):
    p_values = [Fraction(p).limit_denominator(1000) for p in p_values]
    adjusted = adjust(p_values)
    for level in {Fraction(n, 1000) for n in range(0, 1001)} | {Fraction(a) for a in adjusted if a < 1}:
        assert {i for i, p in enumerate(adjusted) if p <= level} >= rejected(p_values, level)
        if level < 1:
            assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusted_p_values_keep_the_order_and_are_never_smaller(adjust):
    p_values = np.random.default_rng(0).random(50).round(2).tolist()
    adjusted = adjust(p_values)
    for (p, a), (q, b) in combinations(zip(p_values, adjusted, strict=True), 2):
        assert (p < q) <= (a <= b)
        assert (p == q) <= (a == b)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert [adjust(p_values[::-1])[::-1], adjust([0.3])] == [adjusted, [0.3]]


def test_a_thousand_replicates_resolve_25_comparisons_and_not_26():
    assert required_replicates(25, 0.05) == 999
    assert required_replicates(26, 0.05) == 1039
    for m, alpha in product(range(1, 60), (0.01, 0.05, 0.1)):
        least = required_replicates(m, alpha)
        assert 2 / (least + 1) <= alpha / m + 1e-15 < 2 / least + 1e-12


def rows_of_many_pairs(**settings):
    arms = {f"arm{i}": 1.0 + i / 10 for i in range(4)}
    predictions = case_rows(num_patients=15, repeats=(0,), fractions=(0.1, 1.0), splits=("test",), arms=arms)
    pairs = list(combinations(arms, 2))
    return compare(table(predictions), pairs=pairs, **SETTINGS | settings)


def test_replicates_rise_until_the_smallest_p_can_be_significant():
    one = FamilyConfig(name="all", metrics=["top_1_accuracy"])
    metrics = rows_of_many_pairs(families=[one])
    family = find(metrics, family="all")
    assert len(family) == 2 * 6  # both label fractions
    assert {row["n_replicates"] for row in family} == {required_replicates(12, 0.05)} == {479}
    p_values = [row["p"] for row in family]
    assert [row["p_adjusted"] for row in family] == pytest.approx(holm(p_values))
    assert [row["p_fdr"] for row in family] == pytest.approx(benjamini_hochberg(p_values))
    assert all(row["p_adjusted"] is row["p_fdr"] is None for row in metrics if row["family"] == "")


def test_what_no_allowed_number_of_replicates_can_show_is_not_resolvable():
    metrics = rows_of_many_pairs(families=[FamilyConfig(name="all", metrics=["top_1_accuracy"])], max_replicates=200)
    for row in find(metrics, family="all"):
        assert (row["status"], row["n_replicates"], row["p_adjusted"]) == ("not_resolvable", 100, None)
        assert row["reason"].endswith("not resolvable: 12 comparisons need 479 replicates")
        assert row["p_fdr"] >= row["p"]
        assert row["ci_low"] is not None


def test_a_family_beyond_the_limit_does_not_raise_the_replicates_and_one_within_it_still_does():
    named = {"top 1": ["top_1_accuracy"], "others": ["top_3_accuracy", "mean_auc", "micro_auc"]}
    families = [FamilyConfig(name=name, metrics=metrics) for name, metrics in named.items()]
    metrics = rows_of_many_pairs(families=families, max_replicates=500)
    for row in find(metrics, family="top 1"):
        assert (row["status"], row["n_replicates"]) == ("ok", 479)
        assert row["p_adjusted"] is not None
    beyond = find(metrics, family="others")
    assert len(beyond) >= 24  # of 36 those that have an interval
    for row in beyond:
        assert (row["status"], row["n_replicates"], row["p_adjusted"]) == ("not_resolvable", 479, None)
        assert row["reason"].endswith(f"{len(beyond)} comparisons need {40 * len(beyond) - 1} replicates")


def test_families_split_by_label_fraction_are_adjusted_apart():
    families = [FamilyConfig(name=f"at {f}", label_fractions=[f], metrics=["top_1_accuracy"]) for f in (0.1, 1.0)]
    metrics = rows_of_many_pairs(families=families)
    default = rows_of_many_pairs()
    assert [(r["p_adjusted"], r["p_fdr"]) for r in metrics] == [(r["p_adjusted"], r["p_fdr"]) for r in default]
    assert {row["family"] for row in default} == {"", "all pairs at this label fraction"}


def test_a_family_of_a_metric_that_nobody_compares_is_refused():
    with pytest.raises(ValueError, match=r"\['mean_acu'\] are not compared; possible: .*'mean_auc'"):
        rows_of_many_pairs(families=[FamilyConfig(name="x", metrics=["mean_acu"])])


def test_a_family_that_holds_no_difference_is_refused_unless_the_study_knows_its_arms():
    idle = FamilyConfig(name="idle", pairs=[("arm0", "arm9")], metrics=["top_1_accuracy"])
    message = r'"idle" holds none of the \d+ differences of the table; there are pairs .* and 1 more, label fractions'
    with pytest.raises(ValueError, match=message):
        rows_of_many_pairs(families=[idle])
    with pytest.raises(ValueError, match=message):
        rows_of_many_pairs(families=[idle], study_names=["arm0", "arm1"])
    metrics = rows_of_many_pairs(families=[idle], study_names=["arm0", "arm9"])
    assert idle_families([idle], metrics) == [
        'family "idle" adjusts nothing: no difference that it holds has a p value'
    ]
    assert idle_families([FamilyConfig(name="all")], rows_of_many_pairs(families=[FamilyConfig(name="all")])) == []


def test_a_difference_in_two_families_is_an_error():
    row = {"arm_a": "b", "arm_b": "a", "label_fraction": 1.0, "metric": "mean_auc", "k": None}
    row |= {"dataset": "d", "split": "test"}
    pairs = FamilyConfig(name="pairs", pairs=[("a", "b")])
    assert family_of(row, [pairs]) == "pairs"
    assert family_of(row | {"arm_b": "c"}, [pairs]) == ""
    with pytest.raises(ValueError, match="'pairs', 'other'"):
        family_of(row, [pairs, FamilyConfig(name="other", splits=["test"])])
    with pytest.raises(ValueError, match='could belong to "pairs" and to "other"'):
        CompareConfig(families=[pairs, FamilyConfig(name="other", splits=["test"])])
    apart = [FamilyConfig(name=name, metrics=[name]) for name in ("mean_auc", "auc")]
    assert CompareConfig(families=apart).families == tuple(apart)
