"""Pretraining without labels: SimCLR, and MICLe, whose positive pairs are two images of one case or patient.

Shape suffixes: N images of this rank's batch, C channels, S pixels a side, D projection.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medssl import layout, schema
from medssl.config import PretrainRun
from medssl.exit_codes import TerminatedError
from medssl.model.encoder import Encoder
from medssl.model.networks import ProjectionHead, build_encoder
from medssl.progress import Progress, say
from medssl.shardset import Cohort, ShardSet, whole
from medssl.train import augment, contrastive
from medssl.train.batches import Batches, Rows
from medssl.train.checkpoint import load_state, load_weights, save_state, save_weights
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.history import History, from_state, last, write_history
from medssl.train.jobs import Inputs, PretrainJob
from medssl.train.loader import Bags, Images, batch_at
from medssl.train.monitors import (
    MAX_STEPS_UNCHECKED,
    NUM_HISTORY_POINTS,
    Divergence,
    Throughput,
    measure,
    watch_collapse,
)
from medssl.train.optim import lars, scaled_learning_rate, warmup_cosine
from medssl.train.probe import Probe
from medssl.train.worker import run_worker


@dataclass(frozen=True)
class Pairs:
    """Where the two views of each unit come from."""

    images: Images
    run: PretrainRun
    bags: Bags | None

    @classmethod
    def of(cls, images: Images, run: PretrainRun) -> "Pairs":
        """Pairs as `run` wants them."""
        if run.method == "simclr":
            return cls(images, run, None)
        bag_N = images.case_N if run.pair_within == "case" else images.patient_N
        return cls(images, run, Bags(images.patient_N, bag_N))

    def __len__(self) -> int:
        return len(self.images) if self.bags is None else len(self.bags)

    def batches(self, first_step: int, ranks: Ranks) -> Batches:
        """This rank's share of every batch from `first_step` on: views a, then views b of the same units."""
        return Batches(
            self.images,
            partial(self.plan, ranks=ranks),
            steps=range(first_step, self.run.num_steps),
            size_px=self.run.image_size_px,
            device=ranks.device,
        )

    def plan(self, step: int, ranks: Ranks) -> list[Rows]:
        """What this rank's share of the batch at `step` shows, in 2N rows."""
        run = self.run
        units = batch_at(step, num_units=len(self), batch_size=run.batch_size, seed=run.seed)
        share = run.batch_size // ranks.world_size
        # Of every micro batch a part, so that its pairs are the same however many processes there are.
        units = units.reshape(contrastive.num_pieces(run), ranks.world_size, -1)[:, ranks.rank].ravel()
        epoch = step // (len(self) // run.batch_size)
        if self.bags is None:
            first = second = units
        else:
            first, second = self.bags.pairs(units, seed=run.seed, epoch=epoch)
        # A bag of one image gets SimCLR's two views, whatever its partners get (spec 1.5).
        is_alone = (first == second) & (run.augmentation == "micle_partial")
        return [
            Rows.drawn(
                self.images,
                np.flatnonzero(chosen) + view * share,
                image_N[chosen],
                augmentation,
                seed=run.seed,
                epoch=epoch,
                view=view,
            )
            for view, image_N in enumerate((first, second))
            for chosen, augmentation in (
                (~is_alone, run_augmentation(run, run.augmentation)),
                (is_alone, run_augmentation(run, "simclr")),
            )
            if chosen.any()
        ]


