"""Tensors of a checkpoint that are known by name, shape and type, and read only when they are needed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from medssl.exit_codes import BadInputError

GIB = 2**30
# The largest that is published, BiT's ResNet-152x4 with its 21,843 classes, has 4.4 GiB; training state adds to it.
MAX_FILE_BYTES = 16 * GIB
MAX_TENSOR_BYTES = 2 * GIB
MAX_TENSORS = 20_000
MAX_NAME_CHARS = 300
MAX_EXAMPLES = 5
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class WeightsError(BadInputError):
    """A file of weights cannot be read or used; the message says what was found and what to do."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: As stored, whatever the order of its axes.
        dtype: Of its values; None for text or whatever torch does not have.
        read: Its values, from the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        tensors: By name; names of nested parts are joined by dots, and that of a part "state_dict" is left away.
        is_wrapped: Whether the names lay in a part "state_dict".
        beside: Names of what lies beside it and is not looked at: optimiser state, settings.
        digests: SHA-256 in hex of each file, by what its name ends with.
    """

    tensors: Mapping[str, Stored]
    digests: Mapping[str, str]
    is_wrapped: bool = False
    beside: tuple[str, ...] = ()


def checked(tensors: Mapping[str, Stored], where: str) -> Mapping[str, Stored]:
    """The tensors, once their number, names and sizes are known to be sane.

    Raises:
        WeightsError: Something would fill memory, or there is nothing.
    """
    if not tensors or len(tensors) > MAX_TENSORS:
        raise WeightsError(f"{where}: found {len(tensors)} tensors; expected 1 to {MAX_TENSORS}")
    for name, stored in tensors.items():
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise WeightsError(f"{where}: a tensor has a name of {len(name)} characters; expected a plain, short one")
        itemsize = 8 if stored.dtype is None else stored.dtype.itemsize
        if any(side < 0 for side in stored.shape) or math.prod(stored.shape) * itemsize > MAX_TENSOR_BYTES:
            raise WeightsError(
                f"{where}: {name} has shape {list(stored.shape)[:8]}; expected at most {MAX_TENSOR_BYTES // GIB} GiB"
            )
    return MappingProxyType(dict(tensors))


def examples(names: list[str]) -> str:
    """At most five names, and how many more there are."""
    more = f" and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else ""
    return ", ".join(names[:MAX_EXAMPLES]) + more
