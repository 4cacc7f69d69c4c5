"""Pretraining without labels: SimCLR, and MICLe, whose positive pairs are two images of one case or patient.

Shape suffixes: N images of this rank's batch, C channels, S pixels a side, D projection.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from medssl import layout, schema
from medssl.config import PretrainRun
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.model.losses import contrastive_metrics, nt_xent
from medssl.model.networks import ProjectionHead, ResNet
from medssl.progress import Progress, say
from medssl.shardset import Cohort, ShardSet
from medssl.train import augment
from medssl.train.batches import Batches, Rows
from medssl.train.checkpoint import load_state, load_weights, save_state, save_weights
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.history import History, write_history
from medssl.train.jobs import PretrainJob
from medssl.train.loader import Bags, Images, batch_at
from medssl.train.optim import lars, scaled_learning_rate, warmup_cosine
from medssl.train.worker import run_worker

NUM_HISTORY_POINTS = 200  # of each training curve
COLLAPSED_STD = 0.01  # of the unit-length representation times sqrt(D); 1 when its directions are used evenly


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
        units = units[ranks.rank * share : (ranks.rank + 1) * share]
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
                (~is_alone, run_augmentation(run)),
                (is_alone, augment.simclr(run.augmentation_strength)),
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
    step, so the resumed run goes on exactly as the uninterrupted one.

    Raises:
        BadInputError: The batch does not fit the data or the number of processes.
        TerminatedError: SIGTERM came; the state is saved.
    """
    run, stop = job.run, StopRequest()
    if run.batch_size % ranks.world_size:
        raise BadInputError(
            f"{run.name}: batch_size {run.batch_size} must be a multiple of {ranks.world_size} processes"
        )
    cohort = Cohort.select(
        schema.read(job.inputs.index_path, schema.INDEX),
        schema.read(job.inputs.splits_path, schema.SPLIT_TABLE),
        ShardSet.open(job.inputs.shards_dir),
        split="train",
        with_unlabelled=True,
    )
    pairs = Pairs.of(Images(cohort), run)
    encoder, head = _networks(job)
    plain = nn.Sequential(encoder, head)
    model = ranks.wrap(plain)
    peak = scaled_learning_rate(run.learning_rate, run.batch_size, run.learning_rate_scaling)
    optimizer = lars(model, lr=peak, weight_decay=run.weight_decay)
    first_step, history = _resume(job, plain, optimizer)
    if ranks.is_first:
        say(f"pretrain {run.name}: {len(pairs)} units, {len(pairs.images)} images, from step {first_step}")
    progress = Progress(f"pretrain {run.name}", run.num_steps, unit="steps", done=first_step)
    every = max(1, run.num_steps // NUM_HISTORY_POINTS)
    model.train()
    with pairs.batches(first_step, ranks) as batches:
        for step in range(first_step, run.num_steps):
            rate = warmup_cosine(step, peak=peak, warmup_steps=run.warmup_steps, total_steps=run.num_steps)
            measured = _step(
                run,
                next_views(batches, ranks.device),
                model,
                optimizer,
                step,
                rate,
                ranks,
                measure=step % every == 0 or step + 1 == run.num_steps,
            )
            history += [(name, step, value) for name, value in measured.items()]
            if ranks.is_first:
                progress.update(step + 1, f"loss {history[0][2]:.3f} → {_last_loss(history):.3f}" if history else "")
            stopping = ranks.any(stop.requested)
            if ranks.is_first and (stopping or (step + 1) % run.checkpoint_every_steps == 0):
                state = {"step": step + 1, "model": plain.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(job.work_dir, state | {"history": history})
            if stopping:
                raise TerminatedError(f"pretrain {run.name} stopped after step {step + 1}; run again to go on")
    if ranks.is_first:
        _warn_of_collapse(run, history)
        save_weights(encoder, job.out_dir / layout.ENCODER)
        save_weights(head, job.out_dir / layout.PROJECTION_HEAD)
        write_history(run.name, history, job.out_dir / layout.HISTORY)
    ranks.wait()


def run_augmentation(run: PretrainRun) -> augment.Augmentation:
    """The augmentation of a run: a preset of the paper with the run's own ranges."""
    preset = {
        "simclr": lambda: augment.simclr(run.augmentation_strength),
        "chexpert_pretrain": lambda: augment.chexpert_pretrain(run.augmentation_strength),
        "micle_partial": augment.micle_partial,
    }[run.augmentation]()
    return replace(
        preset,
        crop_scale=(run.crop_area_min, 1.0),
        rotation_deg=run.rotation_deg,
        flip_p=run.flip_probability,
        interpolation=run.interpolation,
    )


def _networks(job: PretrainJob) -> tuple[ResNet, ProjectionHead]:
    torch.manual_seed(job.run.seed)
    encoder = ResNet(depth=job.encoder.depth, width=job.encoder.width, in_channels=job.channels)
    head = ProjectionHead(encoder.representation_dim)
    if job.initial_dir is not None:
        load_weights(encoder, job.initial_dir / layout.ENCODER)
        if (
            job.initial_dir / layout.PROJECTION_HEAD
        ).is_file():  # published checkpoints bring no head: it then starts afresh
            load_weights(head, job.initial_dir / layout.PROJECTION_HEAD)
    return encoder, head


def _resume(job: PretrainJob, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, History]:
    state = load_state(job.work_dir)
    if state is None:
        return 0, []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), [(str(m), int(s), float(v)) for m, s, v in state["history"]]


def _step(
    run: PretrainRun,
    views: tuple[Tensor, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    rate: float,
    ranks: Ranks,
    *,
    measure: bool,
) -> dict[str, float]:
    """One optimiser step; what was measured, empty unless asked for."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    z_a_ND, z_b_ND = model(torch.cat(views)).chunk(2)
    z_a_ND, z_b_ND = ranks.gather(z_a_ND), ranks.gather(z_b_ND)
    loss = nt_xent(z_a_ND, z_b_ND, temperature=run.temperature, reduction=run.loss_reduction)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise BadInputError(f"pretrain {run.name}: the loss is {loss.item()} at step {step}; lower learning_rate")
    if not measure:
        return {}
    with torch.no_grad():
        accuracy, entropy = contrastive_metrics(z_a_ND, z_b_ND, run.temperature)
        spread = nn.functional.normalize(z_a_ND).std(dim=0).mean() * math.sqrt(z_a_ND.shape[1])
    return {
        "loss": loss.item(),
        "contrastive_accuracy": float(accuracy),
        "contrastive_entropy": float(entropy),
        "projection_std": float(spread),
        "learning_rate": rate,
    }


def _last_loss(history: History) -> float:
    return next(value for name, _, value in reversed(history) if name == "loss")


def _warn_of_collapse(run: PretrainRun, history: History) -> None:
    spread = next(value for name, _, value in reversed(history) if name == "projection_std")
    if spread < COLLAPSED_STD:
        say(f"warning: pretrain {run.name}: the projections have collapsed (std {spread:.4f}); lower learning_rate")


if __name__ == "__main__":
    run_worker(pretrain, PretrainJob)
