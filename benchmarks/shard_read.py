"""Reading samples in shuffled order without decoding: our shards against WebDataset, MDS, Parquet and single files.

    .venv/bin/python -m benchmarks.shard_read

All hold the same JPEG files in the same order, patient by patient. A figure is the time of one whole epoch, the
shuffle included, divided by its samples. Ours is read as views of mapped files, and once more with every page touched,
because a view alone moves no byte. One JSON line comes last.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import radiographs
from benchmarks.measure import alternate, ratio, report
from medssl.config import ShardConfig
from medssl.data import shards
from medssl.shardset import ShardSet, permutation

BUFFER = 1000  # samples in the shuffle buffers of WebDataset and Parquet
SHARD_BYTES = 64 << 20  # of a tar file and of an MDS shard, MDS's default
ROW_GROUP = 256
BATCH = 256  # in which pairs of the same patient are counted
PAGE = 4096
NUM_COLD = 500  # samples of a cold reading
OURS, TOUCHED, WEBDATASET = "ours", "ours, pages touched", "WebDataset"

Sample = tuple[int, Any]  # the number in the order of the files, the bytes
Epoch = Callable[[int], Iterator[Sample]]


class Formats:
    """One set of files in every format, and an epoch over each.

    Attributes:
        patient_N: Number of the patient of each sample, in the order of the files.
    """

    def __init__(self, made: Path) -> None:
        self.folder = made
        tables = (made / "index.parquet", made / "sources.parquet")
        self.rows = [row for _part, rows in shards.rows_by_part(tables, 1) for row in shards.unpacked(rows)]
        self.files = [made / "raw" / file for *_, file in self.rows]
        self.patient_N = np.unique([patient_id for patient_id, *_ in self.rows], return_inverse=True)[1]
        for name, write in (
            ("shards", self._shards),
            ("tar", self._tar),
            ("mds", self._mds),
            ("parquet", self._parquet),
        ):
            folder = made / name
            if not (folder / "complete").exists():
                folder.mkdir(exist_ok=True)
                write(folder)
                (folder / "complete").touch()

    def _shards(self, folder: Path) -> None:
        tables = (self.folder / "index.parquet", self.folder / "sources.parquet")
        config = ShardConfig(image_size_px=224)
        shards.write(*tables, self.folder / "raw", folder, config, to_stored=radiographs.as_stored)

    def _tar(self, folder: Path) -> None:
        from webdataset import ShardWriter

        with ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
            for i, file in enumerate(self.files):
                writer.write({"__key__": f"{i:06d}", "jpg": file.read_bytes()})

    def _mds(self, folder: Path) -> None:
        from streaming import MDSWriter

        columns = {"number": "int", "image": "bytes"}
        with MDSWriter(out=str(folder / "set"), columns=columns, size_limit=SHARD_BYTES) as writer:
            for i, file in enumerate(self.files):
                writer.write({"number": i, "image": file.read_bytes()})

    def _parquet(self, folder: Path) -> None:
        fields: list[pa.Field[Any]] = [pa.field("number", pa.int64()), pa.field("image", pa.binary())]
        columns = pa.schema(fields)
        with pq.ParquetWriter(folder / "set.parquet", columns, compression="none", use_dictionary=False) as writer:
            for begin in range(0, len(self.files), ROW_GROUP):
                images = [file.read_bytes() for file in self.files[begin : begin + ROW_GROUP]]
                numbers = list(range(begin, begin + len(images)))
                writer.write_table(pa.table({"number": numbers, "image": images}, columns))

    def single_files(self, epoch: int) -> Iterator[Sample]:
        """Each file opened and read, in the order of a permutation."""
        for i in permutation(len(self.files), seed=0, epoch=epoch).tolist():
            yield i, self.files[i].read_bytes()

    def webdataset(self, epoch: int) -> Iterator[Sample]:
        """Shuffled order of tar files, and a buffer."""
        import webdataset

        urls = [str(path) for path in sorted((self.folder / "tar").glob("*.tar"))]
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=epoch, empty_check=False)
        for sample in dataset.shuffle(BUFFER, rng=random.Random(epoch)):
            yield int(sample["__key__"]), sample["jpg"]

    def parquet(self, epoch: int) -> Iterator[Sample]:
        """Shuffled order of row groups, and a buffer."""
        rng = random.Random(epoch)
        file = pq.ParquetFile(self.folder / "parquet/set.parquet", memory_map=True)
        groups = list(range(file.num_row_groups))
        rng.shuffle(groups)
        buffer: list[Sample] = []
        for group in groups:
            table = file.read_row_group(group)
            numbers: list[Any] = table["number"].to_pylist()
            buffer += zip(numbers, table["image"].to_pylist(), strict=True)
            rng.shuffle(buffer)
            while len(buffer) > BUFFER:
                yield buffer.pop()
        yield from reversed(buffer)


def ours(opened: ShardSet, epoch: int, *, touch: bool) -> Iterator[Sample]:
    """Views in the order of a permutation; `touch` reads a byte of every page."""
    for i in permutation(len(opened), seed=0, epoch=epoch).tolist():
        view = opened.read(i)
        if touch:
            view[::PAGE].tobytes()
        yield i, view


def mds(folder: Path) -> Epoch:
    """MosaicML's StreamingDataset on local shards, with its default shuffle."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder / "mds/set"), shuffle=True, batch_size=BATCH)  # counts epochs itself
    return lambda epoch: ((sample["number"], sample["image"]) for sample in dataset)


