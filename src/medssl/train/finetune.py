"""End-to-end fine-tuning on labels, with selection on validation only (spec 1.8).

Shape suffixes: N images, C channels, S pixels a side, K findings.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medssl import labels, layout, metrics, schema
from medssl.config import FinetuneConfig, digest
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
    progress = Progress(f"finetune {job.arm}", len(job.items) * job.settings.num_steps, unit="steps")
    for number, item in enumerate(job.items):
        work_dir = job.work_dir / item.name
        work_dir.mkdir(parents=True, exist_ok=True)
        if not (work_dir / layout.OUTCOME).is_file():
            _finetune_one(job, item, train, validation, ranks, stop, work_dir, progress, number)
        if ranks.is_first:
            out_dir = job.out_dir / item.name
            out_dir.mkdir(parents=True, exist_ok=True)
            for name in (layout.MODEL, layout.HISTORY, layout.OUTCOME):
                (out_dir / name).write_bytes((work_dir / name).read_bytes())
        ranks.wait()


def item_seed(settings: FinetuneConfig, item: FinetuneItem) -> int:
    """Seed of an item's initial weights and batches: the same for every arm and every grid point."""
    return int(digest([settings.seed, item.draw, item.repeat])[:8], 16)


def predict_scores(model: Classifier, pixels_NCSS: Tensor, *, size_px: int, device: torch.device) -> np.ndarray:
    """Probabilities in [0, 1], float64, shape (N, K), of uint8 images; without augmentation."""
    model.eval()
    scores = []
    with torch.inference_mode():
        for pixels in pixels_NCSS.split(EVALUATION_BATCH):
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


def _finetune_one(
    job: FinetuneJob,
    item: FinetuneItem,
    train: Labelled,
    validation: Labelled,
    ranks: Ranks,
    stop: StopRequest,
    work_dir: Path,
    progress: Progress,
    number: int,
) -> None:
    settings, seed = job.settings, item_seed(job.settings, item)
    labelled = _cohort(job, "train", item.label_fraction, item.draw).rows
    chosen = np.flatnonzero(np.isin(train.image_ids, np.asarray(labelled["image_id"].to_pylist())))
    if not chosen.size:
        raise BadInputError(f"label fraction {item.label_fraction:g} leaves no training image; raise it or add data")
    model = _classifier(job, seed)
    wrapped = ranks.wrap(model)
    optimizer = sgd_nesterov(model, lr=item.learning_rate, weight_decay=item.weight_decay, momentum=settings.momentum)
    state = load_state(work_dir) or {"step": 0, "history": [], "best": None}
    if state["step"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    history = [(str(m), int(s), float(v)) for m, s, v in state["history"]]
    best: dict[str, object] = dict(state["best"] or {})
    augmentation = _augmentation(settings)
    for step in range(state["step"], settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, peak=item.learning_rate, warmup_steps=0, total_steps=settings.num_steps)
        batch = finetune_batch_at(step, num_images=chosen.size, batch_size=settings.batch_size, seed=seed)
        batch = batch[ranks.rank :: ranks.world_size]
        image_N = chosen[batch]
        images = augment.apply(
            train.images.pixels_NCSS[torch.from_numpy(image_N)].to(ranks.device),
            augmentation=augmentation,
            seed=seed,
            epoch=step,  # a small label fraction repeats images within an epoch-sized stretch
            index_N=image_N,
            view=0,
            size_px=settings.image_size_px,
        )
        wrapped.train()
        targets, mask = (t[torch.from_numpy(image_N)].to(ranks.device) for t in (train.targets_NK, train.mask_NK))
        loss = masked_bce(wrapped(images), targets, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % settings.evaluate_every_steps == 0 or done == settings.num_steps:
            if not torch.isfinite(loss):
                raise BadInputError(
                    f"finetune {job.arm} {item.name}: the loss is {loss.item()} at step {step}; lower learning_rates"
                )
            score = _validation_score(model, validation, job, ranks)
            history.append(("loss", done, loss.item()))
            if score is not None:
                history.append(("validation_mean_auc", done, score))
            known = best.get("score")
            if score is None or not isinstance(known, float) or score > known:
                best = {"score": score, "step": done, "weights": cpu_copy(model.state_dict())}
        if ranks.is_first:
            detail = f"{item.label_fraction:.0%} of labels, rate {item.learning_rate:g}"
            progress.update(number * settings.num_steps + done, detail)
        stopping = ranks.any(stop.requested)
        if ranks.is_first and (stopping or done % settings.checkpoint_every_steps == 0):
            kept = {"step": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(work_dir, kept | {"history": history, "best": best})
        if stopping:
            raise TerminatedError(f"finetune {job.arm} {item.name} stopped after step {done}; run again to go on")
    if ranks.is_first:
        _keep(model, item, best, history, labelled, job.arm, work_dir)


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


def _validation_score(model: Classifier, validation: Labelled, job: FinetuneJob, ranks: Ranks) -> float | None:
    """Mean AUC over the findings that can be evaluated on validation; None where none can."""
    scores_NK = predict_scores(
        model, validation.images.pixels_NCSS, size_px=job.settings.image_size_px, device=ranks.device
    )
    evaluations = {}
    for k, finding in enumerate(job.task.findings):
        known = validation.mask_NK[:, k].numpy()
        evaluations[finding] = metrics.evaluate_auc(validation.targets_NK[:, k].numpy()[known], scores_NK[known, k])
    return metrics.mean_auc(evaluations).value


def _keep(
    model: Classifier,
    item: FinetuneItem,
    best: dict[str, object],
    history: History,
    labelled: pa.Table,
    arm: str,
    work_dir: Path,
) -> None:
    """Write the weights of the best step by validation, then the outcome, whose presence means finished."""
    model.load_state_dict(best["weights"])  # type: ignore[arg-type]
    save_weights(model, work_dir / layout.MODEL)
    write_history(f"{arm} {item.name}", history, work_dir / layout.HISTORY)
    outcome = {
        **item.dump(),
        "arm_id": arm,
        "validation_score": best["score"],
        "step": best["step"],
        "num_train_images": labelled.num_rows,
        "num_train_patients": len(set(labelled["patient_id"].to_pylist())),
    }
    write_json(work_dir / layout.OUTCOME, outcome)
    score = best["score"]
    shown = f"{score:.3f}" if isinstance(score, float) else "not evaluable"
    say(f"finetune {arm} {item.name}: validation mean AUC {shown} at step {best['step']}")


if __name__ == "__main__":
    run_worker(finetune, FinetuneJob)
