"""End-to-end fine-tuning on labels, with selection on validation only (spec 1.8).

Shape suffixes: N images, M units (images or cases), C channels, S pixels a side, K findings or conditions.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medssl import labels, layout, metrics, schema
from medssl.config import FinetuneConfig, Precision, TaskConfig, digest
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.model.losses import masked_bce, set_cross_entropy
from medssl.model.networks import Classifier, build_encoder
from medssl.progress import Progress, say
from medssl.shardset import Cohort, ShardSet, permutation
from medssl.store import write_json
from medssl.train import augment
from medssl.train.batches import Batches, Rows
from medssl.train.checkpoint import cpu_copy, load_state, load_weights, save_state, save_weights
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.history import History, write_history
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.loader import Images, finetune_batch_at
from medssl.train.optim import sgd_nesterov, warmup_cosine
from medssl.train.precision import autocast
from medssl.train.resources import cache_bytes
from medssl.train.worker import run_worker

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Cohorts:
    """The tables and images that all items of a job share.

    Attributes:
        classes: What is predicted.
        train: Images and truth of the whole training split.
        validation: The same of validation.
        fraction: Rows of the index that a label fraction and draw of the training split holds.
    """

    classes: tuple[str, ...]
    train: "Split"
    validation: "Split"
    fraction: Callable[[float, int], pa.Table]

    @classmethod
    def read(cls, job: FinetuneJob) -> Self:
        """Read the tables, and open the images of train and validation; test images are not opened."""
        index = schema.read(job.inputs.index_path, schema.INDEX)
        splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
        shards = ShardSet.open(job.inputs.shards_dir)
        classes = labels.classes(index, splits, job.task)
        select = partial(Cohort.select, index, splits, shards)
        max_bytes = cache_bytes()
        train = Split.open(select(split="train"), job.task, classes, max_bytes=max_bytes)
        rest = max_bytes - train.images.num_bytes_kept
        validation = Split.open(select(split="validation"), job.task, classes, max_bytes=rest)

        def fraction(label_fraction: float, draw: int) -> pa.Table:
            return select(split="train", label_fraction=label_fraction, draw=draw).rows

        return cls(classes, train, validation, fraction)

    def units_of(self, item: FinetuneItem) -> np.ndarray:
        """Numbers of the training units with a known label in the item's label fraction, ascending."""
        chosen = self.fraction(item.label_fraction, item.draw)["image_id"].to_numpy()
        labelled = self.train.labelled
        units = np.unique(labelled.unit_N[np.isin(self.train.rows["image_id"].to_numpy(), chosen)])
        known = units[labelled.mask_MK[units].any(axis=1)]
        if not known.size:
            raise BadInputError(f"finetune.label_fractions: {item.label_fraction:g} holds no known label; raise it")
        return known


@dataclass(frozen=True)
class Split:
    """Images of one split with the truth of what is classified: M images, or M cases of several images.

    Attributes:
        images: The pixels, in the order of `rows`.
        rows: Rows of the index.
        labelled: The units and their truth.
        images_of: Numbers of the images of each unit, M arrays.
    """

    images: Images
    rows: pa.Table
    labelled: labels.Labelled
    images_of: list[np.ndarray]

    @classmethod
    def open(cls, cohort: Cohort, task: TaskConfig, classes: tuple[str, ...], *, max_bytes: int | None = None) -> Self:
        """Open the images of a cohort, decoded where they take at most `max_bytes`, and read their truth."""
        labelled = labels.labelled(cohort.rows, task, classes)
        by_unit = np.argsort(labelled.unit_N, kind="stable")
        ends = np.cumsum(np.bincount(labelled.unit_N, minlength=labelled.ids.size))
        return cls(Images(cohort, max_bytes=max_bytes), cohort.rows, labelled, np.split(by_unit, ends[:-1]))


