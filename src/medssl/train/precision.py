"""The number format in which networks compute."""

import torch

from medssl.config import Precision


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which networks compute in `precision`; with "float32" it changes nothing.

    With "bf16", convolutions and matrix products run in bfloat16, while parameters, their gradients and batch norm's
    statistics stay float32. A context belongs to one forward pass: weights that were cast without a graph would be
    used again, and get no gradient.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
