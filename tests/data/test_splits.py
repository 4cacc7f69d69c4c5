import hashlib
import itertools
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl import schema
from medssl.config import DataConfig, SplitConfig
from medssl.data import packing, readers, splits, units
from medssl.data.split_summary import summarize
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

SHARED_DATA_DIR = Path(__file__).parents[2] / "../shared/data"
FRACTIONS = SplitConfig(train=0.6, validation=0.15, test=0.25)


def patient_name(number):
    return hashlib.md5(f"{number}".encode()).hexdigest()


def index_of(sizes, num_official=0, first=0):
    """An index with one patient a size; the last `num_official` patients are in the official validation table."""
    rows = []
    for number, size in enumerate(sizes, first):
        patient = patient_name(number)
        official = number - first >= len(sizes) - num_official
        for image in range(size):
            rows.append(
                {
                    "patient_id": patient,
                    "case_id": f"{patient}-0",
                    "image_id": f"{patient}-{image}",
                    "source_split": "official_valid" if official else "train",
                    "view_position": (None, "AP", "lateral")[image % 3],
                    "sex": ("female", "male", None)[number % 3],
                    "age_years": None if number % 5 == 0 else float(20 + number % 60),
                    "skin_type": None,
                    "site": None,
                    "label:Edema": (1, 0, -1, -2)[(number + image) % 4],
                }
            )
    fields = [*schema.INDEX.columns, pa.field("label:Edema", pa.int8(), nullable=False)]
    return schema.check(pa.Table.from_pylist(rows, pa.schema(fields)), schema.INDEX, "index")


def by_patient(table):
    return {row["patient_id"]: row for row in table.to_pylist()}


def images_by_split(index, table):
    split = {patient: row["split"] for patient, row in by_patient(table).items()}
    return Counter(split[patient] for patient in index["patient_id"].to_pylist())


sizes_of_patients = st.lists(st.integers(1, 9), min_size=10, max_size=40)


@settings(max_examples=30, deadline=None)
@given(sizes_of_patients, st.integers(0, 3), st.integers(0, 2**40))
def test_every_patient_is_in_exactly_one_split_and_official_validation_stays(sizes, num_official, seed):
    index = index_of(sizes, num_official)
    result = splits.assign(index, FRACTIONS.model_copy(update={"seed": seed}))
    patients = result.splits["patient_id"].to_pylist()
    assert patients == sorted(patient_name(i) for i in range(len(sizes)))
    assert set(result.splits["split"].to_pylist()) <= set(schema.SPLITS)
    official = {row["patient_id"] for row in index.to_pylist() if row["source_split"] == "official_valid"}
    assert {p for p, row in by_patient(result.splits).items() if row["split"] == "official_valid"} == official
    assert result.summary["patients_in_two_splits"] == result.summary["patients_without_split"] == 0
    counted = images_by_split(index, result.splits)
    assert result.summary["images"] == {split: counted[split] for split in schema.SPLITS}
    # Patients of one image fill up whatever is wanted.
    if Counter(sizes[: len(sizes) - num_official])[1] >= 10:
        num_images = sum(sizes[: len(sizes) - num_official])
        assert counted["test"] == round(0.25 * num_images)
        assert counted["validation"] == round(0.15 * num_images)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=4, max_size=7), st.data())
def test_exact_sizes_are_met_whenever_some_assignment_of_whole_patients_meets_them(sizes, data):
    wanted = [data.draw(st.integers(2, 12)) for _ in range(3)]
    config = SplitConfig(test=wanted[0], validation=wanted[1], train=wanted[2])
    sums = {
        tuple(sum(s for s, g in zip(sizes, groups, strict=True) if g == group) for group in range(3))
        for groups in itertools.product(range(4), repeat=len(sizes))
    }
    if tuple(wanted) in sums:
        counted = images_by_split(index_of(sizes), splits.assign(index_of(sizes), config).splits)
        assert [counted[split] for split in ("test", "validation", "train")] == wanted
        assert counted["unused"] == sum(sizes) - sum(wanted)
    else:
        with pytest.raises(BadInputError, match="impossible split"):
            splits.assign(index_of(sizes), config)


@settings(max_examples=15, deadline=None)
@given(sizes_of_patients, st.randoms())
def test_neither_row_order_nor_a_second_run_changes_a_byte(tmp_path_factory, sizes, rng):
    index = index_of(sizes)
    order = list(range(index.num_rows))
    rng.shuffle(order)
    path = tmp_path_factory.mktemp("splits") / "splits.parquet"
    written = []
    for table in (index, index, index.take(order)):
        result = splits.assign(table, FRACTIONS)
        schema.write(result.splits, schema.SPLIT_TABLE, path)
        written.append((path.read_bytes(), json.dumps(result.summary, allow_nan=False)))
    assert written[0] == written[1] == written[2]


@settings(max_examples=15, deadline=None)
@given(sizes_of_patients, st.integers(2, 3))
def test_label_fractions_are_nested_and_new_patients_change_nobodys_rank(sizes, draws):
    config = FRACTIONS.model_copy(update={"draws": draws})
    before = splits.assign(index_of(sizes), config)
    after = splits.assign(index_of(sizes + [3] * 20), config)
    ranks = {patient: row["label_ranks"] for patient, row in by_patient(after.splits).items()}
    assert all(row["label_ranks"] == ranks[patient] for patient, row in by_patient(before.splits).items())
    train = {patient for patient, row in by_patient(before.splits).items() if row["split"] == "train"}
    for draw in range(draws):
        chosen = [splits.select_fraction(before.splits, fraction=f / 10, draw=draw) for f in range(1, 11)]
        assert all(a <= b for a, b in itertools.pairwise(chosen))
        assert chosen[-1] == train
        reported = [r["patients"] for r in before.summary["label_fractions"] if r["draw"] == draw]
        assert reported == [len(patients) for patients in chosen]


def test_a_rank_is_the_first_53_bits_of_a_keyed_hash():
    patient = patient_name(7)
    key = hashlib.sha256(b"rank/3/1/").digest()
    bits = bin(int.from_bytes(hashlib.blake2b(patient.encode(), key=key, digest_size=8).digest(), "big"))[2:].zfill(64)
    assert splits.label_ranks([patient], seed=3, draw=1)[0] == int(bits[:53], 2) / 2**53


def test_ranks_are_uniform_and_differ_between_seeds_draws_and_the_order_of_splitting():
    names = [patient_name(i) for i in range(20_000)]
    ranks = {(s, d): splits.label_ranks(names, seed=s, draw=d) for s in (0, 1) for d in (0, 1)}
    for values in ranks.values():
        assert values.min() >= 0
        assert values.max() < 1
        # Kolmogorov-Smirnov distance; above 1.95 / sqrt(n) with probability 0.001
        assert np.abs(np.sort(values) - np.arange(20_000) / 20_000).max() < 1.95 / math.sqrt(20_000)
    for a, b in itertools.combinations(ranks.values(), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    result = splits.assign(index_of([1] * 2000), FRACTIONS)
    mean = {
        s: np.mean([r["label_ranks"] for r in result.splits.to_pylist() if r["split"] == s]) for s in FRACTIONS.sizes
    }
    assert all(abs(value - 0.5) < 4 * math.sqrt(1 / 12 / 300) for value in mean.values())


def test_another_seed_gives_another_split():
    index = index_of([2] * 100)
    a, b = (splits.assign(index, FRACTIONS.model_copy(update={"seed": seed})).splits["split"] for seed in (0, 1))
    assert not a.equals(b)


def test_images_beyond_exact_sizes_are_unused():
    index = index_of([3, 1, 2, 5, 1, 1, 4, 2] * 5, num_official=2)
    result = splits.assign(index, SplitConfig(train=40, validation=10, test=17))
    wanted = {"train": 40, "validation": 10, "test": 17, "official_valid": 6, "unused": 22, "unlabelled": 0}
    assert result.summary["images"] == wanted
    assert result.summary["requested_images"] == {"train": 40, "validation": 10, "test": 17}


def test_the_repair_finds_sizes_that_first_fit_misses_and_moves_few_patients():
    rng = random.Random(0)
    num_repaired = 0
    for _ in range(100):
        sizes = np.array([rng.choice([2, 2, 3, 7]) for _ in range(400)])
        targets = np.array([301, 207, sizes.sum() - 508])
        plain = packing.first_fit(sizes, targets)
        groups = packing.pack(sizes, targets)
        assert [sizes[groups == g].sum() for g in range(4)] == [*targets, 0]
        changed = plain != groups
        num_repaired += changed.any()
        assert changed.sum() <= 16
    assert num_repaired > 5


def test_the_repair_goes_back_to_the_first_patients_where_only_they_fit():
    sizes = np.array([3] + [2] * 40)  # the 3 is placed first, in a group of even size
    targets = np.array([20, 21, 42])
    groups = packing.pack(sizes, targets)
    assert [sizes[groups == g].sum() for g in range(4)] == [*targets, 0]
    assert groups[0] == 1


def test_fractions_that_whole_patients_cannot_meet_are_met_as_nearly_as_they_can():
    index = index_of([10] * 20)
    result = splits.assign(index, SplitConfig(train=0.62, validation=0.13, test=0.25))  # 124, 26 and 50 of 200 images
    assert [result.summary["images"][s] for s in ("train", "validation", "test")] == [120, 30, 50]
    assert result.summary["requested_images"] == {"train": 124.0, "validation": 26.0, "test": 50.0}


@pytest.mark.parametrize(
    ("sizes", "wanted", "message"),
    [
        ([1] * 50, (40, 10, 10), "the sizes sum to 60 images, the data set has 50; lower the sizes"),
        ([2] * 50, (60, 17, 23), r"test cannot have 23 images; reachable are 22 and 24; validation cannot have 17"),
        (
            [10, 10, 10],
            (10, 10, 5),
            r"test cannot have 5 images; reachable are 0 and 10 \(patients stay whole: 3 of 10",
        ),
        ([3, 4, 5], (4, 3, 4), "no patients give test 4, validation 3, train 4 together; reachable is test"),
        ([5, 5], (0.4, 0.3, 0.3), "no patient for (test|validation|train), with 2 patients of 10 images"),
        ([1, 1, 1, 1], (0.8, 0.1, 0.1), "no patient for test"),
    ],
)
def test_an_impossible_split_says_what_is_reachable(sizes, wanted, message):
    config = SplitConfig(**dict(zip(("train", "validation", "test"), wanted, strict=True)))
    with pytest.raises(BadInputError, match=f"impossible split: .*{message}") as caught:
        splits.assign(index_of(sizes), config)
    assert patient_name(0) not in str(caught.value)


def test_many_patients_of_awkward_sizes_are_refused_in_reasonable_time():
    start_s = time.perf_counter()
    with pytest.raises(BadInputError, match="test cannot have 2001 images; reachable are 2000 and 2002"):
        splits.assign(index_of([2] * 5000), SplitConfig(train=5000, validation=1000, test=2001))
    assert time.perf_counter() - start_s < 10


def test_a_patient_of_both_source_tables_is_refused():
    index = index_of([2, 2, 2])
    split = pa.array(["train", "official_valid"] * 3)
    index = index.set_column(index.column_names.index("source_split"), "source_split", split)
    with pytest.raises(BadInputError, match="3 patients are in the tables of both train and official validation"):
        splits.assign(index, FRACTIONS)


def test_the_summary_counts_a_patient_that_a_broken_table_has_twice_or_not_at_all():
    index = index_of([2] * 20)
    table = splits.assign(index, FRACTIONS).splits
    again = {**table.slice(3, 1).to_pylist()[0], "split": "unused"}
    broken = pa.concat_tables([table.slice(1), pa.Table.from_pylist([again], table.schema)])
    summary = summarize(index, broken, FRACTIONS)
    assert (summary["patients_in_two_splits"], summary["patients_without_split"]) == (1, 1)


def test_balance_compares_each_split_with_all_that_were_split():
    index = index_of([3] * 40, num_official=4)
    result = splits.assign(index, FRACTIONS)
    rows = [{**r, "split": by_patient(result.splits)[r["patient_id"]]["split"]} for r in index.to_pylist()]
    own = [r for r in rows if r["split"] != "official_valid"]
    test = [r for r in own if r["split"] == "test"]
    balance = result.summary["balance"]
    for name, part in (("overall", own), ("test", test)):
        known = [r["sex"] for r in part if r["sex"]]
        assert balance["shares"]["share_female"][name] == pytest.approx(known.count("female") / len(known), abs=1e-6)
        ages = [r["age_years"] for r in part if r["age_years"] is not None]
        assert balance["mean_age_years"][name] == pytest.approx(sum(ages) / len(ages), abs=1e-6)
        positive = sum(r["label:Edema"] == 1 for r in part) / len(part)
        assert balance["shares"]["share_positive Edema"][name] == pytest.approx(positive, abs=1e-6)
        assert balance["shares"]["share_view lateral"][name] == 0.5
    shares = balance["shares"]
    largest = max(abs(means[s] - means["overall"]) for means in shares.values() for s in FRACTIONS.sizes)
    assert balance["largest_deviation"]["absolute"] == pytest.approx(largest, abs=2e-6)


def with_source(index, source_split, chosen):
    """The index with another source for the rows that `chosen` picks."""
    rows = [{**row, "source_split": source_split} if chosen(i, row) else row for i, row in enumerate(index.to_pylist())]
    return pa.Table.from_pylist(rows, index.schema)


@settings(max_examples=25, deadline=None)
@given(sizes_of_patients, sizes_of_patients, st.integers(0, 2**40))
def test_extending_keeps_every_place_and_rank_and_the_sizes_hold_for_all(sizes, new_sizes, seed):
    config = FRACTIONS.model_copy(update={"seed": seed, "draws": 2})
    before = splits.assign(index_of(sizes), config).splits
    index = index_of([*sizes, *new_sizes])
    after = splits.assign(index, config, previous=before)
    kept = by_patient(after.splits)
    assert {patient: kept[patient] for patient in by_patient(before)} == by_patient(before)
    assert len(kept) == len(sizes) + len(new_sizes)
    assert after.summary["patients_in_two_splits"] == after.summary["patients_without_split"] == 0
    counted, total = images_by_split(index, after.splits), sum(sizes) + sum(new_sizes)
    held = images_by_split(index_of(sizes), before)
    for split, share in (("test", 0.25), ("validation", 0.15)):
        assert counted[split] >= held[split]
        assert abs(counted[split] - max(held[split], round(share * total))) <= 9  # nine images: the largest patient


def test_extending_meets_exact_sizes_and_keeps_patients_who_are_gone():
    before = splits.assign(index_of([1, 2, 3] * 10), SplitConfig(train=30, validation=12, test=18)).splits
    index = index_of([1, 2, 3] * 10 + [1, 1, 2] * 8, first=3)  # the first three patients are gone: six images
    after = splits.assign(index, SplitConfig(train=50, validation=15, test=20), previous=before)
    assert {split: after.summary["images"][split] for split in FRACTIONS.sizes} == {
        "train": 50, "validation": 15, "test": 20
    }  # fmt: skip
    kept = by_patient(after.splits)
    assert all(kept[patient] == row for patient, row in by_patient(before).items())
    with pytest.raises(BadInputError, match="already have more images than wanted"):
        splits.assign(index, SplitConfig(train=10, validation=2, test=5), previous=before)


def test_extending_with_nobody_new_changes_no_byte(tmp_path):
    index, paths = index_of([1, 2, 3] * 10), (tmp_path / "a", tmp_path / "b")
    before = splits.assign(index, FRACTIONS).splits
    for path, table in zip(paths, (before, splits.assign(index, FRACTIONS, previous=before).splits), strict=True):
        schema.write(table, schema.SPLIT_TABLE, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 3}, "have 1 draws, these shall have 3"),
        ({"group_by": "image"}, "keep every patient whole, these shall keep every image"),
    ],
)
def test_splits_of_another_kind_are_not_extended(changes, message):
    index = index_of([2] * 20)
    before = splits.assign(index, FRACTIONS).splits
    with pytest.raises(BadInputError, match=message):
        splits.assign(index, FRACTIONS.model_copy(update=changes), previous=before)
    with pytest.raises(BadInputError, match="none of the previous splits' patients is in the index"):
        splits.assign(index_of([2] * 20, first=100), FRACTIONS, previous=before)


