"""The convolutions of a ResNet here, each with its batch norm, in the order in which SimCLR's code makes them."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from medssl.architecture import BASIC_LAYERS, BOTTLENECK_LAYERS
from medssl.config import EncoderConfig

STEM = -1
SHORTCUT = -1
# How others call the weights of a batch norm, by our (torch's) names.
TORCH_NORM: Mapping[str, str] = MappingProxyType(
    {name: name for name in ("weight", "bias", "running_mean", "running_var")}
)
TENSORFLOW_NORM: Mapping[str, str] = MappingProxyType(
    {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
)


class Unit(NamedTuple):
    """A convolution and its batch norm.

    Attributes:
        group: 0 to 3, or STEM.
        block: Within the group.
        number: Within the block's branch, or SHORTCUT.
    """

    group: int
    block: int
    number: int

    @property
    def names(self) -> tuple[str, str]:
        """Of the convolution and of the batch norm in `networks.ResNet`."""
        if self.group == STEM:
            return "stem.0", "stem.1"
        block = f"groups.{self.group}.{self.block}"
        if self.number == SHORTCUT:
            return f"{block}.shortcut.0", f"{block}.shortcut.1"
        return f"{block}.branch.{3 * self.number}", f"{block}.branch.{3 * self.number + 1}"


def units(config: EncoderConfig) -> Iterator[Unit]:
    """All units: the stem, then block by block the shortcut's before those of the branch."""
    yield Unit(STEM, 0, 0)
    is_bottleneck = config.depth in BOTTLENECK_LAYERS
    for group, num_blocks in enumerate((BOTTLENECK_LAYERS | BASIC_LAYERS)[config.depth]):
        for block in range(num_blocks):
            if block == 0 and (group > 0 or config.has_first_projection):
                yield Unit(group, block, SHORTCUT)
            for number in range(3 if is_bottleneck else 2):
                yield Unit(group, block, number)


def names_by_ours(
    config: EncoderConfig,
    theirs: Callable[[int, Unit], tuple[str, str]],
    *,
    kernel: str = "weight",
    norm: Mapping[str, str] = TORCH_NORM,
    separator: str = ".",
    ending: str = "",
) -> dict[str, str]:
    """Their name of each of our tensors, but for the counts of batches.

    Args:
        config: A ResNet.
        theirs: Their names of the convolution and the batch norm of a unit, given its number in order and the unit.
        kernel: Their name of a convolution's weight.
        norm: Their names of a batch norm's weights.
        separator: Between a module's name and a tensor's.
        ending: After every name.
    """
    found = {}
    for order, unit in enumerate(units(config)):
        (our_conv, our_norm), (their_conv, their_norm) = unit.names, theirs(order, unit)
        found[f"{our_conv}.weight"] = f"{their_conv}{separator}{kernel}{ending}"
        found |= {f"{our_norm}.{own}": f"{their_norm}{separator}{other}{ending}" for own, other in norm.items()}
    return found
