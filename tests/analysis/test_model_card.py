"""The card of a registered model, as a section of the page and as Markdown."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.analysis import markdown, model_card, page, tables
from medssl.analysis.model_card import ModelCard
from medssl.analysis.page import Details, Heading, Section
from medssl.analysis.tables import Cell, Column
from tests.analysis.metric_rows import row, table
from tests.analysis.test_report import Page

HOSTILE = "<b>x</b> | *y* [z](http://h) `c`"


def score(subgroup="all", **changes):
    values = {"estimate": 0.8, "ci_low": 0.75, "ci_high": 0.85, "n_units": 120, "n_patients": 40}
    return row(subgroup=subgroup, **(values | {"repeat": "selected", "resampling_unit": "patient"} | changes))


def check(**changes):
    return {
        "cohort": "test", "kind": "better", "subgroup": "all", "metric": "mean_auc", "margin": 0.0, "candidate": 0.8,
        "champion": 0.77, "estimate": 0.03, "ci_low": 0.01, "ci_high": 0.05, "n_units": 120, "n_patients": 40,
        "status": "holds", "reason": "the interval excludes 0", **changes,
    }  # fmt: skip


NOTHING = {"estimate": None, "ci_low": None, "ci_high": None}
SMALL = NOTHING | {"status": "too_small", "reason": "8 patients, fewer than 20"}
SCORES = (
    score(),
    score(metric="mean_ece", estimate=0.03, ci_low=0.02, ci_high=0.05),
    score("sex=male", estimate=0.79),
    score("age_band=>=80", **SMALL),
    score("age_band=<40", estimate=0.81),
)
CHECKS = [
    check(),
    check(kind="subgroup", subgroup="sex=male", margin=0.02, estimate=-0.01, ci_low=-0.03, ci_high=0.01, status="fails",
          reason="the lower end is below the margin"),
    check(kind="subgroup", subgroup="site=a", margin=0.02, candidate=None, champion=None, **NOTHING,
          status="not assessed", reason="8 patients"),
    check(kind="calibration", metric="mean_ece", margin=0.01, estimate=-0.004, ci_low=-0.01, ci_high=0.002),
]  # fmt: skip


@pytest.fixture
def card():
    return ModelCard(
        model_name="chest",
        version="3",
        arm="ResNet-50 (4x), SimCLR ImageNet->CheXpert",
        label_fraction=1.0,
        unit_kind="image",
        classes=("Edema", "Atelectasis"),
        truth="Uncertain labels count as positive.",
        data={"Training patients": "5,321"},
        digests={"model": "ab" * 32, "splits": "cd" * 32},
        scores=SCORES,
        level=0.95,
        decision={"verdict": "keep", "reasons": ["Worse for men.", "One group is too small."], "checks": CHECKS},
        num_test_uses=2,
    )


def page_of(card):
    return Page(page.render("T", [], [model_card.section(card)]))


def test_results_stand_by_group_with_their_intervals_and_counts(card):
    assert page_of(card).tables["card-results"][1:] == [
        ["test (set)", "All", "120", "40", "0.800 [0.750, 0.850]", "0.030 [0.020, 0.050]"],
        ["test (set)", "Age band: <40", "120", "40", "0.810 [0.750, 0.850]", "–"],
        ["test (set)", "Age band: >=80", "120", "40", "too few patients", "–"],
        ["test (set)", "Sex: male", "120", "40", "0.790 [0.750, 0.850]", "–"],
    ]


def test_each_check_tells_what_had_to_hold_and_whether_it_did(card):
    rows = page_of(card).tables["card-checks"][1:]
    assert [line[1:3] + line[5:] for line in rows] == [
        ["All", "mean AUC", "0.030 [0.010, 0.050]", "lower end above 0", "holds"],
        ["All", "mean calibration error", "−0.004 [−0.010, 0.002]", "upper end below 0.01", "holds"],
        ["Sex: male", "mean AUC", "−0.010 [−0.030, 0.010]", "lower end above −0.02", "fails"],
        ["Site: a", "mean AUC", "not evaluable", "lower end above −0.02", "not assessed"],
    ]  # fmt: skip


def test_limits_name_groups_without_numbers_and_the_uses_of_the_test_set(card):
    words = " ".join(page_of(card).text)
    assert "Not assessed, for lack of patients or labels: Age band: >=80; Site: a." in words
    assert "has been used 2 times" in words
    assert "not evaluated on a set from elsewhere" in words
    assert "no decision on a patient may rest on it" in words
    fresh = replace(card, scores=(score(), score(split="external")), decision=card.decision | {"checks": []})
    words = " ".join(page_of(replace(fresh, num_test_uses=1)).text)
    assert "Not assessed" not in words
    assert "elsewhere, the more so" not in words
    assert "from elsewhere" not in words


def test_a_first_model_has_results_but_no_champion_beside_it(card):
    first = replace(card, decision={"verdict": "first", "reasons": ["There is no champion."], "checks": []})
    found = page_of(first).tables
    assert "card-checks" not in found
    assert len(found["card-results"]) == 5


def test_the_card_is_added_to_a_page_that_stays_whole(card):
    html = page.render("T", [], [Section("one", "One", ("x",))])
    both = Page(model_card.to_page(card, html))
    ids = [attributes["id"] for _, attributes in both.tags if attributes.get("id")]
    assert "model-card" in ids
    assert len(ids) == len(set(ids))


def test_markdown_holds_every_cell_of_the_page(card):
    text = model_card.to_markdown(card)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    plain = [[re.sub(r"\\(.)", r"\1", re.sub(r" \([a-z]\)$", "", c)).strip("*") for c in line] for line in found]
    for name, rows in page_of(card).tables.items():
        for line in rows:
            assert [cell.replace("−", "-") for cell in line] in [[c.replace("−", "-") for c in p] for p in plain], name
    assert text.startswith("# Model card: chest, version 3\n")
    assert "8 patients, fewer than 20" in text


def test_words_of_others_stay_words_in_markdown_and_html(card):
    hostile = replace(card, arm=HOSTILE, model_name=HOSTILE, classes=(HOSTILE,), digests={HOSTILE: HOSTILE})
    text = model_card.to_markdown(hostile)
    assert not re.search(r"(?<!\\)[<`\[]", text)
    assert "\\<b\\>x\\</b\\> \\| \\*y\\*" in text
    assert "<b>x" not in page.render("T", [], [model_card.section(hostile)])


@given(st.text(max_size=40))
def test_any_words_make_one_cell_of_one_row(words):
    one = tables.build("t", "", [tables.text("a"), Column("b")], [[words, Cell("1", words)]])
    lines = markdown.of_section(Section("s", "S", (one,))).split("\n")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert all(len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 4 for line in rows)


@pytest.mark.parametrize("words", ["- x", "+ x", "1. x", "12) x", "=== x", "# x", "> x", "-1 is less"])
def test_a_paragraph_begins_no_list_heading_or_quotation(words):
    paragraph = markdown.of_section(Section("s", "S", (words, Heading("H")))).split("\n\n")[1]
    assert not re.match(r"[-+=#>]|\d+[.)]", paragraph)
    assert re.sub(r"\\(.)", r"\1", paragraph) == words


def test_what_has_no_form_in_markdown_is_refused():
    with pytest.raises(ValueError, match="a Details has no form"):
        markdown.of_section(Section("s", "S", (Details("x", ()),)))


def test_scores_are_the_selected_models_own_over_all_and_by_one_attribute():
    rows = [
        score(), score("sex=male"), score("sex=male & age_band=<40"), score(repeat="mean"), score(arm_a="b"),
        score(label_fraction=0.1), score(draw=1), score(arm_b="b"), score(resampling_unit="image"),
        score(metric="mean_brier"), score("sex=female", resampling_unit="", **SMALL), score(metric="mean_ece"),
        score(metric="top_k_accuracy", k=3),
    ]  # fmt: skip
    found = model_card.scores_of(table(rows), arm_id="a", label_fraction=1.0, draw=0)
    assert [(one["subgroup"], one["metric"]) for one in found] == [
        ("all", "mean_auc"), ("sex=male", "mean_auc"), ("sex=female", "mean_auc"), ("all", "mean_ece"),
    ]  # fmt: skip
