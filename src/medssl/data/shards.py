"""Write shards: images decoded, resized and grouped by patient, as a Beam pipeline.

A part is an Arrow IPC file, uncompressed, so that readers map it and copy nothing. The patient's identifier decides
the part: all images of a patient lie side by side in one, and more data moves nobody. Only identifiers and file
names travel between workers; the one that writes a part reads its images.
"""

import bisect
import hashlib
import io
import itertools
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl import imaging, layout, schema
from medssl.config import ShardConfig
from medssl.exit_codes import BadInputError
from medssl.progress import Progress
from medssl.shardset import part_name, part_of, read_summary
from medssl.store import write_json

BATCH_ROWS = 128  # rows of a record batch, of which a worker holds three at a time
PARTS_OF_TASK = 2  # written at the same time, so that one is read while the other is hashed and written
# Beam's own default first tries to download a runner written in Go; this one runs in this process.
DEFAULT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_TASKS_OF_THREAD = 8  # in a batch: a task costs as much as the reading of a small file, few tasks leave threads idle
_SCHEMA = schema.SHARD.columns.with_metadata({"medssl.schema": schema.SHARD.name})
_ROWS_AT_ONCE = 4096  # of the tables, as Python objects: ten times their size in Arrow
_MAX_EXAMPLES = 5

Row = tuple[str, str, str]  # patient_id, image_id, file relative to the data set's folder


class Stored(NamedTuple):
    """An image as it enters a part, or the reason why it cannot."""

    patient_id: str
    image_id: str
    data: bytes
    reason: str = ""


ToStored = Callable[[Row, Path, ShardConfig], Stored]  # importable: workers in other processes find it by its name


def store_image(row: Row, root: Path, config: ShardConfig) -> Stored:
    """Read one image and bring it into the stored form: size, channels and encoding of `config`."""
    patient_id, image_id, file = row
    try:
        data = imaging.read_below(root, file, config.max_bytes)
        pixels = imaging.to_channels(imaging.decode(data, max_pixels=config.max_pixels), config.channels)
        pixels = imaging.resize(pixels, size_px=config.image_size_px, how=config.resize)
        encoded = imaging.encode(pixels, encoding=config.encoding, quality=config.jpeg_quality)
        return Stored(patient_id, image_id, encoded)
    except imaging.ImageError as error:
        return Stored(patient_id, image_id, b"", error.reason)


def write(
    index_path: Path,
    sources_path: Path,
    root: Path,
    out_dir: Path,
    config: ShardConfig,
    *,
    pipeline_options: Sequence[str] = (),
    num_threads: int | None = None,
    to_stored: ToStored = store_image,
) -> dict[str, Any]:
    """Write the shards of all images of an index; equal input gives equal bytes whatever runs the pipeline.

    Args:
        index_path: Table INDEX.
        sources_path: Table SOURCES of the same ingest.
        root: Folder that the files in the sources are relative to.
        out_dir: Where parts and `shards.json` go; what an interrupted run left there is removed. With a runner
            on other machines, all four paths must lead to the same files there.
        config: Size, encoding, number of parts, bounds.
        pipeline_options: Beam's command-line options; without a --runner everything runs in this process.
        num_threads: Images worked on at the same time; default: the processors given to this process.
        to_stored: What an image becomes in a part.

    Returns:
        The content of `shards.json`.

    Raises:
        BadInputError: The tables do not fit together, or more than `config.max_undecodable_share` of the images
            cannot be used. No `shards.json` remains.
    """
    num_images = _check_tables(index_path, sources_path)
    out_dir.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out_dir)
    with _warnings_held_back():  # at import, of clients of clouds that nothing here uses
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions

    beam: Any = apache_beam  # only partly typed
    options = PipelineOptions(_with_runner(pipeline_options))
    settings = (root, out_dir, config, num_threads or len(os.sched_getaffinity(0)), to_stored)
    with _counting(num_images), beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Name the tables" >> beam.Create([(index_path, sources_path)], reshuffle=False)
            | "Group rows by task" >> beam.FlatMap(rows_by_task, config.num_parts)
            # Twice in place of Reshuffle and ToList, whose many steps take a runner longer to set up than all others.
            | "Spread tasks over workers" >> beam.GroupByKey()
            | "Write parts" >> beam.FlatMap(write_task, *settings)
            | "Collect entries" >> beam.GroupByKey()
            | "Drop the key" >> beam.Values()
            | "Write shards.json" >> beam.Map(write_summary, out_dir, config)
        )
    summary = read_summary(out_dir)
    if complaint := _too_many_undecodable(summary, config.max_undecodable_share):
        (out_dir / layout.SHARDS).unlink()  # its presence means success
        raise BadInputError(complaint)
    return summary


