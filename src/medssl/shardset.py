"""The shard format, read side: images by number, a perfect shuffle, a rank's share of it, and one split's images.

Shards hold images and nothing else. Labels and split are joined here, at read: a corrected label or another split
rewrites no image, and an image outside the split that a reader was opened for is refused.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import imaging, layout, schema
from medssl.exit_codes import BadInputError

Order = NDArray[np.int64]
_NONE = np.empty(0, np.int64)
_HASH_DIGITS = 8  # leading hex digits of a patient_id that decide its part


def part_of(patient_id: str, num_parts: int) -> int:
    """The part that holds a patient: the leading log2(num_parts) bits of the hexadecimal identifier."""
    return int(patient_id[:_HASH_DIGITS], 16) * num_parts >> 4 * _HASH_DIGITS


def part_name(part: int) -> str:
    """The file of a part; the names sort as the numbers do."""
    return f"part-{part:05d}.arrow"


def read_summary(shards_dir: Path) -> dict[str, Any]:
    """The content of `shards.json`.

    Raises:
        BadInputError: It is missing, as after an unfinished run, or no JSON.
    """
    try:
        summary: dict[str, Any] = json.loads((shards_dir / layout.SHARDS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise BadInputError(f"shards: no readable {layout.SHARDS}; run write_shards again") from None
    return summary


class _Mapped(NamedTuple):
    """One part in memory: its bytes, and where in them each image begins and ends."""

    data: memoryview
    image_ids: "pa.Array[Any]"  # strings
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class ShardSet:
    """All images of a folder of shards, numbered in the order of the parts; nothing is copied or held in memory.

    Attributes:
        image_size_px: Side of every image.
        channels: 1 or 3.
        image_ids: Identifiers by number.
    """

    def __init__(self, parts: list[_Mapped], *, image_size_px: int, channels: Literal[1, 3]) -> None:
        self.image_size_px, self.channels = image_size_px, channels
        self.image_ids = pa.concat_arrays([pa.array([], pa.string()), *(part.image_ids for part in parts)])
        self._parts = [part.data for part in parts]
        # As memoryviews, whose elements are Python's own integers: a third of the cost of NumPy's.
        self._begins = np.concatenate([_NONE, *(part.begins for part in parts)]).data
        self._ends = np.concatenate([_NONE, *(part.ends for part in parts)]).data
        self._part_of = np.repeat(np.arange(len(parts)), [len(part.begins) for part in parts]).data

    @classmethod
    def open(cls, shards_dir: Path) -> Self:
        """Map the parts that `shards.json` names.

        Raises:
            BadInputError: A part is missing, damaged or of another length than listed.
        """
        summary = read_summary(shards_dir)
        parts = []
        for entry in summary["parts"]:
            name = entry["name"]
            try:
                part = _map_part(shards_dir / name)
            except (FileNotFoundError, pa.ArrowInvalid, KeyError):
                raise BadInputError(f"shards: {name} is missing or damaged; run write_shards again") from None
            if len(part.begins) != entry["num_images"]:
                raise BadInputError(
                    f"shards: {name} holds {len(part.begins)} images, expected {entry['num_images']} "
                    f"by {layout.SHARDS}; run write_shards again"
                )
            parts.append(part)
        return cls(parts, image_size_px=summary["image_size_px"], channels=summary["channels"])

    def __len__(self) -> int:
        return len(self._begins)

    def read(self, i: int) -> memoryview:
        """The encoded image number `i`, a view of the mapped file."""
        return self._parts[self._part_of[i]][self._begins[i] : self._ends[i]]

    def position(self, image_id: str) -> int:
        """The number of an image.

        Raises:
            KeyError: The shards do not hold it.
        """
        return self._positions[image_id]

    def decode(self, i: int) -> imaging.Pixels:
        """Image number `i`, uint8, shape (channels, image_size_px, image_size_px).

        Raises:
            BadInputError: What is stored is no image of that shape.
        """
        shape = (self.image_size_px, self.image_size_px, *((3,) if self.channels == 3 else ()))
        try:
            image = imaging.decode(self.read(i), max_pixels=self.image_size_px**2)
        except imaging.ImageError as error:
            raise BadInputError(f"shards: image number {i}: {error}; run write_shards again") from None
        if image.shape != shape:
            raise BadInputError(
                f"shards: image number {i} has shape {image.shape}, expected {shape}; run write_shards again"
            )
        return image[np.newaxis] if self.channels == 1 else image.transpose(2, 0, 1)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {str(image_id): i for i, image_id in enumerate(self.image_ids.to_pylist())}


def _map_part(path: Path) -> _Mapped:
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    table = pa.ipc.open_file(buffer).read_all()  # its columns are views of `buffer`
    image_ids = pa.concat_arrays([pa.array([], pa.string()), *table["image_id"].chunks])
    begins, ends = [_NONE], [_NONE]
    for chunk in table["image"].chunks:
        buffers: list[Any] = chunk.buffers()  # validity (none: every image is there), offsets, bytes
        bounds = np.frombuffer(buffers[1], np.int64, len(chunk) + 1) + (buffers[2].address - buffer.address)
        begins.append(bounds[:-1])
        ends.append(bounds[1:])
    return _Mapped(memoryview(buffer).cast("B"), image_ids, np.concatenate(begins), np.concatenate(ends))


def permutation(num: int, *, seed: int, epoch: int) -> Order:
    """Every number below `num` once, in an order that depends on the arguments alone.

    Nothing is kept between epochs, so to resume is to call it again.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(num)


