"""Label fractions that hold their share of every condition."""

import hashlib
import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl import schema
from medssl.config import SplitConfig
from medssl.data import splits

CONDITIONS = ("Acne", "Cyst", "Eczema", "Melanoma")
STRATIFIED = SplitConfig(train=0.6, validation=0.15, test=0.25, stratify="condition", draws=2)
FRACTIONS = [number / 20 for number in range(1, 21)]


def index_of(conditions: list[set[int]], *, first: int = 0) -> pa.Table:
    """An index with a patient for each set of conditions, of one or two images; the second image tells nothing."""
    rows: list[dict[str, Any]] = []
    for number, own in enumerate(conditions, first):
        patient = hashlib.md5(f"{number}".encode()).hexdigest()
        for image in range(1 + number % 2):
            found = own if image == 0 else set()
            labels = {f"label:{name}": int(c in found) for c, name in enumerate(CONDITIONS)}
            names = {"patient_id": patient, "case_id": f"{patient}-0", "image_id": f"{patient}-{image}"}
            rows.append(names | {"source_split": "train"} | labels)
    fields = [*schema.INDEX.columns, *(pa.field(f"label:{name}", pa.int8(), nullable=False) for name in CONDITIONS)]
    return schema.check(pa.Table.from_pylist(rows, pa.schema(fields)), schema.INDEX, "index")


def random_conditions(num: int, seed: int) -> list[set[int]]:
    """Common, less common and rare conditions, several or none at times."""
    rng = np.random.default_rng(seed)
    shares = (0.5, 0.2, 0.2, 0.05)
    return [{c for c, share in enumerate(shares) if rng.random() < share} for _ in range(num)]


def strata_of(index: pa.Table, table: pa.Table) -> dict[str, str]:
    """The rarest condition of each training patient, told slowly."""
    train = {row["patient_id"] for row in table.to_pylist() if row["split"] == "train"}
    own: dict[str, set[str]] = {patient: set() for patient in train}
    for row in index.to_pylist():
        if row["patient_id"] in train:
            own[row["patient_id"]] |= {name for name in CONDITIONS if row[f"label:{name}"] == 1}
    count = Counter(name for found in own.values() for name in found)
    return {patient: min(sorted(found), key=lambda n: count[n], default="") for patient, found in own.items()}


def largest_deviation(index: pa.Table, table: pa.Table) -> float:
    """By how many patients a stratum of a fraction is from its share, at most."""
    strata = strata_of(index, table)
    ranks = {row["patient_id"]: row["label_ranks"] for row in table.to_pylist()}
    worst = 0.0
    for stratum, num in Counter(strata.values()).items():
        own = np.array([ranks[patient] for patient, name in strata.items() if name == stratum])
        for fraction in FRACTIONS:
            worst = max(worst, *np.abs((own < fraction).sum(axis=0) - num * fraction))
    return worst


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 120), st.integers(0, 2**30))
def test_every_fraction_holds_its_share_of_each_condition_one_patient_more_or_less(num: int, seed: int) -> None:
    index = index_of(random_conditions(num, seed))
    table = splits.assign(index, STRATIFIED).splits
    assert largest_deviation(index, table) <= 1
    chosen = [splits.select_fraction(table, fraction=fraction, draw=1) for fraction in FRACTIONS]
    assert all(a <= b for a, b in itertools.pairwise(chosen))
    assert len(chosen[-1]) == len(strata_of(index, table))


def test_without_strata_a_small_fraction_may_lose_a_condition_and_with_them_it_keeps_all_that_fill_one() -> None:
    index = index_of([{0}] * 200 + [{1}] * 40 + [{3}] * 40)
    lost = {"none": 0, "condition": 0}
    for seed in range(30):
        for stratify in lost:
            config = SplitConfig(train=0.6, validation=0.2, test=0.2, seed=seed, stratify=stratify)  # type: ignore[arg-type]
            table = splits.assign(index, config).splits
            strata = strata_of(index, table)
            chosen = splits.select_fraction(table, fraction=0.1, draw=0)
            held = Counter(strata[patient] for patient in chosen)
            lost[stratify] += sum(not held[name] for name in ("Cyst", "Melanoma"))
            if stratify == "condition":
                total = Counter(strata.values())
                assert all(abs(held[name] - total[name] / 10) <= 1 for name in CONDITIONS)
    assert lost["none"] > 0
    assert lost["condition"] == 0


