"""Pretraining and fine-tuning on a handful of images, in this process."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medssl import layout, schema
from medssl.config import EncoderConfig, FinetuneConfig, PredictConfig, PretrainRun, ShardConfig, TaskConfig
from medssl.data import shards
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.shardset import Cohort
from medssl.train import augment
from medssl.train.cohorts import Cohorts
from medssl.train.distributed import Ranks
from medssl.train.finetune import Finetuning, augmentation, finetune
from medssl.train.jobs import ExternalSet, FinetuneItem, FinetuneJob, Inputs, PredictItem, PredictJob, PretrainJob
from medssl.train.predict import predict
from medssl.train.pretrain import pretrain
from medssl.train.scoring import predict_scores

ALONE = Ranks(0, 1, torch.device("cpu"))
ENCODER = EncoderConfig(depth=18, width=0.125)
TASK = TaskConfig(findings=("Edema",))
SIZE = 16


@dataclass(frozen=True)
class Prepared:
    inputs: Inputs
    folder: Path

    def fresh(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """16 patients of two images; the finding is a bright left half."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(32):
        has_finding = number // 2 % 2
        pixels = rng.integers(60, 120, (SIZE, SIZE), dtype=np.uint8)
        pixels[:, : SIZE // 2] += np.uint8(100 * has_finding)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(
            {
                "patient_id": f"{number // 2 * 16:032x}",
                "case_id": f"{number:032x}",
                "image_id": f"{number + 100:032x}",
                "source_split": "train",
                "label:Edema": has_finding,
            }
        )
    empty = dict.fromkeys(("view_position", "sex", "age_years", "skin_type", "site"))
    columns = [*schema.INDEX.columns, pa.field("label:Edema", pa.int8())]
    index = pa.Table.from_pylist([row | empty for row in rows], schema=pa.schema(columns))
    schema.write(index, schema.INDEX, folder / "index.parquet", metadata={"group_kind": "patient"})
    sources = pa.table({"image_id": index["image_id"], "file": [f"{n}.png" for n in range(32)]})
    schema.write(sources, schema.SOURCES, folder / "sources.parquet")
    patients = sorted(set(index["patient_id"].to_pylist()))
    split = ["train"] * 8 + ["validation"] * 4 + ["test"] * 4
    ranks = [[n / 8] for n in range(8)] + [[0.0]] * 8
    splits = pa.table({"patient_id": patients, "split": split, "label_ranks": ranks})
    schema.write(splits, schema.SPLIT_TABLE, folder / "splits.parquet")
    (folder / "shards").mkdir()
    config = ShardConfig(image_size_px=SIZE, num_parts=1)
    shards.write(folder / "index.parquet", folder / "sources.parquet", folder, folder / "shards", config)
    inputs = Inputs(
        index_path=folder / "index.parquet", splits_path=folder / "splits.parquet", shards_dir=folder / "shards"
    )
    return Prepared(inputs, folder)


def pretrain_job(data: Prepared, name: str, **settings: Any) -> PretrainJob:
    run = {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 7, "batch_size": 8, "image_size_px": SIZE}
    return PretrainJob(
        inputs=data.inputs,
        run=PretrainRun.model_validate(run | {"checkpoint_every_steps": 2} | settings),
        encoder=ENCODER,
        channels=1,
        initial_dir=None,
        work_dir=data.fresh(f"{name}-work"),
        out_dir=data.fresh(f"{name}-out"),
    )


def finetune_job(data: Prepared, name: str, *items: FinetuneItem, **settings: Any) -> FinetuneJob:
    base = {"num_steps": 7, "batch_size": 8, "learning_rates": [0.1], "label_fractions": [1.0]}
    base |= {"image_size_px": SIZE, "evaluate_every_steps": 3, "checkpoint_every_steps": 2}
    return FinetuneJob(
        inputs=data.inputs,
        arm="x",
        items=items or (item(),),
        settings=FinetuneConfig.model_validate(base | settings),
        task=TASK,
        encoder=ENCODER,
        channels=1,
        initial_dir=None,
        work_dir=data.fresh(f"{name}-work"),
        out_dir=data.fresh(f"{name}-out"),
    )


def item(**changes: Any) -> FinetuneItem:
    base = {"label_fraction": 1.0, "draw": 0, "repeat": 0, "learning_rate": 0.1, "weight_decay": 0.0}
    return FinetuneItem.model_validate(base | changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt(monkeypatch: pytest.MonkeyPatch, *, after_calls: int, how: Callable[[], None]) -> None:
    """Call `how` when the training process takes a batch of images for the n-th time."""
    real, calls = augment.to_unit, [0]

    def counting(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == after_calls:
            how()
        return real(*arguments)

    monkeypatch.setattr(augment, "to_unit", counting)


def crash() -> None:
    raise KeyboardInterrupt


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", ["simclr", "micle"])
@pytest.mark.parametrize(("how", "reason"), [(crash, KeyboardInterrupt), (stop, TerminatedError)])
def test_an_interrupted_pretraining_ends_with_the_same_bytes(
    data: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    how: Callable[[], None],
    reason: type[BaseException],
) -> None:
    settings = {"method": method, "pair_within": "patient"}
    whole = pretrain_job(data, f"whole-{method}-{reason.__name__}", **settings)
    pretrain(whole, ALONE)
    broken = pretrain_job(data, f"broken-{method}-{reason.__name__}", **settings)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=5, how=how)
        with pytest.raises(reason):
            pretrain(broken, ALONE)
    pretrain(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)


@pytest.mark.parametrize(("how", "reason"), [(crash, KeyboardInterrupt), (stop, TerminatedError)])
def test_an_interrupted_fine_tuning_ends_with_the_same_bytes(
    data: Prepared, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], reason: type[BaseException]
) -> None:
    items = (item(), item(repeat=1))
    whole = finetune_job(data, f"ft-whole-{reason.__name__}", *items)
    finetune(whole, ALONE)
    broken = finetune_job(data, f"ft-broken-{reason.__name__}", *items)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=7 + 3 + 5, how=how)  # after seven steps and three evaluations: in the second item
        with pytest.raises(reason):
            finetune(broken, ALONE)
    finetune(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)


