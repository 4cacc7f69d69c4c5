"""Tables of the report that describe patients and images: the source, the splits, label fractions and balance.

They show counts and shares from the summaries of ingest and assign_splits, never a row of a patient. What a summary
does not hold is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medssl.analysis import tables
from medssl.analysis.tables import Cell, Column, Table, percent
from medssl.schema import LABEL_STATES, SPLITS

Json = Mapping[str, Any]

_SOURCE_COUNTS = {
    "images": "Images",
    "patients": "Patients",
    "cases": "Cases, or studies",
    "frontal": "Frontal images",
    "lateral": "Lateral images",
    "unknown_sex": "Images with unknown sex",
    "unknown_age": "Images with unknown age",
    "unknown_view_position": "Images with unknown view position",
    "left_out_by_view": "Images left out by their view",
    "unlabelled_images": "Unlabelled images, for pretraining",
}
_DUPLICATE_COUNTS = {
    "images_compared": "Images compared in search of the same picture",
    "pairs_of_one_patient": "Pairs of the same picture, of one patient",
    "pairs_between_patients": "Pairs of the same picture, under two patients",
}
# As the splits' summary names its shares.
_POSITIVE = "share_positive "
_WORDS = {"share_view ": "View ", "share_age ": "Age, years, ", "share_skin_type ": "Skin type ", "share_": ""}
_PARTS = ("overall", "train", "validation", "test")


def source(index_summary: Json) -> Table:
    """Counts of the data set as ingested."""
    rows = [(f"Rows of {table}", int(count)) for table, count in index_summary.get("rows", {}).items()]
    rows += [(words, int(index_summary[key])) for key, words in _SOURCE_COUNTS.items() if key in index_summary]
    shared = index_summary.get("duplicates", {})
    rows += [(words, int(shared[key])) for key, words in _DUPLICATE_COUNTS.items() if key in shared]
    return tables.build(
        "source", "The data set as ingested.", [tables.text("What"), Column("Number")], rows, task="ingest"
    )


def label_states(index_summary: Json, findings: Sequence[str]) -> Table:
    """How often each finding of the study was labelled how."""
    counted = index_summary.get("findings", {})
    states = list(LABEL_STATES.values())
    rows = [
        (finding, *(int(counted[finding].get(state, 0)) for state in states))
        for finding in findings
        if finding in counted
    ]
    columns = [tables.text("Finding"), *(Column(state.capitalize()) for state in states)]
    caption = "Images by the state of their label, in all splits and before any policy."
    return tables.build("label-states", caption, columns, rows, task="ingest")


def splits(splits_summary: Json) -> Table:
    """Images and patients of each split, beside the images that were asked for."""
    requested, images, patients = (splits_summary.get(key, {}) for key in ("requested_images", "images", "patients"))
    rows = [
        (
            split.replace("_", " "),
            f"{round(requested[split]):,}" if split in requested else "–",
            int(images.get(split, 0)),
            int(patients.get(split, 0)),
        )
        for split in SPLITS
        if images.get(split) or split in requested
    ]
    columns = [tables.text("Split"), Column("Images requested"), Column("Images"), Column("Patients")]
    whole = splits_summary.get("group_by", "patient")
    caption = f"Splits; every {whole} is in one with all its images."
    if torn := splits_summary.get("shared_pictures_in_two_splits"):
        caption += f" Pictures that earlier splits have in two: {torn}."
    return tables.build("splits", caption, columns, rows, task="assign_splits")


def label_fractions(splits_summary: Json, models: Sequence[Json]) -> Table:
    """How many patients and images each label fraction really holds: every tenth, and those of the study."""
    split = {(row["draw"], row["label_fraction"]): row for row in splits_summary.get("label_fractions", [])}
    used = {(model["draw"], model["label_fraction"]): model for model in models}
    rows = [
        (
            f"Draw {draw}",
            percent(fraction),
            *(_count(split.get((draw, fraction), {}).get(key)) for key in ("patients", "images")),
            *(_count(used.get((draw, fraction), {}).get(f"num_train_{key}")) for key in ("patients", "images")),
        )
        for draw, fraction in sorted(split.keys() | used.keys())
    ]
    counted = ("Patients", "Images", "Patients in fine-tuning", "Images in fine-tuning")
    columns = [tables.text("Draw"), *map(Column, ("Label fraction", *counted))]
    caption = (
        "Training patients and images at each label fraction; a smaller fraction is part of every larger one. "
        "Fine-tuning leaves out images that could not be read; it used the fractions of the study alone."
    )
    return tables.build("label-fractions", caption, columns, rows, grouped=True, task="assign_splits")


def _count(number: int | None) -> int | str:
    return "–" if number is None else int(number)


def balance(splits_summary: Json, findings: Sequence[str]) -> Table:
    """Composition of the splits beside that of all patients, for what the study uses."""
    found = splits_summary.get("balance", {})
    rows = [
        (_in_words(name), *(_share(shares.get(part)) for part in _PARTS))
        for name, shares in found.get("shares", {}).items()
        if not name.startswith(_POSITIVE) or name.removeprefix(_POSITIVE) in findings
    ]
    if ages := found.get("mean_age_years"):
        rows.append(("Mean age, years", *(_real(ages.get(part), 1) for part in _PARTS)))
    columns = [tables.text("Of the images"), *(Column(part.capitalize()) for part in _PARTS)]
    caption = "Balance of the splits, shares of images in per cent."
    return tables.build("balance", caption, columns, rows, task="assign_splits")


def shares(splits_summary: Json, findings: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """What `balance` shows as shares, in per cent by split, for drawing."""
    found = splits_summary.get("balance", {}).get("shares", {})
    return [
        (_in_words(name), {part: 100 * of_split[part] for part in _PARTS if of_split.get(part) is not None})
        for name, of_split in found.items()
        if not name.startswith(_POSITIVE) or name.removeprefix(_POSITIVE) in findings
    ]


def largest_deviation(splits_summary: Json) -> str:
    """In words, where a split differs most from all patients; "" where it is not known."""
    largest = splits_summary.get("balance", {}).get("largest_deviation")
    if not largest:
        return ""
    words = _in_words(largest["of"])
    points = 100 * largest["absolute"]
    return (
        f"The largest deviation of a split from the whole, over all labels of the data set, is {points:.1f} "
        f"percentage points ({words}, {largest['split']})."
    )


def _in_words(name: str) -> str:
    if name.startswith(_POSITIVE):
        return f"{name.removeprefix(_POSITIVE)} positive"
    prefix, words = next((prefix, words) for prefix, words in _WORDS.items() if name.startswith(prefix))
    rest = name.removeprefix(prefix)
    return f"{words}{rest}" if words else rest.capitalize()


def _share(share: float | None) -> Cell:
    return _real(None if share is None else 100 * share, 1)


def _real(value: float | None, decimals: int) -> Cell:
    return Cell("–", "not known for any image") if value is None else Cell(f"{value:.{decimals}f}")
