"""Generated photographs of skin conditions as a table of cases: the demonstration's second data set.

A patient has a skin, a case is one lesion at one site, and its one to six photographs differ in light, distance, angle,
background and sharpness. What tells conditions apart is the lesion alone; what tells photographs apart is mostly the
rest. Every patient's draws come from a generator seeded by (seed, number): no patient depends on another.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl.data.fields import Field
from medssl.data.new_folder import new_folder
from medssl.data.skin_phantom.conditions import CONDITIONS
from medssl.data.skin_phantom.lesions import Lesion
from medssl.data.skin_phantom.photographs import Color, Photo, Skin, render

TABLE = "cases.csv"
HEADER = ("image", "patient", "case", "condition", "skin_type", "sex", "age", "site")


# --- What can be tuned ----------------------------------------------------------------------------

CASE_COUNT_WEIGHTS = (0.62, 0.27, 0.11)  # of 1, 2, 3 cases a patient
PHOTO_COUNT_WEIGHTS = (0.30, 0.45, 0.15, 0.06, 0.025, 0.015)  # of 1 to 6 photographs a case
TIED_SHARE = 0.035  # of cases, with a second diagnosis drawn, as likely as the first; a tenth draws the first again
SKIN_TYPE_WEIGHTS = (0.06, 0.31, 0.34, 0.18, 0.07, 0.04)  # of Fitzpatrick's types I to VI
SKIN_MELANIN = (0.02, 0.10, 0.21, 0.39, 0.68, 1.05)  # of the types, with a deviation of a sixth
FEMALE_SHARE = 0.58
BLANK_SKIN_TYPE, BLANK_SEX, BLANK_AGE, BLANK_SITE = 0.06, 0.03, 0.05, 0.04  # shares
AGE_RANGE_YEARS = (1, 92)
SITE_HAIR = {"scalp": 0.85, "leg": 0.3, "arm": 0.25, "chest": 0.3, "abdomen": 0.18, "back": 0.12, "neck": 0.12}
OTHER_SITE_HAIR = 0.05
HAIR_COLORS: tuple[Color, ...] = ((0.012, 0.01, 0.008), (0.03, 0.018, 0.01), (0.09, 0.05, 0.025), (0.3, 0.22, 0.12))
GREY_HAIR: Color = (0.40, 0.33, 0.27)
EDGE_SHARE = {"hand": 0.7, "foot": 0.6, "arm": 0.6, "leg": 0.5, "neck": 0.4, "face": 0.3, "scalp": 0.2}
OTHER_EDGE_SHARE = 0.1  # of cases near enough to the body's edge to see what is behind it
MAX_TURN_RAD, DISTANCE_RANGE, SHIFT_DEVIATION, MAX_SHEAR, MAX_TILT = 1.2, (0.72, 1.45), 0.13, 0.18, 0.22
WARMTH_DEVIATION, TINT_DEVIATION, EXPOSURE_DEVIATION = 0.16, 0.05, 0.22  # of logarithms of gains
SHADOW_SHARE, FLASH_SHARE, SAME_ROOM_SHARE = 0.35, 0.3, 0.4  # of photographs
BLUR_RANGE, GRAIN_RANGE, QUALITY_RANGE = (0.0, 0.011), (0.005, 0.035), (70, 93)


@dataclass(frozen=True)
class SkinPhantomConfig:
    """Size and seed of a generated set.

    Attributes:
        patients: Patients in the set; about 1.5 cases each, and 2 photographs a case.
        seed: Seed of everything that is drawn, >= 0.
        image_size_px: Side of the square photographs, >= 16.
    """

    patients: int = 400
    seed: int = 0
    image_size_px: int = 96

    def __post_init__(self) -> None:
        if self.patients < 1 or self.seed < 0:
            raise ValueError(f"expected at least 1 patient and a seed >= 0; got {self}")
        if self.image_size_px < 16:
            raise ValueError(f"image_size_px is {self.image_size_px}, expected at least 16")


@dataclass(frozen=True)
class Case:
    """One lesion: its primary diagnoses, where it is, what is around it and how it is photographed."""

    conditions: tuple[str, ...]
    site: str
    skin: Skin
    lesion_seed: int
    photos: tuple[Photo, ...]

    def lesion_at(self, x: Field, y: Field) -> Lesion:
        """The lesion over coordinates of the skin; one of each diagnosis where several are as likely."""
        lesion = Lesion()
        for number, name in enumerate(self.conditions):
            rng = np.random.default_rng([self.lesion_seed, number])
            lesion = CONDITIONS[name].look(x, y, rng).over(lesion)
        return lesion


@dataclass(frozen=True)
class Patient:
    """One patient and what the table says of him; "" where it says nothing.

    Attributes:
        number: From 1.
        skin_type: Fitzpatrick's type, 1-6, whether or not the table gives it.
        recorded_skin_type: "1" to "6".
        recorded_sex: "female" or "male".
        recorded_age: In whole years.
        cases: One to three.
    """

    number: int
    skin_type: int
    recorded_skin_type: str
    recorded_sex: str
    recorded_age: str
    cases: tuple[Case, ...]


# --- Drawing patients -----------------------------------------------------------------------------


def draw_patient(number: int, seed: int) -> Patient:
    """Draw the patient of a number, from 1."""
    rng = np.random.default_rng([seed, number])
    skin_type = 1 + _choice(rng, SKIN_TYPE_WEIGHTS)
    first = _draw_condition(rng)
    age = int(np.clip(round(rng.normal(*CONDITIONS[first].age_years)), *AGE_RANGE_YEARS))
    is_female = rng.random() < FEMALE_SHARE
    is_blank = rng.random(3) < (BLANK_SKIN_TYPE, BLANK_SEX, BLANK_AGE)
    skin, hairiness = _draw_skin(rng, skin_type, age, is_female=is_female)
    count = 1 + _choice(rng, CASE_COUNT_WEIGHTS)
    primary = [first, *(_draw_condition(rng) for _ in range(count - 1))]
    return Patient(
        number=number,
        skin_type=skin_type,
        recorded_skin_type="" if is_blank[0] else str(skin_type),
        recorded_sex="" if is_blank[1] else ("female" if is_female else "male"),
        recorded_age="" if is_blank[2] else str(age),
        cases=tuple(_draw_case(rng, condition, skin, hairiness) for condition in primary),
    )


def _choice(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))


def _draw_condition(rng: np.random.Generator) -> str:
    return list(CONDITIONS)[_choice(rng, tuple(condition.share for condition in CONDITIONS.values()))]


def _draw_skin(rng: np.random.Generator, skin_type: int, age_years: int, *, is_female: bool) -> tuple[Skin, float]:
    """The patient's skin, and how hairy he is where hair grows."""
    melanin = SKIN_MELANIN[skin_type - 1]
    is_grey = rng.random() < (age_years - 35) / 50
    darkest = 2 if skin_type > 3 else len(HAIR_COLORS)
    skin = Skin(
        melanin=max(0.01, melanin * rng.normal(1, 1 / 6)),
        blood=rng.uniform(0.12, 0.36),
        texture=float(np.clip(rng.beta(2, 3) + (age_years - 40) / 150, 0, 1)),
        mottling=float(rng.beta(2, 3)),
        freckles=float(rng.beta(1, 3) * (rng.random() < 0.35) * (skin_type < 5)),
        hair_color=GREY_HAIR if is_grey else HAIR_COLORS[int(rng.integers(darkest))],
    )
    return skin, float(rng.uniform(0.2, 1.0) * (0.6 if is_female else 1.3))


