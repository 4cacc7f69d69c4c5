import csv
import io
import itertools
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medssl import imaging, schema
from medssl.data import duplicates
from medssl.data.hamming import Pairs

SHARED_DATA_DIR = Path(__file__).parents[2] / "../shared/data"
needs_pictures = pytest.mark.skipif(
    not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository"
)
BOUNDS = {"max_bytes": 10**8, "max_pixels": 10**8, "num_threads": 2}


def picture(seed, size=(200, 240)):
    """A smooth random picture, grey values 20 to 220."""
    coarse = np.random.default_rng(seed).integers(20, 220, (9, 9), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(pixels, factor):
    height, width = (round(side * factor) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def brighter(pixels, factor):
    return np.clip(pixels * factor, 0, 255).round().astype(np.uint8)


COPIES = {
    "JPEG 70": lambda p: jpeg(p, 70),
    "JPEG 95": lambda p: jpeg(p, 95),
    "half size": lambda p: resized(p, 0.5),
    "brighter": lambda p: brighter(p, 1.1),
    "darker": lambda p: brighter(p, 0.9),
    "all": lambda p: brighter(jpeg(resized(p, 0.5), 75), 1.1),
}


def distance(a, b):
    return (duplicates.perceptual_hash(a) ^ duplicates.perceptual_hash(b)).bit_count()


def correlation(a, b):
    return float(duplicates.standardize(a) @ duplicates.standardize(b))


def hash_by_loops(grey):
    """The bits of a 32x32 picture, from the definition of the DCT-II."""
    cosines = [[math.cos(math.pi / 32 * (n + 0.5) * k) for n in range(32)] for k in range(8)]
    strengths = [
        sum(cosines[u][y] * cosines[v][x] * float(grey[y, x]) for y in range(32) for x in range(32))
        for u in range(8)
        for v in range(8)
    ]
    median = statistics.median(strengths[1:])
    return sum(1 << i for i in range(1, 64) if strengths[i] > median)


def test_the_hash_is_that_of_the_definition():
    for seed in range(3):
        grey = picture(seed, (32, 32))
        assert duplicates.perceptual_hash(grey) == hash_by_loops(grey)


def test_half_of_the_bits_are_set_and_that_of_the_brightness_never_is():
    for seed in range(20):
        value = duplicates.perceptual_hash(picture(seed))
        assert value.bit_count() == 31
        assert value & 1 == 0


def test_gain_and_offset_of_the_grey_values_leave_the_hash():
    grey = picture(0, (32, 32)) // 4
    assert duplicates.perceptual_hash(grey) == duplicates.perceptual_hash(grey * 3 + 20)


def test_grey_is_hashed_as_the_same_grey_in_rgb():
    grey = picture(1)
    assert duplicates.perceptual_hash(grey) == duplicates.perceptual_hash(np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_pictures_without_structure_have_no_hash(value):
    flat = np.full((50, 60), value, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, (50, 60), dtype=np.uint8)
    assert duplicates.perceptual_hash(flat) is None
    assert duplicates.perceptual_hash(np.abs(flat.astype(int) - noise).astype(np.uint8)) is None


def test_the_scalar_product_of_standardized_pictures_is_pearsons_correlation():
    a, b = picture(0, (64, 64)), picture(1, (64, 64))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)
    assert correlation(a, 255 - a) == pytest.approx(-1, abs=1e-5)
    assert correlation(a, np.zeros_like(a)) == 0


def saved(root, pictures):
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(root / name)
    return list(pictures)


def test_copies_among_files_are_found_and_what_cannot_be_used_is_counted(tmp_path, capsys):
    originals = {f"{i}.png": picture(i) for i in range(12)}
    copies = {f"{i}_{n}.png": make(picture(i)) for i, (n, make) in enumerate(COPIES.items())}
    files = [*saved(tmp_path, originals | copies | {"flat.png": np.zeros((9, 9), np.uint8)}), "absent.png", "text.png"]
    (tmp_path / "text.png").write_text("no picture")
    hashed = duplicates.hash_files(files, tmp_path, **BOUNDS)
    assert hashed.without == {"missing file": 1, "no structure": 1, "not an image": 1}
    assert hashed.is_hashed.tolist() == [True] * (len(files) - 3) + [False] * 3
    found = duplicates.confirm(duplicates.candidates(hashed), files, tmp_path, **BOUNDS)
    assert {(files[a], files[b]) for a, b in zip(found.a, found.b, strict=True)} == set(
        zip(originals, copies, strict=False)
    )
    assert "duplicates: 21/21 images" in capsys.readouterr().out


def test_pictures_that_links_lead_to_outside_the_folder_are_counted_and_not_compared(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    saved(tmp_path, {"out.png": picture(0)})
    saved(root, {"a.png": picture(0)})
    (root / "file.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "within.png").symlink_to("a.png")
    files = ["a.png", "file.png", "folder/out.png", "../out.png", str(tmp_path / "out.png"), "within.png"]
    hashed = duplicates.hash_files(files, root, **BOUNDS)
    assert hashed.without == {"outside the data folder": 4}
    assert hashed.is_hashed.tolist() == [True, False, False, False, False, True]


def test_numbers_of_pairs_skip_files_without_a_hash(tmp_path):
    files = saved(tmp_path, {"flat.png": np.zeros((9, 9), np.uint8), "a.png": picture(0), "b.png": picture(0)})
    pairs = duplicates.candidates(duplicates.hash_files(files, tmp_path, **BOUNDS))
    assert (pairs.a.tolist(), pairs.b.tolist(), pairs.distance.tolist()) == ([1], [2], [0])


def test_a_candidate_whose_pictures_differ_is_not_confirmed(tmp_path):
    files = saved(tmp_path, {"a.png": picture(0), "b.png": picture(1), "c.png": jpeg(picture(0), 80)})
    pairs = pairs_of([(0, 1), (0, 2), (1, 2)])
    found = duplicates.confirm(pairs, files, tmp_path, **BOUNDS)
    assert (found.a.tolist(), found.b.tolist()) == ([0], [2])


def pairs_of(numbers):
    a, b = zip(*numbers, strict=True) if numbers else ((), ())
    return Pairs(np.array(a, np.int32), np.array(b, np.int32), np.zeros(len(numbers), np.uint8))


def test_batches_do_not_change_what_is_confirmed(tmp_path, monkeypatch):
    files = saved(tmp_path, {f"{i}.png": picture(i // 2) for i in range(10)})
    pairs = pairs_of(list(itertools.combinations(range(10), 2)))
    whole = duplicates.confirm(pairs, files, tmp_path, **BOUNDS)
    monkeypatch.setattr(duplicates, "BATCH_PAIRS", 7)
    in_parts = duplicates.confirm(pairs, files, tmp_path, **BOUNDS)
    assert whole.a.tolist() == in_parts.a.tolist() == [0, 2, 4, 6, 8]


def test_the_table_orders_the_two_pictures_by_identifier_and_says_whether_the_patient_is_the_same(tmp_path):
    table = duplicates.table(pairs_of([(0, 1), (1, 2)]), ["z", "b", "c"], ["p", "q", "q"])
    schema.write(table, schema.DUPLICATES, tmp_path / "duplicates.parquet")
    assert schema.read(tmp_path / "duplicates.parquet", schema.DUPLICATES).to_pylist() == [
        {"image_a": "b", "image_b": "c", "patient_a": "q", "patient_b": "q", "distance": 0, "is_same_patient": True},
        {"image_a": "b", "image_b": "z", "patient_a": "q", "patient_b": "p", "distance": 0, "is_same_patient": False},
    ]
    empty = duplicates.table(pairs_of([]), ["z"], ["p"])
    assert isinstance(empty, pa.Table)
    assert schema.check(empty, schema.DUPLICATES, "duplicates").num_rows == 0


def real_pictures(name, count):
    """Pictures of a set, with the patient of each."""
    root = SHARED_DATA_DIR / name
    if name.startswith("derm"):
        with (root / "metadata.csv").open() as file:
            rows = [(root / r["image_path"], r["patient_id"] or r["lesion_id"]) for r in csv.DictReader(file)]
    else:
        paths = sorted(p for p in root.rglob("*") if p.suffix in (".png", ".jpg"))
        rows = [(path, re.search(r"patient\d+", str(path))[0]) for path in paths]
    rows = rows[:: max(1, len(rows) // count)][:count]
    return [imaging.decode(path.read_bytes(), max_pixels=10**8) for path, _ in rows], [patient for _, patient in rows]


@needs_pictures
@pytest.mark.parametrize("name", ["cxr/CXR-covid-v1", "derm/pad-ufes-mini-v1", "derm/ham10000-mini-v1"])
def test_copies_of_real_pictures_are_recognized_and_pictures_of_others_are_not(name):
    pictures, patients = real_pictures(name, 40)
    is_found = [
        distance(p, copy) <= duplicates.MAX_DISTANCE and correlation(p, copy) >= duplicates.MIN_CORRELATION
        for p in pictures
        for copy in (make(p) for make in COPIES.values())
    ]
    assert sum(is_found) >= 0.99 * len(is_found)
    vectors = np.stack([duplicates.standardize(p) for p in pictures])
    others = [(i, j) for i, j in itertools.combinations(range(len(pictures)), 2) if patients[i] != patients[j]]
    assert max(float(vectors[i] @ vectors[j]) for i, j in others) < duplicates.MIN_CORRELATION
