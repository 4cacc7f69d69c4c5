"""Pictures that occur more than once in a data set, whatever their encoding, size or brightness.

The same picture under two patients leaks from training into test. It is looked for in two steps: pictures whose
64-bit perceptual hashes are near each other are candidates, and a candidate pair counts if the two pictures also agree
at 64x64 pixels. The second step is needed because radiographs of one projection resemble each other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl import imaging, schema
from medssl.data.hamming import HASH_BITS, Hashes, Pairs, near_pairs
from medssl.imaging import Pixels
from medssl.progress import Progress

HASH_SIZE_PX = 32
NUM_FREQUENCIES = 8  # of each direction, the lowest
COMPARED_SIZE_PX = 64
# Below this range of grey values a picture has no structure but noise, and no hash.
MIN_RANGE = 4
# Measured on real pictures (radiographs of 64 to 400 px, photographs and dermoscopy of 224 to 300 px) against copies of
# theirs: JPEG of quality 70 to 95, half the size and 10 % brighter or darker stay within 4 bits, cut margins of 2 % do
# in 77 to 98 %. Of pictures of different patients, 8 in 10^6 pairs of radiographs are within 4 bits, but 600 within 8,
# which among 10^5 images is too many to compare.
MAX_DISTANCE = 4
# Copies as above correlate by 0.99 and more, but 0.96 where 64 px were halved and 0.89 where margins were cut; no two
# pictures of different patients that were within 12 bits did by more than 0.97.
MIN_CORRELATION = 0.98
BATCH_FILES = 4096
BATCH_PAIRS = 2048  # whose pictures are in memory at a time: at most 128 MiB


@dataclass(frozen=True)
class HashedFiles:
    """Hashes of the files of a data set, as far as they have one.

    Attributes:
        hashes: uint64, shape (N,); 0 where there is none.
        is_hashed: bool, shape (N,).
        without: How many files have no hash, by reason: those of `imaging.ImageError`, and "no structure".
    """

    hashes: Hashes
    is_hashed: NDArray[np.bool_]
    without: Mapping[str, int]


def _cosines() -> NDArray[np.float64]:
    """The NUM_FREQUENCIES lowest rows of the DCT-II (Ahmed et al. 1974), without their scale."""
    k = np.arange(NUM_FREQUENCIES)[:, None]
    n = np.arange(HASH_SIZE_PX)[None, :]
    cosines: NDArray[np.float64] = np.cos(np.pi / HASH_SIZE_PX * (n + 0.5) * k)
    return cosines


_COSINES = _cosines()
_WEIGHTS = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)


def perceptual_hash(pixels: Pixels) -> int | None:
    """64-bit perceptual hash: which low frequencies of the picture are stronger than their median.

    The picture is made grey and 32x32; of its 64 lowest DCT-II coefficients the constant one says how bright it is
    and is left out (bit 0 is always 0). Gain and offset of the grey values change nothing; mirrored, rotated or
    inverted pictures have other hashes.

    Args:
        pixels: uint8, shape (H, W) or (H, W, 3).

    Returns:
        None for pictures without structure.

    References:
        Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1.
    """
    grey = imaging.resize(imaging.to_channels(pixels, 1), size_px=HASH_SIZE_PX, how="squash").astype(np.float64)
    if np.ptp(grey) < MIN_RANGE:
        return None
    strengths = (_COSINES @ grey @ _COSINES.T).ravel()
    is_strong = strengths > np.median(strengths[1:])
    is_strong[0] = False
    return int(_WEIGHTS[is_strong].sum())


def hash_files(
    files: Sequence[str], root: Path, *, max_bytes: int, max_pixels: int, num_threads: int, label: str = "duplicates"
) -> HashedFiles:
    """Hash files, decoding `num_threads` at a time; an image that cannot be used is counted, not an error.

    Args:
        files: Paths relative to `root`.
        root: The data set's folder.
        max_bytes: Largest file that is read.
        max_pixels: Largest width times height that is decoded.
        num_threads: Decoders at a time; Pillow lets them run in parallel.
        label: What the lines of progress say.
    """

    def one(file: str) -> int | str:
        try:
            value = perceptual_hash(_decode(root, file, max_bytes, max_pixels))
        except imaging.ImageError as error:
            return error.reason
        return "no structure" if value is None else value

    hashes = np.zeros(len(files), dtype=np.uint64)
    is_hashed = np.zeros(len(files), dtype=bool)
    without: Counter[str] = Counter()
    progress = Progress(label, max(len(files), 1), unit="images")
    with ThreadPoolExecutor(num_threads) as pool:
        for begin in range(0, len(files), BATCH_FILES):
            for i, found in enumerate(pool.map(one, files[begin : begin + BATCH_FILES]), begin):
                if isinstance(found, str):
                    without[found] += 1
                else:
                    hashes[i], is_hashed[i] = found, True
                progress.update(i + 1)
    return HashedFiles(hashes, is_hashed, dict(sorted(without.items())))


def _decode(root: Path, file: str, max_bytes: int, max_pixels: int) -> Pixels:
    return imaging.decode(imaging.read_below(root, file, max_bytes), max_pixels=max_pixels)


def candidates(hashed: HashedFiles, *, max_distance: int = MAX_DISTANCE) -> Pairs:
    """The pairs of files whose hashes are near each other, as numbers of files."""
    pairs = near_pairs(hashed.hashes[hashed.is_hashed], max_distance=max_distance)
    number = np.flatnonzero(hashed.is_hashed).astype(np.int32)
    return Pairs(number[pairs.a], number[pairs.b], pairs.distance)


def confirm(
    pairs: Pairs,
    files: Sequence[str],
    root: Path,
    *,
    max_bytes: int,
    max_pixels: int,
    num_threads: int,
    min_correlation: float = MIN_CORRELATION,
    label: str = "confirm duplicates",
) -> Pairs:
    """The pairs whose two pictures agree at 64x64 pixels.

    Files are decoded again, as 64x64 pixels of all would not fit into memory; a file of several pairs that follow
    each other is decoded once.

    Args:
        pairs: Candidates, as numbers of `files`.
        files: Paths relative to `root`.
        root: The data set's folder.
        max_bytes: Largest file that is read.
        max_pixels: Largest width times height that is decoded.
        num_threads: Decoders at a time.
        min_correlation: Least correlation (Pearson's) of the grey values.
        label: What the lines of progress say.

    Raises:
        imaging.ImageError: A file of a pair can no longer be used.
    """
    is_same = np.zeros(pairs.a.size, dtype=bool)
    progress = Progress(label, max(pairs.a.size, 1), unit="pairs")
    with ThreadPoolExecutor(num_threads) as pool:
        for begin in range(0, pairs.a.size, BATCH_PAIRS):
            part = slice(begin, begin + BATCH_PAIRS)
            needed, position = np.unique(np.concatenate([pairs.a[part], pairs.b[part]]), return_inverse=True)
            decoded = pool.map(lambda i: standardize(_decode(root, files[i], max_bytes, max_pixels)), needed.tolist())
            pictures = np.stack(list(decoded))
            a, b = np.split(position, 2)
            is_same[part] = np.einsum("pd,pd->p", pictures[a], pictures[b]) >= min_correlation
            progress.update(min(begin + BATCH_PAIRS, pairs.a.size))
    return pairs.where(is_same)


def standardize(pixels: Pixels) -> NDArray[np.float32]:
    """The picture at 64x64 pixels as a vector of mean 0 and length 1: the scalar product of two is their correlation.

    Zeros for a picture without structure.
    """
    grey = imaging.resize(imaging.to_channels(pixels, 1), size_px=COMPARED_SIZE_PX, how="squash")
    centred = grey.astype(np.float32).ravel() - np.float32(grey.mean())
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else centred


def table(pairs: Pairs, image_ids: Sequence[str], patient_ids: Sequence[str]) -> pa.Table:
    """The pairs in schema DUPLICATES, with the identifiers of each picture."""
    rows = []
    for a, b, distance in zip(pairs.a.tolist(), pairs.b.tolist(), pairs.distance.tolist(), strict=True):
        first, second = (a, b) if image_ids[a] < image_ids[b] else (b, a)
        patients = patient_ids[first], patient_ids[second]
        rows.append((image_ids[first], image_ids[second], *patients, distance, patients[0] == patients[1]))
    names = schema.DUPLICATES.columns.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema.DUPLICATES.columns)
