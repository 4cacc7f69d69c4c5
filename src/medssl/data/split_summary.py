"""The proof of a split: sizes, disjointness, label fractions and balance, recounted from the finished tables."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.config import SplitConfig
from medssl.data.balance import PARTS, Composition, attributes, mean_age_years, part_of

# Only train patients have label fractions; these are reported, whatever the study uses.
REPORTED_FRACTIONS = tuple(tenths / 10 for tenths in range(1, 11))

Column = Any  # a pyarrow array; the published stubs cannot say of what


def summarize(index: pa.Table, splits: pa.Table, config: SplitConfig) -> dict[str, Any]:
    """Recount everything from the index joined with the finished splits.

    Args:
        index: Schema INDEX.
        splits: Schema SPLIT_TABLE; patients who are not in the index do not count.
        config: What was asked for.

    Returns:
        images, patients: Numbers by split; only "unlabelled" counts images without labels.
        requested_images: By split; a fraction times the images that were split.
        patients_in_two_splits, patients_without_split: 0 unless something is wrong, or studies or images were split.
        label_fractions: Patients and images of every tenth, for each draw.
        label_fraction_conditions: Where these are stratified, the patients of each condition in every tenth, and the
            conditions of training of which there are none.
        balance: Shares and mean age in each split and overall, and the largest deviation of a share.
        excluded_from_pretraining: Unlabelled images of patients who are in validation or test.
    """
    unit = schema.split_unit(splits)
    present: Any = splits.filter(pc.is_in(splits[unit], value_set=index[unit]))
    # A join and no look-up: a broken table may hold a patient twice.
    columns = dict.fromkeys(["patient_id", unit])
    joined: Any = index.select(list(columns)).join(present.select([unit, "split"]), keys=unit, join_type="left outer")
    num_splits = joined.group_by("patient_id").aggregate([("split", "count_distinct")])["split_count_distinct"]
    patients = Counter(joined.group_by(["patient_id", "split"]).aggregate([])["split"].to_pylist())
    split = np.array(schema.split_of_images(index, present).to_pylist(), dtype=object)
    is_unlabelled = np.array(index["source_split"].to_pylist(), dtype=object) == schema.UNLABELLED
    images = Counter(split[~is_unlabelled].tolist())
    num_own = sum(images[name] for name in PARTS)
    is_stratified = config.stratify == "condition"
    in_evaluation = np.isin(split.astype(str), ["validation", "test", schema.OFFICIAL_VALID])
    return {
        "images": {name: images[name] for name in schema.SPLITS}
        | {schema.UNLABELLED: int((split == schema.UNLABELLED).sum())},
        "unlabelled_images_in_train": int((is_unlabelled & (split == "train")).sum()),
        "patients": {name: patients[name] for name in schema.SPLITS},
        "requested_images": {s: int(n) if config.exact else round(n * num_own, 6) for s, n in config.sizes.items()},
        "patients_in_two_splits": int((num_splits.to_numpy() > 1).sum()),
        "patients_without_split": int((num_splits.to_numpy() < 1).sum()),
        "label_fractions": _fractions(index.filter(pa.array(~is_unlabelled)), present, unit, config.draws),
        **({"label_fraction_conditions": _conditions(index, present, unit, config)} if is_stratified else {}),
        "balance": _balance(index, split),
        "excluded_from_pretraining": int((is_unlabelled & in_evaluation).sum()),
    }


def _fractions(index: pa.Table, splits: pa.Table, unit: str, num_draws: int) -> list[dict[str, Any]]:
    """Patients and images that each label fraction holds, for each draw."""
    counted: Any = index.group_by(unit).aggregate([([], "count_all")])
    has_labels: Column = pc.is_in(splits[unit], value_set=counted[unit].combine_chunks())
    train: Any = splits.filter(pc.and_(has_labels, pc.equal(splits["split"], pa.scalar("train"))))
    position: Column = pc.index_in(train[unit], value_set=counted[unit].combine_chunks())
    num_images = counted["count_all"].take(position).to_numpy()
    rows = []
    for draw in range(num_draws):
        ranks = schema.ranks_of_draw(train, draw)
        for fraction in REPORTED_FRACTIONS:
            is_in = ranks < fraction
            rows.append(
                {
                    "draw": draw,
                    "label_fraction": fraction,
                    "patients": len(train.filter(pa.array(is_in))["patient_id"].unique()),
                    "images": int(num_images[is_in].sum()),
                }
            )
    return rows


def _conditions(index: pa.Table, splits: pa.Table, unit: str, config: SplitConfig) -> list[dict[str, Any]]:
    """Patients of each condition in every label fraction of each draw, and which conditions are missing."""
    train: Any = splits.filter(pc.equal(splits["split"], pa.scalar("train")))
    at = pc.index_in(index[unit], value_set=train[unit].combine_chunks())
    is_train = np.asarray(at.is_valid())
    position = at.drop_null().to_numpy()
    patients = np.asarray(index["patient_id"].to_pylist(), dtype=str)[is_train]
    rows = []
    for draw in range(config.draws):
        rank = schema.ranks_of_draw(train, draw)[position]
        names = {name: index[f"{schema.LABEL_PREFIX}{name}"].to_numpy() for name in schema.label_columns(index)}
        has = {name: states[is_train] == schema.POSITIVE for name, states in names.items()}
        for fraction in REPORTED_FRACTIONS:
            held = {name: int(np.unique(patients[of & (rank < fraction)]).size) for name, of in has.items()}
            missing = [name for name, number in held.items() if not number and has[name].any()]
            rows.append({"draw": draw, "label_fraction": fraction, "patients": held, "missing": missing})
    return rows


def _balance(index: pa.Table, split: NDArray[Any]) -> dict[str, Any]:
    """Composition of the splits beside that of all images that were split; null where nothing is known.

    Shares are of the images of which the attribute is known; of a finding, of those that it was assessed in.
    """
    part_of_image = part_of(split)
    by_part = Composition.count(attributes(index), part_of_image, len(PARTS))
    overall, deviations = by_part.against_whole()
    names = PARTS[:-1]
    rows = np.vstack([overall.shares(), by_part.shares()[: len(names)]])
    shares = {
        name: {part: _rounded(share) for part, share in zip(("overall", *names), rows[:, v], strict=True)}
        for v, name in enumerate(overall.names)
    }
    largest = None
    if deviations.size:
        at, v = np.unravel_index(np.argmax(deviations), deviations.shape)
        largest = {
            "absolute": round(float(deviations[at, v]), 6),
            "of": overall.names[int(v)],
            "split": names[int(at)],
        }
    ages_years = index["age_years"].to_numpy().astype(np.float64)
    ages = {name: mean_age_years(ages_years[part_of_image == i]) for i, name in enumerate(names)}
    ages["overall"] = mean_age_years(ages_years[part_of_image < len(PARTS)])
    return {"shares": shares, "mean_age_years": ages, "largest_deviation": largest}


def _rounded(share: float) -> float | None:
    return None if math.isnan(share) else round(float(share), 6)