@pytest.mark.parametrize(("group_by", "unit"), [("study", "case_id"), ("image", "image_id")])
def test_studies_or_images_are_split_where_the_study_says_so_and_the_leak_is_counted(tmp_path, group_by, unit):
    index = index_of([4, 6, 3] * 12)
    rows = [{**row, "case_id": f"{row['patient_id']}-{i // 2}"} for i, row in enumerate(index.to_pylist())]
    index = pa.Table.from_pylist(rows, index.schema)
    config = FRACTIONS.model_copy(update={"group_by": group_by})
    result = splits.assign(index, config)
    path = tmp_path / "splits.parquet"
    schema.write(result.splits, schema.SPLIT_TABLE, path)
    table = schema.read(path, schema.SPLIT_TABLE)
    assert schema.split_unit(table) == unit
    assert sorted(table[unit].to_pylist()) == sorted(set(index[unit].to_pylist()))
    split_of = dict(zip(table[unit].to_pylist(), table["split"].to_pylist(), strict=True))
    by_owner = {}
    for row in rows:
        by_owner.setdefault(row["patient_id"], set()).add(split_of[row[unit]])
    num_leaking = sum(len(found) > 1 for found in by_owner.values())
    assert result.summary["patients_in_two_splits"] == num_leaking > 0
    counted = Counter(split_of[row[unit]] for row in rows)
    assert result.summary["images"] == {split: counted[split] for split in schema.SPLITS}


