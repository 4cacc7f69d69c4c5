"""Optimisers and learning rates: LARS for pretraining, Nesterov SGD for fine-tuning."""

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import ParamsT

# Of SimCLR's code; You et al. 2017 call it eta.
TRUST_COEFFICIENT = 0.001
# The batch at which SimCLR's learning-rate flag is the learning rate itself.
REFERENCE_BATCH_SIZE = 256


def split_parameters(module: nn.Module, *, exclude_biases: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a module's trainable parameters into (regularised, excluded), each once, in registration order.

    Excluded are all parameters of batch norms (the synchronised ones too), of group norms and, on request, every
    module's own `bias`. The owner's type decides, so renaming a layer changes nothing.
    """
    regularised: dict[nn.Parameter, None] = {}
    excluded: dict[nn.Parameter, None] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            is_bias = parameter is getattr(owner, "bias", None)
            is_excluded = isinstance(owner, _BatchNorm | nn.GroupNorm) or (exclude_biases and is_bias)
            if parameter.requires_grad:
                (excluded if is_excluded else regularised)[parameter] = None
    return list(regularised), list(excluded)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with classic momentum, as in SimCLR's code.

    For each parameter w with gradient g:

        g <- g + weight_decay * w                                        (not if excluded)
        trust = coefficient * |w| / |g|  if both norms are positive, else 1   (1 if excluded)
        v <- momentum * v + lr * trust * g
        w <- w - v

    The learning rate stands inside the buffer, so a schedule acts on new gradients only. No Nesterov, no
    clipping. A parameter group with `excluded=True` has neither decay nor trust ratio.

    References:
        You et al. 2017, Large Batch Training of Convolutional Networks, algorithm 1; google-research/simclr.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float,
        trust_coefficient: float = TRUST_COEFFICIENT,
    ) -> None:
        """Take parameters or groups; see `lars` for a module's groups.

        Raises:
            ValueError: On a negative value, or a momentum of 1 or more.
        """
        if min(lr, momentum, weight_decay, trust_coefficient) < 0 or momentum >= 1:
            found = f"lr {lr}, momentum {momentum}, weight_decay {weight_decay}, trust {trust_coefficient}"
            raise ValueError(f"found {found}; expected none negative and momentum below 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "excluded": False,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; returns the closure's value, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if parameters:
                    self._update(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """One step of a group's parameters, without a read-back from the device; the gradients are overwritten."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        if group["excluded"]:
            torch._foreach_add_(buffers, gradients, alpha=group["lr"])
        else:
            torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
            weight_norms = torch.stack(torch._foreach_norm(parameters))
            gradient_norms = torch.stack(torch._foreach_norm(gradients))
            is_adaptive = (weight_norms > 0) & (gradient_norms > 0)
            trusts = torch.where(is_adaptive, group["trust_coefficient"] * weight_norms / gradient_norms, 1.0)
            for buffer, gradient, rate in zip(buffers, gradients, (trusts * group["lr"]).unbind(), strict=True):
                buffer.addcmul_(gradient, rate)
        torch._foreach_sub_(parameters, buffers)


def lars(module: nn.Module, *, lr: float, weight_decay: float, momentum: float = 0.9) -> LARS:
    """LARS over a module; batch norms and biases have neither decay nor trust ratio."""
    adapted, excluded = split_parameters(module, exclude_biases=True)
    groups: list[dict[str, Any]] = [{"params": adapted}, {"params": excluded, "excluded": True}]
    return LARS(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def sgd_nesterov(module: nn.Module, *, lr: float, weight_decay: float, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with Nesterov momentum and decay 1/2 * weight_decay * |w|² on all but batch norms' parameters.

    Torch multiplies its buffer by the learning rate, Keras (SimCLR's code) puts the rate inside it: equal at
    a constant rate; under a cosine over thousands of steps they differ by the rate's change within a
    buffer's memory of about ten steps.
    """
    decayed, excluded = split_parameters(module, exclude_biases=False)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": excluded, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True)


def scaled_learning_rate(flag: float, batch_size: int, scaling: Literal["linear", "sqrt", "none"] = "linear") -> float:
    """Peak learning rate of a global batch: flag * batch / 256, flag * sqrt(batch), or the flag itself.

    References:
        Chen et al. 2020, section 2.2 (linear) and appendix B.1 (square root).
    """
    factors = {"linear": batch_size / REFERENCE_BATCH_SIZE, "sqrt": math.sqrt(batch_size), "none": 1.0}
    return flag * factors[scaling]


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of the step of this number, counted from 0: linear warm-up, then a cosine to 0.

        peak * step / warmup_steps                                                      before warmup_steps
        peak * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2      from there on

    So step 0 of a warm-up moves nothing, step `warmup_steps` has the peak, and total_steps and later have 0.

    Raises:
        ValueError: On a negative step or warm-up, or a warm-up longer than the run.

    References:
        Chen et al. 2020, section 2.2; Loshchilov & Hutter 2017, without restarts.
    """
    if step < 0 or not 0 <= warmup_steps <= total_steps:
        found = f"step {step}, warmup_steps {warmup_steps}, total_steps {total_steps}"
        raise ValueError(f"found {found}; expected step >= 0 and 0 <= warmup_steps <= total_steps")
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
