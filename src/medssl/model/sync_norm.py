"""Batch norm over the batches of all ranks on any backend; torch's own synchronised one is for GPUs only.

With it a run on several processes equals a run of one process with the whole batch, up to rounding.

Shape suffixes: C channels. Activations x and their gradients have the shape (N, C, ...), also in the channels-last
layout, and the ranks' N may differ.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalised(torch.autograd.Function):
    """(x - mean) / std * weight + bias with the mean and variance of all ranks' rows.

    Torch's own kernels read and write the activations; between them travels one small vector each way. It is float64,
    so that a variance may be a difference of sums.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised x, and the mean (C,), the biased variance (C,) and the number of values they are of."""
        wide = torch.promote_types(x.dtype, torch.float32)
        # Only the dtype of these two matters: it is that of the statistics.
        unused_C = torch.zeros(2, x.shape[1], dtype=wide, device=x.device)
        mean_C, variance_C = torch.batch_norm_update_stats(x, unused_C[0], unused_C[1], 0.0)
        own_count = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)
        own_square_C = variance_C.double() + mean_C.double() ** 2
        sums = torch.cat([mean_C * own_count, own_square_C * own_count, own_count])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        exact_mean_C, square_C = (sums[:-1] / count).chunk(2)
        exact_variance_C = (square_C - exact_mean_C**2).clamp(min=0)
        mean_C, variance_C = exact_mean_C.to(wide), exact_variance_C.to(wide)
        inverse_C = torch.rsqrt(exact_variance_C + eps).to(wide)
        ctx.save_for_backward(x, weight_C, mean_C, inverse_C, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        y: Tensor = torch.native_batch_norm(x, weight_C, bias_C, mean_C, variance_C, False, 0.0, eps)[0]
        return y, mean_C, variance_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_unused: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Gradients; those of weight and bias are of this rank's rows, as any other parameter's."""
        x, weight_C, mean_C, inverse_C, count = ctx.saved_tensors
        unit_C = torch.ones_like(mean_C)
        # With a weight given, its and the bias's gradients are the two sums that the gradient of x needs.
        _, own_scaled_C, own_sum_C = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, unit_C, mean_C, mean_C, mean_C, inverse_C, True, 0.0, [False, True, True]
        )
        sums = torch.cat([own_scaled_C, own_sum_C]).double()
        dist.all_reduce(sums, group=ctx.group)
        scaled_C, sum_C = (sums / count).to(mean_C.dtype).chunk(2)
        # grad_x = a (grad_y - mean(grad_y) - x_hat mean(grad_y x_hat)) = a grad_y + b x + c,  x_hat = (x - mean) / std
        a_C = inverse_C if weight_C is None else weight_C * inverse_C
        b_C = -a_C * inverse_C * scaled_C
        c_C = -a_C * sum_C - b_C * mean_C
        grad_x = torch.native_batch_norm(grad_y, a_C, c_C, torch.zeros_like(unit_C), unit_C, False, 0.0, 0.0)[0]
        grad_x.addcmul_(x, b_C.to(x.dtype).view(-1, *[1] * (x.ndim - 2)))
        return (
            grad_x,
            own_scaled_C if ctx.needs_input_grad[1] else None,
            own_sum_C if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class SynchronisedBatchNorm(_BatchNorm):
    """The batch norm it is made from, with the statistics of all ranks' rows in training mode.

    Parameters and buffers are that norm's own, under the same names; evaluation is that norm's too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup) -> None:
        """Take over a norm that keeps running statistics with a fixed momentum.

        Raises:
            ValueError: The norm keeps none, or averages them over all batches.
        """
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            raise ValueError("found a batch norm without running statistics; give it some")
        if norm.momentum is None:
            raise ValueError("found a batch norm whose running statistics average all batches; give it a momentum")
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=False)
        self.affine = norm.affine
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.group = group
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, in its dtype."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        y: Tensor
        y, mean_C, variance_C, count = _Normalised.apply(x, self.weight, self.bias, self.eps, self.group)
        if not self.track_running_stats:
            return y
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_((variance_C * (count / (count - 1))).to(mean_C.dtype), self.momentum)
            self.num_batches_tracked += 1
        return y


def synchronised(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """`module` with every batch norm, itself included, replaced by one that sees the rows of all ranks."""
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm(module, group)
    for name, child in module.named_children():
        module.register_module(name, synchronised(child, group))
    return module
