"""How rows of metrics read in the report: verdicts, families, labels saved, gaps, drops and calibration."""

from itertools import product

import pyarrow as pa
import pytest

from medssl import schema
from medssl.analysis import comparisons, external, groups, reliability, results, sections
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.page import Details, Note, leaves
from medssl.analysis.results import Evaluation, Labels
from medssl.analysis.tables import Table
from medssl.metrics import Metric
from tests.analysis.metric_rows import arms_table, chexpert_metrics, row, table

ARMS = [("a", "ResNet-50 (1x)", "SimCLR"), ("b", "ResNet-50 (1x)", "Random")]
TEST = Evaluation("set", "test")
ALL = Labels(1.0, 0)


def read(rows, arms=ARMS):
    return results.read(table([*chexpert_metrics(arms), *rows]), arms_table(arms))


def difference(**changes):
    values = {"estimate": 0.02, "ci_low": 0.01, "ci_high": 0.03, "p": 0.01, "p_adjusted": 0.02, "p_fdr": 0.015}
    return row(arm_b="b", repeat="selected", resampling_unit="patient", n_replicates=1000, **(values | changes))


def texts(made):
    return [[cell.text for cell in line] for line in made.rows]


def words_of(section):
    return " ".join(part.words if isinstance(part, Note) else part for part in leaves(section.parts)
                    if isinstance(part, str | Note))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "declared", "expected"),
    [
        ({}, False, "first arm higher"),
        ({"estimate": -0.02, "ci_low": -0.03, "ci_high": -0.01}, False, "first arm lower"),
        ({"ci_low": -0.01}, False, "interval includes 0"),
        ({"ci_low": 0.0}, False, "interval includes 0"),
        ({"p_adjusted": 0.0501}, False, "excludes 0, but not after adjustment"),
        ({"p_adjusted": 0.05}, False, "first arm higher"),
        ({"p_adjusted": None, "status": "not_resolvable"}, True, "excludes 0, but its family is too large"),
        ({"p_adjusted": None, "p_fdr": None}, True, "first arm higher, not adjusted"),
        ({"p_adjusted": None, "p_fdr": None}, False, "first arm higher"),
        ({"family": "main"}, True, "first arm higher"),
        ({"ci_low": None, "ci_high": None}, False, "not assessed, interval withheld"),
        ({"estimate": None, "ci_low": None, "ci_high": None}, False, "not assessed"),
    ],
)
def test_the_verdict_says_what_interval_and_adjusted_p_say(changes, declared, expected):
    assert comparisons.verdict(difference(**changes), alpha=0.05, declared=declared).startswith(expected)


def test_differences_show_both_adjusted_values_and_their_family():
    found = read([difference(family="main"), difference(label_fraction=0.1, p_adjusted=None, p_fdr=None)])
    made = comparisons.differences(found, TEST)
    assert [column.label for column in made.columns][-6:] == [
        "p", "p (Holm)", "p (FDR)", "Replicates", "In words", "Family",
    ]  # fmt: skip
    assert [line[-6:] for line in texts(made)] == [
        ["0.010", "–", "–", "1,000", "first arm higher, not adjusted", "none"],
        ["0.010", "0.020", "0.015", "1,000", "first arm higher", "main"],
    ]


def test_what_is_too_fine_for_the_replicates_is_told_with_its_reason():
    reason = "200 comparisons of family main cannot be resolved by 1000 replicates"
    found = read([difference(family="main", p_adjusted=None, status="not_resolvable", reason=reason)])
    (line,) = comparisons.differences(found, TEST).rows
    cell = next(cell for cell in line if cell.text == "not resolvable")
    assert cell.note == reason


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("main", "for the differences of its family (“main”; a difference in none is not adjusted)"),
        ("", "for all pairs at that label fraction"),
    ],
)
def test_the_text_on_significance_names_the_family_that_p_values_were_adjusted_in(family, expected):
    inputs = ReportInputs(metrics=table([]), arms=arms_table(ARMS))
    made = sections.outcomes_of(inputs, read([difference(family=family)]))
    (section,) = (one for one in made if one.name == "significance")
    assert expected in words_of(section)
    assert "Benjamini and Hochberg" in words_of(section)


