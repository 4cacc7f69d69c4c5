from pathlib import Path

import pytest

from medssl.config import ArmConfig, FinetuneConfig, load_study
from medssl.exit_codes import BadInputError
from medssl.stages.train import choose, grid, mark_selected, repeats

ARM = ArmConfig(name="a", encoder="e", method="Random Initialization")
DEMO = Path(__file__).parents[2] / "pipelines" / "studies" / "demo.yaml"


def settings(**changes: object) -> FinetuneConfig:
    base = {"num_steps": 1, "learning_rates": [0.1, 0.2], "weight_decays": [0, 0.01], "label_fractions": [0.1, 1.0]}
    return FinetuneConfig.model_validate(base | {"repeats": 2} | changes)


def row(rate: float, score: float | None, *, arm: str = "a", fraction: float = 1.0) -> dict[str, object]:
    return {
        "arm_id": arm,
        "label_fraction": fraction,
        "learning_rate": rate,
        "weight_decay": 0.0,
        "validation_score": score,
    }


def test_the_grid_is_searched_at_the_largest_fraction_or_at_each() -> None:
    assert [(i["label_fraction"], i["learning_rate"], i["weight_decay"]) for i in grid(settings(), ARM)] == [
        (1.0, 0.1, 0.0),
        (1.0, 0.1, 0.01),
        (1.0, 0.2, 0.0),
        (1.0, 0.2, 0.01),
    ]
    assert len(grid(settings(search="per_fraction"), ARM)) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"repeats": 3},
        {"learning_rates": [0.3]},
        {"weight_decays": [0.1]},
        {"label_fractions": [0.5, 1.0]},
        {"search": "per_fraction"},
        {"checkpoint_every_steps": 7},
    ],
)
def test_what_lists_trainings_does_not_change_one_of_them(change: dict[str, object]) -> None:
    assert settings(**change).that_train() == settings().that_train()


def test_what_a_training_sees_changes_it() -> None:
    listing = {"learning_rates", "weight_decays", "label_fractions", "search", "repeats", "checkpoint_every_steps"}
    assert settings().that_train().keys() == settings().dump().keys() - listing
    assert settings(seed=1).that_train() != settings().that_train()


def test_the_best_validation_score_is_chosen_per_arm_and_fraction_and_the_rest_says_why_not() -> None:
    rows = [row(0.1, 0.7), row(0.2, 0.8), row(0.3, None), row(0.1, 0.9, arm="b"), row(0.1, 0.1, fraction=0.1)]
    marked = choose(rows)
    assert [(r["arm_id"], r["label_fraction"], r["learning_rate"]) for r in marked if r["chosen"]] == [
        ("a", 0.1, 0.1),
        ("a", 1.0, 0.2),
        ("b", 1.0, 0.1),
    ]
    reasons = {r["learning_rate"]: r["reason"] for r in marked if r["arm_id"] == "a" and r["label_fraction"] == 1.0}
    assert reasons[0.1] == "validation score 0.1000 below the best"
    assert reasons[0.3] == "not evaluable on validation"


def test_a_tie_goes_to_the_first_of_the_grid_whatever_the_order_of_the_rows() -> None:
    for rows in ([row(0.2, 0.7), row(0.1, 0.7)], [row(0.1, 0.7), row(0.2, 0.7)]):
        assert [r["learning_rate"] for r in choose(rows) if r["chosen"]] == [0.1]


def test_where_nothing_is_evaluable_the_first_of_the_grid_is_taken_and_it_is_said() -> None:
    (chosen,) = [r for r in choose([row(0.2, None), row(0.1, None)]) if r["chosen"]]
    assert (chosen["learning_rate"], chosen["reason"]) == (0.1, "nothing evaluable on validation; first of the grid")


def test_settings_chosen_at_the_largest_fraction_serve_all_unless_a_fraction_has_its_own() -> None:
    shared = repeats(settings(), [row(0.2, 0.8)], draws=1)
    assert [(i["label_fraction"], i["repeat"], i["learning_rate"]) for i in shared] == [
        (0.1, 0, 0.2),
        (0.1, 1, 0.2),
        (1.0, 0, 0.2),
        (1.0, 1, 0.2),
    ]
    own = repeats(settings(), [row(0.2, 0.8), row(0.1, 0.8, fraction=0.1)], draws=1)
    assert {i["label_fraction"]: i["learning_rate"] for i in own} == {0.1: 0.1, 1.0: 0.2}


def test_all_labels_have_one_draw_only() -> None:
    items = repeats(settings(), [row(0.2, 0.8)], draws=3)
    assert sorted({(i["label_fraction"], i["draw"]) for i in items}) == [(0.1, 0), (0.1, 1), (0.1, 2), (1.0, 0)]


def test_an_arm_that_was_not_searched_is_told() -> None:
    with pytest.raises(BadInputError, match="no settings for this arm"):
        repeats(settings(), [], draws=1)


def test_the_selected_repeat_is_the_best_by_validation_one_a_cell() -> None:
    outcomes = [
        {"label_fraction": f, "draw": 0, "repeat": r, "validation_score": s}
        for f, r, s in [(0.1, 0, 0.5), (0.1, 1, 0.6), (1.0, 1, None), (1.0, 0, None)]
    ]
    selected = [(o["label_fraction"], o["repeat"]) for o in mark_selected(outcomes) if o["is_selected"]]
    assert selected == [(0.1, 1), (1.0, 0)]


def test_a_repeat_with_the_lowest_score_is_before_one_without_and_a_tie_goes_to_the_first() -> None:
    def selected(*scores: float | None) -> list[int]:
        outcomes = [
            {"label_fraction": 1.0, "draw": 0, "repeat": r, "validation_score": s} for r, s in enumerate(scores)
        ]
        return [o["repeat"] for o in mark_selected(outcomes) if o["is_selected"]]

    assert selected(None, 0.0) == [1]
    assert selected(0.5, 0.7, 0.7) == [1]
    assert selected(None, None) == [0]


def test_an_arm_is_repeated_at_its_own_label_fractions() -> None:
    study = load_study(DEMO, ["arms.random.label_fractions=[0.05]"])
    random, simclr = study.arms[:2]
    own = study.finetune.of(random)
    chosen = [item | {"arm_id": "random"} for item in grid(study.finetune, random)[:1]]
    assert [item["label_fraction"] for item in repeats(own, chosen, draws=1)] == [0.05] * study.finetune.repeats
    # What is reused was chosen for all arms alike, with all labels.
    assert {item["label_fraction"] for arm in (random, simclr) for item in grid(study.finetune, arm)} == {1.0}
    each = study.finetune.model_copy(update={"search": "per_fraction"})
    assert {item["label_fraction"] for item in grid(each, random)} == {0.05}
    assert {item["label_fraction"] for item in grid(each, simclr)} == {0.05, 1.0}
