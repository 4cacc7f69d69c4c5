"""CRC-32C (Castagnoli), with which TensorFlow guards its checkpoints, fast enough for gigabytes in NumPy.

The register is linear in what went in: many pieces are summed side by side, and one piece's result is carried over the
bytes after it by tables.
"""

from functools import cache
from typing import Any, Final

import numpy as np

_POLYNOMIAL: Final = 0x82F63B78  # reflected
_MASK_DELTA: Final = 0xA282EAD8  # of LevelDB, which never stores a checksum as it is
_PIECES: Final = 16_384  # side by side

Words = np.ndarray[Any, np.dtype[np.uint32]]


@cache
def _table(num_bits: int) -> Words:
    """What the lowest bits of the register leave behind once they have been shifted out."""
    table = np.arange(2**num_bits, dtype=np.uint32)
    for _ in range(num_bits):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


def _sum(registers: Words, pairs_LP: np.ndarray[Any, np.dtype[np.uint16]]) -> Words:
    """The registers after each has taken its column of pairs of bytes."""
    table = _table(16)
    for row in pairs_LP:
        registers = table.take((registers & 0xFFFF) ^ row) ^ (registers >> 16)
    return registers


@cache
def _carry(num_pairs: int) -> Words:
    """Tables, shape (4, 256), that carry a register over as many pairs of zeros, byte by byte of the register."""
    bits = _sum(np.uint32(1) << np.arange(32, dtype=np.uint32), np.zeros((num_pairs, 1), np.uint16))
    chosen = (np.arange(256)[:, None] >> np.arange(8)) & 1
    parts = [np.bitwise_xor.reduce(np.where(chosen, bits[8 * i : 8 * i + 8], 0), axis=1) for i in range(4)]
    return np.stack(parts).astype(np.uint32)


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes."""
    length = len(data) // (2 * _PIECES)
    register = 0xFFFFFFFF
    if length:
        whole = np.frombuffer(data, "<u2", count=length * _PIECES).reshape(_PIECES, length)
        pieces = _sum(np.zeros(_PIECES, np.uint32), np.ascontiguousarray(whole.T)).tolist()
        t0, t1, t2, t3 = _carry(length).tolist()
        for piece in pieces:
            low, high = register & 0xFFFF, register >> 16
            register = t0[low & 0xFF] ^ t1[low >> 8] ^ t2[high & 0xFF] ^ t3[high >> 8] ^ piece
    of_byte = _table(8).tolist()
    for byte in data[2 * length * _PIECES :]:
        register = of_byte[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The checksum as LevelDB's tables and TensorFlow's bundles store it."""
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF
