"""LevelDB's table file, as TensorFlow uses it for the index of a checkpoint; and the integers of protocol buffers.

A table is blocks of sorted keys, each key stored as its difference from the one before; the last block leads to the
others. Every offset is checked before it is followed.

References:
    LevelDB, doc/table_format.md; protobuf.dev, Encoding.
"""

import struct
from collections.abc import Iterator
from typing import Final

from medssl.model.published.crc32c import masked_crc32c
from medssl.model.published.stored import MAX_TENSORS, WeightsError

MAGIC: Final = 0xDB4775248B80FB57
_FOOTER_BYTES: Final = 48  # two handles, padding, the magic number
_TRAILER_BYTES: Final = 5  # of a block: its compression and its checksum
_MAX_VARINT_BYTES: Final = 10
_UNCOMPRESSED: Final = 0


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at `at`, and where it ends.

    Raises:
        WeightsError: It runs over the end or is longer than 64 bits.
    """
    value = 0
    for shift, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value & (2**64 - 1), at + shift + 1
    raise WeightsError("a number runs over the end; the file is damaged, download it again")


def entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a table, in its order.

    Raises:
        WeightsError: It is no table, is damaged, or its blocks are compressed.
    """
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise WeightsError("the index is no table of LevelDB's form; give a checkpoint in TensorFlow's V2 format")
    footer = data[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)
    (offset, size), _ = _handle(footer, at)
    found = 0
    for _, value in _block(data, offset, size):
        (offset, size), _ = _handle(value, 0)
        for entry in _block(data, offset, size):
            found += 1
            if found > MAX_TENSORS:  # blocks may be listed again and again
                raise WeightsError(f"the index has more than {MAX_TENSORS} entries; it is no checkpoint of a network")
            yield entry


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the handle ends."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    if size < 4 or end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise WeightsError("a block of the index lies outside the file; it is damaged, download it again")
    compression, checksum = data[end], struct.unpack("<I", data[end + 1 : end + _TRAILER_BYTES])[0]
    if compression != _UNCOMPRESSED:
        raise WeightsError(
            "the index is compressed (Snappy), which TensorFlow's own writer does not do; save the checkpoint anew"
        )
    if masked_crc32c(data[offset : end + 1]) != checksum:
        raise WeightsError("a block of the index has another checksum than stated; download the checkpoint again")
    num_restarts = struct.unpack("<I", data[end - 4 : end])[0]
    last = end - 4 - 4 * num_restarts
    if last < offset:
        raise WeightsError("a block of the index is shorter than it states; it is damaged, download it again")
    key, at = b"", offset
    while at < last:
        shared, at = varint(data, at)
        own, at = varint(data, at)
        length, at = varint(data, at)
        if shared > len(key) or at + own + length > last:
            raise WeightsError("a key of the index runs over its block; the file is damaged, download it again")
        key = key[:shared] + data[at : at + own]
        yield key, data[at + own : at + own + length]
        at += own + length


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: integers whatever their width, or bytes.

    Raises:
        WeightsError: A field runs over the end or has a type that is not used here.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = varint(data, at)
        if length is None or at + length > len(data):
            raise WeightsError("an entry of the index cannot be read; the file is damaged, download it again")
        part = data[at : at + length]
        yield number, part if kind == 2 else int.from_bytes(part, "little")
        at += length
