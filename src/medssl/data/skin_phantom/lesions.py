"""How skin conditions look: what each adds to healthy skin, as fields over coordinates of the skin.

The unit is half the side of a photograph at its usual distance; the lesion's middle is at (0, 0). A look takes all it
decides from a generator, so the same seed is the same lesion, however it is photographed. Looks of related conditions
overlap on purpose: red and scaly (eczema, psoriasis, tinea), brown (nevus, melanoma, keratosis, lentigo), many small
(acne, folliculitis), or pale (vitiligo, tinea versicolor, scar).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medssl.data.fields import Field, bump, noise, step
from medssl.data.skin_phantom.lesion_shapes import blob, blobs, dots, scattered, uniform_radii

Layer = Field | float


@dataclass(frozen=True)
class Lesion:
    """What a lesion changes in the skin.

    Attributes:
        melanin: Added pigment; the range from skin type I to VI is about 1.
        blood: Added redness, about 0.8 where strong.
        white: Cover by scale, 0-1.
        yellow: Cover by crust or pus, 0-1.
        height: Relief in the unit of the coordinates.
        melanin_left: Share of the skin's own pigment that is left, 0-1.
        hair_left: Share of the hair that is left, 0-1.
    """

    melanin: Layer = 0.0
    blood: Layer = 0.0
    white: Layer = 0.0
    yellow: Layer = 0.0
    height: Layer = 0.0
    melanin_left: Layer = 1.0
    hair_left: Layer = 1.0

    def over(self, other: "Lesion") -> "Lesion":
        """Both on the same skin."""
        return Lesion(
            melanin=self.melanin + other.melanin,
            blood=self.blood + other.blood,
            white=self.white + other.white - self.white * other.white,
            yellow=self.yellow + other.yellow - self.yellow * other.yellow,
            height=self.height + other.height,
            melanin_left=self.melanin_left * other.melanin_left,
            hair_left=self.hair_left * other.hair_left,
        )


Look = Callable[[Field, Field, np.random.Generator], Lesion]


# --- Red ------------------------------------------------------------------------------------------


def acne(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Many papules of different sizes, some with pus, and blackheads between them."""
    count = int(rng.integers(7, 24))
    centers, radii = scattered(rng, count, rng.uniform(0.35, 0.55)), rng.uniform(0.035, 0.13, count)
    papules = dots(x, y, centers, radii)
    ripe = rng.random(count) < rng.uniform(0.1, 0.5)
    ripe[0] = True
    pus = dots(x, y, centers[ripe], 0.35 * radii[ripe])
    blackheads = dots(x, y, scattered(rng, 8, 0.5), np.full(8, 0.022))
    flush = rng.uniform(0.0, 0.2) * noise(x, y, rng, wavelength=0.5, octaves=2)
    return Lesion(
        blood=rng.uniform(0.4, 0.8) * papules + flush, yellow=0.7 * pus, melanin=0.4 * blackheads, height=0.05 * papules
    )


