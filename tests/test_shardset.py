import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medssl import schema
from medssl.config import ShardConfig
from medssl.data import shards
from medssl.exit_codes import BadInputError
from medssl.shardset import Cohort, ShardSet, part_of, permutation

SIZE_PX = 16
SPLIT_OF = ("train", "train", "train", "validation", "test")  # of patient p: the entry p % 5


def hex_id(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pixels(image_id, channels=1):
    rng = np.random.default_rng(int(image_id[:8], 16))
    return rng.integers(0, 256, (channels, SIZE_PX, SIZE_PX), dtype=np.uint8)


class Study:
    """Index, splits and shards of 30 patients with two images each, and one image that is not in the shards."""

    def __init__(self, folder, channels=1):
        self.patient_of = {hex_id(f"image {i}"): hex_id(f"patient {i // 2}") for i in range(60)}
        self.split_of = {hex_id(f"patient {p}"): SPLIT_OF[p % 5] for p in range(30)}
        self.missing = hex_id("image 0")
        self.folder = folder
        (folder / "shards").mkdir(parents=True)
        self.write_shards(channels)

    def write_shards(self, channels):
        config = ShardConfig(image_size_px=SIZE_PX, num_parts=4, channels=channels)
        by_part = {}
        for image_id, patient_id in sorted(self.patient_of.items(), key=lambda item: item[::-1]):
            if image_id != self.missing:
                image = pixels(image_id, channels).transpose(1, 2, 0).squeeze()
                Image.fromarray(image).save(self.folder / f"{image_id}.png")
            part = part_of(patient_id, 4)
            by_part.setdefault(part, []).append((patient_id, image_id, f"{image_id}.png"))
        entries = [shards.write_part(item, self.folder, self.folder / "shards", config, 1) for item in by_part.items()]
        shards.write_summary(entries, self.folder / "shards", config)

    @property
    def index(self):
        image_ids = sorted(self.patient_of)
        patient_ids = [self.patient_of[image_id] for image_id in image_ids]
        nulls = {field.name: pa.nulls(60, field.type) for field in schema.INDEX.columns if field.nullable}
        filled = {"patient_id": patient_ids, "case_id": patient_ids, "image_id": image_ids}
        return schema.check(pa.table({**filled, "source_split": ["train"] * 60, **nulls}), schema.INDEX, "index")

    @property
    def splits(self):
        """Patient p has rank p / 30 in draw 0 and the reverse in draw 1."""
        rank_of = {hex_id(f"patient {p}"): [p / 30, (29 - p) / 30] for p in range(30)}
        rows = [{"patient_id": p, "split": s, "label_ranks": rank_of[p]} for p, s in sorted(self.split_of.items())]
        return schema.check(pa.Table.from_pylist(rows), schema.SPLIT_TABLE, "splits")

    def open(self):
        return ShardSet.open(self.folder / "shards")

    def cohort(self, split, **options):
        return Cohort.select(self.index, self.splits, self.open(), split=split, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"))


# --- the shuffle ---


@given(st.integers(0, 500), st.integers(0, 2**63), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_an_epoch_visits_every_image_once(num, seed, epoch):
    order = permutation(num, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num))


def test_the_order_follows_from_seed_and_epoch_alone():
    first = permutation(100, seed=3, epoch=5)
    permutation(100, seed=0, epoch=0)
    np.testing.assert_array_equal(permutation(100, seed=3, epoch=5), first)
    for other in (
        permutation(100, seed=3, epoch=6),
        permutation(100, seed=4, epoch=5),
        permutation(100, seed=5, epoch=3),
    ):
        assert (other != first).mean() > 0.9


def test_every_image_is_as_likely_at_every_place():
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), permutation(4, seed=1, epoch=epoch)] += 1
    # Chi-squared with 9 degrees of freedom exceeds 33.7 once in ten thousand.
    assert ((counts - 500) ** 2 / 500).sum() < 33.7


# --- the shards ---


def test_images_are_found_by_number_and_by_identifier(study):
    shard_set = study.open()
    ids = shard_set.image_ids.to_pylist()
    assert len(shard_set) == len(ids) == 59
    assert set(ids) == set(study.patient_of) - {study.missing}
    for i, image_id in enumerate(ids):
        assert shard_set.position(image_id) == i
        stored = np.asarray(Image.open(io.BytesIO(shard_set.read(i))))
        np.testing.assert_array_equal(stored[np.newaxis], pixels(image_id))
    with pytest.raises(KeyError):
        shard_set.position(study.missing)


def test_reading_copies_nothing_and_several_record_batches_are_one_numbering(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_ROWS", 4)
    study = Study(tmp_path)
    part = next((tmp_path / "shards").glob("part-*"))
    assert pa.ipc.open_file(part.read_bytes()).num_record_batches > 1
    shard_set = study.open()
    before = pa.total_allocated_bytes()
    for i, image_id in enumerate(shard_set.image_ids.to_pylist()):
        np.testing.assert_array_equal(shard_set.decode(i), pixels(image_id))
    view = shard_set.read(0)
    assert view.readonly
    assert isinstance(view.obj, pa.Buffer)
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("damage", ["remove", "cut", "swap", "no summary"])
def test_incomplete_or_damaged_shards_are_refused(tmp_path, damage):
    study = Study(tmp_path)
    first, second, *_ = sorted((tmp_path / "shards").glob("part-*"))
    if damage == "remove":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-20])
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
    else:
        (tmp_path / "shards" / "shards.json").unlink()
    with pytest.raises(BadInputError, match="run write_shards again") as caught:
        study.open()
    assert str(tmp_path) not in str(caught.value)