def _draw_case(rng: np.random.Generator, condition: str, skin: Skin, hairiness: float) -> Case:
    conditions = [condition]
    if rng.random() < TIED_SHARE:
        conditions = list(dict.fromkeys([condition, _draw_condition(rng)]))
    site = str(rng.choice(CONDITIONS[condition].sites))
    hair = SITE_HAIR.get(site, OTHER_SITE_HAIR)
    is_at_edge = rng.random() < EDGE_SHARE.get(site, OTHER_EDGE_SHARE)
    skin = replace(
        skin,
        hair=min(0.9, hair if site == "scalp" else hair * hairiness),
        hair_turn_rad=rng.uniform(0, math.pi),
        edge=(rng.uniform(0.6, 1.1) if is_at_edge else 9.0, rng.uniform(0, 2 * math.pi)),
        seed=int(rng.integers(2**32)),
    )
    lesion_seed = int(rng.integers(2**32))
    room = _draw_background(rng)
    count = 1 + _choice(rng, PHOTO_COUNT_WEIGHTS)
    photos = tuple(_draw_photo(rng, room) for _ in range(count))
    recorded = "" if rng.random() < BLANK_SITE else site
    return Case(tuple(conditions), recorded, skin, lesion_seed, photos)


def _draw_photo(rng: np.random.Generator, room: Color) -> Photo:
    """How a photograph is taken; some before the same background `room` as others of the case."""
    warmth, tint = rng.normal(0, WARMTH_DEVIATION), rng.normal(0, TINT_DEVIATION)
    background = room if rng.random() < SAME_ROOM_SHARE else _draw_background(rng)
    turn = 2 * math.pi
    shadow = rng.uniform(0.2, 0.7) * (rng.random() < SHADOW_SHARE)
    return Photo(
        turn_rad=rng.uniform(-MAX_TURN_RAD, MAX_TURN_RAD),
        distance=math.exp(rng.uniform(*np.log(DISTANCE_RANGE))),
        shift=(rng.normal(0, SHIFT_DEVIATION), rng.normal(0, SHIFT_DEVIATION)),
        shear=rng.uniform(-MAX_SHEAR, MAX_SHEAR),
        tilt=(rng.uniform(-MAX_TILT, MAX_TILT), rng.uniform(-MAX_TILT, MAX_TILT)),
        light=(math.exp(warmth), math.exp(tint), math.exp(-warmth)),
        exposure=math.exp(rng.normal(0, EXPOSURE_DEVIATION)),
        lamp=(rng.uniform(0, turn), rng.uniform(0.25, 1.0)),
        vignette=rng.uniform(0, 0.6),
        shadow=(rng.uniform(-0.2, 0.7), rng.uniform(0, turn), shadow),
        flash=rng.uniform(0.2, 0.7) * (rng.random() < FLASH_SHARE),
        background=background,
        blur=rng.uniform(*BLUR_RANGE),
        grain=rng.uniform(*GRAIN_RANGE),
        quality=int(rng.integers(*QUALITY_RANGE)),
        seed=int(rng.integers(2**32)),
    )


