"""The report's tables and figures that stand beside those of the paper's supplement."""

import csv
import re

import pytest

from medssl.analysis import paper, paper_figures, paper_tables, report, results
from medssl.analysis.drawing import Drawing
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.page import Figure
from medssl.analysis.results import Evaluation
from tests.analysis.metric_rows import (
    FINDINGS,
    arms_table,
    chexpert_metrics,
    derm_metrics,
    named_arms,
    of_models,
    published,
    row,
    table,
)
from tests.analysis.test_report import Page

TEST = Evaluation("set", "test")
DERM_TABLES = ("b1", "b2", "b3", "b4", "b5")
WORDS = {
    ("top_k_accuracy", "1"): "Top-1 accuracy",
    ("top_k_accuracy", "3"): "Top-3 accuracy",
    ("mean_top_k_sensitivity", "1"): "Mean top-1 sensitivity",
    ("mean_top_k_sensitivity", "3"): "Mean top-3 sensitivity",
    ("mean_auc", ""): "Mean AUC",
}


def made(metrics, arms):
    return results.read(table(metrics), arms_table(arms)), arms_table(arms)


def beside(metrics, arms, groups=None):
    found, described = made(metrics, arms)
    return {one.name: one for one in paper_tables.beside(found, TEST, described, groups or {})}


def page_of(metrics, arms, folder):
    report.write(ReportInputs(metrics=table(metrics), arms=arms_table(arms)), folder)
    return Page((folder / "index.html").read_text())


def shown_rows(rows):
    """(heading, method) -> published, here, difference."""
    found, heading = {}, None
    for line in rows[1:]:
        if len(line) == 1:
            (heading,) = line
        else:
            found[heading, line[0]] = line[1:]
    return found


@pytest.fixture(scope="module")
def derm(tmp_path_factory):
    arms = named_arms(*DERM_TABLES)
    return arms, derm_metrics(arms), page_of(derm_metrics(arms), arms, tmp_path_factory.mktemp("derm"))


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory):
    arms = named_arms("b6")
    return arms, chexpert_metrics(arms), page_of(chexpert_metrics(arms), arms, tmp_path_factory.mktemp("chexpert"))


