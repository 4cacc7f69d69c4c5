"""How well the frozen representation tells the study's labels apart while it is being pretrained.

For those who watch a run, and nothing else: the probe draws no random number, leaves batch norm's statistics alone,
and its scores go to the screen and to MLflow, never into the checkpoint. So pretraining stays free of labels, and
another task or another probe changes no result.

Shape suffixes: N images, M units (images or cases) of the training sample, V of the validation sample, C channels,
S pixels a side, R representation, K findings or conditions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medssl import labels, metrics, schema
from medssl.config import Precision, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.progress import say
from medssl.shardset import Cohort, ShardSet, permutation
from medssl.train import augment
from medssl.train.jobs import Inputs, PretrainJob
from medssl.train.loader import stored_pixels
from medssl.train.precision import autocast

MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 2000, 1000
MAX_COST = 0.03  # of the training's work, where the run does not say how often
PASSES_PER_VIEW = 3  # of training, counted in forward passes: the backward pass takes two
EMBEDDING_BATCH = 128
# Wu et al. 2018, section 3.4 and table 2; in a small sample, 200 neighbours would be most of it.
NEIGHBOURS, NEIGHBOUR_SHARE, NEIGHBOUR_TEMPERATURE = 200, 0.1, 0.07
RIDGE = 1.0  # penalty of the linear probe, in mean squared lengths of a centred representation


@dataclass(frozen=True)
class Sample:
    """Labelled images of one split.

    Attributes:
        pixels_NSSC: uint8, at the size that the network is trained at.
        unit_N: Number of the unit of each image.
        targets_MK: 0 or 1, float32.
        mask_MK: Whether the label is known.
    """

    pixels_NSSC: Tensor
    unit_N: Tensor
    targets_MK: Tensor
    mask_MK: Tensor

    @classmethod
    def draw(
        cls, cohort: Cohort, task: TaskConfig, classes: tuple[str, ...], *, max_images: int, size_px: int
    ) -> Self | None:
        """At most `max_images` images of whole units with a known label, the same in every run; None without any."""
        labelled = labels.labelled(cohort.rows, task, classes)
        order = permutation(labelled.ids.size, seed=0, epoch=0)
        order = order[np.any(labelled.mask_MK[order], axis=1)]
        num_images = np.bincount(labelled.unit_N, minlength=labelled.ids.size)[order].cumsum()
        units = order[num_images <= max_images]
        if not units.size:
            return None
        number_of = np.full(labelled.ids.size, -1)
        number_of[units] = np.arange(units.size)
        (chosen,) = np.nonzero(number_of[labelled.unit_N] >= 0)
        return cls(
            _pixels(cohort, chosen, size_px),
            torch.from_numpy(number_of[labelled.unit_N[chosen]]),
            torch.from_numpy(labelled.targets_MK[units]),
            torch.from_numpy(labelled.mask_MK[units]),
        )

    def __len__(self) -> int:
        return len(self.pixels_NSSC)


@dataclass(frozen=True)
class Probe:
    """Samples of training and validation, and what is told apart in them."""

    task: TaskConfig
    classes: tuple[str, ...]
    train: Sample
    validation: Sample

    @classmethod
    def prepare(cls, job: PretrainJob) -> Self | None:
        """The probe of a run; None, which is said, where there is nothing to probe with. Test images stay closed."""
        if job.task is None or not isinstance(job.inputs, Inputs):
            return None
        index = schema.read(job.inputs.index_path, schema.INDEX)
        splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
        found = _draw_both(index, splits, job, job.task)
        if isinstance(found, str):
            say(f"pretrain {job.run.name}: no probe of the representation: {found}")
            return None
        return cls(job.task, *found)

    def every_steps(self, job: PretrainJob, world_size: int) -> int:
        """Steps between two probes: as the run says, or as few as keep the work of one rank below MAX_COST."""
        passes_a_step = PASSES_PER_VIEW * 2 * job.run.batch_size / world_size
        affordable = -(-(len(self.train) + len(self.validation)) // max(1, int(MAX_COST * passes_a_step)))
        return job.run.probe_every_steps or affordable

    def scores(self, encoder: nn.Module, *, precision: Precision, device: torch.device) -> dict[str, float]:
        """The task's validation metric of both probes, by name; without those that cannot be evaluated."""
        train_MR, validation_VR = (
            represent(encoder, sample, precision=precision, device=device) for sample in (self.train, self.validation)
        )
        targets_MK, mask_MK = self.train.targets_MK.to(device), self.train.mask_MK.to(device)
        found = {}
        for name, predict in (("knn", nearest_neighbours), ("linear", linear)):
            scores_VK = predict(train_MR, targets_MK, mask_MK, validation_VR).double().cpu().numpy()
            score = self._score(scores_VK) if np.isfinite(scores_VK).all() else None
            if score is not None:
                found[f"{name}_validation_{self.task.selection_metric}"] = score
        return found

    def _score(self, scores_VK: NDArray[np.float64]) -> float | None:
        targets_VK, mask_VK = self.validation.targets_MK.double().numpy(), self.validation.mask_MK.numpy()
        kind = "case" if self.task.kind == "conditions" else "image"
        return metrics.primary(np.where(mask_VK, targets_VK, np.nan), scores_VK, kind=kind, classes=self.classes).value


