"""What a study is said to cost: closed forms, published speeds, proportions, and what is not known."""

import json
from pathlib import Path

import pytest
import torch

from medssl.config import Study, load_study
from medssl.model.networks import Classifier, ProjectionHead, build_encoder
from medssl.train.checkpoint import save_weights
from pipelines import study as study_module
from pipelines.__main__ import main
from pipelines.estimate import PEAK_TFLOPS, UTILIZATION, Assumptions, Estimate, estimate

STUDIES = Path(study_module.__file__).parent / "studies"
DEMO, DERM, CHEXPERT = (STUDIES / f"{name}.yaml" for name in ("demo", "paper_derm", "paper_chexpert"))
RESNET50_FLOPS = 8.18e9  # of one 224-pixel image forward, as commonly counted
STAGES = ("pretrain", "search_hyperparameters", "finetune", "predict")


def flops(found: Estimate) -> dict[str, float]:
    return {one.stage: one.flops for one in found.work}


def one_run(*overrides: str) -> Study:
    """A study with one SimCLR run of a ResNet-50 at 224 pixels."""
    run = "{name: simclr, method: simclr, encoder: r50, num_steps: 100, batch_size: 512, precision: bf16}"
    return load_study(
        DEMO,
        [
            "shards.channels=3",
            "encoders={r50: {depth: 50}}",
            f"pretraining=[{run}]",
            "arms=[{name: a, encoder: r50, init: simclr, method: S}]",
            "compare={}",
            *overrides,
        ],
    )


def test_pretraining_is_three_passes_of_two_views() -> None:
    work = estimate(one_run(), Assumptions()).work[0]
    assert work.flops == pytest.approx(100 * 512 * 2 * 3 * RESNET50_FLOPS, rel=0.01)
    assert work.gpu_hours == pytest.approx(work.flops / (312e12 * 0.2) / 3600)


def test_an_a100_then_takes_about_the_published_1200_pairs_a_second() -> None:
    hours = estimate(one_run(), Assumptions()).work[0].gpu_hours
    assert 100 * 512 / (hours * 3600) == pytest.approx(1200, rel=0.15)
    assert (PEAK_TFLOPS["bf16"], UTILIZATION) == (312.0, 0.2)


def test_micro_batches_take_a_fourth_pass() -> None:
    once = estimate(one_run(), Assumptions()).work[0].flops
    micro = estimate(one_run("pretraining.simclr.micro_batch_size=64"), Assumptions()).work[0].flops
    assert micro / once == pytest.approx(4 / 3)
    several = one_run("pretraining.simclr.micro_batch_size=64", "resources.processes=8")  # counts those of all together
    assert estimate(several, Assumptions()).work[0].flops == micro
    enough = one_run("pretraining.simclr.micro_batch_size=512")
    assert estimate(enough, Assumptions()).work[0].flops == once


def test_fine_tuning_is_steps_times_batch_times_runs() -> None:
    settings = "finetune={num_steps: 10, batch_size: 8, learning_rates: [0.1, 0.2], weight_decays: [0, 0.1, 0.2], "
    settings += "label_fractions: [0.1, 1.0], repeats: 5, image_size_px: 224, search: full}"
    found = flops(estimate(one_run(settings), Assumptions()))
    one = 10 * 8 * 3 * RESNET50_FLOPS
    assert found["search_hyperparameters"] == pytest.approx(6 * one, rel=0.01)
    assert found["finetune"] == pytest.approx(2 * 5 * one, rel=0.01)
    each = flops(estimate(one_run(settings.replace("full", "per_fraction"), "splits.draws=3"), Assumptions()))
    assert each["search_hyperparameters"] == pytest.approx(2 * 6 * one, rel=0.01)
    assert each["finetune"] == pytest.approx((3 + 1) * 5 * one, rel=0.01)  # all labels have one draw


def test_evaluation_counts_where_the_number_of_images_is_known() -> None:
    study = one_run("finetune.image_size_px=224", "finetune.num_steps=30", "finetune.evaluate_every_steps=20")
    unknown = estimate(study, Assumptions())
    known = estimate(study, Assumptions(images={study.data.name: 1000}))
    assert unknown.uncounted == (study.data.name,)
    assert known.uncounted == ()
    assert flops(unknown)["predict"] == 0
    num_models = len(study.finetune.label_fractions) * study.finetune.repeats
    assert flops(known)["predict"] == pytest.approx(num_models * (100 + 200) * RESNET50_FLOPS, rel=0.01)
    more = flops(known)["finetune"] - flops(unknown)["finetune"]
    assert more == pytest.approx(num_models * 2 * 100 * RESNET50_FLOPS, rel=0.01)
    assert known.num_bytes["predictions"] == 13 * num_models * 300 * 5
    assert known.num_bytes["shards"] == 1000 * 3 * 48**2


