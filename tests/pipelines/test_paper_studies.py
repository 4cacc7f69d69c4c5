"""The paper's studies hold every row of its tables and every series of its figures, with the settings it states."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from medssl.analysis.multiplicity import required_replicates
from medssl.config import Study, load_study
from medssl.exit_codes import BadInputError
from medssl.stages.train import grid
from medssl.train import augment
from medssl.train.pretrain import run_augmentation
from pipelines import study as study_module
from pipelines.availability import require_data
from pipelines.estimate import num_models
from pipelines.plan import make_plan
from pipelines.study import compile_pipeline

STUDIES = Path(study_module.__file__).parent / "studies"
TABLES = Path(__file__).parents[2] / "../shared/paper/tables"
R50X1, R50X4, R152X2 = "ResNet-50 (1x)", "ResNet-50 (4x)", "ResNet-152 (2x)"
TENTHS = tuple(round(i / 10, 1) for i in range(1, 11))
MAX_SPEC_BYTES = 1_000_000  # of 1.5 MB, above which Kubernetes stores no object

DERM = load_study(STUDIES / "paper_derm.yaml")
CHEXPERT = load_study(STUDIES / "paper_chexpert.yaml")
GRID = load_study(STUDIES / "paper_chexpert_grid.yaml")
STUDY_OF: Mapping[str, Study] = {"derm": DERM, "chexpert": CHEXPERT}


@dataclass(frozen=True)
class Described:
    """An arm as the tables and figures of the paper would tell it apart."""

    name: str
    architecture: str
    method: str  # as the tables print it, without what this project adds in brackets
    augmentation: str  # of MICLe: full or partial
    num_steps: int  # of the last pretraining; 0: none here
    batch_size: int
    fractions: frozenset[float]


def described(study: Study) -> list[Described]:
    runs = {run.name: run for run in study.pretraining}
    found = []
    for arm in study.arms:
        run = runs.get(arm.init)
        augmentation = ""
        if run and run.method == "micle":
            augmentation = {"simclr": "full", "micle_partial": "partial"}[run.augmentation]
        steps, batch = (run.num_steps, run.batch_size) if run else (0, 0)
        fractions = frozenset(study.finetune.of(arm).label_fractions)
        architecture = study.encoders[arm.encoder].display_name
        method = arm.method.partition(" (")[0]
        found.append(Described(arm.name, architecture, method, augmentation, steps, batch, fractions))
    return found


def arms(study: Study, architecture: str, method: str) -> list[Described]:
    return [arm for arm in described(study) if (arm.architecture, arm.method) == (architecture, method)]


def rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not TABLES.is_dir(), reason="needs the folder shared beside the repository")
@pytest.mark.parametrize("table", [*(f"table_B{i}.csv" for i in range(1, 7)), "table_B6_mean_auc_derived.csv"])
def test_every_row_of_a_published_table_has_its_arm(table: str) -> None:
    listed = rows(table)
    assert listed
    for row in listed:
        found = arms(STUDY_OF[row["task"]], row["architecture"], row["method"])
        found = [arm for arm in found if arm.augmentation == row["augmentation"] or not row["augmentation"]]
        assert any(float(row["label_fraction"]) in arm.fractions for arm in found), row
        if row["pathology"] not in ("", "mean_of_5"):
            assert row["pathology"] in CHEXPERT.task.findings


@pytest.mark.parametrize("architecture", [R50X1, R50X4, R152X2])
def test_table_b3_has_five_ways_to_begin_an_architecture_pretrained_for_150_000_steps(architecture: str) -> None:
    for method in ("SimCLR Derm", "SimCLR ImageNet->Derm"):
        (arm, *_) = arms(DERM, architecture, method)
        assert (arm.num_steps, arm.batch_size) == (150_000, 512)
    for method in ("SimCLR ImageNet", "Supervised ImageNet", "Random Initialization"):
        (arm,) = arms(DERM, architecture, method)
        assert arm.num_steps == 0


@pytest.mark.parametrize("architecture", [R50X4, R152X2])
@pytest.mark.parametrize("method", ["MICLe Derm", "MICLe ImageNet->Derm"])
def test_micle_has_both_augmentations_and_no_more(architecture: str, method: str) -> None:
    assert sorted(arm.augmentation for arm in arms(DERM, architecture, method)) == ["full", "partial"]


def test_bit_is_there_with_its_own_architecture_and_no_micle_is_on_radiographs() -> None:
    assert len(arms(DERM, "ResNet-101 (3x)", "BiT Supervised")) == 1
    assert not [arm for arm in CHEXPERT.arms if arm.method.startswith("MICLe")]
    assert len(CHEXPERT.arms) == 12


@pytest.mark.parametrize("architecture", [R50X1, R50X4, R152X2])
@pytest.mark.parametrize("method", ["SimCLR Derm", "SimCLR ImageNet->Derm"])
def test_figure_b4_has_three_lengths_at_batch_1024(architecture: str, method: str) -> None:
    lengths = {arm.num_steps for arm in arms(DERM, architecture, method) if arm.batch_size == 1024}
    assert lengths == {150_000, 300_000, 450_000}


@pytest.mark.parametrize("architecture", [R50X4, R152X2])
def test_figures_b5_and_b6_have_their_series_at_every_tenth_of_the_labels(architecture: str) -> None:
    whole = [arm for arm in described(DERM) if arm.architecture == architecture and arm.fractions == set(TENTHS)]
    series = sorted((arm.method, arm.batch_size, arm.num_steps) for arm in whole)
    assert series == [
        ("MICLe ImageNet->Derm", 128, 100_000),
        ("SimCLR Derm", 512, 150_000),
        ("SimCLR ImageNet->Derm", 512, 150_000),
        ("SimCLR ImageNet->Derm", 1024, 150_000),
        ("SimCLR ImageNet->Derm", 1024, 450_000),
        ("Supervised ImageNet", 0, 0),
    ]


@pytest.mark.parametrize("architecture", [R50X4, R152X2])
def test_figures_b8_and_b9_have_four_series_at_every_tenth_of_the_labels(architecture: str) -> None:
    methods = [
        arm.method for arm in described(CHEXPERT) if arm.architecture == architecture and arm.fractions == set(TENTHS)
    ]
    assert sorted(methods) == ["SimCLR CheXpert", "SimCLR ImageNet", "SimCLR ImageNet->CheXpert", "Supervised ImageNet"]


def test_every_other_arm_is_trained_with_all_labels() -> None:
    assert {arm.fractions for study in (DERM, CHEXPERT) for arm in described(study)} == {
        frozenset(TENTHS),
        frozenset([1.0]),
    }


@pytest.mark.parametrize(("study", "num_repeats"), [(DERM, 5), (CHEXPERT, 10)], ids=["derm", "chexpert"])
def test_fine_tuning_searches_28_points_and_repeats_the_best(study: Study, num_repeats: int) -> None:
    settings = study.finetune
    assert (settings.num_steps, settings.batch_size, settings.momentum) == (30_000, 256, 0.9)
    assert {len(grid(settings, arm)) for arm in study.arms} == {7 * 4}
    half_decades = [10 ** (-3.5 + i / 2) for i in range(7)]
    assert settings.learning_rates == pytest.approx(half_decades, rel=1e-5)
    fractions = {arm.name: len(settings.of(arm).label_fractions) for arm in study.arms}
    assert all(num_models(study, arm) == num_repeats * fractions[arm.name] for arm in study.arms)


def test_pretraining_warms_up_for_ten_epochs() -> None:
    num_units = {"simclr": 454_295, "micle": 15_340}
    assert all(run.warmup_steps == 10 * num_units[run.method] // run.batch_size for run in DERM.pretraining)
    for study in (CHEXPERT, GRID):
        assert all(run.warmup_steps == 10 * 167_429 // run.batch_size for run in study.pretraining)


def test_augmentation_is_simclrs_for_photographs_and_the_papers_own_for_radiographs() -> None:
    of_photographs = {"simclr": augment.simclr(1.0), "micle_partial": augment.micle_partial()}
    for run in DERM.pretraining:
        assert run_augmentation(run, run.augmentation) == of_photographs[run.augmentation]
        assert run_augmentation(run, "simclr") == augment.simclr(1.0)  # what a case of one image gets
    for run in (*CHEXPERT.pretraining, *GRID.pretraining):
        assert run.augmentation == "chexpert_pretrain"
        assert run_augmentation(run, run.augmentation) == augment.chexpert_pretrain(0.5)


def test_micle_pairs_images_of_labelled_cases_and_begins_from_simclr() -> None:
    runs = {run.name: run for run in DERM.pretraining}
    micle = [run for run in DERM.pretraining if run.method == "micle"]
    assert len(micle) == 8
    for run in micle:
        assert (run.pair_within, run.unlabelled, run.batch_size, run.learning_rate) == ("case", False, 128, 0.1)
        assert runs[run.init].method == "simclr"
        assert run.encoder == runs[run.init].encoder
    assert all(run.unlabelled for run in DERM.pretraining if run.method == "simclr")


def test_comparisons_stay_within_an_architecture_but_for_those_with_bit() -> None:
    for study in (DERM, CHEXPERT):
        architecture = {arm.name: arm.architecture for arm in described(study)}
        mixed = [pair for pair in study.compare.pairs if len({architecture[name] for name in pair}) > 1]
        assert all(second == "r101x3-bit" for _, second in mixed)
        assert (study.compare.num_replicates, study.compare.resampling_units[0]) == (1000, "patient")
    assert {arm.name for arm in DERM.arms} >= {name for pair in DERM.compare.pairs for name in pair}


def test_shift_and_subgroups_are_those_of_the_paper() -> None:
    assert [one.dataset for one in CHEXPERT.external] == ["nih"]
    assert len(DERM.external) == 1
    assert "skin_type_group" in DERM.subgroups.by
    assert set(DERM.subgroups.skin_type_groups) == {"white", "beige", "brown", "dark brown"}
    assert (DERM.finetune.image_size_px, CHEXPERT.finetune.image_size_px) == (448, 224)
    assert DERM.shards.image_size_px >= DERM.finetune.image_size_px
    assert CHEXPERT.splits.sizes == {"train": 167_429, "validation": 22_240, "test": 33_745}


def test_the_grid_of_radiographs_is_18_points_from_either_beginning_and_validation_chooses_among_all_18() -> None:
    points = {(run.learning_rate, run.temperature, run.batch_size) for run in GRID.pretraining}
    assert points == {(lr, t, batch) for lr in (0.5, 1.0, 1.5) for t in (0.1, 0.5, 1.0) for batch in (512, 1024)}
    groups = [arm.group for arm in GRID.arms if arm.group]
    assert {group: groups.count(group) for group in groups} == {"simclr-chexpert": 18, "simclr-both": 18}
    assert GRID.finetune.learning_rates == CHEXPERT.finetune.learning_rates


@pytest.mark.parametrize("study", [DERM, CHEXPERT, GRID], ids=lambda study: study.name)
def test_the_compiled_study_fits_into_kubernetes(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(make_plan(study), path)
    assert path.stat().st_size < MAX_SPEC_BYTES
    ir = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    lists = [p["defaultValue"] for p in ir["root"]["inputDefinitions"]["parameters"].values() if "defaultValue" in p]
    assert all(len(items) <= 50 for items in lists)
    assert max(map(len, lists)) == max(len(study.arms), *(len(level) for level in study.levels))


def test_a_run_without_the_data_names_every_folder_that_is_missing() -> None:
    with pytest.raises(BadInputError, match=r"data: no folder of derm .*data\.root.*external: no folder of derm-ext"):
        require_data(DERM.model_copy(update={"data": DERM.data.model_copy(update={"root": "/nowhere"})}))
    found = {"root": str(STUDIES)}
    own, nih = CHEXPERT.data.model_copy(update=found), CHEXPERT.external[0].model_copy(update=found)
    require_data(CHEXPERT.model_copy(update={"data": own, "external": (nih,)}))


@pytest.mark.parametrize("study", [DERM, CHEXPERT], ids=["derm", "chexpert"])
def test_every_pair_is_tested_in_one_family_with_all_labels(study: Study) -> None:
    families = [f for f in study.compare.families if f.splits == ("test",) and 1.0 in f.label_fractions]
    listed = [pair for family in families for pair in family.pairs]
    assert sorted(listed) == sorted(study.compare.pairs)
    assert len(study.compare.label_efficiency) >= 2


@pytest.mark.parametrize("study", [DERM, CHEXPERT], ids=["derm", "chexpert"])
def test_every_family_is_small_enough_to_be_resolved(study: Study) -> None:
    for family in study.compare.families:
        assert family.metrics, family.name
        per_class = [name for name in family.metrics if name == "auc"]  # a row for each finding
        rows = len(family.metrics) - len(per_class) + len(per_class) * len(study.task.findings)
        num_sets = len(study.external) if family.splits == ("external",) else 1
        num_comparisons = len(family.pairs) * len(family.label_fractions) * rows * num_sets
        needed = required_replicates(num_comparisons, study.compare.alpha)
        assert needed <= 10 * study.compare.num_replicates, family.name  # minutes, not hours