@dataclass(frozen=True)
class Cohort:
    """The images of one split that the shards hold, with their labels.

    Attributes:
        split: The split it was opened for.
        rows: Rows of the index, sorted by image_id, shape (N,).
        positions: Number of each row's image in `shards`, int64, shape (N,).
        num_missing: Images of these patients that the shards do not hold, because they could not be decoded.
        shards: Where the images are.
    """

    split: str
    rows: pa.Table
    positions: Order
    num_missing: int
    shards: ShardSet

    @classmethod
    def select(
        cls,
        index: pa.Table,
        splits: pa.Table,
        shards: ShardSet,
        *,
        split: str,
        label_fraction: float | None = None,
        draw: int = 0,
        with_unlabelled: bool = False,
    ) -> Self:
        """Open one split, or a nested fraction of its patients.

        Args:
            index: Table INDEX.
            splits: Table SPLIT_TABLE over the same patients.
            shards: Shards written from `index`.
            split: One of schema.SPLITS.
            label_fraction: Keeps the patients whose rank is below; 0-1, 1 and None keep all.
            draw: Which of the orders of patients the fraction is cut from.
            with_unlabelled: Also open images that the source lists without labels, those of these patients and those
                of patients who have no other: for pretraining.

        Raises:
            BadInputError: The three do not belong together, or nothing is left.
            ValueError: There is no such draw.
        """
        _check_together(index, splits, shards)
        opened = [split, schema.UNLABELLED] if with_unlabelled else [split]
        chosen = splits.filter(pc.is_in(splits["split"], value_set=pa.array(opened)))
        if label_fraction is not None:
            chosen = chosen.filter(schema.ranks_of_draw(chosen, draw) < label_fraction)
        rows = schema.rows_of(index, chosen).sort_by("image_id")
        if not with_unlabelled:
            rows = rows.filter(pc.not_equal(rows["source_split"], pa.scalar(schema.UNLABELLED)))
        at = pc.index_in(rows["image_id"], value_set=shards.image_ids)
        present = rows.filter(pc.is_valid(at))
        if not present.num_rows:
            part = "" if label_fraction is None else f" at label fraction {label_fraction:g}, draw {draw},"
            raise BadInputError(
                f'split "{split}"{part} has {chosen.num_rows} patients and none of their images is in the shards; '
                "expected at least one; see the sizes under splits and the counts of write_shards"
            )
        positions = at.drop_null().to_numpy().astype(np.int64)
        return cls(split, present, positions, rows.num_rows - present.num_rows, shards)

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, image_id: str) -> imaging.Pixels:
        """One image by its identifier, uint8, shape (C, S, S).

        Raises:
            BadInputError: The image is not one of this cohort: it belongs to a patient of another split, or is not
                in the shards.
        """
        row = self._row_of.get(image_id)
        if row is None:
            raise BadInputError(
                f'image {image_id} is not among the {len(self)} images opened for split "{self.split}"; '
                "expected an image of a patient of that split"
            )
        return self.decode(row)

    def decode(self, row: int) -> imaging.Pixels:
        """The image of row `row`, uint8, shape (C, S, S)."""
        return self.shards.decode(int(self.positions[row]))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {str(image_id): row for row, image_id in enumerate(self.rows["image_id"].to_pylist())}


def whole(index: pa.Table) -> pa.Table:
    """A table of splits, without ranks, that puts every patient of an external set into one."""
    patients = index["patient_id"].unique()
    columns: dict[str, Any] = {"patient_id": patients, "split": pa.repeat(schema.EXTERNAL, len(patients))}
    return pa.table(columns)


def _check_together(index: pa.Table, splits: pa.Table, shards: ShardSet) -> None:
    """Refuse tables and shards of different origin, which could leak images from one split into another."""
    strangers = pc.index_in(shards.image_ids, value_set=index["image_id"]).null_count
    unit = schema.split_unit(splits)
    without_split = pc.index_in(index[unit], value_set=splits[unit]).null_count
    repeated = splits.num_rows - len(splits[unit].unique())
    for count, what in (
        (strangers, "images in the shards are not in the index; run write_shards again"),
        (without_split, "images in the index are of patients without a split; run assign_splits again"),
        (repeated, "patients stand twice in the table of splits; run assign_splits again"),
    ):
        if count:
            raise BadInputError(f"index, splits and shards do not belong together: {count} {what}")