def finetune(job: FinetuneJob, ranks: Ranks) -> None:
    """Carry out every item of the job; `job.out_dir/<item name>/` then holds weights, curves and outcome.

    Items already finished in `job.work_dir` are not done again. Test images are never opened.

    Raises:
        BadInputError: A label fraction leaves no training image, or a loss is not finite.
        TerminatedError: SIGTERM came; finished items and the state of the present one are kept.
    """
    stop = StopRequest()
    cohorts = Cohorts.read(job)
    num_finished = sum((job.work_dir / item.name / layout.OUTCOME).is_file() for item in job.items)
    num_steps = job.settings.num_steps
    progress = Progress(f"finetune {job.arm}", len(job.items) * num_steps, unit="steps", done=num_finished * num_steps)
    for number, item in enumerate(job.items):
        work_dir = job.work_dir / item.name
        work_dir.mkdir(parents=True, exist_ok=True)
        if not (work_dir / layout.OUTCOME).is_file():
            one = _Finetuning(job, item, cohorts, ranks, work_dir)
            one.run(stop, progress, done_before=number * num_steps)
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
    model: Classifier, split: Split, *, size_px: int, batch_size: int, precision: Precision, device: torch.device
) -> np.ndarray:
    """Probabilities in [0, 1] of each unit of `split`, float64, shape (M, K); without augmentation.

    Those of findings are independent; those of conditions sum to 1.
    """
    model.eval()
    is_case = split.labelled.kind == "case"
    groups = list(_batches(split.images_of, batch_size))

    def plan(step: int) -> list[Rows]:
        image_N = np.concatenate([split.images_of[unit] for unit in groups[step]])
        return [Rows(np.arange(len(image_N)), image_N)]

    scores = []
    batches = Batches(split.images, plan, steps=range(len(groups)), size_px=size_px, device=device)
    with torch.inference_mode(), batches:
        for units, batch_NSSC in zip(groups, batches, strict=True):
            fusion_MN = fusion([len(split.images_of[unit]) for unit in units], device) if is_case else None
            with autocast(precision, device):
                logits_MK = model(augment.to_unit(batch_NSSC, device), fusion_MN)
            probabilities_MK = logits_MK.double().softmax(dim=1) if is_case else torch.sigmoid(logits_MK).double()
            scores.append(probabilities_MK.cpu().numpy())
    return np.concatenate(scores) if scores else np.empty((0, model.num_classes))


def fusion(num_images_M: Sequence[int], device: torch.device) -> Tensor:
    """Weight of each image in each case, shape (M, N): the mean over the images of a case, which follow each other."""
    lengths = torch.tensor(list(num_images_M))
    case_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    weights_MN = torch.zeros(len(lengths), len(case_N))
    weights_MN[case_N, torch.arange(len(case_N))] = 1 / lengths[case_N]
    return weights_MN.to(device)


