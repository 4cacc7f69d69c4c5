"""End-to-end fine-tuning on labels, with selection on validation only (spec 1.8).

Shape suffixes: N images, C channels, S pixels a side, K findings.
"""

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medssl import labels, layout, metrics, schema
from medssl.config import FinetuneConfig, TaskConfig, digest
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.model.losses import masked_bce
from medssl.model.networks import Classifier, ResNet
from medssl.progress import Progress, say
from medssl.shardset import Cohort, ShardSet
from medssl.store import write_json
from medssl.train import augment
from medssl.train.checkpoint import cpu_copy, load_state, load_weights, save_state, save_weights
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.history import History, write_history
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.loader import Images, finetune_batch_at
from medssl.train.optim import sgd_nesterov, warmup_cosine
from medssl.train.worker import run_worker

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Images of one split with the study's targets.

    Attributes:
        image_ids: One an image, in the order of the other fields.
        images: The pixels.
        targets_NK: 0 or 1, float.
        mask_NK: Whether the label is known.
    """

    image_ids: np.ndarray
    images: Images
    targets_NK: Tensor
    mask_NK: Tensor

    @classmethod
    def read(cls, job: FinetuneJob, split: str) -> "Labelled":
        """Decode the images of `split` and read their labels."""
        cohort = _cohort(job, split, None, 0)
        targets_NK, mask_NK = labels.targets(cohort.rows, job.task)
        image_ids = np.asarray(cohort.rows["image_id"].to_pylist())
        return cls(image_ids, Images.decode(cohort), torch.from_numpy(targets_NK), torch.from_numpy(mask_NK))


def finetune(job: FinetuneJob, ranks: Ranks) -> None:
    """Carry out every item of the job; `job.out_dir/<item name>/` then holds weights, curves and outcome.

    Items already finished in `job.work_dir` are not done again. Test images are never opened.

    Raises:
        BadInputError: A label fraction leaves no training image, or a loss is not finite.
        TerminatedError: SIGTERM came; finished items and the state of the present one are kept.
    """
    stop = StopRequest()
    train, validation = Labelled.read(job, "train"), Labelled.read(job, "validation")
    num_finished = sum((job.work_dir / item.name / layout.OUTCOME).is_file() for item in job.items)
    num_steps = job.settings.num_steps
    progress = Progress(f"finetune {job.arm}", len(job.items) * num_steps, unit="steps", done=num_finished * num_steps)
    for number, item in enumerate(job.items):
        work_dir = job.work_dir / item.name
        work_dir.mkdir(parents=True, exist_ok=True)
        if not (work_dir / layout.OUTCOME).is_file():
            one = _Finetuning(job, item, train, ranks, work_dir)
            one.run(validation, stop, progress, done_before=number * num_steps)
        if ranks.is_first:
            out_dir = job.out_dir / item.name
            out_dir.mkdir(parents=True, exist_ok=True)
            for name in (layout.MODEL, layout.HISTORY, layout.OUTCOME):
                shutil.copyfile(work_dir / name, out_dir / name)
        ranks.wait()


def item_seed(settings: FinetuneConfig, item: FinetuneItem) -> int:
    """Seed of an item's initial weights and batches: the same for every arm and every grid point."""
    return int(digest([settings.seed, item.draw, item.repeat])[:8], 16)


def predict_scores(
    model: Classifier, pixels_NCSS: Tensor, *, size_px: int, batch_size: int, device: torch.device
) -> np.ndarray:
    """Probabilities in [0, 1], float64, shape (N, K), of uint8 images; without augmentation."""
    model.eval()
    scores = []
    with torch.inference_mode():
        for pixels in pixels_NCSS.split(batch_size):
            images = augment.evaluation(pixels.to(device), size_px=size_px)
            scores.append(torch.sigmoid(model(images)).double().cpu().numpy())
    return np.concatenate(scores) if scores else np.empty((0, model.num_classes))


def _cohort(job: FinetuneJob, split: str, label_fraction: float | None, draw: int) -> Cohort:
    return Cohort.select(
        schema.read(job.inputs.index_path, schema.INDEX),
        schema.read(job.inputs.splits_path, schema.SPLIT_TABLE),
        ShardSet.open(job.inputs.shards_dir),
        split=split,
        label_fraction=label_fraction,
        draw=draw,
    )


