"""Generated chest radiographs in CheXpert's layout: the demonstration's data set.

A patient has an anatomy that persists over the studies, a study has findings and an exposure. Radiographs are
sums of smooth implicit functions on a coordinate grid: x and y run from -1 to 1, y downwards, image right is
the patient's left, as radiographs are displayed. Brightness is attenuation, so air is dark.

Every patient's draws come from a generator seeded by (seed, number): no patient depends on another.
"""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl.data.fields import Field, bump, step
from medssl.data.new_folder import new_folder

ViewPosition = Literal["AP", "PA", "lateral"]

# --- Reporting, as counted in CheXpert's public training table (rates are shares of rows) ---------


@dataclass(frozen=True)
class FindingRates:
    """How often a finding is there and how reports speak of it.

    Attributes:
        prevalence: Share of studies that show the finding, 0-1.
        uncertain: Share of rows labelled -1.
        blank: Share of rows without a label.
        extents: Drawn extents of the mildest and the severest case, 0-1: how hard it is to see.
            Without effect for Cardiomegaly, which is a ratio of widths.
        uncertain_is_present: Whether the equivocal cases lie on the present side of the boundary. It follows
            the usual map of uncertain labels (positive for Atelectasis and Edema): little label noise.
    """

    prevalence: float
    uncertain: float
    blank: float
    extents: tuple[float, float]
    uncertain_is_present: bool


FINDING_RATES = {
    "Cardiomegaly": FindingRates(0.17, 0.036, 0.793, (1.0, 1.0), False),
    "Edema": FindingRates(0.28, 0.058, 0.615, (0.10, 0.50), True),
    "Consolidation": FindingRates(0.14, 0.124, 0.684, (0.25, 0.80), False),
    "Atelectasis": FindingRates(0.30, 0.151, 0.694, (0.22, 0.80), True),
    "Pleural Effusion": FindingRates(0.40, 0.052, 0.404, (0.12, 0.65), False),
}
LABEL_COLUMNS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)  # fmt: skip
HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABEL_COLUMNS)

# --- What can be tuned ----------------------------------------------------------------------------

STUDY_COUNT_WEIGHTS = (0.20, 0.25, 0.30, 0.25)  # of 1, 2, 3, 4 studies a patient
FEMALE_SHARE = 0.41
AGE_RANGE_YEARS = (18, 90)
LATERAL_SHARE = 0.15  # of studies
PA_SHARE_ALONE, PA_SHARE_WITH_LATERAL = 0.08, 0.6  # portable radiographs are AP and have no lateral view
PACEMAKER_SHARE, LINE_SHARE = 0.12, 0.3  # of patients; of studies
SCAR_SHARE, SCAR_RANGE = 0.3, (0.08, 0.22)  # of patients; extent of a scar that looks like a little fluid
# Share of each plausible anatomical range that is used. The wider it is, the more a contrastive objective can tell
# patients apart by their build alone and needs no finding.
ANATOMY_SPREAD = 0.35
SEVERITY_STABILITY = 0.98  # correlation of a finding's latent severity between a patient's studies
ILLNESS_SHARE = 0.15  # of the patient's latent variance that all findings have in common
READER_NOISE = 0.08  # standard deviation of the report's reading of the latent severity (itself: 1)
EQUIVOCAL_SHARE, EQUIVOCAL_EXTENT = 0.06, 0.4  # of studies, just below the boundary; of the mildest extent
CARDIOMEGALY_RATIO = 0.55  # heart width / thorax width at the boundary
RATIO_SLOPE, RATIO_GAP = 0.034, 0.006  # of the ratio over latent severity; beside the boundary
MEAN_LEVEL_RANGE, CONTRAST_RANGE, GAMMA_RANGE = (0.34, 0.62), (0.14, 0.25), (0.7, 1.4)
NOISE_RANGE, MAX_ROTATION_RAD, MAX_SHIFT, MAX_SCALE = (0.01, 0.08), 0.09, 0.07, 0.06
COLLIMATION_SHARE = 0.3
JPEG_QUALITY = 90
CORRUPTIONS = ("truncated", "empty", "text", "random bytes")


@dataclass(frozen=True)
class PhantomConfig:
    """Size and seed of a generated set.

    Attributes:
        patients: Patients in the training part.
        seed: Seed of everything that is drawn, >= 0.
        image_size_px: Side of the square images, >= 16.
        valid_patients: Patients in the validation part; one study each, read without uncertainty.
        corrupt_files: Training images replaced by files that do not decode.
    """

    patients: int = 400
    seed: int = 0
    image_size_px: int = 128
    valid_patients: int = 20
    corrupt_files: int = 4

    def __post_init__(self) -> None:
        if min(self.patients, self.valid_patients) < 1 or min(self.seed, self.corrupt_files) < 0:
            raise ValueError(f"expected patients in both parts, seed and corrupt_files >= 0; got {self}")
        if self.image_size_px < 16:
            raise ValueError(f"image_size_px is {self.image_size_px}, expected at least 16")


