"""Who may become champion: against a slow oracle, closed-form cases and what must not matter."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from medssl.analysis.measures import Bootstrap
from medssl.analysis.partitions import Grouping
from medssl.analysis.promotion import Decision, Rules, decide, only_model, paired_table
from medssl.analysis.resampling import resample_weights
from tests.analysis.case_predictions import case_rows, table

FINDINGS = ("Cardiomegaly", "Edema")
RULES = Rules(margin=0.05, ece_margin=0.05, min_patients=20, approve_small_groups=False)
GROUPING = Grouping((40.0, 60.0), {"light": ("1", "2")})
BOOTSTRAP = Bootstrap(num_replicates=200, alpha=0.05, seed=3)


def predictions(skill: float, *, men_skill: float | None = None, num_patients: int = 120, confidence: float = 1.0):
    """Two images a patient; scores are probabilities of a normal shift by `skill`, right with a `confidence` of 1."""
    truth_rng, noise = np.random.default_rng(1), np.random.default_rng(2)
    rows = []
    for patient in range(num_patients):
        is_man = patient % 3 == 0
        for image in range(2):
            for finding in FINDINGS:
                y_true = int(truth_rng.random() < 0.5)
                shift = men_skill if is_man and men_skill is not None else skill
                evidence = noise.normal(shift * (y_true - 0.5))
                logit = confidence * shift * evidence
                rows.append(
                    {
                        "study_id": f"s{skill}",
                        "dataset": "clinic",
                        "dataset_digest": "d",
                        "split": "test",
                        "arm_id": f"arm{skill}",
                        "label_fraction": 0.5,
                        "draw": 0,
                        "repeat": int(10 * skill),
                        "unit_id": f"i{patient:03}-{image}",
                        "class": finding,
                        "unit_kind": "image",
                        "group_kind": "patient",
                        "patient_id": f"p{patient:03}",
                        "y_true": y_true,
                        "y_score": float(1 / (1 + np.exp(-logit))),
                        "is_selected": True,
                        "checkpoint_digest": f"c{skill}",
                        "sex": "male" if is_man else "female",
                        "age_years": 50.0,
                        "skin_type": None,
                        "view_position": "AP",
                        "site": None,
                    }
                )
    return table(rows)


def decided(
    candidate: pa.Table,
    champion: pa.Table,
    *,
    rules: Rules = RULES,
    by: tuple[str, ...] = ("sex",),
    **cohorts: pa.Table,
) -> Decision:
    tables = {"test": paired_table(candidate, champion), **cohorts}
    return decide(tables, rules=rules, by=by, attribute_pairs=(), grouping=GROUPING, bootstrap=BOOTSTRAP)


GOOD, FAIR = predictions(3.0), predictions(1.5)


def test_a_better_model_takes_the_place_and_all_numbers_are_told() -> None:
    decision = decided(GOOD, FAIR)
    assert decision.verdict == "promote"
    assert [(c.kind, c.subgroup, c.status) for c in decision.checks] == [
        ("better", "all", "holds"),
        ("calibration", "all", "holds"),
        ("subgroup", "sex=female", "holds"),
        ("subgroup", "sex=male", "holds"),
    ]
    better = decision.checks[0]
    assert (better.metric, better.n_units, better.n_patients) == ("mean_auc", 240, 120)
    assert better.estimate == better.candidate - better.champion
    assert 0 < better.ci_low < better.estimate < better.ci_high
    (reason,) = decision.reasons
    assert reason.startswith("test, over all: better than the champion (mean_auc +0.")


def test_nine_patients_decide_nothing() -> None:
    few = [predictions(skill, num_patients=9) for skill in (6.0, 0.5)]
    decision = decided(*few, rules=replace(RULES, min_patients=1))
    assert decision.verdict == "keep"
    assert {check.status for check in decision.checks} == {"not assessed"}
    assert {(check.ci_low, check.ci_high) for check in decision.checks} == {(None, None)}
    assert "9 patients, an interval takes 10" in decision.checks[0].reason


def slow_auc(y_true, y_score, weight):
    """By all pairs."""
    positive, negative = y_true == 1, y_true == 0
    wins = np.sign(y_score[positive][:, None] - y_score[negative][None]) / 2 + 0.5
    pairs = weight[positive][:, None] * weight[negative][None]
    return (wins * pairs).sum() / pairs.sum()


def test_the_interval_is_that_of_a_slow_bootstrap_of_whole_patients() -> None:
    check = decided(GOOD, FAIR).checks[0]
    patients = np.repeat(np.arange(120), 2)
    values = {name: np.array(t["y_score"]).reshape(240, 2) for name, t in (("a", GOOD), ("b", FAIR))}
    truth = np.array(GOOD["y_true"]).reshape(240, 2)

    def difference(weight):
        means = {n: np.mean([slow_auc(truth[:, c], s[:, c], weight) for c in (0, 1)]) for n, s in values.items()}
        return means["a"] - means["b"]

    weights = np.concatenate(list(resample_weights(patients, num_replicates=200, seed=3)))
    draws = [difference(weight.astype(float)) for weight in weights]
    assert check.estimate == pytest.approx(difference(np.ones(240)))
    assert (check.ci_low, check.ci_high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))))


def test_equal_models_differ_by_nothing_and_the_champion_stays() -> None:
    decision = decided(FAIR, FAIR)
    assert decision.verdict == "keep"
    assert {(c.estimate, c.ci_low, c.ci_high) for c in decision.checks} == {(0.0, 0.0, 0.0)}
    assert [c.status for c in decision.checks] == ["fails", "holds", "holds", "holds"]
    (reason,) = decision.reasons
    assert "not better than the champion" in reason


def test_a_worse_model_never_takes_the_place() -> None:
    assert decided(FAIR, GOOD).verdict == "keep"


def test_a_model_that_is_better_on_average_and_worse_for_men_is_refused_and_it_says_for_whom() -> None:
    decision = decided(predictions(3.0, men_skill=0.8), FAIR)
    assert {c.name: c.status for c in decision.checks}["test, over all"] == "holds"
    assert decision.verdict == "keep"
    assert any(reason.startswith("test, sex=male: may be worse by more than the margin") for reason in decision.reasons)


def test_a_wider_margin_accepts_what_a_narrow_one_refuses() -> None:
    worse_for_men = predictions(3.0, men_skill=1.4)
    narrow, wide = (Rules(margin, 0.05, 20, approve_small_groups=False) for margin in (0.0, 0.3))
    assert decided(worse_for_men, FAIR, rules=narrow).verdict == "keep"
    assert decided(worse_for_men, FAIR, rules=wide).verdict == "promote"


def test_a_model_that_ranks_better_but_is_badly_calibrated_is_refused() -> None:
    decision = decided(predictions(3.0, confidence=0.05), FAIR)
    assert decision.verdict == "keep"
    (reason,) = decision.reasons
    assert reason.startswith("test, calibration: calibration may be worse by more than the margin (mean_ece +0.")


def test_groups_that_are_too_small_need_approval_and_the_study_can_give_it() -> None:
    rules = Rules(0.05, 0.05, 50, approve_small_groups=False)
    decision = decided(GOOD, FAIR, rules=rules)
    assert decision.verdict == "needs approval"
    assert decision.reasons == ("test, sex=male: not assessed (40 patients, at least 50 are needed)",)
    approved = decided(GOOD, FAIR, rules=Rules(0.05, 0.05, 50, approve_small_groups=True))
    assert approved.verdict == "promote"
    assert approved.reasons[-1].endswith("approved by the study")
    # Approval of small groups makes no worse model a champion.
    assert decided(FAIR, GOOD, rules=Rules(0.05, 0.05, 50, approve_small_groups=True)).verdict == "keep"


def test_the_first_cohort_counts_as_much_as_the_test_set() -> None:
    decision = decided(GOOD, FAIR, **{"first test cohort": paired_table(FAIR, FAIR)})
    assert decision.verdict == "keep"
    assert [c.cohort for c in decision.checks].count("first test cohort") == 4
    assert all(reason.startswith("first test cohort") for reason in decision.reasons)


def test_neither_the_order_of_rows_nor_the_names_of_the_models_matter() -> None:
    order = np.random.default_rng(0).permutation(GOOD.num_rows)
    renamed = FAIR.set_column(4, FAIR.schema.field("arm_id"), pa.repeat("another", FAIR.num_rows))
    assert decided(GOOD.take(order), renamed) == decided(GOOD, FAIR)


def test_models_that_cover_different_units_are_refused() -> None:
    with pytest.raises(ValueError, match="cover 240 and 238 units"):
        decided(GOOD, FAIR.slice(0, FAIR.num_rows - 4))


def test_scores_that_are_no_probabilities_show_no_calibration() -> None:
    logits = GOOD.set_column(14, GOOD.schema.field("y_score"), pa.array(4 * np.array(GOOD["y_score"]) - 2))
    assert logits.schema.names == GOOD.schema.names
    decision = decided(logits, FAIR)
    assert decision.verdict == "keep"
    assert any("calibration" in reason for reason in decision.reasons)


def test_cases_are_compared_by_their_accuracy_and_the_calibration_of_the_likeliest_condition() -> None:
    rows = [r for r in case_rows(num_patients=80, repeats=(0,)) if r["split"] == "test"]
    tables = {arm: table([r for r in rows if r["arm_id"] == arm]) for arm in ("micle", "random")}
    decision = decided(tables["micle"], tables["random"], by=("skin_type_group",))
    assert [c.metric for c in decision.checks[:2]] == ["top_1_accuracy", "top_label_ece"]
    assert {c.subgroup for c in decision.checks[2:]} == {
        "skin_type_group=light", "skin_type_group=unmapped", "skin_type_group=unknown",
    }  # fmt: skip


def test_one_model_is_picked_from_many() -> None:
    model = {"arm_id": "arm3.0", "label_fraction": 0.5, "draw": 0, "repeat": 30}
    assert only_model(pa.concat_tables([GOOD, FAIR]), dataset="clinic", split="test", model=model) == GOOD
    with pytest.raises(ValueError, match="none of the model on external of clinic"):
        only_model(GOOD, dataset="clinic", split="external", model=model)


def test_a_decision_is_json_with_every_check() -> None:
    told = decided(GOOD, FAIR).as_json()
    assert told["verdict"] == "promote"
    assert {"cohort", "kind", "subgroup", "margin", "candidate", "champion", "ci_low"} < set(told["checks"][0])
