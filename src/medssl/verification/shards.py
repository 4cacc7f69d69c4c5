"""Shards against `shards.json` and the index: every image once, in its patient's part, and decodable."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from medssl import layout
from medssl.exit_codes import BadInputError
from medssl.progress import Progress
from medssl.shardset import ShardSet, part_name, part_of, read_summary
from medssl.store import file_digest
from medssl.verification.finding import Finding, examples

_DECODE_AHEAD = 256  # images decoded between two progress lines
_STATED = ("bytes", "sha256", "num_images")  # of each part, in `shards.json`
Ids = dict[str, list[str]]  # image_ids by part, in the order of the file


def check(shards_dir: Path, index: pa.Table | None, *, where: str, quick: bool, num_threads: int) -> Iterator[Finding]:
    """Check one folder of shards.

    Args:
        shards_dir: Holds `shards.json` and the parts.
        index: The table INDEX that they were written from; None leaves out what concerns patients.
        where: Names the folder in findings.
        quick: Leave out decoding.
        num_threads: Images decoded at the same time.
    """
    try:
        summary = read_summary(shards_dir)
        parts = {str(part["name"]): {name: part[name] for name in _STATED} for part in summary["parts"]}
        undecodable = [str(image["image_id"]) for image in summary["undecodable"]]
        num_parts, num_images = int(summary["num_parts"]), int(summary["num_images"])
        num_patients = int(summary["num_patients"])
    except (BadInputError, KeyError, TypeError, ValueError):
        yield Finding(where, f"{layout.SHARDS} cannot be read; expected parts, num_parts, num_images, undecodable")
        return
    ids: Ids = {}
    yield from _parts(shards_dir, parts, ids, where)
    stored = [image_id for of_part in ids.values() for image_id in of_part]
    if len(stored) != num_images:
        yield Finding(where, f"{len(stored)} images in the parts; {layout.SHARDS} states {num_images}")
    if repeated := _repeated(stored):
        yield Finding(where, f"{len(repeated)} images are stored more than once, among them {examples(repeated)}")
    if both := sorted(set(stored) & set(undecodable)):
        yield Finding(where, f"{len(both)} images are stored and listed as undecodable, among them {examples(both)}")
    if index is None:
        yield Finding(where, "the index is not at hand: which patient an image is of is not checked", is_note=True)
    else:
        yield from _of_index(ids, undecodable, index, num_parts, num_patients, where)
    if not quick:
        yield from _decode(shards_dir, where, num_threads)


def _parts(shards_dir: Path, parts: Mapping[str, Mapping[str, Any]], ids: Ids, where: str) -> Iterator[Finding]:
    """Check the files of the parts, and read their identifiers into `ids`."""
    beside = sorted({path.name for path in shards_dir.glob("part-*")} - set(parts))
    if beside:
        yield Finding(where, f"{len(beside)} parts that {layout.SHARDS} does not list, among them {beside[0]}")
    for name, entry in sorted(parts.items()):
        path = shards_dir / name
        if not path.is_file():
            yield Finding(where, f"{name} is missing")
            continue
        if path.stat().st_size != entry["bytes"] or file_digest(path) != entry["sha256"]:
            yield Finding(where, f"{name} has another size or digest than {layout.SHARDS} states")
        try:
            with pa.memory_map(str(path)) as file:
                column: Any = pa.ipc.open_file(file).read_all()["image_id"]
                ids[name] = column.to_pylist()
        except (pa.ArrowInvalid, OSError, KeyError):
            yield Finding(where, f"{name} cannot be read as a part")
            continue
        if len(ids[name]) != entry["num_images"]:
            yield Finding(where, f"{name} holds {len(ids[name])} images; {layout.SHARDS} states {entry['num_images']}")


def _of_index(
    ids: Ids, undecodable: list[str], index: pa.Table, num_parts: int, stated_patients: int, where: str
) -> Iterator[Finding]:
    """Check the images against the index, and where those of each patient lie."""
    columns: Any = index.select(["image_id", "patient_id"]).to_pydict()
    patient_of: dict[str, str] = dict(zip(columns["image_id"], columns["patient_id"], strict=True))
    stored = {image_id for of_part in ids.values() for image_id in of_part}
    if strangers := sorted((stored | set(undecodable)) - set(patient_of)):
        yield Finding(where, f"{len(strangers)} images are not in the index, among them {examples(strangers)}")
    if absent := sorted(set(patient_of) - stored - set(undecodable)):
        what = "images of the index are neither stored nor listed as undecodable, among them"
        yield Finding(where, f"{len(absent)} {what} {examples(absent)}")
    misplaced, scattered = set[str](), set[str]()
    for name, of_part in ids.items():
        runs = [patient for patient, _ in groupby(patient_of[i] for i in of_part if i in patient_of)]
        misplaced |= {patient for patient in runs if part_name(part_of(patient, num_parts)) != name}
        scattered |= set(_repeated(runs))
    if misplaced:
        what = "patients have images in another part than their identifier says, among them"
        yield Finding(where, f"{len(misplaced)} {what} {examples(sorted(misplaced))}")
    if scattered:
        what = "patients have images that are not side by side, among them"
        yield Finding(where, f"{len(scattered)} {what} {examples(sorted(scattered))}")
    num_patients = len({patient_of[image_id] for image_id in stored & set(patient_of)})
    if num_patients != stated_patients:
        what = f"{num_patients} patients have images in the parts"
        yield Finding(where, f"{what}; {layout.SHARDS} states {stated_patients}")


def _repeated(names: list[str]) -> list[str]:
    return sorted(name for name, number in Counter(names).items() if number > 1)


def _decode(shards_dir: Path, where: str, num_threads: int) -> Iterator[Finding]:
    """Decode every stored image; its shape must be the stated one."""
    try:
        shards = ShardSet.open(shards_dir)
    except BadInputError:
        return  # a part is missing or unreadable, which has been said
    progress = Progress("verify: decode", len(shards), unit="images")
    failed: list[str] = []

    def fails(i: int) -> bool:
        try:
            shards.decode(i)
        except BadInputError:
            return True
        return False

    with ThreadPoolExecutor(num_threads) as pool:
        for begin in range(0, len(shards), _DECODE_AHEAD):
            batch = range(begin, min(begin + _DECODE_AHEAD, len(shards)))
            failed += [str(shards.image_ids[i]) for i, bad in zip(batch, pool.map(fails, batch), strict=True) if bad]
            progress.update(batch.stop)
    if failed:
        shape = f"{shards.channels} channels of {shards.image_size_px} px squared"
        yield Finding(where, f"{len(failed)} images are none of {shape}, among them {examples(failed)}")