def _draw_background(rng: np.random.Generator) -> Color:
    """Cloth or wall: any brightness, mostly not colourful."""
    level, red, green, blue = rng.uniform(0.02, 0.7), *np.exp(rng.normal(0, 0.35, 3))
    return level * red, level * green, level * blue


# --- Writing the set ------------------------------------------------------------------------------


def generate(
    root_dir: Path, config: SkinPhantomConfig, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write a generated set; it appears complete or not at all.

    Args:
        root_dir: Folder to make, of `cases.csv` with a row for every photograph and `images/`.
        config: Same config, same bytes of every file.
        progress: Called after every patient with patients done and patients in all.

    Returns:
        Counts: patients, cases, images, and for each condition the cases with it among their diagnoses.

    Raises:
        FileExistsError: If `root_dir` is there and not empty.
    """
    counts = Counter(dict.fromkeys(("patients", "cases", "images", *CONDITIONS), 0))
    with new_folder(root_dir) as partial_dir, (partial_dir / TABLE).open("w", newline="", encoding="utf-8") as file:
        (partial_dir / "images").mkdir()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for number in range(1, config.patients + 1):
            patient = draw_patient(number, config.seed)
            rows = _write_patient(patient, partial_dir, size_px=config.image_size_px)
            table.writerows(rows)
            counts.update(patients=1, cases=len(patient.cases), images=len(rows))
            counts.update(name for case in patient.cases for name in case.conditions)
            if progress is not None:
                progress(number, config.patients)
    return dict(counts)


def _write_patient(patient: Patient, root_dir: Path, *, size_px: int) -> list[list[str]]:
    """Write a patient's photographs and return their rows of the table."""
    rows = []
    for case_number, case in enumerate(patient.cases, start=1):
        name = f"p{patient.number:04d}"
        case_name = f"{name}_c{case_number}"
        for photo_number, photo in enumerate(case.photos, start=1):
            file = f"images/{case_name}_{photo_number}.jpg"
            pixels = render(case.skin, case.lesion_at, photo, size_px=size_px)
            (root_dir / file).write_bytes(_encode(pixels, photo.quality))
            recorded = (patient.recorded_skin_type, patient.recorded_sex, patient.recorded_age, case.site)
            rows.append([file, name, case_name, "|".join(case.conditions), *recorded])
    return rows


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
