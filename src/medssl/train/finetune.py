"""Fine-tuning on labels, end to end or of the head alone, with selection on validation only (spec 1.8).

Shape suffixes: N images, M units (images or cases), W ranks, C channels, S pixels a side, D representation, K findings
or conditions.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from medssl import labels, layout, metrics
from medssl.config import FinetuneConfig
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.model.losses import masked_bce, set_cross_entropy
from medssl.progress import Progress, say
from medssl.shardset import permutation
from medssl.store import write_json
from medssl.train import augment
from medssl.train.batches import Batches, Rows
from medssl.train.checkpoint import cpu_copy, forget_state, load_state, save_state, save_weights
from medssl.train.cohorts import Cohorts
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.history import History, write_history
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.loader import finetune_batch_at
from medssl.train.optim import sgd_nesterov, warmup_cosine
from medssl.train.precision import autocast
from medssl.train.scoring import EVALUATION_BATCH, fusion, predict_head_scores, predict_scores
from medssl.train.start import Frozen, frozen_encoders, initial_classifier, item_seed
from medssl.train.worker import run_worker


def finetune(job: FinetuneJob, ranks: Ranks) -> None:
    """Carry out every item of the job; `job.out_dir/<item name>/` then holds weights, curves and outcome.

    Items already finished in `job.work_dir` are not done again. Test images are never opened.

    Raises:
        BadInputError: A label fraction leaves no training image, or a loss is not finite.
        TerminatedError: SIGTERM came; finished items and the state of the present one are kept.
    """
    stop = StopRequest()
    cohorts = Cohorts.read(job)
    num_finished = sum(_is_finished(job, item) for item in job.items)
    num_steps = job.settings.num_steps
    progress = Progress(f"finetune {job.arm}", len(job.items) * num_steps, unit="steps", done=num_finished * num_steps)
    frozen_of = frozen_encoders(job, cohorts, ranks)
    for number, item in enumerate(job.items):
        work_dir = job.work_dir / item.name
        work_dir.mkdir(parents=True, exist_ok=True)
        if not _is_finished(job, item):
            one = Finetuning(job, item, cohorts, ranks, work_dir, frozen_of(item))
            one.run(stop, progress, done_before=number * num_steps)
        if ranks.is_first:
            forget_state(work_dir)  # as large as several models, and there may be many items
            out_dir = job.out_dir / item.name
            out_dir.mkdir(parents=True, exist_ok=True)
            for name in (layout.MODEL, layout.HISTORY, layout.OUTCOME)[0 if job.keeps_weights else 1 :]:
                shutil.copyfile(work_dir / name, out_dir / name)
        ranks.wait()


def _is_finished(job: FinetuneJob, item: FinetuneItem) -> bool:
    return (job.work_dir / item.name / layout.OUTCOME).is_file()


class Finetuning:
    """One item in training: its model, and the best weights so far by validation.

    Attributes:
        model: Encoder and head.
        trained: What the optimiser moves: the model, or its head alone.
        step: Steps done.
    """

    def __init__(
        self,
        job: FinetuneJob,
        item: FinetuneItem,
        cohorts: Cohorts,
        ranks: Ranks,
        work_dir: Path,
        frozen: Frozen | None = None,
    ) -> None:
        """Start the item, or go on from the state in `work_dir`; with `frozen`, its head alone is trained."""
        self.job, self.item, self.cohorts, self.ranks, self.work_dir = job, item, cohorts, ranks, work_dir
        self.name = f"{job.arm} {item.name}"
        self.seed = item_seed(job.settings, item)
        self.unit_M = cohorts.units_of(item)
        self.targets_MK = torch.from_numpy(cohorts.train.labelled.targets_MK)
        self.mask_MK = torch.from_numpy(cohorts.train.labelled.mask_MK)
        self.augmentation = augmentation(job.settings)
        self.model = initial_classifier(job, len(cohorts.classes), self.seed).to(ranks.device)
        self.frozen = frozen
        self.trained: nn.Module = self.model if frozen is None else self.model.head
        # A head is little work: every rank trains it on whole batches, and no gradient travels.
        self.network: nn.Module = ranks.wrap(self.model) if frozen is None else self.model.head
        self.share = slice(ranks.rank, None, ranks.world_size) if frozen is None else slice(None)
        self.optimizer = sgd_nesterov(
            self.trained, lr=item.learning_rate, weight_decay=item.weight_decay, momentum=job.settings.momentum
        )
        self.step, self.history, self.best = 0, History(), _Best()
        if state := load_state(work_dir):
            self.trained.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best = state["step"], _Best(**state["best"])
            self.history = [(m, s, v) for m, s, v in state["history"]]

    def run(self, stop: StopRequest, progress: Progress, *, done_before: int) -> None:
        """Train to the end and write weights, curves and outcome into the work folder."""
        if self.ranks.is_first:
            say(f"finetune {self.name}: {len(self.unit_M)} units, from step {self.step}")
        with self.inputs() as (inputs, speed):
            self._train(inputs, speed, stop, progress, done_before)
        if self.ranks.is_first:
            self._keep()

    @contextmanager
    def inputs(self) -> Iterator[tuple[Iterator[Tensor], Callable[[], str]]]:
        """What the network takes at each step that remains, on the device; and a word on how fast it comes."""
        device = self.ranks.device
        if self.frozen is not None:
            train_ND, steps = self.frozen.train_ND, range(self.step, self.job.settings.num_steps)
            yield (train_ND[torch.from_numpy(self._images(step))].to(device) for step in steps), lambda: ""
            return
        with self._batches() as batches:

            def speed() -> str:
                return f", {batches.images_per_s:.4g} images/s, {batches.data_wait_share:.0%} waiting for images"

            yield (augment.to_unit(batch_NSSC, device) for batch_NSSC in batches), speed

    def _train(
        self,
        inputs: Iterator[Tensor],
        speed: Callable[[], str],
        stop: StopRequest,
        progress: Progress,
        done_before: int,
    ) -> None:
        """Carry out the steps that remain."""
        settings = self.job.settings
        detail = f"{self.item.label_fraction:.0%} of labels, rate {self.item.learning_rate:g}"
        while self.step < settings.num_steps:
            loss = self.train_step(next(inputs))
            is_due = self.step % settings.evaluate_every_steps == 0 or self.step == settings.num_steps
            if is_due and not self._evaluate(loss.item()):
                break
            if self.ranks.is_first:
                progress.update(done_before + self.step, f"{detail}{speed()}")
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
        unit_M, epoch_M = self._units(step)
        image_N = self._images(step)
        epoch_N = np.repeat(epoch_M, [self._num_seen(unit) for unit in unit_M.tolist()])
        # By epoch and not by step: of few images several copies are in a batch, and none of them is shown alike.
        return [
            Rows.drawn(
                self.cohorts.train.images,
                np.flatnonzero(epoch_N == epoch),
                image_N[epoch_N == epoch],
                self.augmentation,
                seed=self.seed,
                epoch=epoch,
                view=0,
            )
            for epoch in np.unique(epoch_M).tolist()
        ]

    def _images(self, step: int) -> np.ndarray:
        """The images that this rank's units of the batch at `step` show, those of a case one after the other."""
        return np.concatenate([self._seen(*one) for one in zip(*self._units(step), strict=True)])

    def _units(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's units of the batch at `step`, and the epoch of each."""
        batch_size = self.job.settings.batch_size
        batch_M, epoch_M = finetune_batch_at(step, num_units=self.unit_M.size, batch_size=batch_size, seed=self.seed)
        return self.unit_M[batch_M[self.share]], epoch_M[self.share]

    def _num_seen(self, unit: int) -> int:
        """Images of a unit that a step sees: all, or as many as a case may show."""
        return min(len(self.cohorts.train.images_of[unit]), self.job.task.max_images_per_case)

    def _seen(self, unit: int, epoch: int) -> np.ndarray:
        """These images, drawn anew in each epoch where the unit has more."""
        own, num = self.cohorts.train.images_of[unit], self._num_seen(unit)
        return own if num == len(own) else own[np.sort(permutation(len(own), seed=self.seed + unit, epoch=epoch)[:num])]

    def train_step(self, input_ND: Tensor) -> Tensor:
        """One optimiser step on this rank's part of the batch, images or their representations; returns its loss."""
        settings, device = self.job.settings, self.ranks.device
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(
                self.step, peak=self.item.learning_rate, warmup_steps=0, total_steps=settings.num_steps
            )
        unit_M, _ = self._units(self.step)
        self.network.train()
        chosen = torch.from_numpy(unit_M)
        targets_MK, mask_MK = self.targets_MK[chosen].to(device), self.mask_MK[chosen].to(device)
        if self.cohorts.train.labelled.kind == "case":
            num_images_M = [self._num_seen(unit) for unit in unit_M.tolist()]
            with autocast(settings.precision, device):
                logits_MK = self.network(input_ND, fusion(num_images_M, device))
            known_M = mask_MK[:, 0]
            loss = set_cross_entropy(logits_MK, targets_MK, known_M) * self.ranks.weight_of(known_M.sum())
        else:
            with autocast(settings.precision, device):
                logits_MK = self.network(input_ND)
            loss = masked_bce(logits_MK, targets_MK, mask_MK) * self.ranks.weight_of(mask_MK.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _evaluate(self, loss: float) -> bool:
        """Score validation and remember the weights if they are the best so far, or cannot be scored.

        Returns False where training has diverged: that ends a grid point of the search, which then has no score.

        Raises:
            BadInputError: A repeat diverged, whose settings the search had chosen.
        """
        scores_MK = self._validate()
        if not (math.isfinite(loss) and np.isfinite(scores_MK).all()):
            if self.item.repeat >= 0:
                raise BadInputError(f"finetune {self.name} diverged at step {self.step}; lower learning_rates")
            say(f"finetune {self.name}: diverged at step {self.step}; this grid point is rejected")
            self.best = _Best(None, self.step)
            return False
        score = _validation_score(scores_MK, self.cohorts.validation.labelled, self.cohorts.classes)
        self.history.append(("loss", self.step, loss))
        if score is not None:
            self.history.append((f"validation_{self.job.task.selection_metric}", self.step, score))
        if score is None or self.best.score is None or score > self.best.score:
            weights = cpu_copy(self.trained.state_dict()) if self.job.keeps_weights else {}
            self.best = _Best(score, self.step, weights)
        return True

    def _validate(self) -> np.ndarray:
        """Probabilities of the validation units, shape (M, K)."""
        settings, validation, device = self.job.settings, self.cohorts.validation, self.ranks.device
        if self.frozen is not None:
            return predict_head_scores(self.model.head, validation, self.frozen.validation_ND, device=device)
        return predict_scores(
            self.model,
            validation,
            size_px=settings.image_size_px,
            batch_size=EVALUATION_BATCH,
            precision=settings.precision,
            ranks=self.ranks,
        )

    def _save(self) -> None:
        state = {"step": self.step, "trained": self.trained.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(self.work_dir, state | {"history": self.history, "best": vars(self.best)})

    def _keep(self) -> None:
        """Write the best weights and the curves, then the outcome, whose presence means finished."""
        if self.job.keeps_weights:
            self.trained.load_state_dict(self.best.weights)
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
    """The weights that validation scored best; the latest where none could be scored, {} where none are kept."""

    score: float | None = None
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


def augmentation(settings: FinetuneConfig) -> augment.Augmentation:
    """What is drawn for each image of a training step: by default the supplement's set for radiographs (A.2)."""
    return replace(
        augment.chexpert_supervised(),
        crop_scale=(settings.crop_area_min, 1.0),
        rotation_deg=settings.rotation_deg,
        flip_p=settings.flip_probability,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
        additive_brightness=not (settings.saturation or settings.hue),
        blur_p=settings.blur_probability,
        interpolation=settings.interpolation,
    )


def _validation_score(scores_MK: np.ndarray, labelled: labels.Labelled, classes: tuple[str, ...]) -> float | None:
    """The primary metric; None where it cannot be evaluated."""
    truth_MK = np.where(labelled.mask_MK, labelled.targets_MK.astype(np.float64), np.nan)
    return metrics.primary(truth_MK, scores_MK, kind=labelled.kind, classes=classes).value


if __name__ == "__main__":
    run_worker(finetune, FinetuneJob)