def test_patients_who_share_a_picture_are_in_one_split_and_exact_sizes_hold():
    index = index_of([3, 2, 1, 1] * 20)
    rows = index.to_pylist()
    first = {row["patient_id"]: row["image_id"] for row in rows}
    names = sorted(first)
    linked = [tuple(sorted((first[a], first[b]))) for a, b in zip(names[:30:3], names[1:30:3], strict=True)]
    owner = {image: patient for patient, image in first.items()}
    pairs = pa.Table.from_pylist(
        [
            {
                "image_a": a,
                "image_b": b,
                "patient_a": owner[a],
                "patient_b": owner[b],
                "distance": 0,
                "is_same_patient": False,
            }
            for a, b in linked
        ],
        schema.DUPLICATES.columns,
    )
    alone = by_patient(splits.assign(index, FRACTIONS).splits)
    assert any(alone[owner[a]]["split"] != alone[owner[b]]["split"] for a, b in linked)
    result = splits.assign(index, SplitConfig(train=90, validation=20, test=30), pairs=pairs)
    together = by_patient(result.splits)
    assert all(together[owner[a]]["split"] == together[owner[b]]["split"] for a, b in linked)
    assert result.summary["images"]["train"] == 90
    assert result.summary["patients_in_groups_of_shared_pictures"] == 20
    # Who shares a picture with a patient of the official validation set goes there, too.
    a, b = linked[0]
    official = with_source(index, "official_valid", lambda _, row: row["patient_id"] == owner[a])
    assert by_patient(splits.assign(official, FRACTIONS, pairs=pairs).splits)[owner[b]]["split"] == "official_valid"


def test_more_seeds_give_a_better_balance_at_the_same_exact_sizes():
    index = index_of([1, 2, 3] * 30)
    config = SplitConfig(train=100, validation=30, test=50)
    one, best = (splits.assign(index, config.model_copy(update={"balance_seeds": n})).summary for n in (1, 20))
    assert best["images"] == one["images"]
    tried = {seed["seed"]: seed["largest_deviation"] for seed in best["seeds_tried"]}
    assert list(tried) == list(range(20))
    assert best["balance"]["largest_deviation"]["absolute"] == min(tried.values())
    assert tried[0] == one["balance"]["largest_deviation"]["absolute"] > min(tried.values())


