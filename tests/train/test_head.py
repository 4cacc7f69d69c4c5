"""Fine-tuning of the head alone: a linear probe on representations that are computed once."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medssl import layout, schema
from medssl.imaging import Pixels
from medssl.model.networks import build_encoder
from medssl.train import augment
from medssl.train.checkpoint import save_weights
from medssl.train.cohorts import Cohorts
from medssl.train.distributed import Ranks
from medssl.train.finetune import finetune
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.loader import Images
from medssl.train.predict import predict
from medssl.train.start import Frozen
from tests.train.test_training import (
    ALONE,
    ENCODER,
    SIZE,
    Prepared,
    crash,
    data,
    files_of,
    finetune_job,
    item,
    predict_job,
)

__all__ = ["data"]  # the fixture

NUM_TRAIN, NUM_VALIDATION = 16, 8


def head_job(data: Prepared, name: str, *items: FinetuneItem, **settings: Any) -> FinetuneJob:
    """Training of heads on an encoder with weights of its own."""
    initial = data.folder / "encoder"
    initial.mkdir(exist_ok=True)
    torch.manual_seed(3)
    save_weights(build_encoder(ENCODER, image_channels=1), initial / layout.ENCODER)
    job = finetune_job(data, name, *items, trainable="head", **settings)
    return job.model_copy(update={"initial_dir": initial})


def test_a_head_follows_gradient_descent_on_the_representations_and_the_encoder_stays(data: Prepared) -> None:
    """With all images in each batch, the steps are those of Nesterov's descent on a logistic regression."""
    rate, decay, momentum = 0.5, 0.01, 0.9
    settings = {"num_steps": 3, "batch_size": NUM_TRAIN, "evaluate_every_steps": 3, "momentum": momentum}
    own = item(learning_rate=rate, weight_decay=decay)
    job = head_job(data, "descent", own, **settings)
    finetune(job, ALONE)
    found = load_file(job.out_dir / own.name / layout.MODEL)
    assert job.initial_dir is not None
    given = load_file(job.initial_dir / layout.ENCODER)
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in given.items())

    cohorts = Cohorts.read(job)
    x = Frozen.compute(job, cohorts, ALONE, 0).train_ND.double().numpy()
    y = cohorts.train.labelled.targets_MK.astype(np.float64)
    first = finetune_job(data, "start", own, **settings, trainable="head").model_copy(
        update={"initial_dir": job.initial_dir, "settings": job.settings.model_copy(update={"num_steps": 1})}
    )
    tiny = item(learning_rate=1e-30)  # leaves the head as it was drawn
    finetune(first.model_copy(update={"items": (tiny,)}), ALONE)
    start = load_file(first.out_dir / tiny.name / layout.MODEL)
    weights = np.concatenate([start["head.weight"].double().numpy()[0], start["head.bias"].double().numpy()])
    design = np.hstack([x, np.ones((len(x), 1))])
    buffer = np.zeros_like(weights)
    for step in range(3):
        gradient = design.T @ (1 / (1 + np.exp(-design @ weights)) - y[:, 0]) / len(y) + decay * weights
        buffer = momentum * buffer + gradient
        weights = weights - rate * (1 + np.cos(np.pi * step / 3)) / 2 * (gradient + momentum * buffer)
    ours = np.concatenate([found["head.weight"].numpy()[0], found["head.bias"].numpy()])
    np.testing.assert_allclose(ours, weights, rtol=1e-5, atol=1e-6)