def rows_by_task(tables: tuple[Path, Path], num_parts: int) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Yield what `rows_by_part` does under the number of the task that writes the part."""
    for part, rows in rows_by_part(tables, num_parts):
        yield part // PARTS_OF_TASK, (part, rows)


def rows_by_part(tables: tuple[Path, Path], num_parts: int) -> Iterator[tuple[int, bytes]]:
    """Join index and sources and yield each part with its rows, packed, sorted by (patient_id, image_id)."""
    index_path, sources_path = tables
    index = schema.read(index_path, schema.INDEX, columns=["patient_id", "image_id"])
    sources = schema.read(sources_path, schema.SOURCES)
    at = pc.index_in(index["image_id"], value_set=sources["image_id"])
    order = pc.sort_indices(index, [("patient_id", "ascending"), ("image_id", "ascending")])
    pa.default_memory_pool().release_unused()

    def part_at(rank: int) -> int:
        return part_of(str(index["patient_id"][order[rank].as_py()]), num_parts)

    # A part is a range of patients, so its rows follow one another.
    ends = [bisect.bisect_right(range(len(order)), part, key=part_at) for part in range(num_parts)]
    for part, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        if begin < end:
            own = order[begin:end]
            yield part, _packed(index.take(own).append_column("file", sources["file"].take(at.take(own))))


def _packed(rows: pa.Table) -> bytes:
    # A third of the rows as Python objects, of which a runner holds several copies.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(rows, max_chunksize=_ROWS_AT_ONCE)
    return sink.getvalue().to_pybytes()


def unpacked(rows: bytes) -> Iterator[Row]:
    """The rows of a part, of which only a few at a time are Python objects."""
    for batch in pa.ipc.open_stream(rows):
        yield from zip(*batch.to_pydict().values(), strict=True)


def write_task(
    task_parts: tuple[int, Iterable[tuple[int, bytes]]],
    root: Path,
    out_dir: Path,
    config: ShardConfig,
    num_threads: int,
    to_stored: ToStored,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write the parts of a task at the same time; yields the entry of each under the file that it goes into."""
    parts = [(part, unpacked(rows)) for part, rows in task_parts[1]]
    threads_of_part = max(1, num_threads // len(parts))

    def write_one(part_rows: tuple[int, Iterable[Row]]) -> dict[str, Any]:
        return write_part(part_rows, root, out_dir, config, threads_of_part, to_stored)

    with ThreadPoolExecutor(min(num_threads, len(parts))) as pool:
        for entry in pool.map(write_one, parts):
            yield layout.SHARDS, entry


def write_part(
    part_rows: tuple[int, Iterable[Row]],
    root: Path,
    out_dir: Path,
    config: ShardConfig,
    num_threads: int,
    to_stored: ToStored = store_image,
) -> dict[str, Any]:
    """Write one part of given rows; its file appears under its name only when complete, and not at all without images.

    Returns:
        Its entry in `shards.json`, and under "undecodable" the images that could not be used.
    """
    part, rows = part_rows
    path = out_dir / part_name(part)
    undecodable: list[dict[str, str]] = []
    images = _usable(_stored(rows, root, config, num_threads, to_stored), undecodable)
    batch = list(itertools.islice(images, BATCH_ROWS))
    if not batch:
        return {"name": path.name, "num_images": 0, "undecodable": undecodable}
    num_images, patients = 0, set[str]()
    with _atomic(path) as temporary, _DigestingFile(temporary) as file:
        with pa.ipc.new_file(file, _SCHEMA) as sink:
            while batch:
                sink.write_batch(_record_batch(batch))
                num_images += len(batch)
                patients.update(image.patient_id for image in batch)
                batch = list(itertools.islice(images, BATCH_ROWS))
        num_bytes = file.tell()
    return {
        "name": path.name,
        "num_images": num_images,
        "num_patients": len(patients),
        "bytes": num_bytes,
        "sha256": file.digest.hexdigest(),
        "undecodable": undecodable,
    }


def _record_batch(images: Sequence[Stored]) -> pa.RecordBatch:
    image_ids = pa.array([image.image_id for image in images], pa.string())
    # Joined here, as Arrow's builder moves what it holds whenever it grows.
    offsets = np.cumsum([0, *(len(image.data) for image in images)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets.data), pa.py_buffer(b"".join(image.data for image in images))]
    stored = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(images), buffers)
    return pa.RecordBatch.from_arrays([image_ids, stored], schema=_SCHEMA)