def test_delongs_interval_stands_beside_the_bootstraps_for_the_mean_alone():
    values = {"delong_low": 0.012, "delong_high": 0.028, "delong_p": 0.0004}
    found = read([difference(**values), difference(metric="auc", **{"class": "Edema"}, **values), difference(draw=1)])
    made = comparisons.delong(found, TEST)
    assert [line[3:] for line in texts(made)] == [["0.020 [0.010, 0.030]", "[0.012, 0.028]", "0.010", "<0.001"]]


def matching(metric, estimate, low, high, reason="", **changes):
    values = {"estimate": estimate, "ci_low": low, "ci_high": high, "reason": reason}
    return row(metric=metric, arm_b="b", repeat="selected", resampling_unit="patient", **values, **changes)


def test_labels_saved_stand_beside_the_share_that_is_needed():
    rows = [matching("matching_label_fraction", 0.25, 0.1, 0.5), matching("labels_saved", 0.75, 0.5, 0.9)]
    (line,) = texts(comparisons.labels_saved(read(rows), TEST))
    assert line[2:] == ["draw 0", "0.25 [0.10, 0.50]", "0.75 [0.50, 0.90]", "reached"]


def test_what_is_censored_says_at_which_end():
    reason = "censored: 0.1 or less; lower end: 0.1 or less"
    cell = comparisons.censored(matching("matching_label_fraction", None, None, 0.35, reason, status="censored"))
    assert cell.text == "0.1 or less [0.1 or less, 0.35]"
    assert cell.note == reason
    withheld = comparisons.censored(matching("matching_label_fraction", 0.3, None, None))
    assert withheld.text == "0.30"
    undefined = comparisons.censored(matching("matching_label_fraction", None, None, None, "no draw has all"))
    assert (undefined.text, undefined.note) == ("not evaluable", "no draw has all")


def grouped(attributes, values, arm="a", **changes):
    ends = {"ci_low": 0.4, "ci_high": 0.6, "n_units": 40, "n_patients": 20}
    same = {"repeat": "selected", "resampling_unit": "patient", "arm_a": arm}
    return [
        row(subgroup=name, estimate=v, **same, **ends, **changes) for name, v in zip(attributes, values, strict=True)
    ]


def gap(subgroup, metric="mean_auc_gap", **changes):
    values = {"estimate": 0.03, "ci_low": 0.0, "ci_high": 0.06, "p": 0.2}
    return row(metric=metric, subgroup=subgroup, repeat="selected", resampling_unit="patient", **(values | changes))


BY_SEX = ("sex=female", "sex=male")
PAIRS = ("sex=female & age_band=<40", "sex=female & age_band=40-60")


def group_rows():
    return [
        *grouped(BY_SEX, (0.5, 0.53)),
        *grouped(PAIRS, (0.5, 0.6)),
        gap("sex"),
        gap("sex", "mean_auc_gap_raw", estimate=0.05, ci_low=None, ci_high=None, p=None),
        gap("sex & age_band", estimate=0.1),
        gap("sex", "mean_auc_gap_difference", arm_b="b", estimate=-0.02, ci_low=-0.04, ci_high=0.0),
    ]


def test_gaps_show_the_corrected_one_with_interval_beside_the_one_as_it_stands():
    made = groups.gaps(read(group_rows()), TEST, ALL, pairs=False)
    assert texts(made) == [["Sex", "ResNet-50 (1x), SimCLR", "0.050", "0.030 [0.000, 0.060]", "0.200"]]
    assert {cell.task for line in made.rows for cell in line[2:4]} == {"analyze_subgroups"}


def test_a_gap_that_could_not_be_had_says_why_once():
    lost = gap("sex", estimate=None, ci_low=None, ci_high=None, p=None, status="not_evaluable", reason="1 group")
    made = groups.gaps(read([*grouped(BY_SEX, (0.5, 0.53)), lost]), TEST, ALL, pairs=False)
    assert [(cell.text, cell.note) for cell in made.rows[0][2:]] == [("–", ""), ("not evaluable", "1 group"), ("–", "")]


