"""NT-Xent over many views without the matrix of their similarities: block by block, the upper triangle only.

s_ij = s_ji, so one block serves the sums of its rows and of its columns. Sums come first and gradients second, which
need the exponentials again: as many blocks as fit a fixed memory are kept, the others are computed anew. What grows
with the batch are vectors of it and tensors of the size of the projections.

Shape suffixes: M views of all ranks, L of this rank, D projection, W ranks, R and C rows and columns of a block.
Views 2k and 2k + 1 are a pair.
"""

import math
from itertools import combinations_with_replacement
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# In float32 0.6 MB, which leaves the operands room in a core's second-level cache. Even, so that no pair is cut.
CPU_BLOCK_ROWS = 384
ACCELERATOR_BLOCK_ROWS = 4096
# All of a triangle of 8,192 views in bfloat16, half of it in float32.
KEPT_BYTES = 72 << 20
# Up to 1 / temperature = 64 the exponentials of all similarities, e^-64 to e^64, and sums of them are normal float32
# and bfloat16 numbers, without a maximum to subtract.
MAX_BOUNDED_LOGIT = 64.0

Block = tuple[slice, slice]


class MeanNTXent(torch.autograd.Function):
    """Mean of SimCLR's eq. 1 over the views of all ranks, and its gradient for this rank's views.

    The gradient is ready after the forward pass, where the kept blocks live and die; backward only scales it. It is
    multiplied by the number of ranks, because DistributedDataParallel averages what the ranks' views contribute.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_LD: Tensor,
        temperature: float,
        product_dtype: torch.dtype | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Scalar loss of unit rows; see `losses.nt_xent`."""
        z_MD = _gathered(z_LD, group)
        rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        triangle = _Triangle(z_MD, temperature, product_dtype or z_LD.dtype, rank=rank, world_size=world_size)
        negatives_M = triangle.log_sums()
        if group is not None:
            negatives_M = _gathered(negatives_M[None], group).logsumexp(dim=0)
        positive_M = (z_MD[0::2] * z_MD[1::2]).sum(dim=1).repeat_interleave(2) / temperature
        # log(sum of all) - positive and 1 - p(positive), free of the cancellation of a solved batch.
        log_odds_M = negatives_M - positive_M
        loss_M = torch.logaddexp(log_odds_M, torch.zeros_like(log_odds_M))
        if ctx.needs_input_grad[0]:
            gradient_LD = _scattered(triangle.gradient(positive_M + loss_M), group)
            own = slice(rank * len(z_LD), (rank + 1) * len(z_LD))
            missing_L2 = torch.sigmoid(log_odds_M[own]).unflatten(0, (-1, 2)).sum(dim=1, keepdim=True)
            partner_LD = z_LD.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            gradient_LD -= missing_L2.repeat_interleave(2, dim=0) * partner_LD
            ctx.save_for_backward(gradient_LD * (world_size / (len(z_MD) * temperature)))
        return loss_M.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient for this rank's views."""
        (gradient_LD,) = ctx.saved_tensors
        return gradient_LD * grad_loss, None, None, None


