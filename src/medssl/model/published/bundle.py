"""TensorFlow's checkpoints (V2): an index by name, and the values, as they lie in memory, in files beside it.

References:
    tensorflow/core/util/tensor_bundle and core/protobuf/tensor_bundle.proto.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medssl.model.published import sstable
from medssl.model.published.crc32c import masked_crc32c
from medssl.model.published.stored import MAX_FILE_BYTES, Checkpoint, Stored, WeightsError, checked
from medssl.store import file_digest

INDEX: Final = ".index"
MAX_INDEX_BYTES: Final = 64 * 2**20
MAX_SHARDS: Final = 1000
# Of TensorFlow's types.proto; values of all other types are listed and never read.
_TYPES: Final[Mapping[int, torch.dtype]] = {
    1: torch.float32,
    2: torch.float64,
    14: torch.bfloat16,
    19: torch.float16,
}
_BIG_ENDIAN: Final = 1


@dataclass(frozen=True)
class _Entry:
    """What the index says of one tensor (BundleEntryProto)."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_sliced: bool


def prefix_of(path: Path) -> Path | None:
    """The name that the files of a checkpoint share, given it or one of them; None if there is no index."""
    name = path.name.removesuffix(INDEX).split(".data-")[0]
    return path.with_name(name) if name and path.with_name(f"{name}{INDEX}").is_file() else None


def open_bundle(prefix: Path) -> Checkpoint:
    """Open a checkpoint whose files begin with `prefix`.

    Raises:
        WeightsError: Its index cannot be read, or a file of values is missing or too short.
    """
    index = prefix.with_name(f"{prefix.name}{INDEX}")
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise WeightsError(f"{index.name}: {index.stat().st_size} bytes; expected at most {MAX_INDEX_BYTES}")
    try:
        found = dict(sstable.entries(index.read_bytes()))
        num_shards = _num_shards(found.pop(b"", b""))
        listed = {_text(name): _entry(value) for name, value in found.items()}
    except WeightsError as error:
        raise WeightsError(f"{index.name}: {error}") from None
    shards = [prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{num_shards:05d}") for i in range(num_shards)]
    for shard in shards:
        if not shard.is_file() or shard.stat().st_size > MAX_FILE_BYTES:
            raise WeightsError(
                f"{shard.name}: missing or larger than {MAX_FILE_BYTES} bytes; it belongs to {index.name}"
            )
    for name, entry in listed.items():
        _check(name, entry, shards)
    tensors = {
        name: Stored(entry.shape, entry.dtype, partial(_read, shards[entry.shard], name, entry))
        for name, entry in listed.items()
    }
    digests = {file.name.removeprefix(prefix.name): file_digest(file) for file in (index, *shards)}
    return Checkpoint(checked(tensors, index.name), digests)


def _num_shards(header: bytes) -> int:
    values = dict(sstable.fields(header))
    if values.get(2, 0) == _BIG_ENDIAN:
        raise WeightsError("values lie big-endian; save the checkpoint anew on another machine")
    num_shards = values.get(1, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards <= MAX_SHARDS:
        raise WeightsError(f"states {num_shards!r:.20} files of values; expected 1 to {MAX_SHARDS}")
    return num_shards


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise WeightsError("a tensor's name is no text; the file is damaged, download it again") from None


def _entry(data: bytes) -> _Entry:
    numbers = {number: value for number, value in sstable.fields(data) if isinstance(value, int)}
    messages = [(number, value) for number, value in sstable.fields(data) if isinstance(value, bytes)]
    shape: tuple[int, ...] = ()
    for number, value in messages:
        if number == 2:
            shape = tuple(_side(part) for field, part in sstable.fields(value) if field == 2)
    return _Entry(
        dtype=_TYPES.get(numbers.get(1, 0)),
        shape=shape,
        shard=numbers.get(3, 0),
        offset=numbers.get(4, 0),
        size=numbers.get(5, 0),
        checksum=numbers.get(6, 0),
        is_sliced=any(number == 7 for number, _ in messages),
    )


def _side(dimension: int | bytes) -> int:
    value = dict(sstable.fields(dimension)).get(1, 0) if isinstance(dimension, bytes) else 0
    return value if isinstance(value, int) else 0


def _check(name: str, entry: _Entry, shards: list[Path]) -> None:
    """Refuse what does not lie in its file, text and integers too: a file that was cut short is told by any of them."""
    if entry.shard >= len(shards) or entry.offset + entry.size > shards[entry.shard].stat().st_size:
        raise WeightsError(f"{name[:80]}: lies outside its file of values; download the checkpoint again")
    if entry.is_sliced:
        raise WeightsError(f"{name[:80]}: stored in slices, which is not supported; save the checkpoint anew, unsliced")
    if entry.dtype is not None and entry.size != math.prod(entry.shape) * entry.dtype.itemsize:
        raise WeightsError(f"{name[:80]}: {entry.size} bytes for shape {list(entry.shape)[:8]}; the index is damaged")


def _read(shard: Path, name: str, entry: _Entry) -> Tensor:
    with shard.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size or masked_crc32c(data) != entry.checksum:
        raise WeightsError(f"{name[:80]}: its values have another checksum than stated; download the checkpoint again")
    if entry.dtype is None:
        raise WeightsError(f"{name[:80]}: holds no floating-point numbers")
    flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(entry.dtype)
    return flat.reshape(entry.shape)
