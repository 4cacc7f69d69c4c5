"""What a format of published weights is: how it names the tensors of an encoder, and what else its files hold."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from medssl.config import EncoderConfig
from medssl.model.published.stored import Checkpoint

# Of ImageNet's training images, by which torchvision and those who follow it scale their input.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Form:
    """One format.

    Attributes:
        name: As `--format` takes it.
        cites: What to cite, and the licence by name.
        fits: Whether a file has this format, by its names.
        candidates: Every architecture that exists in this format, at width 1, with what its weights expect.
        names: Their name of each of our encoder's tensors.
        left_out: Matches the names of tensors that are no part of the encoder.
        is_hwio: Whether kernels lie as TensorFlow has them: height, width, input, output.
        head_names: Their name of each tensor of a two-layer projection head; None: there never is one.
        head: Matches the names of all tensors of the projection head.
    """

    name: str
    cites: str
    fits: Callable[[Checkpoint], bool]
    candidates: tuple[EncoderConfig, ...]
    names: Callable[[EncoderConfig], Mapping[str, str]]
    left_out: re.Pattern[str]
    is_hwio: bool = False
    head_names: Mapping[str, str] = field(default_factory=dict)
    head: re.Pattern[str] = re.compile(r"(?!)")


def resnets(*, like_torchvision: bool) -> tuple[EncoderConfig, ...]:
    """All depths of a ResNet with what the weights expect: torchvision's input and max-pool, or SimCLR's."""
    if not like_torchvision:
        return tuple(EncoderConfig(depth=depth, input_channels=3) for depth in (18, 34, 50, 101, 152))
    return tuple(
        EncoderConfig(
            depth=depth,
            pool_padding="symmetric",
            has_first_projection=depth >= 50,
            input_channels=3,
            input_mean=IMAGENET_MEAN,
            input_std=IMAGENET_STD,
        )
        for depth in (18, 34, 50, 101, 152)
    )
