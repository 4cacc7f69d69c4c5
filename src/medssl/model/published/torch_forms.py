"""Formats whose tensors torch wrote: torchvision, conversions of SimCLR v1 and v2, lightly, solo-learn."""

import re
from collections.abc import Callable

from medssl.config import EncoderConfig
from medssl.model.published.form import Form, resnets
from medssl.model.published.stored import Checkpoint
from medssl.model.published.units import SHORTCUT, STEM, Unit, names_by_ours


def _torchvision(unit: Unit, stem: tuple[str, str] = ("conv1", "bn1"), group: str = "layer{}") -> tuple[str, str]:
    if unit.group == STEM:
        return stem
    block = f"{group.format(unit.group + 1)}.{unit.block}"
    if unit.number == SHORTCUT:
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.conv{unit.number + 1}", f"{block}.bn{unit.number + 1}"


def _solo_learn(unit: Unit) -> tuple[str, str]:
    conv, norm = _torchvision(unit)
    return f"backbone.{conv}", f"backbone.{norm}"


def _lightly(unit: Unit) -> tuple[str, str]:
    """Its backbone is a sequence of torchvision's modules without the last: numbers in place of names."""
    if unit.group == STEM:
        return "backbone.0", "backbone.1"
    conv, norm = _torchvision(unit)
    start = f"layer{unit.group + 1}"
    number = f"backbone.{unit.group + 4}"  # after convolution, norm, ReLU and max-pool
    return conv.replace(start, number, 1), norm.replace(start, number, 1)


def _simclr_v2(unit: Unit) -> tuple[str, str]:
    if unit.group == STEM:
        return "resnet.net.0.0", "resnet.net.0.1.0"
    block = f"resnet.net.{unit.group + 1}.blocks.{unit.block}"
    if unit.number == SHORTCUT:
        return f"{block}.projection.shortcut", f"{block}.projection.bn.0"
    return f"{block}.net.{2 * unit.number}", f"{block}.net.{2 * unit.number + 1}.0"


def _names(theirs: Callable[[Unit], tuple[str, str]]) -> Callable[[EncoderConfig], dict[str, str]]:
    return lambda config: names_by_ours(config, lambda _, unit: theirs(unit))


def _head(prefix: str) -> dict[str, str]:
    """Two-layer heads count their modules as ours does: linear, norm, ReLU, linear, norm."""
    norms = ("weight", "bias", "running_mean", "running_var")
    own = ["layers.0.weight", *(f"layers.1.{n}" for n in norms), "layers.3.weight", *(f"layers.4.{n}" for n in norms)]
    return {name: f"{prefix}.{name}" for name in own}


def _has(*names: str) -> Callable[[Checkpoint], bool]:
    return lambda checkpoint: all(name in checkpoint.tensors for name in names)


def _fits_torchvision(checkpoint: Checkpoint) -> bool:
    """Conversions of SimCLR v1 have the same names: they are wider, or lie in a state dict."""
    return _has("conv1.weight", "layer1.0.conv1.weight")(checkpoint) and not (
        checkpoint.is_wrapped or _fits_simclr_v1(checkpoint)
    )


def _fits_simclr_v1(checkpoint: Checkpoint) -> bool:
    has_names = _has("conv1.weight", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight")(checkpoint)
    return has_names and checkpoint.tensors["conv1.weight"].shape[:1] > (64,)


SIMCLR_CITES = "Chen et al. 2020, SimCLR; google-research/simclr, Apache-2.0"
_COUNTS = r"(^|\.)num_batches_tracked$"

TORCH_FORMS = (
    Form(
        name="torchvision",
        cites="torchvision, BSD-3-Clause; trained on ImageNet, whose terms of access apply",
        fits=_fits_torchvision,
        candidates=resnets(like_torchvision=True),
        names=_names(_torchvision),
        left_out=re.compile(rf"^fc\.|{_COUNTS}"),
    ),
    Form(
        name="simclr_v1",
        cites=SIMCLR_CITES,
        fits=_fits_simclr_v1,
        candidates=resnets(like_torchvision=False),
        names=_names(_torchvision),
        left_out=re.compile(rf"^fc\.|{_COUNTS}"),
    ),
    Form(
        name="simclr_v2",
        cites=SIMCLR_CITES,
        fits=_has("resnet.net.0.0.weight"),
        candidates=resnets(like_torchvision=False),
        names=_names(_simclr_v2),
        left_out=re.compile(rf"^resnet\.fc\.|{_COUNTS}"),
        head_names=_head("head"),
        head=re.compile(r"^head\."),
    ),
    Form(
        name="lightly",
        cites="trained with lightly (MIT); the licence of the weights is for their owner to say",
        fits=_has("backbone.0.weight", "backbone.4.0.conv1.weight"),
        candidates=resnets(like_torchvision=True),
        names=_names(_lightly),
        left_out=re.compile(rf"^(?!backbone\.)|{_COUNTS}"),
        head_names=_head("projection_head"),
        head=re.compile(r"^projection_head\."),
    ),
    Form(
        name="solo_learn",
        cites="trained with solo-learn (MIT); the licence of the weights is for their owner to say",
        fits=_has("backbone.conv1.weight", "backbone.layer1.0.conv1.weight"),
        candidates=resnets(like_torchvision=True),
        names=_names(_solo_learn),
        left_out=re.compile(rf"^(?!backbone\.)|^backbone\.fc\.|{_COUNTS}"),
    ),
)
