"""Smooth functions over a coordinate grid, of which generated pictures are made."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float, of the image's shape
LATTICE = 32  # side of a noise lattice, which repeats


def step(distance: Field, softness: float = 0.012) -> Field:
    """Smooth indicator of a positive signed distance."""
    value: Field = np.clip(distance * np.float32(-1 / softness), -30, 30)
    return np.float32(1) / (np.float32(1) + np.exp(value))


def bump(distance: Field, width: float) -> Field:
    """1 at distance 0, falling off as a Gaussian; `width` is where it is 1/e."""
    value: Field = np.exp(-np.square(distance * np.float32(1 / width)))
    return value


def noise(x: Field, y: Field, rng: np.random.Generator, *, wavelength: float, octaves: int = 1) -> Field:
    """Value noise: random heights on a lattice, smoothly interpolated, so that it belongs to places and not to pixels.

    Args:
        x: Coordinates in any unit; a place has the same value however it is sampled.
        y: Likewise.
        rng: Gives the lattices; how much is drawn does not depend on the grid.
        wavelength: Distance of lattice points of the first octave, in the unit of the coordinates.
        octaves: Each next one has half the wavelength and half the weight.

    Returns:
        Values 0-1, about 0.5 on average, float32.
    """
    total: Field = np.zeros_like(x)
    for octave in range(octaves):
        lattice = rng.random((LATTICE, LATTICE), dtype=np.float32)
        frequency = np.float32(2**octave / wavelength)
        total += np.float32(0.5**octave) * _interpolated(lattice, x * frequency, y * frequency)
    return total / np.float32(2 - 0.5 ** (octaves - 1))


def _interpolated(lattice: Field, x: Field, y: Field) -> Field:
    left, top = np.floor(x), np.floor(y)
    column, row = left.astype(np.int32) % LATTICE, top.astype(np.int32) % LATTICE
    right, below = (column + 1) % LATTICE, (row + 1) % LATTICE
    across, down = _eased(x - left), _eased(y - top)
    upper = lattice[row, column] * (1 - across) + lattice[row, right] * across
    lower = lattice[below, column] * (1 - across) + lattice[below, right] * across
    value: Field = upper * (1 - down) + lower * down
    return value


def _eased(fraction: Field) -> Field:
    value: Field = fraction * fraction * (3 - 2 * fraction)
    return value