def test_pretraining_without_an_interruption_depends_on_its_seed(data: Prepared) -> None:
    jobs = [pretrain_job(data, f"seed-{name}", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for job in jobs:
        pretrain(job, ALONE)
    first, again, other = (files_of(job.out_dir)[layout.ENCODER] for job in jobs)
    assert first == again
    assert first != other


def test_fine_tuning_learns_what_is_in_the_images(data: Prepared) -> None:
    job = finetune_job(data, "learn", num_steps=40, evaluate_every_steps=10, crop_area_min=1, rotation_deg=0)
    job = job.model_copy(update={"settings": job.settings.model_copy(update={"flip_probability": 0.0})})
    finetune(job, ALONE)
    rows = schema.read(job.out_dir / item().name / layout.HISTORY, schema.HISTORY).to_pylist()
    scores = [row["value"] for row in rows if row["metric"] == "validation_mean_auc"]
    assert max(scores) == 1.0
    losses = [row["value"] for row in sorted(rows, key=lambda r: r["step"]) if row["metric"] == "loss"]
    assert losses[-1] < 0.2 * losses[0]


def test_a_label_fraction_trains_on_its_patients_alone(data: Prepared) -> None:
    job = finetune_job(data, "fraction", item(label_fraction=0.25))
    finetune(job, ALONE)
    outcome = (job.out_dir / item(label_fraction=0.25).name / layout.OUTCOME).read_text()
    assert '"num_train_patients": 2' in outcome
    assert '"num_train_images": 4' in outcome


def test_training_never_opens_test_images_and_predicting_does(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[str] = set()
    real = Cohort.select

    def watching(*arguments: Any, split: str, **options: Any) -> Cohort:
        opened.add(split)
        return real(*arguments, split=split, **options)

    monkeypatch.setattr(Cohort, "select", watching)
    pretrain(pretrain_job(data, "watched"), ALONE)
    assert opened == {"train"}
    job = finetune_job(data, "ft-watched")
    finetune(job, ALONE)
    assert opened == {"train", "validation"}
    weights = job.out_dir / item().name / layout.MODEL
    predicted = predict_job(data, weights, "watched")
    predict(predicted, ALONE)
    table = schema.read(predicted.out_dir / layout.PREDICTIONS, schema.PREDICTIONS)
    by_split = {row["split"]: row for row in table.to_pylist()}
    assert set(by_split) == {"validation", "test", "external"}
    assert table.num_rows == 16 + 32  # the external set is evaluated whole
    assert (by_split["external"]["dataset"], by_split["external"]["dataset_digest"]) == ("other", "e")
    assert by_split["test"]["dataset"] == "d"
    scores = table["y_score"].to_numpy()
    assert ((scores >= 0) & (scores <= 1)).all()


class Part(Ranks):
    """One of several ranks that does not hear of the others."""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_the_scores_that_ranks_share_are_those_of_one(data: Prepared) -> None:
    tuning = Finetuning(*(job := finetune_job(data, "shared"), item(), Cohorts.read(job), ALONE), data.fresh("shared"))
    split, how = tuning.cohorts.train, {"size_px": SIZE, "batch_size": 3, "precision": "float32"}
    whole = predict_scores(tuning.model, split, ranks=ALONE, **how)
    parts = [predict_scores(tuning.model, split, ranks=Part(rank, 3, ALONE.device), **how) for rank in range(3)]
    assert all(0 < np.count_nonzero(part) < part.size for part in parts)
    assert np.array_equal(sum(parts), whole)


def predict_job(data: Prepared, weights: Path, name: str) -> PredictJob:
    model = PredictItem(
        arm_id="x",
        label_fraction=1.0,
        draw=0,
        repeat=0,
        is_selected=True,
        checkpoint_digest="d",
        weights_path=weights,
    )
    return PredictJob(
        inputs=data.inputs,
        study_id="s",
        dataset="d",
        dataset_digest="d",
        external=(
            ExternalSet(name="other", digest="e", index_path=data.inputs.index_path, shards_dir=data.inputs.shards_dir),
        ),
        items=(model,),
        settings=PredictConfig(),
        task=TASK,
        encoder=ENCODER,
        channels=1,
        image_size_px=SIZE,
        work_dir=data.fresh(f"{name}-predict-work"),
        out_dir=data.fresh(f"{name}-predicted"),
    )


def test_a_run_starts_from_the_weights_it_is_given(data: Prepared) -> None:
    first = pretrain_job(data, "first")
    pretrain(first, ALONE)
    # A learning rate of nearly nothing leaves the weights as they came, and batch norm's statistics move on.
    second = pretrain_job(data, "second", learning_rate=1e-30, num_steps=1)
    pretrain(second.model_copy(update={"initial_dir": first.out_dir}), ALONE)
    before, after = load_file(first.out_dir / layout.ENCODER), load_file(second.out_dir / layout.ENCODER)
    assert all(torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.endswith("running_mean"))


def test_a_batch_larger_than_the_data_is_told(data: Prepared) -> None:
    with pytest.raises(BadInputError, match="batch_size is 64 but only 16"):
        pretrain(pretrain_job(data, "large", batch_size=64), ALONE)


def test_an_interrupted_pretraining_in_micro_batches_and_bf16_ends_with_the_same_bytes(
    data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"micro_batch_size": 4, "precision": "bf16", "image_size_px": 32, "num_steps": 5}
    whole, broken = (pretrain_job(data, f"{name}-micro", **settings) for name in ("whole", "broken"))
    pretrain(whole, ALONE)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=4, how=crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(broken, ALONE)
    pretrain(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)


def test_speed_is_told_and_logged_beside_the_result(data: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    job = pretrain_job(data, "speed")
    pretrain(job, ALONE)
    assert " images/s, " in capsys.readouterr().out
    rows = schema.read(job.work_dir / layout.MONITORED, schema.HISTORY).to_pylist()
    assert {row["metric"] for row in rows} == {"images_per_s", "data_wait_share", "remaining_s"}
    assert sorted(row["step"] for row in rows if row["metric"] == "images_per_s") == list(range(7))
    metrics = schema.read(job.out_dir / layout.HISTORY, schema.HISTORY)["metric"].to_pylist()
    assert {"loss", "projection_std", "representation_std"} <= set(metrics)
    assert "images_per_s" not in metrics


def test_a_pretraining_that_diverges_is_told_and_leaves_no_state_of_it(data: Prepared) -> None:
    job = pretrain_job(data, "diverging", learning_rate=1e30, checkpoint_every_steps=1)
    with pytest.raises(BadInputError, match="not finite by step 0; lower learning_rate"):
        pretrain(job, ALONE)
    assert not files_of(job.work_dir)
    assert not files_of(job.out_dir)


def test_a_pretraining_that_learns_nothing_stops_where_it_is_asked_to(data: Prepared) -> None:
    # At so high a temperature every similarity looks alike, and the loss stays at chance.
    settings = {"temperature": 1e4, "num_steps": 12, "on_collapse": "stop"}
    with pytest.raises(BadInputError, match=r"collapsed by step 9: the loss, .* is no better than"):
        pretrain(pretrain_job(data, "collapsed", **settings), ALONE)


def test_a_grid_point_that_diverges_has_no_score_and_the_next_goes_on(
    data: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    items = item(repeat=-1, learning_rate=1e30), item(repeat=-1)
    job = finetune_job(data, "search", *items).model_copy(update={"keeps_weights": False})
    finetune(job, ALONE)
    bad, good = (json.loads((job.out_dir / one.name / layout.OUTCOME).read_text()) for one in items)
    assert (bad["validation_score"], bad["step"]) == (None, 3)
    assert 0 <= good["validation_score"] <= 1
    assert "this grid point is rejected" in capsys.readouterr().out


def test_a_finished_item_leaves_neither_its_state_nor_in_a_search_its_weights(data: Prepared) -> None:
    for name, keeps_weights in (("kept", True), ("searched", False)):
        job = finetune_job(data, name).model_copy(update={"keeps_weights": keeps_weights})
        left = job.work_dir / item().name / ".state.pt.1.tmp"  # of a process that was killed while it saved
        left.parent.mkdir()
        left.touch()
        finetune(job, ALONE)
        expected = {layout.HISTORY, layout.OUTCOME, *([layout.MODEL] if keeps_weights else [])}
        for folder in (job.work_dir, job.out_dir):
            assert {path.name for path in (folder / item().name).iterdir()} == expected


def test_a_partly_finished_grid_goes_on_where_it_was(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    items = item(repeat=-1), item(repeat=-1, learning_rate=0.2), item(repeat=-1, learning_rate=0.3)
    whole, broken = (finetune_job(data, f"grid-{name}", *items) for name in ("whole", "broken"))
    finetune(whole, ALONE)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=2 * (7 + 3) + 1, how=crash)  # two items of seven steps and three evaluations
        with pytest.raises(KeyboardInterrupt):
            finetune(broken, ALONE)
    finished = {path.parent.name: path.stat().st_mtime_ns for path in broken.work_dir.rglob(layout.OUTCOME)}
    assert set(finished) == {one.name for one in items[:2]}
    finetune(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)
    assert all((broken.work_dir / name / layout.OUTCOME).stat().st_mtime_ns == at for name, at in finished.items())


@pytest.mark.parametrize(("how", "reason"), [(crash, KeyboardInterrupt), (stop, TerminatedError)])
def test_an_interrupted_prediction_keeps_what_is_finished_and_ends_with_the_same_bytes(
    data: Prepared, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], reason: type[BaseException]
) -> None:
    tuned = finetune_job(data, f"models-{reason.__name__}")
    finetune(tuned, ALONE)
    weights = tuned.out_dir / item().name / layout.MODEL
    whole, broken = (predict_job(data, weights, f"{name}-{reason.__name__}") for name in ("whole", "broken"))
    predict(whole, ALONE)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=2, how=how)  # a batch holds a split
        with pytest.raises(reason):
            predict(broken, ALONE)
    finished = sorted(path.name for path in broken.work_dir.iterdir())
    assert finished[0] == "part-0-0.parquet"
    assert len(finished) == (1 if how is crash else 2)
    with monkeypatch.context() as patch:
        interrupt(patch, after_calls=4 - len(finished), how=lambda: pytest.fail("predicted again"))
        predict(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)


def test_an_exploding_loss_is_told_and_not_kept(data: Prepared) -> None:
    with pytest.raises(BadInputError, match="lower learning_rate"):
        finetune(finetune_job(data, "exploding", item(learning_rate=1e30)), ALONE)


def test_fine_tuning_augments_radiographs_as_the_supplement_and_photographs_in_colour_too() -> None:
    base = {"num_steps": 1, "learning_rates": [0.1], "label_fractions": [1.0]}
    radiographs = augmentation(FinetuneConfig.model_validate(base))
    assert radiographs == augment.chexpert_supervised()  # A.2: the defaults
    colour = {"saturation": 0.2, "hue": 0.05, "blur_probability": 0.5}
    photographs = augmentation(FinetuneConfig.model_validate(base | colour))
    assert (photographs.saturation, photographs.hue, photographs.blur_p) == (0.2, 0.05, 0.5)
    assert not photographs.additive_brightness
    assert (photographs.rotation_deg, photographs.flip_p, photographs.crop_scale) == (20, 0.5, (0.08, 1.0))


def test_copies_of_an_image_in_one_batch_are_shown_differently(data: Prepared) -> None:
    job = finetune_job(data, "copies", item(), batch_size=40, num_steps=2)
    (data.folder / "copies").mkdir(exist_ok=True)
    trained = Finetuning(job, job.items[0], Cohorts.read(job), ALONE, data.folder / "copies")
    shown: dict[int, set[tuple[float, ...]]] = {}
    num_rows = 0
    for step in range(2):
        for rows in trained._plan(step):
            num_rows += len(rows.image_N)
            for image, crop in zip(rows.image_N.tolist(), rows.draws.crop.tolist(), strict=True):
                shown.setdefault(image, set()).add(tuple(crop))
    assert num_rows == 80
    assert sum(map(len, shown.values())) == 80
    assert max(map(len, shown.values())) >= 5  # of 16 images
