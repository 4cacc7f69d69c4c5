"""Write shards: images decoded, resized and grouped by patient, as a Beam pipeline.

A part is an Arrow IPC file, uncompressed, so that readers map it and copy nothing. The patient's identifier decides
the part: all images of a patient lie side by side in one, and more data moves nobody. Only identifiers and file
names travel between workers; the one that writes a part reads its images.
"""

import itertools
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from medssl import imaging, layout, schema
from medssl.config import ShardConfig
from medssl.exit_codes import BadInputError
from medssl.progress import Progress
from medssl.shardset import read_summary
from medssl.store import file_digest, write_json

BATCH_ROWS = 256  # rows of a record batch, and the most images that a worker holds at a time
# Beam's own default first tries to download a runner written in Go; this one runs in this process.
DEFAULT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_HASH_DIGITS = 8  # leading hex digits of a patient_id that decide its part
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


def write(
    index_path: Path,
    sources_path: Path,
    root: Path,
    out_dir: Path,
    config: ShardConfig,
    *,
    pipeline_options: Sequence[str] = (),
    num_threads: int | None = None,
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
        num_threads: Images worked on at the same time in one part; default: the processors given to this process.

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
    settings = (root, out_dir, config, num_threads or len(os.sched_getaffinity(0)))
    with _counting(num_images), beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Name the tables" >> beam.Create([(index_path, sources_path)])
            | "Group rows by part" >> beam.FlatMap(rows_by_part, config.num_parts)
            | "Spread parts over workers" >> beam.Reshuffle()
            | "Write parts" >> beam.Map(write_part, *settings)
            | "Collect entries" >> beam.combiners.ToList()
            | "Write shards.json" >> beam.Map(write_summary, out_dir, config)
        )
    summary = read_summary(out_dir)
    if complaint := _too_many_undecodable(summary, config.max_undecodable_share):
        (out_dir / layout.SHARDS).unlink()  # its presence means success
        raise BadInputError(complaint)
    return summary


def rows_by_part(tables: tuple[Path, Path], num_parts: int) -> Iterator[tuple[int, list[Row]]]:
    """Join index and sources and yield each part with its rows, sorted by (patient_id, image_id)."""
    index_path, sources_path = tables
    index = schema.read(index_path, schema.INDEX).select(["patient_id", "image_id"])
    sources = schema.read(sources_path, schema.SOURCES)
    at = pc.index_in(index["image_id"], value_set=sources["image_id"])
    table = index.append_column("file", sources["file"].take(at))
    table = table.sort_by([("patient_id", "ascending"), ("image_id", "ascending")])
    batches = (batch.to_pydict().values() for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE))
    rows = itertools.chain.from_iterable(zip(*columns, strict=True) for columns in batches)
    # A part is a range of patients, so its rows follow one another.
    for part, group in itertools.groupby(rows, lambda row: part_of(row[0], num_parts)):
        yield part, list(group)


def part_of(patient_id: str, num_parts: int) -> int:
    """The part that holds a patient: the leading log2(num_parts) bits of the hexadecimal identifier."""
    return int(patient_id[:_HASH_DIGITS], 16) * num_parts >> 4 * _HASH_DIGITS


def write_part(
    part_rows: tuple[int, Sequence[Row]], root: Path, out_dir: Path, config: ShardConfig, num_threads: int
) -> dict[str, Any]:
    """Write one part of given rows; its file appears under its name only when complete, and not at all without images.

    Returns:
        Its entry in `shards.json`, and under "undecodable" the images that could not be used.
    """
    part, rows = part_rows
    path = out_dir / f"part-{part:05d}.arrow"  # sorts as the numbers do
    undecodable: list[dict[str, str]] = []
    images = _usable(_stored(rows, root, config, num_threads), undecodable)
    batch = list(itertools.islice(images, BATCH_ROWS))
    if not batch:
        return {"name": path.name, "num_images": 0, "undecodable": undecodable}
    num_images, patients = 0, set[str]()
    with _atomic(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as sink:
        while batch:
            sink.write_batch(_record_batch(batch))
            num_images += len(batch)
            patients.update(image.patient_id for image in batch)
            batch = list(itertools.islice(images, BATCH_ROWS))
    return {
        "name": path.name,
        "num_images": num_images,
        "num_patients": len(patients),
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "undecodable": undecodable,
    }


def _record_batch(images: Sequence[Stored]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {"image_id": [image.image_id for image in images]}
    columns["image"] = [image.data for image in images]
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)


def _stored(rows: Sequence[Row], root: Path, config: ShardConfig, num_threads: int) -> Iterator[Stored]:
    """Every row's image in order, at most one batch ahead of the caller."""
    with ThreadPoolExecutor(num_threads) as pool:
        for begin in range(0, len(rows), BATCH_ROWS):
            batch = rows[begin : begin + BATCH_ROWS]
            yield from pool.map(lambda row: store_image(row, root, config), batch)
            _count(len(batch))


def _usable(images: Iterator[Stored], undecodable: list[dict[str, str]]) -> Iterator[Stored]:
    """Those of `images` that could be used; the others are appended to `undecodable`."""
    for image in images:
        if image.reason:
            undecodable.append({"image_id": image.image_id, "reason": image.reason})
        else:
            yield image


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


def write_summary(entries: Sequence[dict[str, Any]], out_dir: Path, config: ShardConfig) -> None:
    """Write `shards.json` over all parts, the last file of a run; nothing in it is a path, a host or a time."""
    undecodable = sorted(itertools.chain(*(entry["undecodable"] for entry in entries)), key=lambda u: u["image_id"])
    written = sorted((entry for entry in entries if entry["num_images"]), key=lambda entry: entry["name"])
    parts = [{key: value for key, value in entry.items() if key != "undecodable"} for entry in written]
    reasons = Counter(image["reason"] for image in undecodable)
    summary = {
        "image_size_px": config.image_size_px,
        "channels": config.channels,
        "encoding": config.encoding,
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
    index = schema.read(index_path, schema.INDEX)
    sources = schema.read(sources_path, schema.SOURCES)
    if not index.num_rows:
        raise BadInputError(f"{index_path.name}: no images; expected at least one; run ingest on a filled table")
    num_missing = pc.index_in(index["image_id"], value_set=sources["image_id"]).null_count
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
        "`medssl locate IMAGE_ID` prints the file; or raise shards.max_undecodable_share"
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