def _stored(
    rows: Iterable[Row], root: Path, config: ShardConfig, num_threads: int, to_stored: ToStored
) -> Iterator[Stored]:
    """Every row's image in order; with threads, the next batch is worked on while the caller has one."""
    rows = iter(rows)
    num_together = max(1, BATCH_ROWS // (_TASKS_OF_THREAD * num_threads))

    def store_some(some: Sequence[Row]) -> list[Stored]:
        return [to_stored(row, root, config) for row in some]

    def told(images: list[Stored]) -> list[Stored]:
        _count(len(images))
        return images

    if num_threads == 1:  # another thread would only wait for this one
        while some := list(itertools.islice(rows, num_together)):
            yield from told(store_some(some))
        return
    with ThreadPoolExecutor(num_threads) as pool:

        def begun() -> list[Future[list[Stored]]]:
            batch = list(itertools.islice(rows, BATCH_ROWS))
            return [pool.submit(store_some, batch[i : i + num_together]) for i in range(0, len(batch), num_together)]

        tasks, ahead = begun(), begun()
        while tasks:
            for task in tasks:
                yield from told(task.result())
            tasks, ahead = ahead, begun()


class _DigestingFile(io.BufferedWriter):
    """A new file whose SHA-256 is known when it is written, so that nothing is read again."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return super().write(data)


def _usable(images: Iterator[Stored], undecodable: list[dict[str, str]]) -> Iterator[Stored]:
    """Those of `images` that could be used; the others are appended to `undecodable`."""
    for image in images:
        if image.reason:
            undecodable.append({"image_id": image.image_id, "reason": image.reason})
        else:
            yield image


def write_summary(entries: Iterable[dict[str, Any]], out_dir: Path, config: ShardConfig) -> None:
    """Write `shards.json` over all parts, the last file of a run; nothing in it is a path, a host or a time."""
    entries = list(entries)
    undecodable = sorted(itertools.chain(*(entry["undecodable"] for entry in entries)), key=lambda u: u["image_id"])
    written = sorted((entry for entry in entries if entry["num_images"]), key=lambda entry: entry["name"])
    parts = [{key: value for key, value in entry.items() if key != "undecodable"} for entry in written]
    reasons = Counter(image["reason"] for image in undecodable)
    summary = {
        "image_size_px": config.image_size_px,
        "channels": config.channels,
        "encoding": config.encoding,
        "num_parts": config.num_parts,  # that patients are spread over; those without an image are not written
        "parts": parts,
        "num_images": sum(part["num_images"] for part in parts),
        # No patient is in two parts.
        "num_patients": sum(part["num_patients"] for part in parts),
        "undecodable": undecodable,
        "undecodable_by_reason": dict(reasons),
    }
    write_json(out_dir / layout.SHARDS, summary)


def _check_tables(index_path: Path, sources_path: Path) -> int:
    """The number of images, once it is known that each has a file.

    Raises:
        BadInputError: There are none, or some are not in the sources.
    """
    index = schema.read(index_path, schema.INDEX, columns=["image_id"])
    sources = schema.read(sources_path, schema.SOURCES, columns=["image_id"])
    if not index.num_rows:
        raise BadInputError(f"{index_path.name}: no images; expected at least one; run ingest on a filled table")
    num_missing = pc.index_in(index["image_id"], value_set=sources["image_id"]).null_count
    pa.default_memory_pool().release_unused()
    if num_missing:
        raise BadInputError(
            f"{sources_path.name}: {num_missing} of the {index.num_rows} images in {index_path.name} are not in it; "
            "expected two tables of one ingest; run ingest again"
        )
    return int(index.num_rows)


def _too_many_undecodable(summary: Mapping[str, Any], max_share: float) -> str:
    """The complaint about more than `max_share` of unusable images, or nothing."""
    undecodable = summary["undecodable"]
    total = summary["num_images"] + len(undecodable)
    if len(undecodable) <= max_share * total:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary["undecodable_by_reason"].items()))
    examples = ", ".join(image["image_id"] for image in undecodable[:_MAX_EXAMPLES])
    return (
        f"{len(undecodable)} of {total} images cannot be used ({reasons}): a share of {len(undecodable) / total:.3g}, "
        f"expected at most shards.max_undecodable_share = {max_share:g}; among them {examples}. "
        "`medssl locate IMAGE_ID --store RUN/store` prints the file; or raise shards.max_undecodable_share"
    )


def _with_runner(pipeline_options: Sequence[str]) -> list[str]:
    has_runner = any(option.split("=")[0] == "--runner" for option in pipeline_options)
    return [*pipeline_options, *(() if has_runner else (f"--runner={DEFAULT_RUNNER}",))]


@contextmanager
def _warnings_held_back() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A new name to write under; what is there at the end becomes `path`, and nothing remains of a failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # two workers may try the same part
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(out_dir: Path) -> None:
    for pattern in (layout.SHARDS, "part-*.arrow", ".part-*.tmp"):
        for path in out_dir.glob(pattern):
            path.unlink()


@dataclass
class _Tally:
    """Images done by all threads of this process."""

    progress: Progress
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


# Beam hands no object of this process to its workers; those in other processes find None here and stay silent.
_tally: _Tally | None = None


@contextmanager
def _counting(num_images: int) -> Iterator[None]:
    global _tally
    _tally = _Tally(Progress("write_shards", num_images, unit="images"))
    try:
        yield
    finally:
        _tally = None


def _count(num_images: int) -> None:
    if _tally is not None:
        with _tally.lock:
            _tally.done += num_images
            _tally.progress.update(_tally.done)