def folliculitis(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Small papules of one size at hair follicles, evenly spread, with a point of pus."""
    count = int(rng.integers(16, 30))
    along = np.arange(count) * 2.399963  # golden angle: an even spread over a disc
    radius = rng.uniform(0.7, 1.0) * np.sqrt((np.arange(count) + 0.5) / count)
    centers = np.stack([radius * np.cos(along), radius * np.sin(along)], axis=1) + scattered(rng, count, 0.05)
    size = rng.uniform(0.04, 0.06)
    papules = dots(x, y, centers, np.full(count, size))
    points = dots(x, y, centers, np.full(count, 0.4 * size))
    return Lesion(blood=rng.uniform(0.35, 0.7) * papules, yellow=rng.uniform(0.2, 0.7) * points, height=0.03 * papules)


def eczema(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Red areas without a clear border, dry and finely creased, with scratched points or some crust."""
    cloud = noise(x, y, rng, wavelength=rng.uniform(0.5, 0.9), octaves=3)
    area = step(cloud - rng.uniform(0.42, 0.52), rng.uniform(0.04, 0.09)) * step(
        blob(x, y, rng, radius=rng.uniform(0.7, 1.0), stretch=1.4), 0.12
    )
    grain = noise(x, y, rng, wavelength=0.07, octaves=2)
    turn = rng.uniform(0, math.pi)
    along, across = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
    creases = noise(along * 0.3, across, rng, wavelength=0.09)
    scratches = dots(x, y, scattered(rng, 6, 0.35), np.full(6, 0.03)) * (rng.random() < 0.5)
    crust = step(noise(x, y, rng, wavelength=0.2, octaves=2) - 0.68, 0.03) * (rng.random() < 0.25)
    return Lesion(
        blood=area * (rng.uniform(0.3, 0.65) * (0.6 + 0.8 * grain) + 0.5 * scratches),
        white=area * rng.uniform(0.1, 0.4) * step(grain - 0.55, 0.06),
        yellow=0.5 * area * crust,
        melanin=area * rng.uniform(0.0, 0.12),
        height=area * rng.uniform(0.02, 0.05) * creases,
    )


def psoriasis(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Red plaques with a sharp border under silvery scale in coarse flakes."""
    radii = uniform_radii(rng, int(rng.integers(1, 5)), 0.28, 0.65)
    plaque = step(blobs(x, y, rng, radii=radii, spread=0.3, stretch=1.5, ragged=0.14), 0.025)
    flakes = noise(x, y, rng, wavelength=rng.uniform(0.12, 0.2), octaves=2)
    scale = step(flakes - rng.uniform(0.4, 0.6), 0.03)
    return Lesion(
        blood=rng.uniform(0.45, 0.8) * plaque,
        white=rng.uniform(0.4, 0.75) * plaque * scale,
        height=plaque * (0.02 + 0.06 * flakes),
    )


def tinea(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A ring: red scaly margin around a centre that clears."""
    distance = blob(
        x, y, rng, radius=rng.uniform(0.4, 0.75), stretch=rng.uniform(1, 1.4), ragged=rng.uniform(0.05, 0.15)
    )
    if rng.random() < 0.3:
        other = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5))
        distance = np.maximum(distance, blob(x, y, rng, radius=0.35, ragged=0.1, center=other))
    width = rng.uniform(0.06, 0.13)
    margin = bump(distance - width, width) * (0.6 + 0.6 * noise(x, y, rng, wavelength=0.15))
    inside = step(distance, 0.03)
    grain = noise(x, y, rng, wavelength=0.08, octaves=2)
    return Lesion(
        blood=rng.uniform(0.4, 0.75) * margin + rng.uniform(0.05, 0.22) * inside,
        white=rng.uniform(0.3, 0.6) * margin * step(grain - 0.5, 0.05) + 0.1 * inside * grain,
        melanin=rng.uniform(0, 0.08) * inside,
        height=0.03 * margin,
    )