@dataclass(frozen=True)
class Anatomy:
    """What stays the same over a patient's studies; lengths in half image sides, phases in radians."""

    is_female: bool
    age_years: int
    habitus: float  # 0 slim to 1 obese
    thorax_half_width: float
    apex_y: float
    diaphragm_y: float
    right_dome_rise: float
    dome_depth: float
    mediastinum_half_width: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    rib_curve: float
    clavicle_y: float
    clavicle_slope: float
    spine_bend: float
    heart_right_share: float
    heart_height: float
    heart_tilt: float
    hilum_y: float
    breast_y: float
    stomach_gas: float
    vascularity: float  # brightness of healthy vessels, about 1
    vessel_phases: tuple[float, float, float, float]
    pleural_scar: tuple[float, float]  # (right, left), an extent as of fluid
    has_pacemaker: bool
    pacemaker_xy: tuple[float, float]


@dataclass(frozen=True)
class Findings:
    """What one study shows. Extents: 0 none, 1 severe; pairs: (right, left)."""

    cardiothoracic_ratio: float = 0.47
    effusion: tuple[float, float] = (0.0, 0.0)
    edema: float = 0.0
    consolidation: float = 0.0
    consolidation_site: tuple[float, float, float] = (1.0, 0.5, 0.0)  # side (-1 right), height 0-1, phase
    atelectasis: tuple[float, float] = (0.0, 0.0)
    plate_height: float = 0.15  # of the plate-like line above the diaphragm
    has_line: bool = False


@dataclass(frozen=True)
class Exposure:
    """What differs between any two images: how the picture was taken, not what it shows."""

    mean_level: float = 0.48
    contrast: float = 0.2
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    rotation_rad: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    inspiration: float = 0.0  # lowers the diaphragm, in half image sides
    heel: tuple[float, float] = (0.0, 0.0)  # gradient of the beam over x and y
    collimation: tuple[float, float] | None = None  # half width and half height of the exposed field


@dataclass(frozen=True)
class Study:
    """One study: its truth, its labels as reported ("1.0", "0.0", "-1.0" or "") and its views."""

    findings: Findings
    is_present: dict[str, bool]
    labels: dict[str, str]
    views: tuple[tuple[ViewPosition, Exposure], ...]


@dataclass(frozen=True)
class Patient:
    """One patient: number, anatomy and studies in order of time."""

    number: int
    anatomy: Anatomy
    studies: tuple[Study, ...]


# --- Drawing patients -----------------------------------------------------------------------------


def draw_patient(number: int, config: PhantomConfig) -> Patient:
    """Draw a patient; numbers above config.patients belong to the validation part.

    Args:
        number: Patient number, from 1.
        config: Only the seed and the number of training patients matter.
    """
    rng = np.random.default_rng([config.seed, number])
    is_valid = number > config.patients
    anatomy = _draw_anatomy(rng)
    illness = rng.standard_normal()
    own = rng.standard_normal(len(FINDING_RATES))
    latent = math.sqrt(ILLNESS_SHARE) * illness + math.sqrt(1 - ILLNESS_SHARE) * own
    habit = (float(rng.choice((-1.0, 1.0))), float(rng.random()))  # side and height of this patient's disease
    count = 1 if is_valid else 1 + int(rng.choice(len(STUDY_COUNT_WEIGHTS), p=STUDY_COUNT_WEIGHTS))
    studies = tuple(_draw_study(rng, anatomy, latent, habit, is_expert=is_valid) for _ in range(count))
    return Patient(number, anatomy, studies)


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    is_female = bool(rng.random() < FEMALE_SHARE)
    low, high = AGE_RANGE_YEARS

    def uniform(least: float, most: float) -> float:
        """Within the part of a plausible range that is used."""
        middle, half = (least + most) / 2, (most - least) / 2 * ANATOMY_SPREAD
        return float(rng.uniform(middle - half, middle + half))

    turn = 2 * math.pi
    scar = uniform(*SCAR_RANGE) * (rng.random() < SCAR_SHARE)
    return Anatomy(
        is_female=is_female,
        age_years=int(np.clip(round(rng.normal(61, 18)), low, high)),
        habitus=float(rng.beta(2, 2)),
        thorax_half_width=uniform(0.66, 0.80) - 0.03 * is_female,
        apex_y=uniform(-0.86, -0.70),
        diaphragm_y=uniform(0.30, 0.50),
        right_dome_rise=uniform(-0.03, 0.09),
        dome_depth=uniform(0.40, 0.75),
        mediastinum_half_width=uniform(0.10, 0.17),
        rib_spacing=uniform(0.135, 0.19),
        rib_phase=uniform(0, 1),
        rib_slope=uniform(-0.25, 0.05),
        rib_curve=uniform(0.25, 0.6),
        clavicle_y=uniform(-0.66, -0.50),
        clavicle_slope=uniform(-0.35, -0.05),
        spine_bend=rng.normal(0, 0.02),
        heart_right_share=uniform(0.26, 0.40),
        heart_height=uniform(0.30, 0.40),
        heart_tilt=uniform(0.15, 0.45),
        hilum_y=uniform(-0.18, -0.02),
        breast_y=uniform(0.15, 0.40),
        stomach_gas=uniform(0, 1),
        vascularity=uniform(0.6, 1.5),
        vessel_phases=(uniform(0, turn), uniform(0, turn), uniform(0, turn), uniform(0, turn)),
        pleural_scar=(scar, 0.0) if rng.random() < 0.5 else (0.0, scar),
        has_pacemaker=bool(rng.random() < PACEMAKER_SHARE),
        pacemaker_xy=(uniform(0.42, 0.55), uniform(-0.50, -0.36)),
    )


