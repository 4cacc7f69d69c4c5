"""Splits recounted from the index: every patient once, no patient twice, sizes and label fractions as summarised."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medssl import layout, schema
from medssl.verification.finding import Finding, examples
from medssl.verification.tables import counts


def check(splits: pa.Table, index: pa.Table, *, where: str, summary_path: Path) -> Iterator[Finding]:
    """Check one table of splits against the index it was made for and against its own summary."""
    unit = schema.split_unit(splits)
    if unknown := sorted(set(counts(splits["split"])) - set(schema.SPLITS)):
        yield Finding(where, f"unknown splits {unknown[:5]}; expected some of {', '.join(schema.SPLITS)}")
    of_image = schema.split_of_images(index, splits)
    missing: Any = index[unit].filter(pc.is_null(of_image)).unique()
    if len(missing):
        what = f"of the index are in no split, among them {examples(missing.to_pylist())}"
        yield Finding(where, f"{len(missing)} {unit.removesuffix('_id')}s {what}")
    in_two = _in_two_splits(index, of_image)
    if in_two and unit == "patient_id":
        what = f"patients are in more than one split, among them {examples(in_two)}"
        yield Finding(where, f"{len(in_two)} {what}; re-run assign-splits")
    elif in_two:
        what = f"{len(in_two)} patients are in more than one split, as the study asks: whole are"
        yield Finding(where, f"{what} {unit.removesuffix('_id')}s only", is_note=True)
    official = index.filter(pc.equal(index["source_split"], pa.scalar(schema.OFFICIAL_VALID)))
    if moved := official.num_rows - counts(schema.split_of_images(official, splits)).get(schema.OFFICIAL_VALID, 0):
        yield Finding(where, f"{moved} images of the source's official validation are in another split")
    yield from _ranks(splits, where)
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        yield from _sizes(index, splits, of_image, len(in_two), summary, where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield Finding(where, f"{layout.SUMMARY} cannot be read; expected images, patients and label_fractions")


def _in_two_splits(index: pa.Table, of_image: Any) -> list[str]:
    """Patients whose images are in more than one split."""
    joined: Any = index.select(["patient_id"]).append_column("split", of_image).drop_null()
    found = joined.group_by("patient_id").aggregate([("split", "count_distinct")])
    several = found.filter(pc.greater(found["split_count_distinct"], pa.scalar(1)))
    return sorted(several["patient_id"].to_pylist())


def _ranks(splits: pa.Table, where: str) -> Iterator[Finding]:
    """Check that every row has a rank in [0, 1) for each draw, the same number of them; so fractions are nested."""
    ranks: list[Any] = splits["label_ranks"].to_pylist()
    if len(numbers := sorted({len(of_row) for of_row in ranks})) > 1:
        yield Finding(where, f"label_ranks of {numbers} draws; expected the same number in every row")
    if outside := sum(not all(0 <= rank < 1 for rank in of_row) for of_row in ranks):
        yield Finding(where, f"label_ranks of {outside} rows are not in 0 to 1, so that label fractions are not nested")


def _sizes(
    index: pa.Table, splits: pa.Table, of_image: Any, num_in_two: int, summary: Mapping[str, Any], where: str
) -> Iterator[Finding]:
    is_labelled = pc.not_equal(index["source_split"], pa.scalar(schema.UNLABELLED))
    images = counts(of_image.filter(is_labelled).drop_null())
    images[schema.UNLABELLED] = counts(of_image.drop_null()).get(schema.UNLABELLED, 0)
    joined: Any = index.select(["patient_id"]).append_column("split", of_image).drop_null()
    patients = counts(joined.group_by(["patient_id", "split"]).aggregate([])["split"])
    for what, recounted in (("images", images), ("patients", patients)):
        for split, stated in sorted(summary[what].items()):
            if (number := recounted.get(split, 0)) != stated:
                yield Finding(where, f"{number} {what} in {split}; {layout.SUMMARY} states {stated}")
    if (stated := summary["patients_in_two_splits"]) != num_in_two:
        yield Finding(where, f"{num_in_two} patients are in more than one split; {layout.SUMMARY} states {stated}")
    rows = summary["label_fractions"]
    recount = _fractions(
        index.filter(is_labelled), splits, [(int(row["draw"]), float(row["label_fraction"])) for row in rows]
    )
    wrong = [row for row, number in zip(rows, recount, strict=True) if number != (row["patients"], row["images"])]
    if wrong:
        at = f"fraction {wrong[0]['label_fraction']:g}, draw {wrong[0]['draw']}"
        yield Finding(where, f"{len(wrong)} label fractions have other sizes than {layout.SUMMARY} states, first {at}")
    ordered = sorted(rows, key=lambda row: (row["draw"], row["label_fraction"]))
    if any(a["draw"] == b["draw"] and a["patients"] > b["patients"] for a, b in pairwise(ordered)):
        yield Finding(where, f"{layout.SUMMARY} states a label fraction that is larger than a greater one")


def _fractions(index: pa.Table, splits: pa.Table, wanted: list[tuple[int, float]]) -> list[tuple[int, int]]:
    """Patients and images of training whose rank is below each fraction of a draw; -1 where there is no such draw."""
    unit = schema.split_unit(splits)
    present: Any = splits.filter(pc.is_in(splits[unit], value_set=index[unit]))
    train: Any = present.filter(pc.equal(present["split"], pa.scalar("train")))
    num_images = Counter(index[unit].to_pylist())
    rows = list(zip(*(train[c].to_pylist() for c in (unit, "patient_id", "label_ranks")), strict=True))
    found = []
    for draw, fraction in wanted:
        if any(draw >= len(ranks) for _, _, ranks in rows):
            found.append((-1, -1))
            continue
        below = [(name, patient) for name, patient, ranks in rows if ranks[draw] < fraction]
        found.append((len({patient for _, patient in below}), sum(num_images[name] for name, _ in below)))
    return found


def check_shared_pictures(pairs: pa.Table, index: pa.Table, splits: pa.Table, *, where: str) -> Iterator[Finding]:
    """Check that no picture is in two splits under two names."""
    of_image: Any = schema.split_of_images(index, splits).combine_chunks()
    sides = [pc.index_in(pairs[side], value_set=index["image_id"].combine_chunks()) for side in ("image_a", "image_b")]
    if unknown := sum(int(side.null_count) for side in sides):
        yield Finding(where, f"{layout.DUPLICATES}: {unknown} images of pairs are not in the index")
    apart: Any = pc.not_equal(of_image.take(sides[0]), of_image.take(sides[1]))
    if torn := int(pc.sum(apart).as_py() or 0):
        names = examples(pairs["image_a"].filter(apart).to_pylist())
        yield Finding(where, f"{torn} pairs of images show the same picture in different splits, among them {names}")