class _Finetuning:
    """One item in training: its model, and the best weights so far by validation."""

    def __init__(self, job: FinetuneJob, item: FinetuneItem, train: Labelled, ranks: Ranks, work_dir: Path) -> None:
        """Start the item, or go on from the state in `work_dir`."""
        self.job, self.item, self.train, self.ranks, self.work_dir = job, item, train, ranks, work_dir
        self.name = f"{job.arm} {item.name}"
        self.seed = item_seed(job.settings, item)
        self.labelled = _cohort(job, "train", item.label_fraction, item.draw).rows
        self.image_N = np.flatnonzero(np.isin(train.image_ids, self.labelled["image_id"].to_numpy()))
        self.augmentation = _augmentation(job.settings)
        self.model = _classifier(job, self.seed)
        self.wrapped = ranks.wrap(self.model)
        self.optimizer = sgd_nesterov(
            self.model, lr=item.learning_rate, weight_decay=item.weight_decay, momentum=job.settings.momentum
        )
        self.step, self.history, self.best = 0, History(), _Best()
        if state := load_state(work_dir):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best = state["step"], _Best(**state["best"])
            self.history = [(m, s, v) for m, s, v in state["history"]]

    def run(self, validation: Labelled, stop: StopRequest, progress: Progress, *, done_before: int) -> None:
        """Train to the end and write weights, curves and outcome into the work folder."""
        settings = self.job.settings
        detail = f"{self.item.label_fraction:.0%} of labels, rate {self.item.learning_rate:g}"
        while self.step < settings.num_steps:
            loss = self._train_step()
            self.step += 1
            is_due = self.step % settings.evaluate_every_steps == 0 or self.step == settings.num_steps
            if is_due and not self._evaluate(validation, loss.item()):
                break
            if self.ranks.is_first:
                progress.update(done_before + self.step, detail)
            stopping = self.ranks.any(stop.requested)
            if self.ranks.is_first and (stopping or self.step % settings.checkpoint_every_steps == 0):
                self._save()
            if stopping:
                raise TerminatedError(f"finetune {self.name} stopped after step {self.step}; run again to go on")
        if self.ranks.is_first:
            self._keep()

    def _train_step(self) -> Tensor:
        """One optimiser step on this rank's part of the batch; returns its loss."""
        settings, device = self.job.settings, self.ranks.device
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(
                self.step, peak=self.item.learning_rate, warmup_steps=0, total_steps=settings.num_steps
            )
        batch = finetune_batch_at(
            self.step, num_images=self.image_N.size, batch_size=settings.batch_size, seed=self.seed
        )
        image_N = self.image_N[batch[self.ranks.rank :: self.ranks.world_size]]
        chosen = torch.from_numpy(image_N)
        images = augment.apply(
            self.train.images.pixels_NCSS[chosen].to(device),
            augmentation=self.augmentation,
            seed=self.seed,
            epoch=self.step,  # no two steps show an image alike, however small the label fraction
            index_N=image_N,
            view=0,
            size_px=settings.image_size_px,
        )
        self.wrapped.train()
        targets, mask = self.train.targets_NK[chosen].to(device), self.train.mask_NK[chosen].to(device)
        loss = masked_bce(self.wrapped(images), targets, mask) * self.ranks.weight_of(mask.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _evaluate(self, validation: Labelled, loss: float) -> bool:
        """Score validation and remember the weights if they are the best so far, or cannot be scored.

        Returns False where training has diverged: that ends a grid point of the search, which then has no score.

        Raises:
            BadInputError: A repeat diverged, whose settings the search had chosen.
        """
        scores_NK = _scores(self.model, validation, self.job, self.ranks)
        if not (math.isfinite(loss) and np.isfinite(scores_NK).all()):
            if self.item.repeat >= 0:
                raise BadInputError(f"finetune {self.name} diverged at step {self.step}; lower learning_rates")
            say(f"finetune {self.name}: diverged at step {self.step}; this grid point is rejected")
            self.best = _Best(None, self.step, cpu_copy(self.model.state_dict()))
            return False
        score = _mean_auc(scores_NK, validation, self.job.task)
        self.history.append(("loss", self.step, loss))
        if score is not None:
            self.history.append(("validation_mean_auc", self.step, score))
        if score is None or self.best.score is None or score > self.best.score:
            self.best = _Best(score, self.step, cpu_copy(self.model.state_dict()))
        return True

    def _save(self) -> None:
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(self.work_dir, state | {"history": self.history, "best": vars(self.best)})

    def _keep(self) -> None:
        """Write the best weights and the curves, then the outcome, whose presence means finished."""
        self.model.load_state_dict(self.best.weights)
        save_weights(self.model, self.work_dir / layout.MODEL)
        write_history(self.name, self.history, self.work_dir / layout.HISTORY)
        outcome = {
            **self.item.dump(),
            "arm_id": self.job.arm,
            "validation_score": self.best.score,
            "step": self.best.step,
            "num_train_images": self.labelled.num_rows,
            "num_train_patients": len(self.labelled["patient_id"].unique()),
        }
        write_json(self.work_dir / layout.OUTCOME, outcome)
        shown = "not evaluable" if self.best.score is None else f"{self.best.score:.3f}"
        say(f"finetune {self.name}: validation mean AUC {shown} at step {self.best.step}")


@dataclass
class _Best:
    """The weights that validation scored best; the latest where none could be scored."""

    score: float | None = None
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


def _classifier(job: FinetuneJob, seed: int) -> Classifier:
    torch.manual_seed(seed)
    encoder = ResNet(depth=job.encoder.depth, width=job.encoder.width, in_channels=job.channels)
    model = Classifier(encoder, num_classes=len(job.task.findings))
    if job.initial_dir is not None:
        load_weights(encoder, job.initial_dir / layout.ENCODER)
    return model


def _augmentation(settings: FinetuneConfig) -> augment.Augmentation:
    return replace(
        augment.chexpert_supervised(),
        crop_scale=(settings.crop_area_min, 1.0),
        rotation_deg=settings.rotation_deg,
        flip_p=settings.flip_probability,
        brightness=settings.brightness,
        contrast=settings.contrast,
        interpolation=settings.interpolation,
    )


def _scores(model: Classifier, validation: Labelled, job: FinetuneJob, ranks: Ranks) -> np.ndarray:
    return predict_scores(
        model,
        validation.images.pixels_NCSS,
        size_px=job.settings.image_size_px,
        batch_size=EVALUATION_BATCH,
        device=ranks.device,
    )


def _mean_auc(scores_NK: np.ndarray, validation: Labelled, task: TaskConfig) -> float | None:
    """Mean AUC over the findings that can be evaluated on validation; None where none can."""
    evaluations = {}
    for k, finding in enumerate(task.findings):
        known = validation.mask_NK[:, k].numpy()
        evaluations[finding] = metrics.evaluate_auc(validation.targets_NK[:, k].numpy()[known], scores_NK[known, k])
    return metrics.mean_auc(evaluations).value


if __name__ == "__main__":
    run_worker(finetune, FinetuneJob)