# --- one split ---


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cohort_is_exactly_the_images_of_its_split_with_their_rows(tmp_path, channels):
    study = Study(tmp_path, channels)
    for split in ("train", "validation", "test"):
        cohort = study.cohort(split)
        expected = sorted(i for i, p in study.patient_of.items() if study.split_of[p] == split and i != study.missing)
        assert cohort.rows["image_id"].to_pylist() == expected
        assert cohort.num_missing == (1 if study.split_of[study.patient_of[study.missing]] == split else 0)
        assert cohort.rows.schema.equals(study.index.schema)
        images = [cohort.decode(row) for row in range(len(cohort))]
        np.testing.assert_array_equal(images, [pixels(image_id, channels) for image_id in expected])
        np.testing.assert_array_equal(cohort.decode(3), images[3])
        np.testing.assert_array_equal(cohort.load(expected[3]), images[3])


def test_a_cohort_refuses_every_image_of_a_patient_of_another_split(study):
    cohort = study.cohort("train")
    for image_id, patient_id in study.patient_of.items():
        if study.split_of[patient_id] == "train" and image_id != study.missing:
            cohort.load(image_id)
            continue
        with pytest.raises(BadInputError, match='not among the 35 images opened for split "train"') as caught:
            cohort.load(image_id)
        assert patient_id not in str(caught.value)


def test_unlabelled_images_are_opened_for_pretraining_alone(study):
    index = study.index
    whole = study.cohort("train").rows["image_id"].to_pylist()
    source = ["unlabelled" if image == whole[0] else "train" for image in index["image_id"].to_pylist()]
    at = index.column_names.index("source_split")
    index = index.set_column(at, index.schema.field(at), pa.array(source))
    pool_only = study.patient_of[study.cohort("test").rows["image_id"][0].as_py()]
    names = ["unlabelled" if row["patient_id"] == pool_only else row["split"] for row in study.splits.to_pylist()]
    splits = study.splits.set_column(1, study.splits.schema.field(1), pa.array(names))
    shard_set = study.open()
    labelled = Cohort.select(index, splits, shard_set, split="train").rows["image_id"].to_pylist()
    pool = Cohort.select(index, splits, shard_set, split="train", with_unlabelled=True).rows["image_id"].to_pylist()
    assert labelled == whole[1:]
    others = {image for image, patient in study.patient_of.items() if patient == pool_only and image != study.missing}
    assert set(pool) == {*whole, *others}


def test_a_label_fraction_keeps_the_patients_of_low_rank_in_its_own_draw(study):
    def patients(**options):
        return set(study.cohort("train", **options).rows["patient_id"].to_pylist())

    train = {p for p, split in study.split_of.items() if split == "train"}
    assert patients(label_fraction=1.0) == patients() == train
    number = {hex_id(f"patient {p}"): p for p in range(30)}
    assert patients(label_fraction=0.5) == {p for p in train if number[p] < 15}
    assert patients(label_fraction=0.5, draw=1) == {p for p in train if 29 - number[p] < 15}
    assert patients(label_fraction=0.1) < patients(label_fraction=0.2) < patients(label_fraction=0.5)
    with pytest.raises(ValueError, match=r"draw 2 does not exist: splits\.draws is 2"):
        study.cohort("train", label_fraction=0.5, draw=2)


def test_the_order_of_the_tables_rows_does_not_matter(study):
    index, splits = (table.take(permutation(len(table), seed=2, epoch=0)) for table in (study.index, study.splits))
    cohort, expected = Cohort.select(index, splits, study.open(), split="train"), study.cohort("train")
    assert cohort.rows.equals(expected.rows)
    np.testing.assert_array_equal(cohort.positions, expected.positions)


def test_an_empty_cohort_is_refused_with_the_reason(study):
    with pytest.raises(BadInputError, match='split "official_valid" has 0 patients'):
        study.cohort("official_valid")
    with pytest.raises(BadInputError, match=r'split "train" at label fraction 0\.01, draw 1, has 0 patients'):
        study.cohort("train", label_fraction=0.01, draw=1)


def test_tables_and_shards_of_different_origin_are_refused(study):
    shard_set, index, splits = study.open(), study.index, study.splits
    for arguments, words in (
        ((index.slice(2), splits), r"images in the shards are not in the index; run write_shards again"),
        ((index, splits.slice(1)), r"2 images in the index are of patients without a split"),
        ((index, pa.concat_tables([splits, splits.slice(0, 3)])), r"3 patients stand twice in the table of splits"),
    ):
        with pytest.raises(BadInputError, match=words):
            Cohort.select(*arguments, shard_set, split="train")