def test_unlabelled_images_neither_count_for_the_sizes_nor_move_a_patient_and_those_of_evaluation_are_excluded():
    labelled = index_of([2] * 30)
    more = index_of([2] * 30 + [3] * 10)
    index = with_source(more, "unlabelled", lambda i, row: row["image_id"].endswith("-1") or i >= 60)
    plain = with_source(labelled, "train", lambda *_: True)
    plain = plain.filter(pa.array([not image.endswith("-1") for image in plain["image_id"].to_pylist()]))
    result, expected = splits.assign(index, FRACTIONS), splits.assign(plain, FRACTIONS)
    found = by_patient(result.splits)
    assert {patient: found[patient] for patient in by_patient(expected.splits)} == by_patient(expected.splits)
    assert {found[patient_name(i)]["split"] for i in range(30, 40)} == {"unlabelled"}
    assert result.summary["images"]["unlabelled"] == 30
    assert result.summary["excluded_from_pretraining"] == sum(
        found[patient]["split"] in ("validation", "test") for patient in by_patient(expected.splits)
    )


def pairs_of(index, linked):
    """Schema DUPLICATES for pairs of image_ids."""
    owner = dict(zip(index["image_id"].to_pylist(), index["patient_id"].to_pylist(), strict=True))
    rows = [
        {
            "image_a": min(pair),
            "image_b": max(pair),
            "patient_a": owner[min(pair)],
            "patient_b": owner[max(pair)],
            "distance": 0,
            "is_same_patient": False,
        }
        for pair in linked
    ]
    return pa.Table.from_pylist(rows, schema.DUPLICATES.columns)


def test_unlabelled_copies_of_a_picture_go_where_its_patient_is_evaluated():
    index = with_source(index_of([1] * 40), "unlabelled", lambda i, _: i >= 20)
    images = index["image_id"].to_pylist()
    pairs = pairs_of(index, [(images[i], images[i + 20]) for i in range(20)])
    result = splits.assign(index, FRACTIONS, pairs=pairs)
    found = by_patient(result.splits)
    for i in range(20):
        assert found[patient_name(i)]["split"] == found[patient_name(i + 20)]["split"]
    evaluated = sum(found[patient_name(i)]["split"] in ("validation", "test") for i in range(20))
    assert result.summary["excluded_from_pretraining"] == evaluated > 0


@pytest.mark.parametrize("group_by", ["study", "image"])
def test_unlabelled_images_follow_their_patient_into_evaluation_whatever_is_grouped(group_by):
    index = with_source(index_of([2] * 30), "unlabelled", lambda i, _: i % 2)
    rows = [{**row, "case_id": row["image_id"]} for row in index.to_pylist()]
    index = pa.Table.from_pylist(rows, index.schema)
    result = splits.assign(index, FRACTIONS.model_copy(update={"group_by": group_by}))
    unit = schema.split_unit(result.splits)
    split_of = dict(zip(result.splits[unit].to_pylist(), result.splits["split"].to_pylist(), strict=True))
    evaluated = {row["patient_id"] for row in rows if split_of[row[unit]] in ("validation", "test")}
    assert evaluated
    for row in rows:
        if row["source_split"] == "unlabelled":
            assert (split_of[row[unit]] in ("validation", "test")) == (row["patient_id"] in evaluated)


def test_a_test_patient_of_earlier_splits_stays_one_when_only_unlabelled_images_are_left():
    index = index_of([2] * 30)
    before = splits.assign(index, FRACTIONS).splits
    gone = next(patient for patient, row in by_patient(before).items() if row["split"] == "test")
    later = with_source(index, "unlabelled", lambda _, row: row["patient_id"] == gone)
    assert by_patient(splits.assign(later, FRACTIONS, previous=before).splits) == by_patient(before)


def test_pictures_that_earlier_splits_have_in_two_are_counted():
    index = index_of([1] * 30)
    before = splits.assign(index, FRACTIONS).splits
    of = {split: [p for p, row in by_patient(before).items() if row["split"] == split] for split in ("train", "test")}
    pairs = pairs_of(index, [(f"{of['train'][0]}-0", f"{of['test'][0]}-0")])
    after = splits.assign(index, FRACTIONS, previous=before, pairs=pairs)
    assert by_patient(after.splits) == by_patient(before)
    assert after.summary["shared_pictures_in_two_splits"] == 1
    assert splits.assign(index, FRACTIONS, pairs=pairs).summary["shared_pictures_in_two_splits"] == 0


