"""Probabilities of the units of a split by a network, without augmentation: for validation and for prediction.

Shape suffixes: N images, M units (images or cases), C channels, S pixels a side, D representation, K findings or
conditions.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medssl.config import Precision
from medssl.model.encoder import Encoder
from medssl.model.networks import Classifier, Head
from medssl.train import augment
from medssl.train.batches import Batches, Rows
from medssl.train.cohorts import Split
from medssl.train.distributed import Ranks
from medssl.train.loader import Images, Index
from medssl.train.precision import autocast

EVALUATION_BATCH = 256  # images


def predict_scores(
    model: Classifier, split: Split, *, size_px: int, batch_size: int, precision: Precision, ranks: Ranks
) -> np.ndarray:
    """Probabilities in [0, 1] of each unit of `split`, float64, shape (M, K).

    Those of findings are independent; those of conditions sum to 1. The ranks share the batches, whose units do not
    depend on their number, and every rank gets all.
    """
    model.eval()
    groups = list(_groups(split.images_of, batch_size))[ranks.rank :: ranks.world_size]
    with _evaluated(split.images, [_images(split, units) for units in groups], size_px, ranks.device) as batches:
        inputs = (augment.to_unit(batch_NSSC, ranks.device) for batch_NSSC in batches)
        own_MK = _scores(model, split, groups, inputs, precision, ranks.device)
    scores_MK = torch.zeros(split.labelled.mask_MK.shape, dtype=torch.float64)
    scores_MK[[unit for units in groups for unit in units]] = torch.from_numpy(own_MK)
    shared: np.ndarray = ranks.total(scores_MK).numpy()
    return shared


def predict_head_scores(head: Head, split: Split, representation_ND: Tensor, *, device: torch.device) -> np.ndarray:
    """As `predict_scores`, from the representations of the split's images, in the order of its rows."""
    groups = list(_groups(split.images_of, EVALUATION_BATCH))
    inputs = (representation_ND[torch.from_numpy(_images(split, units))].to(device) for units in groups)
    return _scores(head, split, groups, inputs, "float32", device)


def represent(
    encoder: Encoder, images: Images, image_N: Index, *, size_px: int, precision: Precision, device: torch.device
) -> Tensor:
    """Representations of some images, float32 on the CPU, shape (N, D); the encoder is left in evaluation mode."""
    encoder.eval()
    groups = [image_N[begin : begin + EVALUATION_BATCH] for begin in range(0, len(image_N), EVALUATION_BATCH)]
    rows = [torch.empty(0, encoder.representation_dim)]
    with torch.no_grad(), _evaluated(images, groups, size_px, device) as batches:
        for batch_NSSC in batches:
            with autocast(precision, device):
                rows.append(encoder(augment.to_unit(batch_NSSC, device)).float().cpu())
    return torch.cat(rows)


def fusion(num_images_M: Sequence[int], device: torch.device) -> Tensor:
    """Weight of each image in each case, shape (M, N): the mean over the images of a case, which follow each other."""
    lengths = torch.tensor(list(num_images_M))
    case_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    weights_MN = torch.zeros(len(lengths), len(case_N))
    weights_MN[case_N, torch.arange(len(case_N))] = 1 / lengths[case_N]
    return weights_MN.to(device)


def _evaluated(images: Images, groups: Sequence[Index], size_px: int, device: torch.device) -> Batches:
    """Batches of these images as they are."""

    def plan(step: int) -> list[Rows]:
        return [Rows(np.arange(len(groups[step])), groups[step])]

    return Batches(images, plan, steps=range(len(groups)), size_px=size_px, device=device)


def _scores(
    network: nn.Module,
    split: Split,
    groups: Sequence[Sequence[int]],
    inputs: Iterable[Tensor],
    precision: Precision,
    device: torch.device,
) -> np.ndarray:
    """Probabilities by a network that takes `inputs`, one of each group of units, and their fusion."""
    is_case = split.labelled.kind == "case"
    scores = [np.empty((0, split.labelled.mask_MK.shape[1]))]
    with torch.inference_mode():
        for units, input_ND in zip(groups, inputs, strict=True):
            fusion_MN = fusion([len(split.images_of[unit]) for unit in units], device) if is_case else None
            with autocast(precision, device):
                logits_MK = network(input_ND, fusion_MN)
            probabilities_MK = logits_MK.double().softmax(dim=1) if is_case else torch.sigmoid(logits_MK.double())
            scores.append(probabilities_MK.cpu().numpy())
    return np.concatenate(scores)


def _images(split: Split, units: Sequence[int]) -> Index:
    return np.concatenate([split.images_of[unit] for unit in units])


def _groups(images_of: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
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
