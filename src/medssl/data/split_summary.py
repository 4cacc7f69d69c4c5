"""The proof of a split: sizes, disjointness, label fractions and balance, recounted from the finished tables."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import SplitConfig

*SPLIT_AT_RANDOM, OFFICIAL_VALID, UNUSED = schema.SPLITS
# Only train patients have label fractions; these are reported, whatever the study uses.
REPORTED_FRACTIONS = tuple(tenths / 10 for tenths in range(1, 11))

Column = Any  # a pyarrow array; the published stubs cannot say of what


def summarize(index: pa.Table, splits: pa.Table, config: SplitConfig) -> dict[str, Any]:
    """Recount everything from the index joined with the finished splits.

    Args:
        index: Schema INDEX.
        splits: Schema SPLIT_TABLE.
        config: What was asked for.

    Returns:
        images, patients: Numbers by split. requested_images: by split; a fraction times the images that were split.
        patients_in_two_splits, patients_without_split: 0 unless something is wrong.
        label_fractions: Patients and images of every tenth, for each draw.
        balance: Shares and mean age in each split and overall, and the largest deviation of a share.
    """
    joined: Any = index.select(["patient_id", "image_id"]).join(
        splits.select(["patient_id", "split"]), keys="patient_id", join_type="full outer"
    )
    by_patient: Any = joined.group_by("patient_id").aggregate([("split", "count_distinct"), ("image_id", "count")])
    num_splits = by_patient["split_count_distinct"].to_numpy()
    images = Counter(joined["split"].to_pylist())
    patients = Counter(splits["split"].to_pylist())
    num_own = sum(images[split] for split in (*SPLIT_AT_RANDOM, UNUSED))
    return {
        "images": {split: images[split] for split in schema.SPLITS},
        "patients": {split: patients[split] for split in schema.SPLITS},
        "requested_images": {s: int(n) if config.exact else round(n * num_own, 6) for s, n in config.sizes.items()},
        "patients_in_two_splits": int((num_splits > 1).sum()),
        "patients_without_split": int((num_splits < 1).sum()),
        "label_fractions": _fractions(index, splits, config.draws),
        "balance": _balance(index, splits),
    }


def _fractions(index: pa.Table, splits: pa.Table, num_draws: int) -> list[dict[str, Any]]:
    """Patients and images that each label fraction holds, for each draw."""
    counted: Any = index.group_by("patient_id").aggregate([([], "count_all")])
    train: Any = splits.filter(pc.equal(splits["split"], pa.scalar("train")))
    position: Column = pc.index_in(train["patient_id"], value_set=counted["patient_id"].combine_chunks())
    num_images = counted["count_all"].take(position).to_numpy()
    rows = []
    for draw in range(num_draws):
        ranks = ranks_of_draw(train, draw)
        for fraction in REPORTED_FRACTIONS:
            is_in = ranks < fraction
            rows.append(
                {
                    "draw": draw,
                    "label_fraction": fraction,
                    "patients": int(is_in.sum()),
                    "images": int(num_images[is_in].sum()),
                }
            )
    return rows


def _balance(index: pa.Table, splits: pa.Table) -> dict[str, Any]:
    """Composition of the splits beside that of all patients who were split; null where nothing is known.

    Shares are of images: of those with a known sex or view position, and of all for a finding stated positive.
    """
    position: Column = pc.index_in(index["patient_id"], value_set=splits["patient_id"].combine_chunks())
    split = np.array(splits["split"].take(position).to_pylist(), dtype=object)
    parts = {"overall": split != OFFICIAL_VALID, **{name: split == name for name in SPLIT_AT_RANDOM}}
    values = {
        "share_female": _flags(index["sex"], "female"),
        "share_lateral": _flags(index["view_position"], "lateral"),
        **{
            f"share_positive {finding}": (index[f"{schema.LABEL_PREFIX}{finding}"].to_numpy() == schema.POSITIVE) * 1.0
            for finding in schema.label_columns(index)
        },
    }
    shares = {name: _means(numbers, parts) for name, numbers in values.items()}
    deviations = [
        (round(abs(share - overall), 6), name, part)
        for name, means in shares.items()
        for part, share in means.items()
        if share is not None and (overall := means["overall"]) is not None
    ]
    largest = max(deviations, default=None)
    ages_years = index["age_years"].to_numpy().astype(np.float64)
    return {
        "shares": shares,
        "mean_age_years": _means(ages_years, parts),
        "largest_deviation": dict(zip(("absolute", "of", "split"), largest, strict=True)) if largest else None,
    }


def _flags(column: Column, value: str) -> NDArray[np.float64]:
    """1 where `column` is `value`, 0 where it is not, NaN where it is null."""
    flags: Column = pc.equal(column, pa.scalar(value))
    numbers: NDArray[np.float64] = flags.cast(pa.float64()).to_numpy()
    return numbers


def _means(values: NDArray[np.float64], parts: Mapping[str, NDArray[np.bool_]]) -> dict[str, float | None]:
    """Mean of the known values of each part, rounded to 6 digits."""
    means: dict[str, float | None] = {}
    for name, is_in in parts.items():
        known = values[is_in & ~np.isnan(values)]
        # fsum: the same for every order of rows
        means[name] = round(math.fsum(known.tolist()) / known.size, 6) if known.size else None
    return means


def ranks_of_draw(splits: pa.Table, draw: int) -> NDArray[np.float64]:
    """The label ranks of one draw, one a row of `splits`.

    Raises:
        ValueError: There is no such draw.
    """
    ranks: NDArray[np.float64] = np.array(splits["label_ranks"].to_pylist(), dtype=np.float64)
    num_draws = ranks.shape[1] if ranks.size else 0
    if ranks.size and not 0 <= draw < num_draws:
        raise ValueError(f"draw {draw}: the splits have {num_draws} draws, numbered from 0")
    return ranks[:, draw] if ranks.size else np.empty(0)