def next_views(batches: Batches, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both augmented views of the next batch, float in [0, 1], (N, C, S, S) each."""
    view_a, view_b = augment.to_unit(next(batches), device).chunk(2)
    return view_a, view_b


def pretrain(job: PretrainJob, ranks: Ranks) -> None:
    """Train an encoder and leave its weights, its head's and the training curves in `job.out_dir`.

    Resumes from `job.work_dir` where a state lies; every batch and every augmentation is a function of seed and
    step, so the resumed run goes on exactly as the uninterrupted one. Beside the state lies what was monitored: speed
    and the probe's scores, which are no part of the result.

    Raises:
        BadInputError: The batch does not fit the data or the number of processes, training diverged, or it collapsed
            and the run wants to stop then.
        TerminatedError: SIGTERM came; the state is saved.
    """
    run, stop = job.run, StopRequest()
    encoder, head = _networks(job)
    model = contrastive.prepare(encoder, head, run, ranks)
    pairs = Pairs.of(Images(_cohort(job)), run)
    training = _Training(job, ranks, encoder, head, model)
    if ranks.is_first:
        say(f"pretrain {run.name}: {len(pairs)} units, {len(pairs.images)} images, from step {training.step}")
    model.train()
    with pairs.batches(training.step, ranks) as batches:
        while training.step < run.num_steps:
            with training.throughput.waiting_for_data():
                views = next_views(batches, ranks.device)
            training.advance(views)
            stopping = ranks.any(stop.requested)
            if stopping or training.step % run.checkpoint_every_steps == 0:
                training.save()
            if stopping:
                raise TerminatedError(f"pretrain {run.name} stopped after step {training.step}; run again to go on")
    training.keep()
    ranks.wait()


def run_augmentation(run: PretrainRun, name: str) -> augment.Augmentation:
    """A set of the paper by its name in study files, with the ranges that the run itself gives."""
    strength = {} if run.augmentation_strength is None else {"strength": run.augmentation_strength}
    if name == "micle_partial":
        made = augment.micle_partial()
    else:
        made = {"simclr": augment.simclr, "chexpert_pretrain": augment.chexpert_pretrain}[name](**strength)
    given: dict[str, Any] = {
        "crop_scale": None if run.crop_area_min is None else (run.crop_area_min, 1.0),
        "rotation_deg": run.rotation_deg,
        "flip_p": run.flip_probability,
        "interpolation": run.interpolation,
    }
    return replace(made, **{field: value for field, value in given.items() if value is not None})


def _cohort(job: PretrainJob) -> Cohort:
    """The training split, with the unlabelled pool where the run wants it, or all of a set that is not split."""
    inputs = job.inputs
    index, shards = schema.read(inputs.index_path, schema.INDEX), ShardSet.open(inputs.shards_dir)
    if not isinstance(inputs, Inputs):
        return Cohort.select(index, whole(index), shards, split=schema.EXTERNAL, with_unlabelled=True)
    splits = schema.read(inputs.splits_path, schema.SPLIT_TABLE)
    return Cohort.select(index, splits, shards, split="train", with_unlabelled=job.run.unlabelled)


def _networks(job: PretrainJob) -> tuple[Encoder, ProjectionHead]:
    torch.manual_seed(job.run.seed)
    encoder = build_encoder(job.encoder, image_channels=job.channels)
    head = ProjectionHead(encoder.representation_dim)
    if job.initial_dir is not None:
        load_weights(encoder, job.initial_dir / layout.ENCODER)
        if (
            job.initial_dir / layout.PROJECTION_HEAD
        ).is_file():  # published checkpoints bring no head: it then starts afresh
            load_weights(head, job.initial_dir / layout.PROJECTION_HEAD)
    return encoder, head


class _Training:
    """One run in training: networks, optimiser, curves, and who watches them."""

    def __init__(
        self, job: PretrainJob, ranks: Ranks, encoder: Encoder, head: ProjectionHead, model: nn.Module
    ) -> None:
        """Start the run, or go on from the state in `job.work_dir`."""
        self.job, self.run, self.ranks = job, job.run, ranks
        self.encoder, self.head, self.model = encoder, head, model
        self.plain = nn.Sequential(encoder, head)
        self.peak = scaled_learning_rate(self.run.learning_rate, self.run.batch_size, self.run.learning_rate_scaling)
        self.optimizer = lars(self.plain, lr=self.peak, weight_decay=self.run.weight_decay)
        self.step, self.history, self.monitored = 0, History(), History()
        if state := load_state(job.work_dir):
            self.plain.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
            self.history, self.monitored = from_state(state["history"]), from_state(state["monitored"])
        self.probe = Probe.prepare(job) if ranks.is_first else None
        self.probe_every = self.probe.every_steps(job, ranks.world_size) if self.probe else 0
        self.divergence = Divergence(self.run, ranks.device)
        self.progress = Progress(f"pretrain {self.run.name}", self.run.num_steps, unit="steps", done=self.step)
        self.throughput = Throughput(2 * self.run.batch_size, self.progress, ranks.device)

    def advance(self, views: tuple[Tensor, Tensor]) -> None:
        """One optimiser step, and whatever is due to be told about it."""
        run, step = self.run, self.step
        rate = warmup_cosine(step, peak=self.peak, warmup_steps=run.warmup_steps, total_steps=run.num_steps)
        outcome = contrastive.train_step(self.model, self.optimizer, views, run, self.ranks, learning_rate=rate)
        self.divergence.note(outcome.loss)
        self.step = step + 1
        is_over, every = self.step == run.num_steps, max(1, run.num_steps // NUM_HISTORY_POINTS)
        is_point = step % every == 0 or is_over
        if is_point or step % MAX_STEPS_UNCHECKED == 0:
            self.divergence.refuse(self.plain, step)
        if is_point:
            measured = measure(outcome, run, self.ranks) | {"learning_rate": rate}
            self.history += [(name, step, value) for name, value in measured.items()]
            watch_collapse(self.history, run, step, speaks=self.ranks.is_first)
            self.monitored += [(name, step, value) for name, value in self.throughput.measure(self.step).items()]
        if self.probe and (self.step % self.probe_every == 0 or is_over):
            self._probe(self.probe)
        if self.ranks.is_first:
            self.progress.update(self.step, self._summary())

    def _probe(self, probe: Probe) -> None:
        scores = probe.scores(self.encoder, precision=self.run.precision, device=self.ranks.device)
        self.monitored += [(name, self.step - 1, value) for name, value in scores.items()]
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
        say(f"pretrain {self.run.name}: step {self.step}: frozen representation: {shown or 'not evaluable'}")
        self.throughput.begin_window()

    def _summary(self) -> str:
        """Loss and speed for the progress line."""
        first = next(value for name, _, value in self.history if name == "loss")
        speed, waited = last(self.monitored, "images_per_s"), last(self.monitored, "data_wait_share")
        return f"loss {first:.3f} → {last(self.history, 'loss'):.3f}, {speed:.4g} images/s, {waited:.0%} waiting"

    def save(self) -> None:
        """Write the state from which the run can go on."""
        self.divergence.refuse(self.plain, self.step - 1)
        if self.ranks.is_first:
            state = {"step": self.step, "model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
            save_state(self.job.work_dir, state | {"history": self.history, "monitored": self.monitored})

    def keep(self) -> None:
        """Write the result, and beside the state what was monitored."""
        self.divergence.refuse(self.plain, self.step - 1)
        if self.ranks.is_first:
            save_weights(self.encoder, self.job.out_dir / layout.ENCODER)
            save_weights(self.head, self.job.out_dir / layout.PROJECTION_HEAD)
            write_history(self.run.name, self.history, self.job.out_dir / layout.HISTORY)
            write_history(self.run.name, self.monitored, self.job.work_dir / layout.MONITORED)


if __name__ == "__main__":
    run_worker(pretrain, PretrainJob)