def _batches(images_of: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Consecutive units whose images fill a batch; at least one unit each."""
    batch: list[int] = []
    num_images = 0
    for unit, images in enumerate(images_of):
        if batch and num_images + len(images) > batch_size:
            yield batch
            batch, num_images = [], 0
        batch.append(unit)
        num_images += len(images)
    if batch:
        yield batch


class _Finetuning:
    """One item in training: its model, and the best weights so far by validation."""

    def __init__(self, job: FinetuneJob, item: FinetuneItem, cohorts: Cohorts, ranks: Ranks, work_dir: Path) -> None:
        """Start the item, or go on from the state in `work_dir`."""
        self.job, self.item, self.cohorts, self.ranks, self.work_dir = job, item, cohorts, ranks, work_dir
        self.name = f"{job.arm} {item.name}"
        self.seed = item_seed(job.settings, item)
        self.unit_M = cohorts.units_of(item)
        self.targets_MK = torch.from_numpy(cohorts.train.labelled.targets_MK)
        self.mask_MK = torch.from_numpy(cohorts.train.labelled.mask_MK)
        self.augmentation = _augmentation(job.settings)
        self.model = _classifier(job, len(cohorts.classes), self.seed)
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

    def run(self, stop: StopRequest, progress: Progress, *, done_before: int) -> None:
        """Train to the end and write weights, curves and outcome into the work folder."""
        with self._batches() as batches:
            self._train(batches, stop, progress, done_before)
        if self.ranks.is_first:
            self._keep()

    def _train(self, batches: Batches, stop: StopRequest, progress: Progress, done_before: int) -> None:
        """Carry out the steps that remain."""
        settings = self.job.settings
        detail = f"{self.item.label_fraction:.0%} of labels, rate {self.item.learning_rate:g}"
        while self.step < settings.num_steps:
            loss = self._train_step(augment.to_unit(next(batches), self.ranks.device))
            self.step += 1
            is_due = self.step % settings.evaluate_every_steps == 0 or self.step == settings.num_steps
            if is_due and not self._evaluate(loss.item()):
                break
            if self.ranks.is_first:
                speed = f"{batches.images_per_s:.4g} images/s, {batches.data_wait_share:.0%} waiting for images"
                progress.update(done_before + self.step, f"{detail}, {speed}")
            stopping = self.ranks.any(stop.requested)
            if self.ranks.is_first and (stopping or self.step % settings.checkpoint_every_steps == 0):
                self._save()
            if stopping:
                raise TerminatedError(f"finetune {self.name} stopped after step {self.step}; run again to go on")

    def _batches(self) -> Batches:
        """The images of this rank's part of every batch that remains."""
        settings = self.job.settings
        return Batches(
            self.cohorts.train.images,
            self._plan,
            steps=range(self.step, settings.num_steps),
            size_px=settings.image_size_px,
            device=self.ranks.device,
        )

    def _plan(self, step: int) -> list[Rows]:
        image_N = np.concatenate([self._seen(unit, step) for unit in self._units(step).tolist()])
        keys = {"seed": self.seed, "epoch": step, "view": 0}  # no two steps show an image alike, however few there are
        return [Rows.drawn(self.cohorts.train.images, np.arange(len(image_N)), image_N, self.augmentation, **keys)]

    def _units(self, step: int) -> np.ndarray:
        """This rank's units of the batch at `step`."""
        batch_size = self.job.settings.batch_size
        batch = finetune_batch_at(step, num_units=self.unit_M.size, batch_size=batch_size, seed=self.seed)
        units: np.ndarray = self.unit_M[batch[self.ranks.rank :: self.ranks.world_size]]
        return units

    def _seen(self, unit: int, step: int) -> np.ndarray:
        """The images of a unit that a step sees: all, or as many at random as a case may show."""
        own, most = self.cohorts.train.images_of[unit], self.job.task.max_images_per_case
        if len(own) <= most:
            return own
        return own[np.sort(permutation(len(own), seed=self.seed + unit, epoch=step)[:most])]

    def _train_step(self, images: Tensor) -> Tensor:
        """One optimiser step on the images of this rank's part of the batch; returns its loss."""
        settings, device = self.job.settings, self.ranks.device
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(
                self.step, peak=self.item.learning_rate, warmup_steps=0, total_steps=settings.num_steps
            )
        unit_M = self._units(self.step)
        self.wrapped.train()
        chosen = torch.from_numpy(unit_M)
        targets_MK, mask_MK = self.targets_MK[chosen].to(device), self.mask_MK[chosen].to(device)
        if self.cohorts.train.labelled.kind == "case":
            num_images_M = [len(self._seen(unit, self.step)) for unit in unit_M.tolist()]
            with autocast(settings.precision, device):
                logits_MK = self.wrapped(images, fusion(num_images_M, device))
            known_M = mask_MK[:, 0]
            loss = set_cross_entropy(logits_MK, targets_MK, known_M) * self.ranks.weight_of(known_M.sum())
        else:
            with autocast(settings.precision, device):
                logits_MK = self.wrapped(images)
            loss = masked_bce(logits_MK, targets_MK, mask_MK) * self.ranks.weight_of(mask_MK.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _evaluate(self, loss: float) -> bool:
        """Score validation and remember the weights if they are the best so far, or cannot be scored.

        Returns False where training has diverged: that ends a grid point of the search, which then has no score.

        Raises:
            BadInputError: A repeat diverged, whose settings the search had chosen.
        """
        validation = self.cohorts.validation
        scores_MK = predict_scores(
            self.model,
            validation,
            size_px=self.job.settings.image_size_px,
            batch_size=EVALUATION_BATCH,
            precision=self.job.settings.precision,
            device=self.ranks.device,
        )
        if not (math.isfinite(loss) and np.isfinite(scores_MK).all()):
            if self.item.repeat >= 0:
                raise BadInputError(f"finetune {self.name} diverged at step {self.step}; lower learning_rates")
            say(f"finetune {self.name}: diverged at step {self.step}; this grid point is rejected")
            self.best = _Best(None, self.step, cpu_copy(self.model.state_dict()))
            return False
        score = _validation_score(scores_MK, validation.labelled, self.cohorts.classes)
        self.history.append(("loss", self.step, loss))
        if score is not None:
            self.history.append((f"validation_{self.job.task.selection_metric}", self.step, score))
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
        train = self.cohorts.train
        rows = train.rows.filter(pa.array(np.isin(train.labelled.unit_N, self.unit_M)))
        outcome = {
            **self.item.dump(),
            "arm_id": self.job.arm,
            "validation_score": self.best.score,
            "step": self.best.step,
            "num_train_images": rows.num_rows,
            "num_train_patients": len(rows["patient_id"].unique()),
        }
        write_json(self.work_dir / layout.OUTCOME, outcome)
        metric = self.job.task.selection_metric.replace("_", " ").replace("auc", "AUC")
        shown = "not evaluable" if self.best.score is None else f"{self.best.score:.3f}"
        say(f"finetune {self.name}: validation {metric} {shown} at step {self.best.step}")


@dataclass
class _Best:
    """The weights that validation scored best; the latest where none could be scored."""

    score: float | None = None
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


def _classifier(job: FinetuneJob, num_classes: int, seed: int) -> Classifier:
    """The network that an item starts from."""
    torch.manual_seed(seed)
    encoder = build_encoder(job.encoder, image_channels=job.channels)
    model = Classifier(encoder, num_classes=num_classes)
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


def _validation_score(scores_MK: np.ndarray, labelled: labels.Labelled, classes: tuple[str, ...]) -> float | None:
    """The primary metric; None where it cannot be evaluated."""
    truth_MK = np.where(labelled.mask_MK, labelled.targets_MK.astype(np.float64), np.nan)
    return metrics.primary(truth_MK, scores_MK, kind=labelled.kind, classes=classes).value


if __name__ == "__main__":
    run_worker(finetune, FinetuneJob)