def three_lines(name):
    lines = published(name)
    return [lines[0], lines[len(lines) // 2], lines[-1]]


def key_of(line):
    what = "AUC, " + line["class"] if line["class"] else WORDS[line["metric"], line["k"]]
    method = line["method"] + (f", {line['augmentation']} augmentation" if line["augmentation"] else "")
    if line["table"] == "B.5":
        method += f", {100 * float(line['label_fraction']):.4g} % of labels"
    return f"{line['architecture']}: {what}", method


@pytest.mark.parametrize("name", [*DERM_TABLES, "b6"])
def test_three_cells_of_each_table_are_the_published_ones_with_ours_and_the_difference_beside(name, derm, chexpert):
    arms, metrics, page = chexpert if name == "b6" else derm
    shown = shown_rows(page.tables[f"paper-{name}-set-test"])
    for line in three_lines(name):
        printed, own, difference = shown[key_of(line)]
        assert printed == line["value"] + (f" ± {line['plus_minus']}" if line["plus_minus"] else "")
        suffix = " (full augmentation)" if line["augmentation"] == "full" else ""
        (arm,) = (arm[0] for arm in arms if arm[1:3] == (line["architecture"], line["method"] + suffix))
        keys = {"arm_a": arm, "metric": line["metric"], "k": int(line["k"]) if line["k"] else None}
        keys |= {"class": line["class"], "label_fraction": float(line["label_fraction"])}
        keys |= {"repeat": "selected" if name == "b1" else "mean"}
        (ours,) = (r for r in metrics if all(r[column] == value for column, value in keys.items()))
        second = f"[{ours['ci_low']:.4f}, {ours['ci_high']:.4f}]" if name == "b1" else f"± {ours['std']:.4f}"
        assert own == f"{ours['estimate']:.4f} {second}"
        assert difference == f"{ours['estimate'] - float(line['value']):+.4f}".replace("-", "−")


@pytest.mark.parametrize("name", [*DERM_TABLES, "b6"])
def test_every_published_value_has_its_row_and_a_mean_that_is_printed_nowhere_says_so(name, derm, chexpert):
    page = (chexpert if name == "b6" else derm)[2]
    rows = shown_rows(page.tables[f"paper-{name}-set-test"])
    derived = published("b6_derived") if name == "b6" else []
    assert len(rows) == len(published(name)) + len(derived)
    assert all(own != "not run" for _, own, _ in rows.values())
    assert sum("(derived)" in heading for heading, _ in rows) == len(derived)


def test_cells_that_were_not_run_say_so_and_have_no_difference():
    (arm,) = (a for a in named_arms("b3") if a[1:3] == ("ResNet-50 (1x)", "SimCLR Derm"))
    found = beside(derm_metrics([arm], (1.0,)), [arm])
    cells = [[cell.text for cell in line] for line in found["B.3"].table.rows]
    assert {line[3] == "not run" for line in cells if "SimCLR Derm" not in line[1]} == {True}
    assert {line[4] for line in cells if line[3] == "not run"} == {"–"}
    own = [line for line in cells if line[3] != "not run"]
    assert len(own) == found["B.3"].num_here == 5
    assert all(line[0].startswith("ResNet-50 (1x)") and line[1] == "SimCLR Derm" for line in own)


def test_a_study_without_a_matching_arm_gets_a_sentence_in_place_of_each_table(tmp_path):
    arms = [("a", "ResNet-18 (0.25x)", "SimCLR Phantom"), ("b", "ResNet-50 (1x)", "Something else")]
    assert all(one.table is None and one.num_here == 0 for one in beside(derm_metrics(arms), arms).values())
    page = page_of(derm_metrics(arms), arms, tmp_path)
    listed = {line[0]: line[2] for line in page.tables["paper"][1:]}
    assert [listed[f"Table B.{n}"] for n in range(1, 6)] == ["not run: no arm of this study is in it"] * 5
    assert listed["Figure B.4"] == "not run: no method was pretrained for several numbers of steps"
    assert listed["Figure B.6"] == "in the section on label efficiency"
    assert not [name for name in page.tables if name.startswith("paper-")]


def test_a_study_of_radiographs_is_not_set_beside_dermatology_and_the_other_way_round(derm, chexpert):
    assert {line[0] for line in chexpert[2].tables["paper"][1:]} == {
        "Table B.6", "Figure B.8", "Figure B.9", "Main paper"
    }  # fmt: skip
    assert "Table B.6" not in {line[0] for line in derm[2].tables["paper"][1:]}


def test_two_arms_of_one_name_are_told_apart_and_their_value_counts_once():
    arms = [("first", "ResNet-50 (1x)", "SimCLR Derm"), ("second", "ResNet-50 (1x)", "SimCLR Derm")]
    found = beside(derm_metrics(arms, (1.0,)), arms)["B.3"]
    methods = [line[1].text for line in found.table.rows if line[3].text != "not run"]
    assert sorted(set(methods)) == ["SimCLR Derm (ResNet-50 (1x), SimCLR Derm (first))",
                                    "SimCLR Derm (ResNet-50 (1x), SimCLR Derm (second))"]  # fmt: skip
    assert (len(methods), found.num_here) == (10, 5)


def test_a_group_of_variants_stands_in_the_place_of_its_arms():
    arms = [(name, "ResNet-50 (1x)", "SimCLR Derm") for name in ("rate1", "rate2", "chosen")]
    metrics = [r | {"reason": "rate2 stands for it"} if r["arm_a"] == "chosen" else r for r in derm_metrics(arms)]
    found = beside(metrics, [*arms[:2], ("chosen", "", "")], {"chosen": ["rate1", "rate2"]})["B.3"]
    own = [line for line in found.table.rows if line[3].text != "not run"]
    assert len(own) == 5
    assert {line[3].task for line in own} == {"predict rate2"}


def test_published_and_own_numbers_keep_their_sources_apart(derm):
    arms, metrics, _ = derm
    found = beside(metrics, arms)
    best = found["B.1"].table.rows[0]
    assert (best[2].task, best[2].note) == ("", "published ±: half of a 95 % bootstrap interval")
    assert best[3].task == best[4].task == f"predict {arms[0][0]}"
    assert "inferred" in found["B.3"].table.rows[0][2].note


LONGER = [
    (f"{short}-{steps // 1000}", "ResNet-50 (4x)", f"SimCLR {name} ({steps // 1000}K steps)", steps, 1024, "simclr")
    for short, name in (("derm", "Derm"), ("both", "ImageNet->Derm"))
    for steps in (450_000, 150_000)
]
SUPERVISED = ("supervised", "ResNet-50 (4x)", "Supervised ImageNet")
OTHERS = [("batch", "ResNet-50 (4x)", "SimCLR Derm", 150_000, 512, "simclr"), SUPERVISED]


@pytest.fixture
def drawings(monkeypatch):
    """Panels and entries as given to what draws, by the name of the figure."""
    seen = {}

    def catch(what, about, **_):
        seen[about.name] = (what, about)
        return Drawing("<svg/>", b"")

    for module in (paper_figures.lines, paper_figures.rows):
        for name in ("points", "bars", "forest", "curves"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, catch)
    return seen


def test_accuracy_by_pretraining_steps_joins_arms_that_differ_in_steps_alone(drawings):
    arms = [*LONGER, *OTHERS]
    found, described = made(derm_metrics(arms, (1.0,)), arms)
    assert isinstance(paper_figures.by_steps(found, TEST, described), Figure)
    (panel,) = drawings["pretraining-steps-set-test"][0]
    assert [(line.name, line.x) for line in panel.lines] == [
        ("SimCLR Derm", [150_000.0, 450_000.0]),
        ("SimCLR ImageNet->Derm", [150_000.0, 450_000.0]),
    ]
    for line, (longest, shortest) in zip(panel.lines, (LONGER[:2], LONGER[2:]), strict=True):
        assert list(line.y) == [found.spread(TEST, arm[0], 1.0).mean for arm in (shortest, longest)]
    assert [text for _, text in panel.x_ticks] == ["150,000", "450,000"]


def test_longer_training_by_labels_shows_shortest_and_longest_beside_the_supervised_arm(drawings):
    arms = [*LONGER, *OTHERS]
    found, described = made(derm_metrics(arms), arms)
    paper_figures.longer_training(found, TEST, described)
    (panel,) = drawings["longer-training-set-test"][0]
    assert [line.name for line in panel.lines] == [
        "SimCLR Derm, 150,000 steps", "SimCLR Derm, 450,000 steps", "SimCLR ImageNet->Derm, 150,000 steps",
        "SimCLR ImageNet->Derm, 450,000 steps", "Supervised ImageNet",
    ]  # fmt: skip
    assert all(list(line.x) == [0.1, 0.5, 0.9, 1.0] for line in panel.lines)


def test_no_series_of_steps_means_no_figure_of_them():
    found, described = made(derm_metrics(OTHERS), OTHERS)
    assert paper_figures.by_steps(found, TEST, described) is None
    assert paper_figures.longer_training(found, TEST, described) is None


def test_label_efficiency_marks_what_table_b5_prints_for_the_same_arm(tmp_path):
    arms = [SUPERVISED, ("other", "ResNet-50 (4x)", "SimCLR Elsewhere")]
    page_of(derm_metrics(arms), arms, tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert "Large hollow marks: what the paper&#x27;s table B.5 prints" in html
    arms = [("other", "ResNet-50 (4x)", "SimCLR Elsewhere")]
    page_of(derm_metrics(arms), arms, tmp_path)
    assert "hollow marks" not in (tmp_path / "index.html").read_text()


def test_skin_types_have_a_bar_an_arm_for_both_accuracies(drawings):
    arms = named_arms("b1")[:2]
    groups = ("dark brown", "white", "beige")
    metrics = derm_metrics(arms, (1.0,)) + [
        row(metric="top_k_accuracy", k=k, subgroup=f"skin_type_group={group}", arm_a=arm[0], repeat="selected",
            resampling_unit="patient", estimate=0.1 * (a + 1) + k / 10, ci_low=0.1, ci_high=0.9, n_units=40 + g)
        for k in (1, 3) for a, arm in enumerate(arms) for g, group in enumerate(groups)
    ]  # fmt: skip
    found, _ = made(metrics, arms)
    figure = paper_figures.skin_types(found, TEST, "skin_type_group", ["white", "beige", "dark brown"])
    columns, about = drawings[figure.name]
    assert [name for name, _ in columns] == ["Top-1 accuracy", "Top-3 accuracy"]
    assert [e.heading for e in columns[0][1]][::2] == ["white (n = 41)", "beige (n = 42)", "dark brown (n = 40)"]
    assert [e.estimate for e in columns[1][1]][:2] == pytest.approx([0.4, 0.5])
    assert "0.400 from 0.100 to 0.900" in about.description


def test_areas_per_finding_have_a_panel_a_finding_and_a_figure_an_architecture(drawings):
    arms = named_arms("b6")
    found, described = made(chexpert_metrics(arms), arms)
    figures = paper_figures.per_finding(found, TEST, described)
    assert len(figures) == 3
    panels, _ = drawings[figures[0].name]
    assert [panel.title for panel in panels] == list(FINDINGS)
    assert [line.name for line in panels[0].lines] == [arm[2] for arm in arms[:4]]


def test_the_shift_figure_joins_test_and_external_values_of_the_selected_models(drawings):
    arms = named_arms("b6")[:2]
    external = of_models(arms, [("mean_auc", None)], (1.0,), dataset="elsewhere", split="external", repeats=2)
    lower = [r | {"estimate": r["estimate"] - 0.1} for r in external]
    found, described = made(chexpert_metrics(arms, (1.0,)) + lower, arms)
    (figure,) = paper_figures.shift(found, described)
    (panel,), about = drawings[figure.name]
    assert [text for _, text in panel.x_ticks] == ["test", "elsewhere"]
    for line, arm in zip(panel.lines, arms, strict=True):
        ours = found.selected(TEST, arm[0], found.largest, metric="mean_auc")["estimate"]
        assert line.y == pytest.approx([ours, ours - 0.1])
        assert f"{arm[2]} from {ours:.3f} to {ours - 0.1:.3f}" in about.description


def test_without_a_test_split_the_section_says_so():
    arms = named_arms("b6")[:1]
    metrics = [r | {"split": "external"} for r in chexpert_metrics(arms, (1.0,))]
    found, described = made(metrics, arms)
    assert paper.section(found, described, {}, [], long=24).parts == ("No test split was evaluated.",)


def test_tables_on_disk_hold_the_published_values_as_csv_and_latex(tmp_path):
    arms = named_arms("b1")
    page_of(derm_metrics(arms, (1.0,)), arms, tmp_path)
    with (tmp_path / "tables" / "paper-b1-set-test.csv").open(newline="") as file:
        found = [line[2] for line in csv.reader(file)][1:]
    assert sorted(found) == sorted(f"{line['value']} ± {line['plus_minus']}" for line in published("b1"))
    latex = (tmp_path / "tables" / "paper-b1-set-test.tex").read_text()
    assert re.search(r"0\.7037 \$\\pm\$ 0\.0233", latex)
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == 1
