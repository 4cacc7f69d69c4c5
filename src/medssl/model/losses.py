"""Losses and their monitors: NT-Xent for pretraining, masked binary cross-entropy for findings.

Shape suffixes: N pairs or images, L = 2N views, R rows of a strip, D projection, C findings,
M cases, K conditions.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from medssl.model.similarities import MeanNTXent

METRICS_ROWS = 256  # rows of a strip of similarities, of which there are never more at once


def _normalised(z_a_ND: Tensor, z_b_ND: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Check the pairs and return them with unit rows, at least in float32."""
    if z_a_ND.ndim != 2 or z_a_ND.shape != z_b_ND.shape:
        found = f"{tuple(z_a_ND.shape)} and {tuple(z_b_ND.shape)}"
        raise ValueError(f"projections have shapes {found}; expected two equal (N, D)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number, such as 0.1")
    dtype = torch.promote_types(z_a_ND.dtype, torch.float32)
    return functional.normalize(z_a_ND.to(dtype), dim=1), functional.normalize(z_b_ND.to(dtype), dim=1)


def nt_xent(
    z_a_ND: Tensor,
    z_b_ND: Tensor,
    *,
    temperature: float,
    reduction: Literal["paper", "code"],
    product_dtype: torch.dtype | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""NT-Xent loss over the 2N views of a batch (SimCLR, eq. 1).

    Each view has one positive, its other view, and 2N - 2 negatives, all other views of the batch:

        l(i, j) = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),   s = dot product of unit vectors,
        L = 1 / 2N * sum over pairs of l(i, j) + l(j, i).

    Memory grows with N, not with its square. Within a process group the batch is that of all its ranks, of which each
    computes its share: every rank gets the loss of the whole batch, and gradients that DistributedDataParallel, which
    averages them, turns into those of one process with the whole batch.

    Args:
        z_a_ND: Projections of view a, float, shape (N, D); normalised here. Of this rank, and of equal N on each.
        z_b_ND: Projections of view b; row i shows the same image (or patient) as z_a_ND[i].
        temperature: Dimensionless, > 0.
        reduction: "paper" averages, as above; "code" sums the two directions, as Google's code: twice that.
        product_dtype: Of the factors of matrix products, such as torch.bfloat16; sums, exponentials and positives stay
            in float32. None: not rounded. Without effect below a temperature of 1/64, which would amplify the rounding.
        group: The ranks whose batches are one. None: this process alone.

    Returns:
        float32 scalar, also under autocast (float64 for float64 projections); with "paper" log(2N - 1) when
        all projections coincide.

    Raises:
        ValueError: On differing shapes or a non-positive temperature.

    References:
        Chen et al. 2020, A Simple Framework for Contrastive Learning, section 2.1.
    """
    with torch.autocast(z_a_ND.device.type, enabled=False):
        z_LD = torch.stack(_normalised(z_a_ND, z_b_ND, temperature), dim=1).flatten(0, 1)
        mean: Tensor = MeanNTXent.apply(z_LD, temperature, product_dtype, group)
    return mean if reduction == "paper" else 2 * mean


@torch.no_grad()
def contrastive_metrics(z_a_ND: Tensor, z_b_ND: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Top-1 accuracy and entropy of the contrastive task, as SimCLR's code monitors them.

    Both are of the N cross-view similarities of each view a; views of the same side are no candidates here,
    so the accuracy of chance is 1 / N and the largest entropy log(N).

    Args:
        z_a_ND: Projections of view a, float, shape (N, D); normalised here.
        z_b_ND: Projections of view b, paired by row.
        temperature: Dimensionless, > 0.

    Returns:
        Two detached float scalars: the share of rows whose own view b is the most similar, in [0, 1], and the
        mean entropy in nats of the softmax over the candidates, in [0, log N].

    Raises:
        ValueError: On differing shapes or a non-positive temperature.
    """
    correct, entropy = [], []
    with torch.autocast(z_a_ND.device.type, enabled=False):
        z_a_ND, z_b_ND = _normalised(z_a_ND, z_b_ND, temperature)
        own_N = torch.arange(len(z_a_ND), device=z_a_ND.device)
        for own_R, z_a_RD in zip(own_N.split(METRICS_ROWS), z_a_ND.split(METRICS_ROWS), strict=True):
            log_p_RN = functional.log_softmax(z_a_RD @ z_b_ND.T / temperature, dim=1)
            correct.append(log_p_RN.argmax(dim=1) == own_R)
            entropy.append(-(log_p_RN.exp() * log_p_RN).sum(dim=1))
    return torch.cat(correct).to(z_a_ND.dtype).mean(), torch.cat(entropy).mean()


def masked_bce(logits_NC: Tensor, targets_NC: Tensor, mask_NC: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known labels of independent findings.

    Args:
        logits_NC: Any finite float, shape (N, C).
        targets_NC: 0 to 1, shape (N, C); where the label is unknown any value, NaN included, is ignored.
        mask_NC: bool, shape (N, C); True where the label is known.

    Returns:
        float32 scalar; 0, still attached to the graph with zero gradients, if no label is known.

    Raises:
        ValueError: On differing shapes.
    """
    if not logits_NC.shape == targets_NC.shape == mask_NC.shape:
        shapes = [tuple(tensor.shape) for tensor in (logits_NC, targets_NC, mask_NC)]
        raise ValueError(f"logits, targets and mask have shapes {shapes}; expected three equal (N, C)")
    dtype = torch.promote_types(logits_NC.dtype, torch.float32)
    # Replaced rather than multiplied by zero: NaN * 0 is NaN.
    known_targets_NC = torch.where(mask_NC, targets_NC, 0).to(dtype)
    loss_NC = functional.binary_cross_entropy_with_logits(logits_NC.to(dtype), known_targets_NC, reduction="none")
    return torch.where(mask_NC, loss_NC, 0).sum() / mask_NC.sum().clamp(min=1)


def set_cross_entropy(logits_MK: Tensor, targets_MK: Tensor, mask_M: Tensor) -> Tensor:
    """Mean cross-entropy over the cases with a known condition; a truth of several conditions is shared evenly.

    Args:
        logits_MK: Any finite float, shape (M, K).
        targets_MK: 0 or 1, shape (M, K); one or more ones in each row that counts.
        mask_M: bool, shape (M,); True where the case's condition is known.

    Returns:
        float32 scalar; 0, still attached to the graph with zero gradients, if no condition is known.

    Raises:
        ValueError: On shapes that do not fit.
    """
    if logits_MK.shape != targets_MK.shape or mask_M.shape != logits_MK.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (logits_MK, targets_MK, mask_M)]
        raise ValueError(f"logits, targets and mask have shapes {shapes}; expected (M, K), (M, K) and (M,)")
    log_p_MK = functional.log_softmax(logits_MK.float(), dim=1)
    shares_MK = targets_MK.float() / targets_MK.sum(dim=1, keepdim=True).clamp(min=1)
    loss_M = -(shares_MK * log_p_MK).sum(dim=1)
    return torch.where(mask_M, loss_M, 0).sum() / mask_M.sum().clamp(min=1)