def _draw_study(
    rng: np.random.Generator,
    anatomy: Anatomy,
    patient_latent: NDArray[np.float64],
    habit: tuple[float, float],
    *,
    is_expert: bool,
) -> Study:
    """Draw a study around the patient's latent severities, shape (5,), standard normal over patients."""
    fresh = rng.standard_normal((2, len(FINDING_RATES)))
    latent = math.sqrt(SEVERITY_STABILITY) * patient_latent + math.sqrt(1 - SEVERITY_STABILITY) * fresh[0]
    read = latent if is_expert else (latent + READER_NOISE * fresh[1]) / math.hypot(1, READER_NOISE)
    tail = {name: _upper_tail(value) for name, value in zip(FINDING_RATES, latent, strict=True)}
    read_tail = {name: _upper_tail(value) for name, value in zip(FINDING_RATES, read, strict=True)}
    is_present = {name: tail[name] < rates.prevalence for name, rates in FINDING_RATES.items()}
    findings = _draw_findings(rng, tail, is_present, latent=float(latent[0]), habit=habit)
    has_device = anatomy.has_pacemaker or findings.has_line
    labels = _report(rng, read_tail, has_device=has_device, is_expert=is_expert)
    has_lateral = rng.random() < LATERAL_SHARE
    is_pa = rng.random() < (PA_SHARE_WITH_LATERAL if has_lateral else PA_SHARE_ALONE)
    frontal: ViewPosition = "PA" if is_pa else "AP"
    positions: tuple[ViewPosition, ...] = (frontal, "lateral") if has_lateral else (frontal,)
    return Study(findings, is_present, labels, tuple((view, _draw_exposure(rng)) for view in positions))


def _upper_tail(value: float) -> float:
    """Probability that a standard normal exceeds the value: 0 most severe, 1 healthiest."""
    return 0.5 * math.erfc(value / math.sqrt(2))


def _draw_findings(
    rng: np.random.Generator,
    tail: dict[str, float],
    is_present: dict[str, bool],
    *,
    latent: float,
    habit: tuple[float, float],
) -> Findings:
    extents = {name: _extent(tail[name], rates) for name, rates in FINDING_RATES.items()}
    excess = latent - _upper_tail_inverse(FINDING_RATES["Cardiomegaly"].prevalence)
    gap = RATIO_GAP if is_present["Cardiomegaly"] else -RATIO_GAP
    side = habit[0] if rng.random() < 0.85 else -habit[0]
    other = rng.uniform(0.4, 1.0) * (rng.random() < 0.4)  # the second side, where fluid is on both
    fluid = extents["Pleural Effusion"]
    plate_side = habit[0] if rng.random() < 0.85 else -habit[0]
    collapse = extents["Atelectasis"]
    return Findings(
        cardiothoracic_ratio=float(np.clip(CARDIOMEGALY_RATIO + gap + RATIO_SLOPE * excess, 0.36, 0.72)),
        effusion=(fluid, fluid * other) if side < 0 else (fluid * other, fluid),
        edema=extents["Edema"],
        consolidation=extents["Consolidation"],
        consolidation_site=(side, float(np.clip(habit[1] + rng.normal(0, 0.12), 0, 1)), rng.uniform(0, 6.28)),
        atelectasis=(collapse, 0.0) if plate_side < 0 else (0.0, collapse),
        plate_height=rng.uniform(0.08, 0.24),
        has_line=bool(rng.random() < LINE_SHARE),
    )


def _extent(tail: float, rates: FindingRates) -> float:
    """Extent drawn for a place in the upper tail: a jump at the boundary, a trace just below it."""
    least, most = rates.extents
    if tail < rates.prevalence:
        return least + (most - least) * (1 - tail / rates.prevalence)
    return EQUIVOCAL_EXTENT * least if tail < rates.prevalence + EQUIVOCAL_SHARE else 0.0


def _upper_tail_inverse(probability: float) -> float:
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_tail(middle) > probability else (low, middle)
    return low