def test_exact_sizes_are_known_without_being_told() -> None:
    found = estimate(load_study(CHEXPERT), Assumptions())
    assert found.uncounted == ("nih",)
    assert found.num_bytes["shards"] == 223_414 * 320**2
    assert min(flops(found).values()) > 0


def test_a_case_counts_with_its_images() -> None:
    study = load_study(DERM)
    six, two = (flops(estimate(study, Assumptions(images_per_case=images))) for images in (None, 2.0))
    assert six["finetune"] == pytest.approx(3 * two["finetune"])
    assert six["pretrain"] == two["pretrain"]


def test_kept_weights_take_what_their_files_take(tmp_path: Path) -> None:
    study = load_study(DEMO)
    config = study.encoders["resnet18-quarter"]
    encoder = build_encoder(config, image_channels=1)
    torch.manual_seed(0)
    for name, module in (("e", encoder), ("h", ProjectionHead(128)), ("c", Classifier(encoder, num_classes=5))):
        save_weights(module, tmp_path / name)
    size = {name: (tmp_path / name).stat().st_size for name in "ehc"}
    found = estimate(study, Assumptions()).num_bytes
    assert found["checkpoints"] == pytest.approx(2 * (size["e"] + size["h"]), rel=0.02)
    assert found["models"] == pytest.approx(3 * 2 * 2 * size["c"], rel=0.02)


def test_hours_go_down_with_the_speed_that_is_assumed() -> None:
    study = load_study(CHEXPERT)
    fast = Assumptions(peak_tflops={"bf16": 989.0, "float32": 495.0}, utilization=0.1)
    ratio = estimate(study, Assumptions()).gpu_hours / estimate(study, fast).gpu_hours
    assert ratio == pytest.approx(989 * 0.1 / (312 * 0.2))


def test_the_plan_tells_the_cost_beside_its_assumptions_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--set", "data.root=/nowhere", "--store", str(tmp_path / "store")]
    assert main(["plan", str(CHEXPERT), *options]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    for words in (
        "312 TFLOP/s in bf16, of which 20% is reached",
        "arms that cannot run without what is missing: 9 of 12",
        "medssl import-weights FILE --name NAME",
        "--set external.NAME.root=FOLDER",
        "--set data.root=FOLDER",
        "supervised-imagenet-r152x2",
        "(--images NAME=NUMBER): nih",
    ):
        assert words in printed
    assert printed.splitlines()[-1].startswith("whole study: ")


def test_the_plan_as_json_has_the_same_content(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--store", str(tmp_path / "store"), "--json", "--utilization", "0.3", "--peak-tflops", "989"]
    assert main(["plan", str(CHEXPERT), *options, "--images", "nih=112120"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in told["whole"]["stages"]] == list(STAGES)
    assert told["whole"]["gpu_hours"] > told["now"]["gpu_hours"] > 0
    assert set(told["missing"]) == {"data", "external", "weights"}
    assert told["assumptions"]["peak_tflops"] == {"bf16": 989, "float32": 989}
    assert told["whole"]["uncounted"] == []
    assert len(told["not_run"]) == 9


@pytest.mark.parametrize("images", ["many", "=5", "other=5", "nih=-1"])
def test_a_number_of_images_that_makes_no_sense_is_refused(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(CHEXPERT), f"--images={images}"]) == 78
    assert "--images" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--utilization=1.2", "--utilization=x", "--peak-tflops=0", "--images-per-case=nan"])
def test_an_impossible_assumption_is_refused(option: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["plan", str(DEMO), option])
    assert refused.value.code == 2


def test_a_study_of_which_nothing_can_run_still_has_a_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arms = "arms=[{name: s, encoder: resnet50-1x, init: supervised-imagenet-r50x1, method: S}]"
    options = [
        "--set",
        arms,
        "--set",
        "compare={}",
        "--set",
        "pretraining=[]",
        "--store",
        str(tmp_path / "store"),
    ]
    assert main(["plan", str(CHEXPERT), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("no task, 0 of them train, – GPU hours")


def test_a_linear_probe_passes_each_image_once() -> None:
    sizes = "splits={train: 1000, validation: 100, test: 100}"
    settings = "finetune={trainable: head, num_steps: 10, batch_size: 8, learning_rates: [0.1, 0.2], label_fractions: "
    settings += "[0.1, 1.0], repeats: 5, image_size_px: 224}"
    once = 1100 * RESNET50_FLOPS
    found = flops(estimate(one_run(settings, sizes), Assumptions()))
    assert found["search_hyperparameters"] == pytest.approx(once, rel=0.01)
    assert found["finetune"] == pytest.approx(once, rel=0.01)
    random = flops(estimate(one_run(settings, sizes, "arms.a.init=random"), Assumptions()))
    assert random["finetune"] == pytest.approx(2 * 5 * once, rel=0.01)  # an encoder of its own for each seed
