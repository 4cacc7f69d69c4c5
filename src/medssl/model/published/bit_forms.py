"""Formats of BiT's weights: the .npz files of its authors, and timm's."""

import re
from collections.abc import Iterator

from medssl.config import EncoderConfig
from medssl.model.bit import LAYERS
from medssl.model.published.form import Form

_CITES = "Kolesnikov et al. 2020, Big Transfer; google-research/big_transfer, Apache-2.0"
_BRANCH = ("a", "b", "c")


def _pairs(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Names of all tensors in timm's network, each with its authors'."""
    conv, norm = "standardized_conv2d/kernel", (("weight", "gamma"), ("bias", "beta"))
    yield "stem.conv.weight", f"resnet/root_block/{conv}"
    yield from ((f"norm.{own}", f"resnet/group_norm/{their}") for own, their in norm)
    for stage, num_units in enumerate(LAYERS[config.depth]):
        for unit in range(num_units):
            own, their = f"stages.{stage}.blocks.{unit}", f"resnet/block{stage + 1}/unit{unit + 1:02d}"
            for number, letter in enumerate(_BRANCH, start=1):
                yield f"{own}.conv{number}.weight", f"{their}/{letter}/{conv}"
                yield from ((f"{own}.norm{number}.{o}", f"{their}/{letter}/group_norm/{t}") for o, t in norm)
            if unit == 0:
                yield f"{own}.downsample.conv.weight", f"{their}/a/proj/{conv}"


_CANDIDATES = tuple(EncoderConfig(family="bit", depth=depth, input_channels=3) for depth in LAYERS)

BIT_FORMS = (
    Form(
        name="bit",
        cites=_CITES,
        fits=lambda checkpoint: "resnet/root_block/standardized_conv2d/kernel" in checkpoint.tensors,
        candidates=_CANDIDATES,
        names=lambda config: {f"network.{own}": their for own, their in _pairs(config)},
        left_out=re.compile(r"^resnet/head/|^(?!resnet/)"),
        is_hwio=True,
    ),
    Form(
        name="bit_timm",
        cites=_CITES,
        fits=lambda checkpoint: "stages.0.blocks.0.downsample.conv.weight" in checkpoint.tensors,
        candidates=_CANDIDATES,
        names=lambda config: {f"network.{own}": own for own, _ in _pairs(config)},
        left_out=re.compile(r"^head\."),
    ),
)