def _report(rng: np.random.Generator, tail: dict[str, float], *, has_device: bool, is_expert: bool) -> dict[str, str]:
    """Word the labels of a study as reports do: equivocal cases -1, most absent findings not mentioned.

    Args:
        rng: Decides which absent findings are mentioned.
        tail: Per finding, the report's reading of the upper tail, 0-1.
        has_device: Whether a device is drawn.
        is_expert: Whether the labels are a reading of the image, which leaves nothing uncertain or blank.
    """
    labels = dict.fromkeys(LABEL_COLUMNS, "0.0" if is_expert else "")
    for name, rates in FINDING_RATES.items():
        is_mentioned = is_expert or rng.random() < _mention_rate(rates)
        lower = rates.prevalence - rates.uncertain * rates.uncertain_is_present
        if not is_expert and lower <= tail[name] < lower + rates.uncertain:
            labels[name] = "-1.0"
        elif tail[name] < rates.prevalence:
            labels[name] = "1.0"
        else:
            labels[name] = "0.0" if is_mentioned else ""
    if labels["Consolidation"] == "1.0" or labels["Edema"] == "1.0":
        labels["Lung Opacity"] = "1.0"
    if has_device:
        labels["Support Devices"] = "1.0"
    elif not any(labels[name] in ("1.0", "-1.0") for name in FINDING_RATES):
        labels["No Finding"] = "1.0"
    return labels


def _mention_rate(rates: FindingRates) -> float:
    """Share of the plainly absent that reports deny in words, such that blanks have their rate."""
    absent = 1 - rates.prevalence - (0 if rates.uncertain_is_present else rates.uncertain)
    return max(0.0, 1 - rates.blank / absent)


def _draw_exposure(rng: np.random.Generator) -> Exposure:
    is_collimated = rng.random() < COLLIMATION_SHARE
    field = (rng.uniform(0.84, 0.97), rng.uniform(0.84, 0.97))
    return Exposure(
        mean_level=rng.uniform(*MEAN_LEVEL_RANGE),
        contrast=rng.uniform(*CONTRAST_RANGE),
        gamma=rng.uniform(*GAMMA_RANGE),
        noise=rng.uniform(*NOISE_RANGE),
        noise_seed=int(rng.integers(2**32)),
        rotation_rad=rng.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD),
        shift=(rng.uniform(-MAX_SHIFT, MAX_SHIFT), rng.uniform(-MAX_SHIFT, MAX_SHIFT)),
        scale=1 + rng.uniform(-MAX_SCALE, MAX_SCALE),
        inspiration=rng.uniform(-0.05, 0.05),
        heel=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
        collimation=field if is_collimated else None,
    )


# --- Drawing pictures -----------------------------------------------------------------------------