def test_splits_in_which_a_patient_followed_a_picture_into_official_validation_can_be_extended():
    index = index_of([1] * 30, num_official=1)
    official = patient_name(29)
    pairs = pairs_of(index, [(f"{official}-0", f"{patient_name(0)}-0")])
    before = splits.assign(index, FRACTIONS, pairs=pairs).splits
    assert by_patient(before)[patient_name(0)]["split"] == "official_valid"
    assert by_patient(splits.assign(index, FRACTIONS, previous=before, pairs=pairs).splits) == by_patient(before)


def test_label_fractions_count_labelled_images_alone():
    index = with_source(index_of([2] * 40), "unlabelled", lambda i, _: i % 2)
    summary = splits.assign(index, SplitConfig(train=20, validation=10, test=10)).summary
    assert summary["images"]["train"] == 20
    assert summary["unlabelled_images_in_train"] == 20
    assert summary["label_fractions"][-1] == {"draw": 0, "label_fraction": 1.0, "patients": 20, "images": 20}


def groups_of(num, linked):
    a, b = np.array(linked, dtype=np.int64).reshape(-1, 2).T
    return units.linked(num, a, b).tolist()


def test_groups_join_patients_over_shared_pictures_and_no_others():
    assert groups_of(6, [(3, 1), (2, 0), (4, 4)]) == [0, 1, 0, 1, 4, 5]
    assert groups_of(6, []) == [0, 1, 2, 3, 4, 5]
    chain = [(3, 1), (1, 2), (2, 0)]
    assert groups_of(6, chain) == groups_of(6, chain[::-1]) == [0, 0, 0, 0, 4, 5]


@pytest.mark.parametrize(("fraction", "draw"), [(0, 0), (1.1, 0), (0.5, 1), (0.5, -1)])
def test_a_fraction_or_draw_out_of_range_is_refused(fraction, draw):
    table = splits.assign(index_of([2] * 20), FRACTIONS).splits
    with pytest.raises(ValueError, match=r"label fraction|draw"):
        splits.select_fraction(table, fraction=fraction, draw=draw)


@pytest.mark.skipif(not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository")
def test_the_papers_sizes_come_out_exactly_on_the_public_training_table(tmp_path):
    (tmp_path / "train.csv.gz").symlink_to(SHARED_DATA_DIR.resolve() / "tables/chexpert_train.csv.gz")
    image = tmp_path / "train/patient00001/study1/view1_frontal.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    config = DataConfig(name="chexpert", root=str(tmp_path), train_table="train.csv.gz", valid_table="")
    index = readers.read(tmp_path, config, PatientKey(bytes(32))).index
    start_s = time.perf_counter()
    result = splits.assign(index, SplitConfig(train=167_429, validation=22_240, test=33_745))
    assert time.perf_counter() - start_s < 6  # 0.7 s on an idle core
    wanted = {"train": 167_429, "validation": 22_240, "test": 33_745, "official_valid": 0, "unused": 0, "unlabelled": 0}
    assert images_by_split(index, result.splits) == {k: v for k, v in wanted.items() if v}
    assert result.summary["images"] == wanted
    assert result.summary["balance"]["largest_deviation"]["absolute"] < 0.03
    tenth = result.summary["label_fractions"][0]["patients"] / result.summary["patients"]["train"]
    assert abs(tenth - 0.1) < 0.01
    assert splits.assign(index, SplitConfig(mode="paper")).splits == result.splits
    literal = by_patient(splits.assign(index, SplitConfig(mode="paper_literal")).splits)
    assert images_by_split(index, pa.Table.from_pylist(list(literal.values()))) == {
        "train": 67_429, "validation": 22_240, "test": 33_745, "unused": 100_000
    }  # fmt: skip
    moved = {(row["split"], literal[patient]["split"]) for patient, row in by_patient(result.splits).items()}
    assert moved == {("train", "train"), ("train", "unused"), ("validation", "validation"), ("test", "test")}
