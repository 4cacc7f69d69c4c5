"""Photographs of skin: tone, texture, hair and light, drawn over and around a lesion.

Colour follows from what the skin contains. Light that comes back is weakened exponentially by melanin and by blood,
each with its own absorption in red, green and blue, and a part is reflected at the surface before. So redness is
plain on light skin and hard to see on dark skin, and a loss of pigment the other way round, without a rule for it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.data.fields import Field, bump, noise, step
from medssl.data.skin_phantom.lesions import Lesion

Color = tuple[float, float, float]  # red, green, blue; linear light, 0-1

# Linear light; chosen by eye so that melanin 0.02 to 1.05 gives the skin types I to VI.
BLOODLESS: Color = (0.90, 0.71, 0.60)
MELANIN_ABSORPTION: Color = (1.75, 2.5, 3.1)
BLOOD_ABSORPTION: Color = (0.15, 1.15, 0.95)
SCALE_COLOR: Color = (0.66, 0.60, 0.57)
CRUST_COLOR: Color = (0.62, 0.42, 0.16)
SURFACE_REFLECTANCE = 0.015
BLOOD_UNDER_MELANIN = 0.45  # share of redness that the darkest skin hides: blood lies below the pigment
RELIEF_GAIN, MAX_SLOPE = 1.0, 0.4
MEAN_LIGHT, EXPOSURE_CONTROL = 0.28, 0.35  # the camera goes this share of the way (as a power) to this mean
GAMMA = 1 / 2.2


@dataclass(frozen=True)
class Skin:
    """The skin of one patient at one site, the same in all photographs of a case.

    Attributes:
        melanin: About 0.02 (type I) to 1.05 (type VI).
        blood: Redness, 0.1-0.4.
        texture: Depth of pores and creases, 0-1.
        mottling: Unevenness of colour, 0-1.
        freckles: Share of the skin with freckles, 0-1.
        hair: Share of the skin under hair, 0-1.
        hair_color: Linear light.
        hair_turn_rad: Direction in which the hair lies.
        edge: Distance of the body's edge from the lesion, and its direction in radians.
        seed: Decides where each pore, freckle and hair is.
    """

    melanin: float = 0.2
    blood: float = 0.2
    texture: float = 0.4
    mottling: float = 0.3
    freckles: float = 0.0
    hair: float = 0.0
    hair_color: Color = (0.03, 0.02, 0.015)
    hair_turn_rad: float = 0.0
    edge: tuple[float, float] = (3.0, 0.0)
    seed: int = 0


@dataclass(frozen=True)
class Photo:
    """How one photograph was taken; nothing of it says what it shows.

    Attributes:
        turn_rad: Rotation of the camera.
        distance: 1 as usual, 2 twice as far.
        shift: Place of the lesion's middle off the image's.
        shear: Of the viewing angle.
        tilt: Change of distance across the image, right and down.
        light: Gains of red, green and blue.
        exposure: Factor on the brightness.
        lamp: Direction of the light in radians and its strength on relief, 0-1.
        vignette: Darkening of the corners, 0-1.
        shadow: Distance from the middle, direction in radians, and depth 0-1 of a shadow's edge.
        flash: Gloss, 0-1.
        background: Colour around the body.
        blur: Standard deviation, as a share of the side.
        grain: Standard deviation of the sensor's noise, 0-1.
        quality: Of the JPEG file.
        seed: Decides the grain and the background's folds.
    """

    turn_rad: float = 0.0
    distance: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    shear: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    light: Color = (1.0, 1.0, 1.0)
    exposure: float = 1.0
    lamp: tuple[float, float] = (0.8, 0.5)
    vignette: float = 0.0
    shadow: tuple[float, float, float] = (9.0, 0.0, 0.0)
    flash: float = 0.0
    background: Color = (0.1, 0.2, 0.3)
    blur: float = 0.0
    grain: float = 0.0
    quality: int = 85
    seed: int = 0


def render(skin: Skin, lesion_at: Callable[[Field, Field], Lesion], photo: Photo, *, size_px: int) -> NDArray[np.uint8]:
    """Take one photograph.

    Args:
        skin: What surrounds the lesion.
        lesion_at: The lesion over coordinates of the skin, the unit being half a side at distance 1.
        photo: How it is taken.
        size_px: Side of the square image.

    Returns:
        Shape (size_px, size_px, 3), sRGB; a pure function of its arguments.
    """
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
    column, row = np.meshgrid(axis, axis)
    x, y = _on_skin(column, row, photo)
    rng = np.random.default_rng(photo.seed)
    color = _skin_color(x, y, skin, lesion_at(x, y), photo)
    color = _behind(color, x, y, column, row, skin, photo, rng)
    color = _blurred(_lit(color, column, row, photo), photo.blur * size_px)
    grain = rng.standard_normal(color.shape, dtype=np.float32)
    level = np.clip(color, 0, 1) ** np.float32(GAMMA) + np.float32(photo.grain) * grain
    pixels: NDArray[np.uint8] = np.clip(level * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _on_skin(column: Field, row: Field, photo: Photo) -> tuple[Field, Field]:
    """Place on the skin that each pixel shows: a projective map, as of a camera held at an angle."""
    depth = 1 + np.float32(photo.tilt[0]) * column + np.float32(photo.tilt[1]) * row
    cos, sin = math.cos(photo.turn_rad), math.sin(photo.turn_rad)
    across, down = (column - photo.shift[0]) / depth, (row - photo.shift[1]) / depth
    x = np.float32(photo.distance) * (cos * across + sin * down + photo.shear * down)
    y = np.float32(photo.distance) * (cos * down - sin * across)
    return x.astype(np.float32), y.astype(np.float32)


def _skin_color(x: Field, y: Field, skin: Skin, lesion: Lesion, photo: Photo) -> Field:
    """Colour of the skin with lesion and hair under even light, shape (3, height, width)."""
    rng = np.random.default_rng(skin.seed)
    pores = noise(x, y, rng, wavelength=0.06, octaves=2)
    patches = noise(x, y, rng, wavelength=0.6, octaves=2) - 0.5
    specks = step(noise(x, y, rng, wavelength=0.075, octaves=2) - (0.86 - 0.28 * skin.freckles), 0.03)
    strands = _strands(x, y, skin, rng) * lesion.hair_left
    own = skin.melanin * (1 + 0.5 * skin.mottling * patches) + 0.13 * min(1.0, 3 * skin.freckles) * specks
    melanin = np.maximum(own * lesion.melanin_left + lesion.melanin, 0)
    hidden = 1 - BLOOD_UNDER_MELANIN * min(1.0, skin.melanin)
    blood = np.maximum(skin.blood * (1 + 1.2 * skin.mottling * patches) + hidden * lesion.blood, 0)
    color = _mixed(melanin, blood)
    color = _covered(color, SCALE_COLOR, 0.8 * lesion.white)
    color = _covered(color, CRUST_COLOR, lesion.yellow)
    relief = lesion.height + 0.02 * skin.texture * pores
    shade, gloss = _shading(relief, photo)
    return _covered(color * shade + gloss, skin.hair_color, strands)


def _mixed(melanin: Field, blood: Field) -> Field:
    channels = [
        SURFACE_REFLECTANCE + base * np.exp(-(np.float32(brown) * melanin + np.float32(red) * blood))
        for base, brown, red in zip(BLOODLESS, MELANIN_ABSORPTION, BLOOD_ABSORPTION, strict=True)
    ]
    return np.stack(channels).astype(np.float32)


def _covered(color: Field, cover: Color, share: Field | float) -> Field:
    value: Field = color + np.clip(share, 0, 1) * (np.array(cover, np.float32)[:, None, None] - color)
    return value


def _strands(x: Field, y: Field, skin: Skin, rng: np.random.Generator) -> Field:
    """Cover by hair, 0-1: two crossing sets of level lines of noise that is long in the hair's direction."""
    cover: Field = np.zeros_like(x)
    for turn in (skin.hair_turn_rad, skin.hair_turn_rad + 0.4):
        along, across = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
        lines = noise(along * 0.1, across, rng, wavelength=0.08) - 0.5
        grown = step(noise(along * 0.5, across, rng, wavelength=0.25) - (1 - skin.hair), 0.05)
        cover = np.maximum(cover, bump(lines, 0.035 + 0.08 * skin.hair**2) * grown)
    return cover * min(1.0, 4 * skin.hair)