def seconds(epoch: Iterator[Sample]) -> tuple[float, int]:
    """Time of a whole epoch and its number of samples."""
    begin = time.perf_counter()
    num = sum(1 for _ in epoch)
    return time.perf_counter() - begin, num


def microseconds_a_sample(read: Epoch, epochs: Iterator[int]) -> float:
    """Of one epoch, shuffling included."""
    took, num = seconds(read(next(epochs)))
    return took / num * 1e6


def shuffle_quality(read: Epoch, patient_N: NDArray[np.int64]) -> dict[str, float]:
    """How far samples are moved, relative to a perfect shuffle, and how often a batch holds one patient twice."""
    order = np.array([i for i, _ in read(0)])
    assert sorted(order.tolist()) == list(range(order.size)), "an epoch must hold every sample once"
    moved = np.abs(np.arange(order.size) - order).mean() / (order.size / 3)  # n / 3: expectation of a permutation
    pairs = []
    for begin in range(0, order.size - BATCH + 1, BATCH):
        counts = np.unique(patient_N[order[begin : begin + BATCH]], return_counts=True)[1]
        pairs.append(int((counts * (counts - 1) // 2).sum()))
    return {"displacement": round(float(moved), 3), "same_patient_pairs": round(statistics.fmean(pairs), 1)}


def resume_milliseconds(opened: ShardSet) -> float:
    """From (seed, epoch, step) to the first sample in the middle of an epoch, the shards being open."""
    begin = time.perf_counter()
    order = permutation(len(opened), seed=0, epoch=3)[len(opened) // 2 :]
    opened.read(int(order[0]))
    return (time.perf_counter() - begin) * 1e3


def make_cold(folder: Path) -> None:
    """Ask the system to forget the content of all files below `folder`."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cold_microseconds(formats: Formats, which: str, order: NDArray[np.int64]) -> float:
    """A sample's time when nothing is in memory; ours with every page touched."""
    make_cold(formats.folder / which)
    opened = ShardSet.open(formats.folder / "shards") if which == "shards" else None
    begin = time.perf_counter()
    for i in order.tolist():
        data = opened.read(i) if opened else memoryview(formats.files[i].read_bytes())
        data[::PAGE].tobytes()
    return (time.perf_counter() - begin) / order.size * 1e6


def cold_figures(formats: Formats, repeats: int) -> dict[str, float]:
    """Medians in microseconds a sample, for samples in random order and for neighbours in the order of the files."""
    num = len(formats.files)
    shuffled = permutation(num, seed=1, epoch=0)[:NUM_COLD]
    found = alternate(
        {
            f"{which}, {how}": partial(cold_microseconds, formats, which, order)
            for how, order in (("shuffled", shuffled), ("in order", np.arange(min(num, NUM_COLD))))
            for which in ("shards", "raw")
        },
        repeats=repeats,
    )
    return {name.replace("raw", "single files"): round(statistics.median(v), 1) for name, v in found.items()}


def main() -> None:
    """Write the formats, read them in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks"), help="where generated sets are kept")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="1,000 images, 3 repeats")
    options = parser.parse_args()
    num_images, repeats = (1_000, 3) if options.quick else (10_000, options.repeats)
    formats = Formats(radiographs.make(options.data, num_images))
    opened = ShardSet.open(formats.folder / "shards")
    subjects: dict[str, Epoch] = {
        OURS: partial(ours, opened, touch=False),
        TOUCHED: partial(ours, opened, touch=True),
        WEBDATASET: formats.webdataset,
        "MDS": mds(formats.folder),
        "Parquet row groups": formats.parquet,
        "single files": formats.single_files,
    }
    quality = {name: shuffle_quality(read, formats.patient_N) for name, read in subjects.items()}  # and warms all up
    for name, found in quality.items():
        print(f"{name}: {found}")
    epochs = {name: iter(range(1, 1000)) for name in subjects}
    figures = alternate(
        {name: partial(microseconds_a_sample, read, epochs[name]) for name, read in subjects.items()}, repeats=repeats
    )
    resume = statistics.median(resume_milliseconds(opened) for _ in range(repeats))
    del subjects, opened  # mapped pages cannot be made cold
    detail = {
        "num_images": num_images,
        "mean_bytes": round(statistics.fmean(file.stat().st_size for file in formats.files)),
        "ratio_pages_touched": round(ratio(figures[TOUCHED], figures[WEBDATASET]), 1),
        "shuffle": quality,
        "resume_ms": round(resume, 3),
        "cold_us": cold_figures(formats, repeats),
    }
    report(figures, name="shard_read", unit="us/sample", ours=OURS, peer=WEBDATASET, detail=detail)


if __name__ == "__main__":
    main()
