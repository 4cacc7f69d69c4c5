"""Scores of frozen representations, and that asking for them changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from medssl import layout, schema
from medssl.config import PretrainRun, TaskConfig
from medssl.model.networks import ResNet
from medssl.train import probe
from medssl.train.jobs import Inputs, PretrainJob
from medssl.train.pretrain import pretrain
from medssl.train.probe import MAX_COST, Probe, Sample, linear, nearest_neighbours, represent
from tests.train.test_training import ALONE, TASK, Prepared, data, files_of, pretrain_job

__all__ = ["data"]  # the fixture

CPU = torch.device("cpu")


def with_task(job: PretrainJob, task: TaskConfig | None = TASK, **inputs: Path) -> PretrainJob:
    return job.model_copy(update={"task": task, "inputs": Inputs(**(vars(job.inputs) | inputs))})


def monitored(job: PretrainJob) -> dict[str, list[float]]:
    rows = schema.read(job.work_dir / layout.MONITORED, schema.HISTORY).to_pylist()
    return {name: [r["value"] for r in rows if r["metric"] == name] for name in {r["metric"] for r in rows}}


def test_a_probe_changes_no_byte_of_the_result(data: Prepared) -> None:
    plain = pretrain_job(data, "unprobed")
    pretrain(plain, ALONE)
    probed = with_task(pretrain_job(data, "probed"))
    probed = probed.model_copy(update={"run": probed.run.model_copy(update={"probe_every_steps": 2})})
    pretrain(probed, ALONE)
    assert files_of(probed.out_dir) == files_of(plain.out_dir)
    found = monitored(probed)
    for name in ("knn_validation_mean_auc", "linear_validation_mean_auc"):
        assert len(found[name]) == 4  # after steps 2, 4, 6 and the last, 7
        assert all(0 <= score <= 1 for score in found[name])
    assert not any(name.startswith(("knn", "linear")) for name in monitored(plain))


def test_probing_leaves_random_numbers_statistics_and_mode_alone(data: Prepared) -> None:
    prepared = Probe.prepare(with_task(pretrain_job(data, "state")))
    assert prepared is not None
    encoder = ResNet(depth=18, width=1 / 8, in_channels=1).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    prepared.scores(encoder, precision="float32", device=CPU)
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_a_representation_that_shows_the_finding_scores_fully(data: Prepared) -> None:
    """The finding is a bright left half: pixels themselves tell it."""
    prepared = Probe.prepare(with_task(pretrain_job(data, "pixels")))
    assert prepared is not None
    scores = prepared.scores(nn.Flatten(), precision="float32", device=CPU)
    assert scores == {"knn_validation_mean_auc": 1.0, "linear_validation_mean_auc": 1.0}


def test_samples_are_bounded_the_same_every_time_and_of_their_own_split(
    data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_task(pretrain_job(data, "bounded"))
    whole = Probe.prepare(job)
    assert whole is not None
    assert (len(whole.train), len(whole.validation)) == (16, 8)
    monkeypatch.setattr(probe, "MAX_TRAIN_IMAGES", 5)
    few, again = Probe.prepare(job), Probe.prepare(job)
    assert few is not None
    assert again is not None
    assert (len(few.train), len(few.validation)) == (5, 8)
    assert torch.equal(few.train.pixels_NSSC, again.train.pixels_NSSC)
    pixels = {image.numpy().tobytes() for image in whole.train.pixels_NSSC}
    assert {image.numpy().tobytes() for image in few.train.pixels_NSSC} < pixels
    assert not pixels & {image.numpy().tobytes() for image in whole.validation.pixels_NSSC}


def test_without_labels_or_validation_images_a_run_says_once_that_it_has_no_probe(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = schema.read(data.inputs.index_path, schema.INDEX)
    schema.write(index.drop_columns(["label:Edema"]), schema.INDEX, tmp_path / "index.parquet")
    splits = schema.read(data.inputs.splits_path, schema.SPLIT_TABLE)
    renamed = pa.array(["test" if split == "validation" else split for split in splits["split"].to_pylist()])
    at = splits.column_names.index("split")
    schema.write(splits.set_column(at, "split", renamed), schema.SPLIT_TABLE, tmp_path / "splits.parquet")
    for name, inputs, reason in (
        ("unlabelled", {"index_path": tmp_path / "index.parquet"}, "the data set has no labels"),
        ("unvalidated", {"splits_path": tmp_path / "splits.parquet"}, "there are no validation images"),
    ):
        pretrain(with_task(pretrain_job(data, name, num_steps=3), **inputs), ALONE)
        assert capsys.readouterr().out.count(f"no probe of the representation: {reason}") == 1


def test_left_to_itself_a_probe_costs_less_than_its_share(data: Prepared) -> None:
    prepared = Probe.prepare(with_task(pretrain_job(data, "cost")))
    assert prepared is not None
    for batch_size, world_size in ((8, 1), (64, 1), (64, 4), (4096, 8)):
        run = PretrainRun.model_validate(
            {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 7, "batch_size": batch_size}
        )
        job = pretrain_job(data, f"cost{batch_size}-{world_size}").model_copy(update={"run": run})
        steps = prepared.every_steps(job, world_size)
        forward_passes_of_training = steps * 3 * 2 * batch_size / world_size
        assert (16 + 8) / forward_passes_of_training <= MAX_COST
        assert steps == 1 or (16 + 8) / (forward_passes_of_training * (steps - 1) / steps) > MAX_COST / 2


def slow_neighbours(train: Any, targets: Any, mask: Any, query: Any, num: int) -> np.ndarray:
    scores = np.zeros((len(query), targets.shape[1]))
    for v, q in enumerate(query):
        cosines = [float(q @ t / np.linalg.norm(q) / np.linalg.norm(t)) for t in train]
        nearest = sorted(range(len(train)), key=lambda m: -cosines[m])[:num]
        for k in range(targets.shape[1]):
            known = [m for m in nearest if mask[m, k]]
            weights = [np.exp(cosines[m] / 0.07) for m in known]
            if known:
                scores[v, k] = sum(w * targets[m, k] for w, m in zip(weights, known, strict=True)) / sum(weights)
            else:
                scores[v, k] = targets[mask[:, k], k].mean()
    return scores


@pytest.mark.parametrize("known_share", [1.0, 0.7, 0.1])
def test_both_probes_follow_their_references(known_share: float) -> None:
    rng = np.random.default_rng(0)
    train, query = rng.normal(size=(40, 6)), rng.normal(size=(7, 6))
    targets = (rng.random((40, 3)) < 0.4).astype(float)
    mask = rng.random((40, 3)) < known_share
    mask[0] = True
    targets[~mask] = 0
    tensors = [torch.from_numpy(x) for x in (train, targets, mask, query)]
    found = nearest_neighbours(*tensors).numpy()
    np.testing.assert_allclose(found, slow_neighbours(train, targets, mask, query, 4), rtol=1e-9)
    prevalence = targets.sum(axis=0) / mask.sum(axis=0)
    centred = train - train.mean(axis=0)
    reference = Ridge(alpha=(centred**2).sum(axis=1).mean(), fit_intercept=False)
    reference.fit(centred, np.where(mask, targets - prevalence, 0))
    expected = reference.predict(query - train.mean(axis=0)) + prevalence
    np.testing.assert_allclose(linear(*tensors).numpy(), expected, rtol=1e-8)


def test_representations_that_coincide_give_the_prevalence() -> None:
    targets, mask = torch.tensor([[1.0], [0.0], [0.0], [0.0]]), torch.ones(4, 1, dtype=torch.bool)
    same = torch.full((4, 5), 0.3)
    torch.testing.assert_close(linear(same, targets, mask, same[:2]), torch.full((2, 1), 0.25))


def test_a_case_is_the_mean_of_its_images() -> None:
    pixels = torch.randint(0, 256, (5, 4, 4, 1), dtype=torch.uint8)
    sample = Sample(pixels, torch.tensor([1, 0, 1, 1, 0]), torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    found = represent(nn.Flatten(), sample, precision="float32", device=CPU)
    flat = pixels.flatten(1).double() / 255
    expected = torch.stack([(flat[1] + flat[4]) / 2, (flat[0] + flat[2] + flat[3]) / 3])
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