def _shading(relief: Field, photo: Photo) -> tuple[Field, Field]:
    """Brightness factor and gloss of a relief under the lamp."""
    per_unit = relief.shape[0] / (2 * photo.distance)  # pixels a unit of the skin
    down, right = np.gradient(relief)
    direction, strength = photo.lamp
    slope = (math.cos(direction) * right + math.sin(direction) * down) * np.float32(per_unit)
    shade = 1 - RELIEF_GAIN * strength * np.clip(slope, -MAX_SLOPE, MAX_SLOPE)
    gloss = photo.flash * 0.22 * bump(slope + 0.3, 0.15)
    return shade, gloss


def _behind(
    color: Field, x: Field, y: Field, column: Field, row: Field, skin: Skin, photo: Photo, rng: np.random.Generator
) -> Field:
    """Darken the body towards its edge and put the background beyond it."""
    distance, direction = skin.edge
    along = math.cos(direction) * x + math.sin(direction) * y
    across = math.cos(direction) * y - math.sin(direction) * x
    inside = distance - along - 0.15 * np.square(across)
    folds = 0.6 + 0.8 * noise(column, row, rng, wavelength=0.5, octaves=2)
    cloth = np.array(photo.background, np.float32)[:, None, None] * folds
    body = color * (1 - 0.5 * bump(np.minimum(inside, 0.5), 0.18))
    value: Field = cloth + step(inside, 0.02) * (body - cloth)
    return value


def _lit(color: Field, column: Field, row: Field, photo: Photo) -> Field:
    """Colour and fall-off of the light, then the camera's exposure control."""
    place, direction, depth = photo.shadow
    dark = step(math.cos(direction) * column + math.sin(direction) * row - place, 0.12)
    fall = (1 - photo.vignette * 0.5 * (np.square(column) + np.square(row))) * (1 - depth * dark)
    lit = color * np.array(photo.light, np.float32)[:, None, None] * fall.astype(np.float32)
    control = (MEAN_LIGHT / float(lit.mean())) ** EXPOSURE_CONTROL
    return lit * np.float32(photo.exposure * control)


def _blurred(color: Field, deviation_px: float) -> Field:
    """Gaussian blur, edges repeated."""
    radius = math.ceil(2 * deviation_px)
    if deviation_px < 0.3:
        return color
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / deviation_px))
    weights = (weights / weights.sum()).astype(np.float32)
    size = color.shape[-1]
    for axis in (1, 2):
        padding = [(radius, radius) if axis == other else (0, 0) for other in range(3)]
        padded = np.pad(color, padding, mode="edge")
        views = (padded.take(range(shift, shift + size), axis=axis) for shift in range(2 * radius + 1))
        color = sum(weight * view for weight, view in zip(weights, views, strict=True))
    return color
