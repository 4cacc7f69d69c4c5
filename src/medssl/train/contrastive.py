"""One step of contrastive pretraining: projections, loss over the global batch, gradients, update.

Shape suffixes: N pairs of this rank, C channels, S pixels a side, R representation, D projection.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.config import PretrainRun
from medssl.model.losses import nt_xent
from medssl.model.networks import BATCH_NORM_MOMENTUM, ProjectionHead
from medssl.train.distributed import Ranks
from medssl.train.precision import autocast


class EncoderWithHead(nn.Sequential):
    """An encoder and its projection head, which gives out the representation too."""

    def __init__(self, encoder: nn.Module, head: ProjectionHead) -> None:
        super().__init__(encoder, head)

    def forward(self, images_NCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Representations (N, R) and projections (N, D)."""
        representation_NR: Tensor = self[0](images_NCSS)
        return representation_NR, self[1](representation_NR)


@dataclass(frozen=True)
class Outcome:
    """What a step leaves for those who watch it: detached tensors on the device.

    Attributes:
        loss: Over the global batch; the same on every rank.
        z_a_ND: Projections of this rank's views a, float32.
        z_b_ND: Projections of its views b.
        representation_MR: Representations of the views of its (last micro) batch, float32.
    """

    loss: Tensor
    z_a_ND: Tensor
    z_b_ND: Tensor
    representation_MR: Tensor


def prepare(encoder: nn.Module, head: ProjectionHead, run: PretrainRun, ranks: Ranks) -> nn.Module:
    """The networks as `train_step` takes them: on the device, averaged over the ranks, compiled where asked for.

    `encoder` and `head` stay the owners of the parameters, under unchanged names.

    Raises:
        ConfigError: The batch, or a micro batch, cannot be divided among the processes.
    """
    run.check_processes(ranks.world_size)
    model = ranks.wrap(EncoderWithHead(encoder, head))
    if num_pieces(run) > 1:
        for norm in _norms(model):
            # Each piece moves the running statistics; together they move them as far as one pass does.
            norm.momentum = 1 - (1 - BATCH_NORM_MOMENTUM) ** (1 / num_pieces(run))
    if run.compile:
        model.compile()
    return model


def num_pieces(run: PretrainRun) -> int:
    """Micro batches in which a batch goes through the network; 1: all at once."""
    return run.batch_size // run.micro_batch_size if run.micro_batch_size else 1


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, Tensor],
    run: PretrainRun,
    ranks: Ranks,
    *,
    learning_rate: float,
) -> Outcome:
    """One update by the gradient of the loss of the global batch.

    Args:
        model: From `prepare`, in training mode.
        optimizer: Over its parameters.
        views: Both views of this rank's pairs, float in [0, 1], shape (N, C, S, S) each.
        run: Settings.
        ranks: Who takes part.
        learning_rate: Of this step.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    outcome = (whole_gradients if num_pieces(run) == 1 else cached_gradients)(model, *views, run, ranks)
    optimizer.step()
    return outcome


def whole_gradients(
    model: nn.Module, view_a_NCSS: Tensor, view_b_NCSS: Tensor, run: PretrainRun, ranks: Ranks
) -> Outcome:
    """Loss and gradients with all of this rank's views in one pass."""
    representation_MR, z_MD = _project(model, view_a_NCSS, view_b_NCSS, run)
    z_a_ND, z_b_ND = z_MD.chunk(2)
    loss = _loss(z_a_ND, z_b_ND, run, ranks)
    loss.backward()
    return Outcome(loss.detach(), z_a_ND.detach(), z_b_ND.detach(), representation_MR.detach())


def cached_gradients(
    model: nn.Module, view_a_NCSS: Tensor, view_b_NCSS: Tensor, run: PretrainRun, ranks: Ranks
) -> Outcome:
    """Loss and gradients of the global batch in the memory of a micro batch, for a forward pass more.

    First every micro batch is projected without a graph; then the loss of the whole batch gives the gradient of each
    projection; then each micro batch is projected again, with a graph, and takes the gradients of its own rows. So
    the negatives are those of the whole batch, which averaging the losses of micro batches would lose.

    Batch norm normalises by the statistics of a micro batch, in both passes alike. That is the one difference from
    `whole_gradients`, whose gradients a network without batch norm gets exactly. The first pass leaves the running
    statistics alone; the second moves them, all micro batches of a step together as far as one pass does, but by the
    mean of their variances, which leaves out how their means differ.

    References:
        Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, section 3.
    """
    share = run.micro_batch_size // ranks.world_size
    pieces = list(zip(view_a_NCSS.split(share), view_b_NCSS.split(share), strict=True))
    with torch.no_grad(), _running_statistics_untouched(model):
        halves = [_project(model, *piece, run)[1].chunk(2) for piece in pieces]
    z_a_ND, z_b_ND = (torch.cat(list(half)).requires_grad_() for half in zip(*halves, strict=True))
    loss = _loss(z_a_ND, z_b_ND, run, ranks)
    gradients = torch.autograd.grad(loss, (z_a_ND, z_b_ND))
    by_piece = zip(*(gradient_ND.split(share) for gradient_ND in gradients), strict=True)
    for number, (piece, gradient) in enumerate(zip(pieces, by_piece, strict=True), start=1):
        with nullcontext() if number == len(pieces) else _not_yet_averaged(model):
            representation_MR, z_MD = _project(model, *piece, run)
            z_MD.backward(torch.cat(gradient))
    return Outcome(loss.detach(), z_a_ND.detach(), z_b_ND.detach(), representation_MR.detach())


def _project(model: nn.Module, view_a_NCSS: Tensor, view_b_NCSS: Tensor, run: PretrainRun) -> tuple[Tensor, Tensor]:
    """Representations (2N, R) and projections (2N, D) of views a, then b, float32."""
    with autocast(run.precision, view_a_NCSS.device):
        representation_MR, z_MD = model(torch.cat([view_a_NCSS, view_b_NCSS]))
    return representation_MR.float(), z_MD.float()


def _loss(z_a_ND: Tensor, z_b_ND: Tensor, run: PretrainRun, ranks: Ranks) -> Tensor:
    """Of the global batch; the same on every rank, each of which gets the gradient of its own projections."""
    return nt_xent(
        z_a_ND,
        z_b_ND,
        temperature=run.temperature,
        reduction=run.loss_reduction,
        product_dtype=torch.bfloat16 if run.precision == "bf16" else None,
        group=ranks.group,
    )


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def _running_statistics_untouched(model: nn.Module) -> Iterator[None]:
    norms = _norms(model)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _not_yet_averaged(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay on their rank: DistributedDataParallel averages sums over micro batches, at the last one."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
