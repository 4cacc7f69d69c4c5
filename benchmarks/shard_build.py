"""Writing patient-grouped shards: our Beam pipeline against naive Beam, and against pyarrow alone without Beam.

    .venv/bin/python -m benchmarks.shard_build

All store the JPEG files' bytes as they are, 16 parts, a patient's images side by side. Naive Beam is the pipeline that
one writes first: read the images, group them by part, write each group; so the bytes pass through the shuffle. Every
run has its own process, so that its peak memory is its own; imports are not timed. `--full` also writes ten times as
many images, to see that time grows as the images and memory does not. One JSON line comes last.
"""

import argparse
import importlib
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import radiographs
from benchmarks.measure import alternate, ratio, report
from medssl import schema, shardset
from medssl.config import ShardConfig
from medssl.data import shards
from medssl.store import file_digest

CONFIG = ShardConfig(image_size_px=224, num_parts=16)  # the size is not used: nothing is decoded
OURS, NAIVE, PLAIN, PLAIN_DIGESTS = "ours", "naive Beam", "pyarrow", "pyarrow with digests"
FULL = 10  # times as many images

Keyed = tuple[int, tuple[str, str, bytes]]  # part; patient_id, image_id, bytes


def write_ours(made: Path, out_dir: Path) -> None:
    """The product's own pipeline, which also joins, checks and digests."""
    tables = (made / "index.parquet", made / "sources.parquet")
    shards.write(*tables, made / "raw", out_dir, CONFIG, to_stored=radiographs.as_stored)


def write_naive(made: Path, out_dir: Path) -> None:
    """Images through GroupByKey."""
    beam: Any = importlib.import_module("apache_beam")
    options = importlib.import_module("apache_beam.options.pipeline_options")
    runner = options.PipelineOptions([f"--runner={shards.DEFAULT_RUNNER}"])
    with beam.Pipeline(options=runner) as pipeline:
        _ = (
            pipeline
            | "Rows" >> beam.Create(_rows(made))
            | "Read" >> beam.Map(_keyed, made / "raw")
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write_group, out_dir)
        )


def _keyed(row: shards.Row, root: Path) -> Keyed:
    patient_id, image_id, file = row
    return shardset.part_of(patient_id, CONFIG.num_parts), (patient_id, image_id, (root / file).read_bytes())


def _write_group(group: tuple[int, Iterable[tuple[str, str, bytes]]], out_dir: Path) -> None:
    part, images = group
    _write_part(out_dir / f"part-{part:05d}.arrow", sorted(images))


def write_plain(made: Path, out_dir: Path, *, digests: bool) -> None:
    """A loop over the sorted rows in one process: what is the least that has to be done."""
    for part, group in itertools.groupby(_rows(made), lambda row: shardset.part_of(row[0], CONFIG.num_parts)):
        path = out_dir / f"part-{part:05d}.arrow"
        _write_part(path, (_keyed(row, made / "raw")[1] for row in group))
        if digests:
            file_digest(path)


def _rows(made: Path) -> list[shards.Row]:
    index: Any = schema.read(made / "index.parquet", schema.INDEX)
    sources: Any = schema.read(made / "sources.parquet", schema.SOURCES)
    joined = index.select(["patient_id", "image_id"]).join(sources, keys="image_id")
    ordered = joined.sort_by([("patient_id", "ascending"), ("image_id", "ascending")])
    return list(zip(*(ordered[name].to_pylist() for name in ("patient_id", "image_id", "file")), strict=True))


def _write_part(path: Path, images: Iterable[tuple[str, str, bytes]]) -> None:
    images = iter(images)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema.SHARD.columns) as sink:
        while batch := list(itertools.islice(images, shards.BATCH_ROWS)):
            columns: dict[str, list[Any]] = {
                "image_id": [image[1] for image in batch],
                "image": [image[2] for image in batch],
            }
            sink.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema.SHARD.columns))


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    OURS: write_ours,
    NAIVE: write_naive,
    PLAIN: partial(write_plain, digests=False),
    PLAIN_DIGESTS: partial(write_plain, digests=True),
}


def child(subject: str, made: Path) -> None:
    """Write once and print seconds, peak memory in MB and how many images were stored."""
    importlib.import_module("apache_beam")
    importlib.import_module(shards.DEFAULT_RUNNER.rpartition(".")[0])  # else by the pipeline, of which it is no work
    folder = Path(tempfile.mkdtemp(dir=made))
    try:
        begin = time.perf_counter()
        WRITERS[subject](made, folder)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb(), "images": _num_images(folder)}))
    finally:
        shutil.rmtree(folder)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _num_images(folder: Path) -> int:
    readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in folder.glob("part-*.arrow")]
    return sum(reader.get_batch(i).num_rows for reader in readers for i in range(reader.num_record_batches))


def run_child(subject: str, made: Path, num_images: int) -> dict[str, float]:
    """What `child` found, in a process of its own."""
    # At import Beam warns of clients of clouds that nothing here uses.
    command = [sys.executable, "-m", "benchmarks.shard_build", "--child", subject, "--data", str(made)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert found["images"] == num_images, f"{subject} stored {found['images']} of {num_images} images"
    return found


def main() -> None:
    """Write with each in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks"), help="where generated sets are kept")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="1,000 images, 3 repeats")
    parser.add_argument("--full", action="store_true", help="also ten times as many images, without naive Beam")
    parser.add_argument("--child", choices=list(WRITERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.data)
        return
    num_images, repeats = (1_000, 3) if options.quick else (10_000, options.repeats)
    made = radiographs.make(options.data, num_images)
    peaks: dict[str, list[float]] = {subject: [] for subject in WRITERS}

    def microseconds(subject: str) -> float:
        found = run_child(subject, made, num_images)
        peaks[subject].append(found["peak_mb"])
        return found["seconds"] / num_images * 1e6

    figures = alternate({subject: partial(microseconds, subject) for subject in WRITERS}, repeats=repeats)
    detail: dict[str, Any] = {
        "num_images": num_images,
        "peak_mb": {subject: round(max(values)) for subject, values in peaks.items()},
        "images_per_s": {subject: round(1e6 / statistics.median(values)) for subject, values in figures.items()},
        "speed_of_pyarrow": round(ratio(figures[OURS], figures[PLAIN]), 2),
        "speed_of_pyarrow_with_digests": round(ratio(figures[OURS], figures[PLAIN_DIGESTS]), 2),
    }
    if options.full:
        many = num_images * FULL
        larger = radiographs.make(options.data, many, num_files=num_images)
        found = {subject: run_child(subject, larger, many) for subject in (OURS, PLAIN, PLAIN_DIGESTS)}
        detail["full"] = {
            subject: {"peak_mb": round(run["peak_mb"]), "images_per_s": round(many / run["seconds"])}
            for subject, run in found.items()
        }
    report(figures, name="shard_build", unit="us/image", ours=OURS, peer=NAIVE, detail=detail)


if __name__ == "__main__":
    main()