def test_gaps_of_two_attributes_and_differences_of_gaps_have_tables_of_their_own():
    found = read(group_rows())
    (pairs,) = texts(groups.gaps(found, TEST, ALL, pairs=True))
    assert pairs[0] == "Sex and age band"
    (between,) = texts(groups.gap_differences(found, TEST, ALL))
    assert between[1:3] == ["ResNet-50 (1x), SimCLR minus ResNet-50 (1x), Random", "-0.020 [-0.040, 0.000]"]


def test_groups_of_two_attributes_are_folded_and_stand_by_age():
    inputs = ReportInputs(metrics=table([]), arms=arms_table(ARMS))
    made = sections.outcomes_of(inputs, read(group_rows()))
    (section,) = (one for one in made if one.name == "subgroups")
    (folded,) = (part for part in section.parts if isinstance(part, Details) and "two attributes" in part.summary)
    crossed = next(part for part in folded.parts if isinstance(part, Table) and part.name.startswith("subgroups-"))
    assert [line[0].text for line in crossed.rows][:2] == ["female & <40", "female & 40-60"]
    plain = {part.name for part in section.parts if isinstance(part, Table)}
    assert "subgroups-set-test-sex-1-0" in plain


def external_rows():
    same = {"dataset": "far", "split": "external", "resampling_unit": "patient"}
    drop = same | {"repeat": "selected", "metric": "mean_auc_drop"}
    return [
        *(row(**same, repeat="selected", arm_a=arm, estimate=0.4, ci_low=0.3, ci_high=0.5) for arm, *_ in ARMS),
        *(row(**same | {"resampling_unit": ""}, repeat="0", arm_a=arm, estimate=0.4) for arm, *_ in ARMS),
        *(row(**drop, arm_a=arm, estimate=0.1, ci_low=0.05, ci_high=0.2, p=0.01) for arm, *_ in ARMS),
        row(**drop, arm_b="b", estimate=-0.01, ci_low=-0.02, ci_high=0.0, p=0.3),
    ]


def test_drops_stand_between_the_two_sets_and_differences_of_drops_below():
    found = read(external_rows())
    where = Evaluation("far", "external")
    made = external.drops(found, where, ALL, Metric("mean_auc", None, "auc"))
    inside = found.selected(TEST, "a", ALL, metric="mean_auc")["estimate"]
    assert texts(made)[0][1:] == [f"{inside:.3f} [{inside - 0.02:.3f}, {inside + 0.02:.3f}]", "0.400 [0.300, 0.500]",
                                  "0.100 [0.050, 0.200]", "0.010"]  # fmt: skip
    assert texts(external.drop_differences(found, where, ALL))[0][1:] == ["-0.010 [-0.020, 0.000]", "0.300"]


def calibration_table():
    rows = [
        {"dataset": "set", "split": "test", "arm_id": arm, "label_fraction": 1.0, "draw": 0, "class": name, "bin": b,
         "score_low": b / 4, "score_high": (b + 1) / 4, "n_units": 0 if b == 2 else 9,
         "mean_score": None if b == 2 else (b + 0.5) / 4, "share_positive": None if b == 2 else (b + 0.4) / 4}
        for (arm, *_), name, b in product(ARMS, ("Edema", "Atelectasis"), range(4))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.CALIBRATION.columns)


def test_reliability_curves_leave_out_empty_bins_and_tell_the_error_in_words(monkeypatch):
    errors = [row(metric="mean_ece", arm_a=arm, repeat="selected", resampling_unit="patient", estimate=0.025,
                  ci_low=0.02, ci_high=0.04) for arm, *_ in ARMS]  # fmt: skip
    found = read(errors)
    seen = []
    monkeypatch.setattr(reliability.lines, "reliability", lambda panels, about: seen.append((panels, about)))
    (figure,) = reliability.curves(found, TEST, arms_table(ARMS), calibration_table())
    ((panels, about),) = seen
    assert {panel.title for panel in panels} == {"Edema", "Atelectasis"}
    assert panels[0].lines[0].x == [0.125, 0.375, 0.875]
    assert panels[0].lines[0].y == pytest.approx([0.1, 0.35, 0.85])
    assert about.description == "Mean calibration error: SimCLR 0.025, Random 0.025."
    assert about.description in figure.caption
    assert texts(reliability.errors(found, TEST))[0][1] == "0.025 [0.020, 0.040]"