class _Triangle:
    """This rank's share of the blocks of negatives, visited once for the sums and once for the gradients.

    Bounded logits are turned into exponentials (of base 2, three times as fast as e^x on CPUs), which sums and
    gradients share; at very low temperatures those would overflow, so there the logits stay and each use subtracts its
    own maximum or sum.
    """

    def __init__(
        self, z_MD: Tensor, temperature: float, product_dtype: torch.dtype, *, rank: int, world_size: int
    ) -> None:
        self.is_bounded = 1 / temperature <= MAX_BOUNDED_LOGIT
        # Logits in bfloat16 are off by up to their 512th: little where bounded, too much where not.
        self.product_dtype = product_dtype if self.is_bounded else z_MD.dtype
        # On both factors, so that products stay symmetric whatever their rounding.
        self.scale = math.sqrt((math.log2(math.e) if self.is_bounded else 1) / temperature)
        self.y_MD = (z_MD * self.scale).to(self.product_dtype)
        largest = CPU_BLOCK_ROWS if z_MD.device.type == "cpu" else ACCELERATOR_BLOCK_ROWS
        self.blocks = own_blocks(len(z_MD), largest, rank=rank, world_size=world_size)
        rows = max((block.stop - block.start for block, _ in self.blocks), default=0)
        self.buffer = z_MD.new_empty(rows * rows)
        self.num_kept = KEPT_BYTES // max(1, rows * rows * self.product_dtype.itemsize)
        self.kept: list[Tensor] = []

    def log_sums(self) -> Tensor:
        """Logarithm of the sum over this rank's blocks of exp(s_ij / temperature), (M,); -inf where it has none."""
        sums_M = self.buffer.new_full((len(self.y_MD),), 0.0 if self.is_bounded else -math.inf)
        for number, (rows, columns) in enumerate(self.blocks):
            block_RC = self._computed(rows, columns)
            if number >= len(self.blocks) - self.num_kept:
                self.kept.append(block_RC.to(self.product_dtype, copy=True))
            for own, dim in ((rows, 1), (columns, 0)) if rows != columns else ((rows, 1),):
                if self.is_bounded:
                    sums_M[own] += block_RC.sum(dim)
                else:
                    sums_M[own] = torch.logaddexp(sums_M[own], block_RC.logsumexp(dim))
        return sums_M.log() if self.is_bounded else sums_M

    def gradient(self, log_total_M: Tensor) -> Tensor:
        """Sum of (p_ij + p_ji) z_j over this rank's blocks, (M, D).

        p_ij = exp(s_ij / temperature - log_total_i) is what view i's softmax over all others gives to view j.
        """
        gradient_MD = self.buffer.new_zeros(self.y_MD.shape)
        inverse_M = torch.exp(-log_total_M)
        for rows, columns in reversed(self.blocks):  # kept last, likeliest in a cache, used first
            block_RC = self._view(rows, columns).copy_(self.kept.pop()) if self.kept else self._computed(rows, columns)
            if self.is_bounded:
                block_RC *= inverse_M[rows, None] + inverse_M[columns]
            else:
                block_RC = torch.exp(block_RC - log_total_M[rows, None]) + torch.exp(block_RC - log_total_M[columns])
            weights_RC = block_RC.to(self.product_dtype)
            _add_product(gradient_MD[rows], weights_RC, self.y_MD[columns])
            if rows != columns:
                _add_product(gradient_MD[columns], weights_RC.T, self.y_MD[rows])
        return gradient_MD / self.scale

    def _view(self, rows: slice, columns: slice) -> Tensor:
        """The buffer in the shape of a block."""
        num_rows, num_columns = rows.stop - rows.start, columns.stop - columns.start
        return self.buffer[: num_rows * num_columns].view(num_rows, num_columns)

    def _computed(self, rows: slice, columns: slice) -> Tensor:
        """Exponentials, or logits, of a block in the buffer; views with themselves and their partners left out."""
        block_RC = self._view(rows, columns)
        if self.product_dtype == block_RC.dtype:
            torch.mm(self.y_MD[rows], self.y_MD[columns].T, out=block_RC)
        else:
            block_RC.copy_(self.y_MD[rows] @ self.y_MD[columns].T)
        if self.is_bounded:
            block_RC.exp2_()
        if rows == columns:
            pairs = block_RC.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
            pairs.diagonal(dim1=0, dim2=2).fill_(0.0 if self.is_bounded else -math.inf)
        return block_RC


def own_blocks(num_views: int, largest: int, *, rank: int, world_size: int) -> list[Block]:
    """This rank's blocks of the upper triangle: squares of at most `largest` (even) rows, dealt out in turn.

    There are at least two rows of blocks a rank, so that shares differ little.
    """
    rows = min(largest, math.ceil(num_views / (4 * world_size)) * 2)
    parts = [slice(begin, min(begin + rows, num_views)) for begin in range(0, num_views, rows)]
    return list(combinations_with_replacement(parts, 2))[rank::world_size]


def _add_product(sum_RD: Tensor, weights_RC: Tensor, y_CD: Tensor) -> None:
    """Add a product to a sum of at least float32, in place."""
    if weights_RC.dtype == sum_RD.dtype:
        sum_RD.addmm_(weights_RC, y_CD)
    else:
        sum_RD += weights_RC @ y_CD


def _gathered(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all ranks in rank order; every rank has equally many."""
    if group is None:
        return rows
    gathered = rows.new_empty(len(rows) * dist.get_world_size(group), *rows.shape[1:])
    dist.all_gather_single(gathered, rows.contiguous(), group=group)
    return gathered


def _scattered(rows_M: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of this rank's rows."""
    if group is None:
        return rows_M
    own = rows_M.new_empty(len(rows_M) // dist.get_world_size(group), *rows_M.shape[1:])
    dist.reduce_scatter_single(own, rows_M, group=group)
    return own
