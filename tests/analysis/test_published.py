"""The values that the paper prints, and which arms they are about."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.analysis import arms as arm_table
from medssl.analysis import published
from medssl.config import load_study
from tests.analysis.metric_rows import published as lines_of

STUDIES = Path(__file__).parents[2] / "pipelines" / "studies"


def study_arms(name):
    study = load_study(STUDIES / name)
    names = [one.name for one in study.weights]
    return arm_table.table(study.arms, study.encoders, study.pretraining, names).to_pylist()


def matching(value, arms):
    names = ("architecture", "method", "augmentation")
    return [arm["arm_id"] for arm in arms if published.matches(value, **{name: arm[name] for name in names})]


def test_every_line_of_the_files_is_read_with_the_digits_of_the_print():
    counts = {name: len(published.of_table(name)) for name in published.TABLES}
    assert counts == {"B.1": 10, "B.2": 24, "B.3": 75, "B.4": 40, "B.5": 98, "B.6": 60 + 12}
    for name in published.TABLES:
        stem = name.lower().replace(".", "")
        lines = lines_of(stem) + (lines_of("b6_derived") if name == "B.6" else [])
        assert [value.printed for value in published.of_table(name)] == [line["value"] for line in lines]
        assert all(value.table == name for value in published.of_table(name))


@pytest.mark.parametrize(
    ("table", "architecture", "method", "metric", "k", "class_name", "fraction", "printed", "plus_minus"),
    [
        ("B.1", "ResNet-152 (2x)", "MICLe ImageNet->Derm", "top_k_accuracy", 1, "", 1.0, "0.7037", "0.0233"),
        ("B.3", "ResNet-50 (1x)", "Supervised ImageNet", "top_k_accuracy", 1, "", 1.0, "0.5991", "0.0174"),
        ("B.4", "ResNet-50 (4x)", "MICLe ImageNet->Derm", "mean_auc", None, "", 1.0, "0.9623", "0.0005"),
        ("B.5", "ResNet-50 (4x)", "SimCLR Derm", "mean_top_k_sensitivity", 3, "", 0.5, "0.7412", ""),
        ("B.5", "ResNet-50 (4x)", "Supervised ImageNet", "top_k_accuracy", 3, "", 1.0, "0.8886", ""),
        ("B.6", "ResNet-50 (4x)", "SimCLR ImageNet", "auc", None, "Pleural Effusion", 1.0, "0.8641", "0.0013"),
        ("B.6", "ResNet-152 (2x)", "SimCLR CheXpert", "mean_auc", None, "", 1.0, "0.77040", ""),
    ],
)  # fmt: skip
def test_cells_of_the_supplement(table, architecture, method, metric, k, class_name, fraction, printed, plus_minus):
    (value,) = (
        v
        for v in published.of_table(table)
        if (v.architecture, v.method, v.metric.name, v.metric.k) == (architecture, method, metric, k)
        and (v.class_name, v.label_fraction) == (class_name, fraction)
    )
    assert (value.printed, value.plus_minus) == (printed, plus_minus)
    assert value.is_derived == (value.metric.name == "mean_auc" and table == "B.6")


def test_the_derived_means_are_those_of_the_five_printed_areas():
    values = published.of_table("B.6")
    for mean in (value for value in values if value.is_derived):
        of_arm = [v.value for v in values if (v.architecture, v.method) == (mean.architecture, mean.method)]
        assert mean.value == pytest.approx(sum(of_arm[:5]) / 5, abs=5e-6)
        assert "printed nowhere" in mean.source


def test_arms_are_known_by_architecture_and_method_in_any_spelling_of_the_arrow():
    (value, *_) = published.of_table("B.1")
    named = {"architecture": value.architecture, "augmentation": "micle_partial"}
    for method in ("MICLe ImageNet->Derm", "MICLE ImageNet → Derm", "micle  ImageNet ->Derm"):
        assert published.matches(value, method=method, **named)
    for method in ("SimCLR ImageNet->Derm", "MICLe Derm", "MICLe ImageNet->Derm (full augmentation)"):
        assert not published.matches(value, method=method, **named)
    assert not published.matches(value, architecture="ResNet-50 (1x)", method=value.method, augmentation=None)


def test_augmentation_decides_in_table_b2_alone():
    full = next(value for value in published.of_table("B.2") if value.augmentation == "full")
    named = {"architecture": full.architecture, "method": f"{full.method} (full augmentation)"}
    assert published.matches(full, **named, augmentation="simclr")
    assert not published.matches(full, **named, augmentation="micle_partial")
    assert not published.matches(full, **named, augmentation=None)


@pytest.mark.parametrize(
    ("study", "tables"),
    [("paper_derm.yaml", ("B.1", "B.2", "B.3", "B.4", "B.5")), ("paper_chexpert.yaml", ("B.6",))],
)
def test_every_published_value_is_about_exactly_one_arm_of_the_papers_studies(study, tables):
    arms = study_arms(study)
    found = Counter(len(matching(value, arms)) for name in tables for value in published.of_table(name))
    assert set(found) == {1}


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"'B\.7' is not kept"):
        published.of_table("B.7")


@given(st.text(max_size=40))
def test_the_plain_name_of_a_plain_name_is_itself(name):
    assert published.plain(published.plain(name)) == published.plain(name)
