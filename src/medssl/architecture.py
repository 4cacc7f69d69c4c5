"""The encoders' architectures as numbers: what each is made of, its multiplications and its parameters.

Pure counting, so that a study's cost is known where no network can be built; `medssl.model` builds from the same
numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from medssl.config import EncoderConfig

# Blocks of each group, by depth (He et al. 2016, table 1); BiT has the same (Kolesnikov et al. 2020, section 3.1).
BASIC_LAYERS: Final = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_LAYERS: Final = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_EXPANSION: Final = 4
GROUP_FILTERS: Final = (64, 128, 256, 512)
GROUP_STRIDES: Final = (1, 2, 2, 2)
STEM_KERNEL: Final = 7
PROJECTION_DIM: Final = 128  # of z (spec 1.3)


@dataclass(frozen=True)
class Size:
    """A network, or a part of one.

    Attributes:
        multiply_adds: Of one image's forward pass, in convolutions and linear layers; twice as many FLOPs. Norms,
            activations and pools, about 1 % of a ResNet's, are not counted.
        parameters: Numbers that training changes.
        statistics: Numbers that batch norm keeps beside them.
    """

    multiply_adds: int = 0
    parameters: int = 0
    statistics: int = 0

    def __add__(self, other: "Size") -> "Size":
        """Both together."""
        return Size(
            self.multiply_adds + other.multiply_adds,
            self.parameters + other.parameters,
            self.statistics + other.statistics,
        )

    @property
    def num_bytes(self) -> int:
        """Of its weights on disk, 4 each."""
        return 4 * (self.parameters + self.statistics)


@dataclass(frozen=True)
class _Convolution:
    """A square convolution without bias; its result has `out_px` pixels a side."""

    in_channels: int
    out_channels: int
    kernel: int
    out_px: int

    @property
    def size(self) -> Size:
        weights = self.in_channels * self.out_channels * self.kernel**2
        return Size(multiply_adds=weights * self.out_px**2, parameters=weights)


def representation_dim(config: EncoderConfig) -> int:
    """D of an encoder."""
    expansion = BOTTLENECK_EXPANSION if config.depth in BOTTLENECK_LAYERS else 1
    return round(GROUP_FILTERS[-1] * config.width) * expansion


def encoder_size(config: EncoderConfig, *, image_channels: int, image_size_px: int) -> Size:
    """Size of an encoder up to its representation.

    Args:
        config: Its settings.
        image_channels: Of the images it sees; its weights may take more (`input_channels`).
        image_size_px: Pixels a side.
    """
    convolutions = list(_convolutions(config, config.input_channels or image_channels, image_size_px))
    total = sum((convolution.size for convolution in convolutions), Size())
    if config.family == "bit":  # group norm before each convolution of a branch, and before the pool; no statistics
        normed = sum(one.in_channels for one in convolutions[1:]) - _projected_channels(config)
        return total + Size(parameters=2 * (normed + representation_dim(config)))
    normed = sum(one.out_channels for one in convolutions)  # batch norm after each convolution
    return total + Size(parameters=2 * normed, statistics=2 * normed)


def projection_head_size(dim: int) -> Size:
    """Size of the projection head on a representation of `dim`; its last batch norm has no shift."""
    weights = dim * dim + dim * PROJECTION_DIM
    return Size(weights, weights + 2 * dim + PROJECTION_DIM, 2 * (dim + PROJECTION_DIM))


def classifier_head_size(dim: int, num_classes: int) -> Size:
    """Size of the linear layer on a representation of `dim`, with its bias."""
    return Size(dim * num_classes, (dim + 1) * num_classes)


def _convolutions(config: EncoderConfig, in_channels: int, image_size_px: int) -> Iterator[_Convolution]:
    """Every convolution in order, the stem first; each stride of 2 halves a side and rounds up."""
    is_bottleneck = config.depth in BOTTLENECK_LAYERS
    layers = BOTTLENECK_LAYERS[config.depth] if is_bottleneck else BASIC_LAYERS[config.depth]
    px = _halved(image_size_px)
    channels = round(GROUP_FILTERS[0] * config.width)
    yield _Convolution(in_channels, channels, STEM_KERNEL, px)
    px = _halved(px)  # the max-pool
    for group, num_blocks in enumerate(layers):
        filters = round(GROUP_FILTERS[group] * config.width)
        out_channels = filters * BOTTLENECK_EXPANSION if is_bottleneck else filters
        for block in range(num_blocks):
            in_px, px = px, _halved(px) if block == 0 and GROUP_STRIDES[group] == 2 else px
            if block == 0 and (group > 0 or config.has_first_projection):
                yield _Convolution(channels, out_channels, 1, px)
            if is_bottleneck:
                yield _Convolution(channels, filters, 1, in_px)
                yield _Convolution(filters, filters, 3, px)
                yield _Convolution(filters, out_channels, 1, px)
            else:
                yield _Convolution(channels, filters, 3, px)
                yield _Convolution(filters, filters, 3, px)
            channels = out_channels


def _projected_channels(config: EncoderConfig) -> int:
    """Inputs of all projection shortcuts of a BiT encoder, which have no norm of their own."""
    stem, *groups = (round(filters * config.width) for filters in (GROUP_FILTERS[0], *GROUP_FILTERS[:-1]))
    return stem + BOTTLENECK_EXPANSION * sum(groups)


def _halved(px: int) -> int:
    return -(-px // 2)