def test_every_image_passes_the_encoder_once_however_many_heads_are_trained(
    data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = augment.evaluate

    def counting(image_HWC: Pixels, **options: Any) -> None:
        calls.append(image_HWC.shape)
        real(image_HWC, **options)

    monkeypatch.setattr(augment, "evaluate", counting)
    finetune(head_job(data, "once", item(), item(repeat=1), item(learning_rate=0.3)), ALONE)
    assert len(calls) == NUM_TRAIN + NUM_VALIDATION


def test_a_head_that_is_predicted_with_scores_validation_as_in_training(data: Prepared) -> None:
    job = head_job(data, "scored")
    finetune(job, ALONE)
    outcome = json.loads((job.out_dir / item().name / layout.OUTCOME).read_text())
    predicted = predict_job(data, job.out_dir / item().name / layout.MODEL, "head")
    predict(predicted, ALONE)
    table = schema.read(predicted.out_dir / layout.PREDICTIONS, schema.PREDICTIONS)
    rows = [row for row in table.to_pylist() if row["split"] == "validation"]
    positives, negatives = ([r["y_score"] for r in rows if r["y_true"] == truth] for truth in (1, 0))
    wins = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert outcome["validation_score"] == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_an_interrupted_training_of_heads_ends_with_the_same_bytes(
    data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = item(), item(repeat=1)
    whole, broken = (head_job(data, f"{name}-head", *items) for name in ("whole", "broken"))
    finetune(whole, ALONE)
    with monkeypatch.context() as patch:
        real, calls = torch.nn.Linear.forward, [0]

        def counting(self: torch.nn.Linear, input_ND: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            if calls[0] == 7 + 3 + 5:  # after seven steps and three evaluations: in the second item
                crash()
            return real(self, input_ND)

        patch.setattr(torch.nn.Linear, "forward", counting)
        with pytest.raises(KeyboardInterrupt):
            finetune(broken, ALONE)
    finetune(broken, ALONE)
    assert files_of(broken.out_dir) == files_of(whole.out_dir)


def test_random_encoders_differ_between_seeds_and_each_head_has_its_own(data: Prepared) -> None:
    items = item(), item(repeat=1)
    job = head_job(data, "random", *items).model_copy(update={"initial_dir": None})
    finetune(job, ALONE)
    first, second = (load_file(job.out_dir / one.name / layout.MODEL) for one in items)
    assert not torch.equal(first["encoder.stem.0.weight"], second["encoder.stem.0.weight"])
    alone = head_job(data, "second", items[1]).model_copy(update={"initial_dir": None})
    finetune(alone, ALONE)
    assert all(second[k].equal(v) for k, v in load_file(alone.out_dir / items[1].name / layout.MODEL).items())


def test_ranks_share_the_images_and_each_gets_all_representations(data: Prepared) -> None:
    job = head_job(data, "ranks")
    cohorts = Cohorts.read(job)
    whole = Frozen.compute(job, cohorts, ALONE, 0)
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}

    class Gathering(Ranks):
        """Three ranks one after the other; the last one gathers what the others had."""

        def gather(self, z_ND: torch.Tensor) -> torch.Tensor:
            own = seen[self.rank]
            own.append(z_ND)
            return torch.cat([seen[rank][len(own) - 1] if rank <= self.rank else z_ND for rank in range(3)])

    for rank in range(3):
        frozen = Frozen.compute(job, cohorts, Gathering(rank, 3, ALONE.device), 0)
    for found, expected in ((frozen.train_ND, whole.train_ND), (frozen.validation_ND, whole.validation_ND)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [len(rows) for rows in seen[0]] == [6, 3]  # of 16 and 8 images


def test_a_head_sees_the_images_without_augmentation(data: Prepared) -> None:
    """A probe sees the images as evaluation does: its representations are those of the plain images."""
    job = head_job(data, "plain")
    cohorts = Cohorts.read(job)
    found = Frozen.compute(job, cohorts, ALONE, 0).train_ND
    torch.manual_seed(3)
    encoder = build_encoder(ENCODER, image_channels=1).eval()
    images = Images(cohorts.train.images.cohort)
    plain = np.stack([images.pixels(n) for n in range(NUM_TRAIN)])  # stored at the size of training
    assert plain.shape == (NUM_TRAIN, SIZE, SIZE, 1)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(plain).permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