@torch.no_grad()
def represent(encoder: nn.Module, sample: Sample, *, precision: Precision, device: torch.device) -> Tensor:
    """Representation of each unit, the mean over its images, float32, shape (M, R).

    The encoder computes in evaluation mode and is then as it was.
    """
    was_training = encoder.training
    encoder.eval()
    rows = []
    for pixels_NSSC in sample.pixels_NSSC.split(EMBEDDING_BATCH):
        with autocast(precision, device):
            rows.append(encoder(augment.to_unit(pixels_NSSC, device)).float())
    encoder.train(was_training)
    unit_N = sample.unit_N.to(device)
    sums_MR = torch.zeros(len(sample.targets_MK), rows[0].shape[1], device=device)
    return sums_MR.index_add_(0, unit_N, torch.cat(rows)) / torch.bincount(unit_N)[:, None]


def nearest_neighbours(train_MR: Tensor, targets_MK: Tensor, mask_MK: Tensor, query_VR: Tensor) -> Tensor:
    """Score in [0, 1] of each class, shape (V, K): the mean truth of the nearest in angle, weighted by exp(cos / t).

    A neighbour whose label is unknown does not count; where none counts, the class's prevalence stands in.

    References:
        Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, section 3.4.
    """
    cosine_VM = functional.normalize(query_VR) @ functional.normalize(train_MR).T
    num = min(NEIGHBOURS, max(1, round(NEIGHBOUR_SHARE * len(train_MR))))
    nearest = cosine_VM.topk(num, dim=1)
    weights_Vn1 = ((nearest.values - 1) / NEIGHBOUR_TEMPERATURE).exp()[..., None]
    known_VnK = weights_Vn1 * mask_MK[nearest.indices]
    total_VK = known_VnK.sum(dim=1)
    score_VK = (known_VnK * targets_MK[nearest.indices]).sum(dim=1) / total_VK
    return torch.where(total_VK > 0, score_VK, _prevalence(targets_MK, mask_MK))


def linear(train_MR: Tensor, targets_MK: Tensor, mask_MK: Tensor, query_VR: Tensor) -> Tensor:
    """Score of each class, shape (V, K), by ridge regression on the truth; an unknown label counts as prevalence.

    In the dual form, whose cost does not grow with the representation.

    References:
        Saunders et al. 1998, Ridge Regression Learning Algorithm in Dual Variables, section 2.
    """
    mean_R, prevalence_K = train_MR.mean(dim=0), _prevalence(targets_MK, mask_MK)
    train_MR, query_VR = train_MR - mean_R, query_VR - mean_R
    gram_MM = train_MR @ train_MR.T
    # Never zero, so that representations that coincide are solved too.
    penalty = RIDGE * gram_MM.diagonal().mean() + torch.finfo(gram_MM.dtype).tiny
    gram_MM.diagonal().add_(penalty)
    residual_MK = torch.where(mask_MK, targets_MK - prevalence_K, 0)
    weights_RK: Tensor = train_MR.T @ torch.linalg.solve(gram_MM, residual_MK)
    return query_VR @ weights_RK + prevalence_K


def _prevalence(targets_MK: Tensor, mask_MK: Tensor) -> Tensor:
    positives_K: Tensor = torch.where(mask_MK, targets_MK, 0).sum(dim=0)
    return positives_K / mask_MK.sum(dim=0).clamp(min=1)


def _draw_both(
    index: pa.Table, splits: pa.Table, job: PretrainJob, task: TaskConfig
) -> tuple[tuple[str, ...], Sample, Sample] | str:
    """Classes and both samples, or why there are none."""
    if not schema.label_columns(index):
        return "the data set has no labels"
    if not schema.rows_of(index, splits.filter(pc.equal(splits["split"], pa.scalar("validation")))).num_rows:
        return "there are no validation images"
    try:
        classes = labels.classes(index, splits, task)
    except BadInputError as error:  # pretraining needs no labels
        return str(error)
    shards = ShardSet.open(job.inputs.shards_dir)
    samples = [
        Sample.draw(
            Cohort.select(index, splits, shards, split=split),
            task,
            classes,
            max_images=max_images,
            size_px=job.run.image_size_px,
        )
        for split, max_images in (("train", MAX_TRAIN_IMAGES), ("validation", MAX_VALIDATION_IMAGES))
    ]
    train, validation = samples
    if train is None or validation is None:
        return "no label is known in training or in validation"
    return classes, train, validation


def _pixels(cohort: Cohort, chosen: NDArray[np.int64], size_px: int) -> Tensor:
    """Images of some rows of a cohort as a network sees them in evaluation, uint8, shape (N, S, S, C)."""
    pixels_NSSC = np.empty((len(chosen), size_px, size_px, cohort.shards.channels), np.uint8)
    for number, out_SSC in zip(chosen.tolist(), pixels_NSSC, strict=True):
        augment.evaluate(stored_pixels(cohort, number), out_SSC=out_SSC)
    return torch.from_numpy(pixels_NSSC)