def urticaria(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Raised smooth wheals, paler inside, in a red flare; no scale."""
    radii = uniform_radii(rng, int(rng.integers(2, 8)), 0.14, 0.4)
    distance = blobs(x, y, rng, radii=radii, spread=0.42, stretch=2.0, ragged=0.12)
    wheal, flare = step(distance, 0.03), step(distance + 0.08, 0.06)
    core = step(distance - rng.uniform(0.05, 0.12), 0.04)
    blood = rng.uniform(0.3, 0.55) * flare + 0.1 * wheal - rng.uniform(0.15, 0.4) * core
    return Lesion(blood=blood, white=0.08 * core, height=rng.uniform(0.04, 0.09) * wheal)


def actinic_keratosis(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Small pink spots with rough adherent yellowish scale."""
    radii = uniform_radii(rng, int(rng.integers(1, 4)), 0.15, 0.35)
    area = step(blobs(x, y, rng, radii=radii, spread=0.3, stretch=1.6, ragged=0.2), 0.05)
    grain = noise(x, y, rng, wavelength=0.09, octaves=2)
    scale = area * step(grain - rng.uniform(0.45, 0.58), 0.04)
    return Lesion(blood=rng.uniform(0.2, 0.5) * area, white=0.35 * scale, yellow=0.35 * scale, height=0.07 * scale)


# --- Brown --------------------------------------------------------------------------------------


def nevus(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """One round, even, brown spot with a regular border, flat or a little raised."""
    radius = rng.uniform(0.14, 0.42)
    distance = blob(x, y, rng, radius=radius, stretch=rng.uniform(1, 1.3), ragged=rng.uniform(0.02, 0.07))
    spot = step(distance, rng.uniform(0.02, 0.05))
    shade = 0.8 + 0.4 * noise(x, y, rng, wavelength=0.3)
    middle = 1 + rng.uniform(0, 0.5) * bump(distance - np.float32(radius), radius)
    dome = np.sqrt(np.clip(distance / np.float32(radius), 0, 1)) * rng.choice((0.0, 0.12))
    return Lesion(melanin=rng.uniform(0.3, 0.65) * spot * shade * middle, height=dome * radius * 2)


def melanoma(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """An asymmetric spot with a jagged border and several colours: brown, black, red, sometimes white."""
    radius = rng.uniform(0.22, 0.5)
    center = (rng.uniform(-0.5, 0.5) * radius, rng.uniform(-0.5, 0.5) * radius)
    distance = np.maximum(
        blob(x, y, rng, radius=radius, stretch=rng.uniform(1.1, 1.8), ragged=rng.uniform(0.18, 0.35)),
        blob(x, y, rng, radius=0.7 * radius, stretch=1.3, ragged=0.3, center=center),
    )
    spot = step(distance + 0.08 * (noise(x, y, rng, wavelength=0.12) - 0.5), 0.02)
    shade, tint, pale = (noise(x, y, rng, wavelength=w, octaves=2) for w in (0.3, 0.35, 0.4))
    regressed = step(pale - rng.uniform(0.58, 0.8), 0.04)
    dark = 0.15 + rng.uniform(0.7, 1.2) * step(shade - 0.5, 0.08)
    nodule = bump(np.hypot(x - center[0], y - center[1]), 0.4 * radius) * (rng.random() < 0.5)
    return Lesion(
        melanin=spot * dark * (1 - 0.85 * regressed),
        blood=spot * rng.uniform(0.2, 0.8) * step(tint - 0.58, 0.05),
        white=0.35 * spot * regressed,
        height=spot * (0.03 * shade + 0.12 * nodule),
    )


def basal_cell_carcinoma(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A pearly pink nodule with a rolled rim and fine vessels, sometimes ulcerated or pigmented."""
    radius = rng.uniform(0.22, 0.45)
    distance = blob(x, y, rng, radius=radius, stretch=rng.uniform(1, 1.35), ragged=rng.uniform(0.05, 0.14))
    nodule = step(distance, 0.03)
    rim = bump(distance - 0.25 * radius, 0.28 * radius)
    branches = noise(x, y, rng, wavelength=0.22, octaves=2) - 0.5
    vessels = bump(branches, 0.022) * step(distance + 0.04, 0.04)
    ulcer = step(distance - rng.uniform(0.5, 0.7) * radius, 0.03) * (rng.random() < 0.5)
    pigment = step(noise(x, y, rng, wavelength=0.14) - 0.66, 0.04) * (rng.random() < 0.25)
    return Lesion(
        melanin=nodule * (0.5 * pigment - 0.02),
        blood=rng.uniform(0.15, 0.35) * nodule + rng.uniform(0.35, 0.7) * vessels + 0.7 * ulcer,
        white=rng.uniform(0.1, 0.25) * rim,
        yellow=0.25 * ulcer,
        height=0.15 * nodule * np.sqrt(np.clip(distance / radius, 0, 1)) + 0.07 * rim - 0.15 * ulcer,
    )


def seborrheic_keratosis(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A waxy plaque that seems stuck on: sharp edge, rough surface, small horny plugs."""
    radius = rng.uniform(0.22, 0.52)
    distance = blob(x, y, rng, radius=radius, stretch=rng.uniform(1, 1.6), ragged=rng.uniform(0.05, 0.14))
    plaque = step(distance, 0.015)
    rough = noise(x, y, rng, wavelength=rng.uniform(0.1, 0.16), octaves=2)
    count = int(rng.integers(4, 12))
    plugs = dots(x, y, scattered(rng, count, 0.5 * radius), np.full(count, 0.025)) * plaque
    is_dark = float(rng.random() < 0.5)
    return Lesion(
        melanin=plaque * (rng.uniform(0.12, 0.6) * (0.5 + rough) + 0.5 * is_dark * plugs),
        yellow=rng.uniform(0.0, 0.12) * plaque + 0.4 * (1 - is_dark) * plugs,
        height=plaque * (0.05 + 0.11 * rough),
    )


def lentigo(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A flat, evenly light brown spot with an indented border."""
    distance = blob(
        x, y, rng, radius=rng.uniform(0.18, 0.45), stretch=rng.uniform(1, 1.7), ragged=rng.uniform(0.08, 0.2)
    )
    spot = step(distance + 0.1 * (noise(x, y, rng, wavelength=0.16) - 0.5), 0.02)
    return Lesion(melanin=rng.uniform(0.14, 0.3) * spot * (0.9 + 0.2 * noise(x, y, rng, wavelength=0.1)))


def verruca(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Rough greyish papules with black points."""
    radii = uniform_radii(rng, int(rng.integers(1, 5)), 0.1, 0.26)
    papules = step(blobs(x, y, rng, radii=radii, spread=0.25, stretch=1.2, ragged=0.1), 0.03)
    rough = noise(x, y, rng, wavelength=0.075)
    points = dots(x, y, scattered(rng, 9, 0.25), np.full(9, 0.02)) * papules
    return Lesion(
        melanin=0.7 * points + 0.05 * papules,
        white=papules * rng.uniform(0.2, 0.45) * (0.3 + rough),
        yellow=rng.uniform(0.0, 0.2) * papules,
        height=papules * (0.08 + 0.14 * rough),
    )


# --- Pale, raised or bald ---------------------------------------------------------------------------


def vitiligo(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Patches without pigment, sharp at the edge and otherwise normal skin."""
    radii = uniform_radii(rng, int(rng.integers(1, 5)), 0.2, 0.6)
    distance = blobs(x, y, rng, radii=radii, spread=0.38, stretch=1.8, ragged=0.22)
    patch = step(distance + 0.1 * (noise(x, y, rng, wavelength=0.2) - 0.5), 0.015)
    border = bump(distance, 0.06) * rng.uniform(0, 0.06)
    return Lesion(melanin_left=1 - rng.uniform(0.8, 0.97) * patch, melanin=border, blood=0.05 * patch)


def tinea_versicolor(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """Many small round spots that run together, lighter or darker than the skin, finely scaly."""
    count = int(rng.integers(14, 26))
    spots = step(dots(x, y, scattered(rng, count, 0.5), rng.uniform(0.08, 0.2, count)) - 0.4, 0.05)
    grain = noise(x, y, rng, wavelength=0.06)
    if rng.random() < 0.6:
        return Lesion(melanin_left=1 - rng.uniform(0.3, 0.55) * spots, white=0.12 * spots * grain)
    return Lesion(melanin=rng.uniform(0.08, 0.16) * spots, blood=0.12 * spots, white=0.12 * spots * grain)


def alopecia_areata(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A smooth bald patch in the hair."""
    radii = uniform_radii(rng, int(rng.integers(1, 3)), 0.4, 0.7)
    distance = blobs(x, y, rng, radii=radii, spread=0.15, stretch=1.4, ragged=0.06)
    return Lesion(hair_left=1 - step(distance, 0.05), blood=0.05 * step(distance, 0.05))


def cyst(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A smooth dome under normal skin with a dark pore; red where inflamed."""
    radius = rng.uniform(0.25, 0.5)
    distance = blob(x, y, rng, radius=radius, stretch=rng.uniform(1, 1.2))
    dome = np.sqrt(step(distance - 0.3 * radius, 0.15 * radius))
    pore = dots(x, y, scattered(rng, 1, 0.2 * radius), np.full(1, 0.035))
    inflamed = rng.uniform(0.05, 0.45) * step(distance, 0.1)
    return Lesion(melanin=0.6 * pore, blood=inflamed, height=rng.uniform(0.35, 0.7) * radius * dome)


def scar(x: Field, y: Field, rng: np.random.Generator) -> Lesion:
    """A smooth raised cord, pink when young and pale when old, with stitch marks."""
    turn, bend = rng.uniform(0, math.pi), rng.uniform(-0.35, 0.35)
    along, across = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
    length, width = rng.uniform(0.4, 0.85), rng.uniform(0.04, 0.11)
    ends = step(length - np.abs(along), 0.05)
    cord = bump(across - bend * np.square(along), width) * ends
    stitches = (bump(np.mod(along, 0.22) - 0.11, 0.02) * bump(across - bend * np.square(along), 0.13) * ends) * (
        rng.random() < 0.5
    )
    youth = rng.random()
    return Lesion(
        melanin_left=1 - 0.6 * cord * (1 - youth),
        blood=(0.1 + 0.6 * youth) * cord + 0.2 * stitches,
        height=rng.uniform(0.05, 0.13) * cord,
    )