def render(
    anatomy: Anatomy, findings: Findings, exposure: Exposure, *, view_position: ViewPosition, size_px: int
) -> NDArray[np.uint8]:
    """Draw one radiograph.

    The mean level is set by the exposure after everything is drawn, as automatic exposure control does, so
    no finding shows in the mean of the pixels.

    Returns:
        Shape (size_px, size_px), 0 black (air) to 255 white; a pure function of its arguments.
    """
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
    column, row = np.meshgrid(axis, axis)
    cos, sin = math.cos(exposure.rotation_rad), math.sin(exposure.rotation_rad)
    x = (cos * column + sin * row) / exposure.scale - exposure.shift[0]
    y = (cos * row - sin * column) / exposure.scale - exposure.shift[1]
    anatomy = replace(anatomy, diaphragm_y=anatomy.diaphragm_y + exposure.inspiration)
    draw = _draw_lateral if view_position == "lateral" else _draw_frontal
    attenuation = draw(x, y, anatomy, findings, is_ap=view_position == "AP")
    attenuation = attenuation * (1 + exposure.heel[0] * column + exposure.heel[1] * row)
    if exposure.collimation is not None:
        half_width, half_height = exposure.collimation
        attenuation = attenuation * step(half_width - np.abs(column)) * step(half_height - np.abs(row))
    level = (attenuation - attenuation.mean()) / attenuation.std() * exposure.contrast + exposure.mean_level
    level = np.clip(level, 0, 1) ** exposure.gamma
    grain = np.random.default_rng(exposure.noise_seed).standard_normal(level.shape, dtype=np.float32)
    pixels: NDArray[np.uint8] = np.clip((level + exposure.noise * grain) * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _thorax_edge(y: Field, anatomy: Anatomy) -> Field:
    """Half width of the rib cage at a height: an egg, widest at y = 0.35, zero above the apex."""
    up = np.clip((0.35 - y) / (0.35 - anatomy.apex_y), 0, 1)
    down = np.clip(y - 0.35, 0, 1)
    return anatomy.thorax_half_width * (np.sqrt(1 - up**2.6) - 0.10 * down)


def _draw_frontal(x: Field, y: Field, anatomy: Anatomy, findings: Findings, *, is_ap: bool) -> Field:
    """Attenuation of a frontal view: body, minus air in the lungs, plus bones, markings and devices."""
    collapse = findings.atelectasis
    x = x - 0.05 * (collapse[1] - collapse[0])  # the mediastinum moves towards the lost volume
    across, is_left = np.abs(x), x > 0
    width = anatomy.thorax_half_width
    inside = _thorax_edge(y, anatomy) - across
    dome_right = anatomy.diaphragm_y - anatomy.right_dome_rise - 0.19 * collapse[0]
    dome_left = anatomy.diaphragm_y - 0.19 * collapse[1]
    dome_y = np.where(is_left, np.float32(dome_left), np.float32(dome_right))
    dome = dome_y + anatomy.dome_depth * np.square(across / width - 0.42) - y  # > 0 above the diaphragm
    thorax = step(inside) * step(dome)

    heart = _frontal_heart(x, y, anatomy, findings.cardiothoracic_ratio * (1.06 if is_ap else 1.0))
    mediastinum = anatomy.mediastinum_half_width * (1 + 0.25 * bump(y + 0.55, 0.25))
    knob = (anatomy.age_years - 18) / 72
    arch = step(0.075 + 0.035 * knob - np.hypot(x - mediastinum * 0.75, y + 0.36))
    central = np.maximum(step(mediastinum - across, 0.018), arch * (0.5 + 0.5 * knob))
    blunting = np.maximum(findings.effusion, anatomy.pleural_scar)
    fluid = _meniscus(y - dome_y, inside, np.where(is_left, blunting[1], blunting[0]))
    patch, bronchi = _frontal_patch(x, y, anatomy, findings)
    haze, marks = _lung_markings(across, y, is_left, inside, anatomy, findings)
    plate = _plate(across, dome, is_left, anatomy, findings)

    air = thorax * (1 - 0.95 * heart) * (1 - central)
    lung = air * (1 - 0.93 * fluid) * (1 - 0.80 * patch) * (1 - 0.62 * haze)
    body = _torso(across, y, anatomy)
    image: Field = body * (0.60 + 0.08 * anatomy.habitus) - 0.46 * lung
    image += 0.10 * heart * thorax + 0.08 * (1 - step(dome)) * body
    image += air * (1 - fluid) * (marks + 0.28 * plate)
    image -= 0.14 * bronchi * lung
    image += _frontal_bones(x, y, across, inside, anatomy) * body
    image -= 0.10 * step(0.036 - np.abs(x + 0.01)) * step(-0.22 - y, 0.03) * body  # trachea
    gas = step(1 - np.hypot((x - 0.38) / 0.17, (y - dome_left - 0.16) / 0.08), 0.15)
    image -= 0.22 * anatomy.stomach_gas * gas
    if anatomy.is_female:
        under = anatomy.breast_y + 0.26 - 0.9 * np.square(across - 0.48) - y
        image += (
            (0.06 + 0.08 * anatomy.habitus)
            * step(under, 0.02)
            * bump(y - anatomy.breast_y, 0.3)
            * (bump(across - 0.48, 0.26))
        )
    image += _frontal_devices(x, y, anatomy, findings)
    return image


def _pair(values: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """(right, left) in the order of `np.where(is_left, ...)`."""
    return np.float32(values[1]), np.float32(values[0])


def _torso(across: Field, y: Field, anatomy: Anatomy) -> Field:
    """Neck, shoulders and trunk; obesity widens the trunk until it leaves the image."""
    trunk = anatomy.thorax_half_width + 0.10 + 0.20 * anatomy.habitus
    shoulder = 0.22 + (trunk + 0.10 - 0.22) * step(y + 0.83, 0.05)
    return step(shoulder + 0.25 * step(y + 0.55, 0.1) * step(-0.1 - y, 0.2) - across, 0.02)


def _frontal_heart(x: Field, y: Field, anatomy: Anatomy, ratio: float) -> Field:
    """Heart of a given width in thorax widths; the larger part and the apex point to the patient's left."""
    total = ratio * 2 * anatomy.thorax_half_width
    right, left = total * anatomy.heart_right_share, total * (1 - anatomy.heart_right_share)
    across = x / np.where(x > 0, np.float32(left), np.float32(right))
    height = anatomy.heart_height * (0.75 + 0.5 * ratio)
    center_y = anatomy.diaphragm_y - 0.16
    down = (y - center_y - anatomy.heart_tilt * 0.4 * x) / height
    radius: Field = np.sqrt(np.abs(across) ** 2.3 + np.abs(down) ** 2.3)
    return step(1 - radius, 0.05)


def _meniscus(below_top: Field, inside: Field, extent: Field) -> Field:
    """Free fluid: a horizontal level that climbs at the chest wall and first blunts the costophrenic angle.

    Args:
        below_top: Distance below the top of the diaphragm.
        inside: Distance from the chest wall.
        extent: 0-1 per pixel, as the sides differ.
    """
    climb = 0.30 * np.sqrt(extent) * np.exp(-np.maximum(inside, 0) / 0.13)
    return step(below_top - 0.28 + 0.66 * extent + climb, 0.025) * step(extent - 0.05, 0.02)


def _frontal_patch(x: Field, y: Field, anatomy: Anatomy, findings: Findings) -> tuple[Field, Field]:
    """Irregular dense patch within a lobe, and the air-filled bronchi that stay visible in it."""
    side, height, phase = findings.consolidation_site
    center_x = side * anatomy.thorax_half_width * (0.50 + 0.14 * math.sin(phase))
    center_y = anatomy.apex_y + 0.32 + height * (anatomy.diaphragm_y - anatomy.apex_y - 0.42)
    return _patch(x - center_x, y - center_y, findings)


def _patch(dx: Field, dy: Field, findings: Findings) -> tuple[Field, Field]:
    extent, phase = findings.consolidation, findings.consolidation_site[2]
    angle = np.arctan2(dy, dx)
    edge = 1 + 0.20 * np.sin(3 * angle + phase) + 0.12 * np.sin(5 * angle - 2 * phase)
    radius = np.hypot(dx / 0.95, dy) / (0.12 + 0.17 * extent)
    mask = step(edge - radius, 0.10) * min(1.0, extent * 1.6)
    fork = np.abs(dy + 0.4 * dx - 0.03) - np.maximum(0.5 * dx * math.copysign(1, math.cos(phase)), 0)
    bronchi = extent * mask * bump(fork, 0.012)
    return mask * (0.92 + 0.08 * np.sin(31 * dx + phase) * np.sin(27 * dy - phase)), bronchi


def _lung_markings(
    across: Field, y: Field, is_left: NDArray[np.bool_], inside: Field, anatomy: Anatomy, findings: Findings
) -> tuple[Field, Field]:
    """Perihilar haze (0-1), and the brightness of vessels and septal lines.

    Edema blurs and widens the vessels and adds short horizontal (Kerley B) lines at the lateral bases.
    """
    edema = findings.edema
    dx, dy = across - (anatomy.mediastinum_half_width + 0.10), y - anatomy.hilum_y
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    first, second, third, fourth = anatomy.vessel_phases
    phase = np.where(is_left, np.float32(first), np.float32(second))
    turn = angle + 0.3 * np.sin(5 * radius + third)
    sharpness = 10 / (1 + 2 * edema)
    trunks = np.exp(sharpness * (np.cos(6 * turn + phase) - 1)) * np.exp(-radius / 0.30)
    twigs = np.exp(sharpness * (np.cos(13 * turn - phase + fourth) - 1)) * np.exp(-radius / 0.45)
    vessels = (0.20 * trunks + 0.10 * twigs) * step(radius - 0.05, 0.03) + 0.14 * bump(radius, 0.09)
    wings = np.exp(-np.square(dx / 0.34) - np.square((dy - 0.06) / 0.42))
    cloud = 0.85 + 0.15 * np.sin(17 * across + phase) * np.sin(15 * y + third)
    septa = np.exp(3 * (np.cos(y * (2 * math.pi / 0.075)) - 1))
    septa = septa * bump(inside - 0.05, 0.07) * bump(y - 0.25, 0.25)
    return edema * wings * cloud, anatomy.vascularity * vessels + 0.16 * edema * septa


def _plate(across: Field, dome: Field, is_left: NDArray[np.bool_], anatomy: Anatomy, findings: Findings) -> Field:
    """Plate-like line of collapsed lung above the raised diaphragm, with crowded lung below it."""
    extent = np.where(is_left, *_pair(findings.atelectasis))
    along = across - 0.52 * anatomy.thorax_half_width
    line = bump(dome - findings.plate_height + 0.25 * along, 0.024) * step(0.22 - np.abs(along), 0.03)
    return extent * (line + 0.25 * step(findings.plate_height - dome, 0.05))


def _frontal_bones(x: Field, y: Field, across: Field, inside: Field, anatomy: Anatomy) -> Field:
    """Ribs, clavicles, spine and shoulder blades; bone loses contrast with age."""
    bone = 1.15 - 0.5 * (anatomy.age_years - 18) / 72
    posterior = y - anatomy.rib_slope * across - anatomy.rib_curve * np.square(across)
    anterior = y + 0.55 * across - 0.25 * np.square(across)
    cage = step(inside + 0.025, 0.01) * step(0.62 - y, 0.05)
    ribs = 0.085 * _bars(posterior, anatomy) * step(across - 0.10, 0.02)
    ribs += 0.05 * _bars(anterior, anatomy) * step(across - 0.5 * anatomy.thorax_half_width, 0.04)
    collar = y - anatomy.clavicle_y - anatomy.clavicle_slope * across - 0.10 * np.sin(7 * across)
    clavicles = 0.13 * step(0.028 - np.abs(collar)) * step(across - 0.08) * step(0.72 - across)
    middle = x - anatomy.spine_bend * np.sin(3 * y)
    discs = 0.75 + 0.25 * np.cos(y * (2 * math.pi / anatomy.rib_spacing) + 6.28 * anatomy.rib_phase)
    spine = 0.13 * step(0.075 - np.abs(middle), 0.012) * discs
    blade = across - anatomy.thorax_half_width * 0.98 - 0.25 * (y + 0.25)
    blades = 0.07 * step(0.10 - np.abs(blade - 0.10)) * step(-0.02 - y, 0.03) * step(y + 0.62, 0.03)
    bones: Field = ribs * cage + clavicles + spine + blades
    return bone * bones


def _bars(height: Field, anatomy: Anatomy) -> Field:
    """Evenly spaced ribs across a height: bands with brighter margins."""
    phase = height * (1 / anatomy.rib_spacing) + anatomy.rib_phase
    distance = np.abs(phase - np.round(phase))  # 0 at the middle of a rib, 0.5 between two
    return step(0.24 - distance, 0.04) * (0.7 + 0.5 * bump(distance - 0.2, 0.07))


def _frontal_devices(x: Field, y: Field, anatomy: Anatomy, findings: Findings) -> Field:
    image = np.zeros_like(x)
    if anatomy.has_pacemaker:
        left, top = anatomy.pacemaker_xy
        case = step(1 - (np.abs((x - left) / 0.10) ** 4 + np.abs((y - top) / 0.085) ** 4), 0.08)
        along = np.clip((y - top) / (anatomy.diaphragm_y - 0.08 - top), 0, 1)
        lead_x = left * (1 - along) ** 2 - 0.5 * along * (1 - along) + 0.25 * along**2
        lead = bump(x - lead_x, 0.016) * step(along - 0.01, 0.005) * step(0.99 - along, 0.005)
        image += 0.45 * case + 0.30 * lead
    if findings.has_line:
        line_x = -0.09 - 0.20 * np.square(np.clip((-0.25 - y) / 0.6, 0, 1))
        image += 0.26 * bump(x - line_x, 0.012) * step(0.02 - y)
    return image


def _draw_lateral(x: Field, y: Field, anatomy: Anatomy, findings: Findings, *, is_ap: bool) -> Field:
    """Attenuation of a lateral view: the patient looks to image left, both lungs overlie each other."""
    del is_ap
    depth = anatomy.thorax_half_width * 0.86
    edge = _thorax_edge(y, anatomy) * 0.86
    front, back = x + edge * (0.92 + 0.08 * y), edge - x
    collapse = max(findings.atelectasis)
    slope = anatomy.dome_depth * 0.55 * (np.square((x + 0.12) / depth) + 0.25 * x / depth)
    dome = anatomy.diaphragm_y - 0.13 * collapse - 0.03 + slope - y
    second = dome + anatomy.right_dome_rise + 0.13 * collapse
    thorax = step(front) * step(back) * (0.5 * step(dome) + 0.5 * step(second))
    ratio = findings.cardiothoracic_ratio
    heart_x = -depth * (0.95 - 1.05 * ratio)
    oval = np.hypot((x - heart_x) / (depth * 1.12 * ratio), (y - anatomy.diaphragm_y + 0.2) / 0.34)
    heart = step(1 - oval, 0.06)
    fluid = _meniscus(
        y - anatomy.diaphragm_y - 0.12, back, np.full_like(x, max(*findings.effusion, *anatomy.pleural_scar))
    )
    _, height, phase = findings.consolidation_site
    patch_y = anatomy.apex_y + 0.32 + height * (anatomy.diaphragm_y - anatomy.apex_y - 0.42)
    patch, bronchi = _patch(x - 0.3 * depth * math.cos(phase), y - patch_y, findings)
    radius = np.hypot(x - 0.02, y - anatomy.hilum_y)
    haze = findings.edema * np.exp(-np.square(radius / 0.36))
    plate = collapse * bump(dome - findings.plate_height + 0.3 * x, 0.022)
    plate = plate * step(0.2 - np.abs(x - 0.1), 0.03)

    lung = thorax * (1 - 0.6 * heart) * (1 - 0.9 * fluid) * (1 - 0.6 * patch) * (1 - 0.5 * haze)
    trunk = depth + 0.10 + 0.14 * anatomy.habitus
    body = step(trunk - np.abs(x) + 0.25 * step(-0.62 - y, 0.08), 0.02)
    image: Field = body * (0.66 + 0.08 * anatomy.habitus) - 0.44 * lung + 0.08 * (1 - step(dome)) * body
    image += thorax * (1 - fluid) * (0.14 * bump(radius, 0.10) * (1 + findings.edema) + 0.25 * plate)
    image -= 0.12 * bronchi * lung
    bone = 1.15 - 0.5 * (anatomy.age_years - 18) / 72
    middle = x - depth * 0.72 + 0.12 * np.square(y)
    discs = 0.6 + 0.4 * np.cos(y * (2 * math.pi / anatomy.rib_spacing) + 6.28 * anatomy.rib_phase)
    image += bone * 0.16 * step(0.085 - np.abs(middle)) * discs * body
    image += bone * 0.12 * bump(front, 0.03) * step(0.25 - y, 0.05) * step(y + 0.5, 0.05)
    image += bone * 0.05 * _bars(y - 0.45 * x, anatomy) * step(front) * step(back) * step(0.55 - y, 0.05)
    image -= 0.12 * step(0.035 - np.abs(x - 0.06 - 0.1 * (y + 0.4))) * step(-0.22 - y, 0.03) * body
    if anatomy.has_pacemaker:
        image += 0.4 * bump(x + depth * 0.8, 0.035) * bump(y - anatomy.pacemaker_xy[1], 0.10)
    return image


# --- Writing the set ------------------------------------------------------------------------------


def generate(
    root_dir: Path, config: PhantomConfig, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write a generated set in CheXpert's layout; it appears complete or not at all.

    Args:
        root_dir: Folder to make; its name is the first component of the `Path` column, as in CheXpert.
        config: Same config, same bytes of every file.
        progress: Called after every patient with patients done and patients in all.

    Returns:
        Counts over both parts: patients, studies, images (the corrupt ones included), corrupt, and for each
        of the five findings the images that show it, whatever their label says.

    Raises:
        FileExistsError: If `root_dir` is there and not empty.
    """
    total = config.patients + config.valid_patients
    counts = dict.fromkeys(("patients", "studies", "images", "corrupt", *FINDING_RATES), 0)
    rows: dict[str, list[list[str]]] = {"train": [], "valid": []}
    with new_folder(root_dir) as partial_dir:
        for number in range(1, total + 1):
            patient = draw_patient(number, config)
            part = "train" if number <= config.patients else "valid"
            rows[part] += _write_patient(
                patient, partial_dir / part, root_name=root_dir.name, size_px=config.image_size_px
            )
            _count(patient, counts)
            if progress is not None:
                progress(number, total)
        for part, part_rows in rows.items():
            with (partial_dir / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([HEADER, *part_rows])
        counts["corrupt"] = _corrupt(partial_dir, [row[0] for row in rows["train"]], config)
    return counts


def _write_patient(patient: Patient, part_dir: Path, *, root_name: str, size_px: int) -> list[list[str]]:
    """Write a patient's images and return their rows of the label table."""
    rows = []
    for study_number, study in enumerate(patient.studies, start=1):
        study_dir = part_dir / f"patient{patient.number:05d}" / f"study{study_number}"
        study_dir.mkdir(parents=True)
        labels = [study.labels[column] for column in LABEL_COLUMNS]
        for view_number, (view_position, exposure) in enumerate(study.views, start=1):
            is_lateral = view_position == "lateral"
            path = study_dir / f"view{view_number}_{'lateral' if is_lateral else 'frontal'}.jpg"
            pixels = render(patient.anatomy, study.findings, exposure, view_position=view_position, size_px=size_px)
            path.write_bytes(_encode(pixels))
            sex = "Female" if patient.anatomy.is_female else "Male"
            position = ("Lateral", "") if is_lateral else ("Frontal", view_position)
            row_path = f"{root_name}/{path.relative_to(part_dir.parent).as_posix()}"
            rows.append([row_path, sex, str(patient.anatomy.age_years), *position, *labels])
    return rows


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _count(patient: Patient, counts: dict[str, int]) -> None:
    counts["patients"] += 1
    counts["studies"] += len(patient.studies)
    for study in patient.studies:
        counts["images"] += len(study.views)
        for name, present in study.is_present.items():
            counts[name] += present * len(study.views)


def _corrupt(partial_dir: Path, row_paths: list[str], config: PhantomConfig) -> int:
    """Replace some training images by files that do not decode, first of patients who keep another image."""
    rng = np.random.default_rng([config.seed, 0])  # patients are numbered from 1
    by_patient: dict[str, list[str]] = {}
    for row_path in row_paths:
        _, *parts = row_path.split("/")
        by_patient.setdefault(parts[1], []).append("/".join(parts))
    patients = [list(by_patient.values())[i] for i in rng.permutation(len(by_patient))]
    patients.sort(key=lambda images: len(images) < 2)  # stable: patients of one image come last
    names = [images[-1] for images in patients[: config.corrupt_files]]
    for index, name in enumerate(names):
        path = partial_dir / name
        match CORRUPTIONS[index % len(CORRUPTIONS)]:
            case "truncated":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
            case "empty":
                path.write_bytes(b"")
            case "text":
                path.write_text("This is not an image.\n", encoding="utf-8")
            case _:
                path.write_bytes(rng.bytes(512))
    return len(names)
