"""Outlines of lesions over coordinates of the skin: ovals, unions of them, dots."""

import math

import numpy as np

from medssl.data.fields import Field


def blob(
    x: Field,
    y: Field,
    rng: np.random.Generator,
    *,
    radius: float,
    stretch: float = 1.0,
    ragged: float = 0.0,
    center: tuple[float, float] = (0.0, 0.0),
) -> Field:
    """Signed distance, positive inside, of an oval whose radius varies by the share `ragged` around it."""
    turn = rng.uniform(0, math.pi)
    phases = rng.uniform(0, 2 * math.pi, 4)
    cos, sin = math.cos(turn), math.sin(turn)
    along, across = cos * (x - center[0]) + sin * (y - center[1]), cos * (y - center[1]) - sin * (x - center[0])
    distance = np.hypot(along / math.sqrt(stretch), across * math.sqrt(stretch))
    if ragged == 0:
        return np.float32(radius) - distance
    angle = np.arctan2(across, along)
    waves = zip((2, 3, 5, 9), (0.5, 0.45, 0.35, 0.25), phases, strict=True)
    edge = sum(share * np.cos(count * angle + np.float32(phase)) for count, share, phase in waves)
    return np.float32(radius) * (1 + np.float32(ragged) * edge) - distance


def blobs(
    x: Field, y: Field, rng: np.random.Generator, *, radii: list[float], spread: float, stretch: float, ragged: float
) -> Field:
    """Signed distance of the union of blobs that lie around the middle."""
    distance: Field = np.full_like(x, -9)
    for radius in radii:
        center = (rng.normal(0, spread), rng.normal(0, spread))
        shape = blob(x, y, rng, radius=radius, stretch=rng.uniform(1, stretch), ragged=ragged, center=center)
        distance = np.maximum(distance, shape)
    return distance


def dots(x: Field, y: Field, centers: Field, radii: Field) -> Field:
    """Highest of Gaussian dots at `centers`, shape (n, 2), of `radii`, shape (n,)."""
    scale = (1 / radii).astype(np.float32)[:, None, None]
    middle = centers.astype(np.float32)
    squares = np.square((x - middle[:, 0, None, None]) * scale) + np.square((y - middle[:, 1, None, None]) * scale)
    value: Field = np.exp(-squares.min(axis=0))
    return value


def scattered(rng: np.random.Generator, count: int, spread: float) -> Field:
    """`count` places around the middle, shape (count, 2), normal with deviation `spread`."""
    return rng.normal(0, spread, (count, 2))


def uniform_radii(rng: np.random.Generator, count: int, least: float, most: float) -> list[float]:
    """`count` radii between two bounds, all equally likely."""
    return [float(radius) for radius in rng.uniform(least, most, count)]
