"""A generated set of JPEG files of a radiograph's size, with the tables that ingest would write for it."""

import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from medssl import schema
from medssl.config import ShardConfig
from medssl.data.shards import Row, Stored

# CheXpert-small's shorter side, and noise that compresses to its mean of about 38 kB.
SHAPE = (320, 390)
NOISE = 11.0
QUALITY = 85
MEAN_IMAGES = 3.46  # of a patient: 223,414 / 64,534


def as_stored(row: Row, root: Path, config: ShardConfig) -> Stored:
    """The file's bytes as they are, for comparison with writers that store them so."""
    patient_id, image_id, file = row
    return Stored(patient_id, image_id, (root / file).read_bytes())


def make(folder: Path, num_images: int, *, num_files: int | None = None) -> Path:
    """A folder with `raw/`, `index.parquet` and `sources.parquet`; what a former run left there is used.

    Args:
        folder: Where sets are kept.
        num_images: Rows of the tables.
        num_files: Distinct files; more rows than that repeat them under other names.
    """
    num_files = num_files or num_images
    made = folder / f"radiographs-{num_images}-{num_files}"
    if (made / "sources.parquet").exists():
        return made
    shutil.rmtree(made, ignore_errors=True)
    raw = made / "raw"
    raw.mkdir(parents=True)
    for i in range(num_files):
        _draw(i).save(raw / f"{i:06d}.jpg", quality=QUALITY)
    for i in range(num_files, num_images):
        (raw / f"{i:06d}.jpg").hardlink_to(raw / f"{i % num_files:06d}.jpg")
    rng = np.random.default_rng(0)
    sizes = rng.geometric(1 / MEAN_IMAGES, num_images)
    patients = np.repeat(np.arange(num_images), sizes)[:num_images]
    _write_tables(made, [_hex(f"patient {p}") for p in patients], [_hex(f"image {i}") for i in range(num_images)])
    return made


@functools.cache
def _noise() -> NDArray[np.float32]:
    return NOISE * np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)


def _draw(i: int) -> Image.Image:
    rng = np.random.default_rng(i)
    top, left = rng.integers(0, 1024 - max(SHAPE), 2)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j].astype(np.float32)
    slope = np.cos(angle) * rows + np.sin(angle) * columns
    noise = _noise()[top : top + SHAPE[0], left : left + SHAPE[1]]
    pixels = np.clip(128 + 70 * slope + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _write_tables(made: Path, patient_ids: list[str], image_ids: list[str]) -> None:
    num = len(image_ids)
    nulls = {field.name: pa.nulls(num, field.type) for field in schema.INDEX.columns if field.nullable}
    identifiers = {"patient_id": patient_ids, "case_id": patient_ids, "image_id": image_ids}
    index = pa.table({**identifiers, "source_split": ["train"] * num, **nulls})
    schema.write(index, schema.INDEX, made / "index.parquet")
    sources = pa.table({"image_id": image_ids, "file": [f"{i:06d}.jpg" for i in range(num)]})
    schema.write(sources, schema.SOURCES, made / "sources.parquet")


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