def test_patients_who_are_added_take_the_free_places_and_nobody_elses_rank_changes() -> None:
    conditions = random_conditions(240, seed=0)
    index = index_of(conditions[:40])
    table = splits.assign(index, STRATIFIED).splits
    for num in (*range(41, 100), 240):
        index = index_of(conditions[:num])
        grown = splits.assign(index, STRATIFIED, previous=table).splits
        ranks = {row["patient_id"]: row["label_ranks"] for row in grown.to_pylist()}
        assert all(ranks[row["patient_id"]] == row["label_ranks"] for row in table.to_pylist())
        table = grown
        assert largest_deviation(index, table) <= 3  # by hashes alone, two patients more


def test_neither_row_order_nor_patients_outside_training_change_a_rank() -> None:
    index = index_of(random_conditions(80, seed=2))
    shuffled = index.take(np.random.default_rng(0).permutation(index.num_rows))
    first, second = (splits.assign(table, STRATIFIED) for table in (index, shuffled))
    assert first.splits.equals(second.splits)
    assert json.dumps(first.summary) == json.dumps(second.summary)
    outside = [row for row in first.splits.to_pylist() if row["split"] != "train"]
    plain = splits.label_ranks([row["patient_id"] for row in outside], seed=0, draw=1)
    assert [row["label_ranks"][1] for row in outside] == plain.tolist()
    ranks = np.array(first.splits["label_ranks"].to_pylist())
    assert ranks.min() >= 0
    assert ranks.max() < 1


def test_the_summary_counts_the_patients_of_each_condition_and_names_the_missing_ones() -> None:
    conditions: list[set[int]] = [{0}] * 60 + [{1}] * 30 + [{0, 2}] * 2
    index = index_of(conditions)
    result = splits.assign(index, STRATIFIED)
    rows = result.summary["label_fraction_conditions"]
    assert [(row["draw"], row["label_fraction"]) for row in rows] == [(d, f / 10) for d in (0, 1) for f in range(1, 11)]
    own: dict[str, set[str]] = {row["patient_id"]: set() for row in index.to_pylist()}
    for row in index.to_pylist():
        own[row["patient_id"]] |= {name for name in CONDITIONS if row[f"label:{name}"] == 1}
    present = {name for p in splits.select_fraction(result.splits, fraction=1, draw=0) for name in own[p]}
    for row in rows:
        chosen = splits.select_fraction(result.splits, fraction=row["label_fraction"], draw=row["draw"])
        held = Counter(name for patient in chosen for name in own[patient])
        assert row["patients"] == {name: held[name] for name in CONDITIONS}
        assert set(row["missing"]) == present - set(held)
    assert (
        "label_fraction_conditions"
        not in splits.assign(index, STRATIFIED.model_copy(update={"stratify": "none"})).summary
    )


def test_an_image_that_is_a_unit_of_its_own_has_its_own_conditions() -> None:
    index = index_of([{0}] * 60 + [{0, 3}] * 25)  # every other patient has a second image, which shows nothing
    table = splits.assign(index, STRATIFIED.model_copy(update={"group_by": "image"})).splits
    states = {row["image_id"]: row["label:Melanoma"] for row in index.to_pylist()}
    train = [row for row in table.to_pylist() if row["split"] == "train"]
    ranks = [row["label_ranks"][0] for row in train if states[row["image_id"]] == schema.POSITIVE]
    assert ranks
    assert all(abs(sum(rank < f for rank in ranks) - len(ranks) * f) <= 1 for f in FRACTIONS)
