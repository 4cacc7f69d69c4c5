"""The data stages on a small set of real files, by way of a store."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medssl import layout, schema
from medssl.config import DataConfig, ShardConfig, SplitConfig
from medssl.identifiers import PatientKey
from medssl.stages import data
from medssl.stages.step import Made
from medssl.store import Store

HEADER = "image,patient,case,condition,skin_type,sex,age,site"
NUM_PATIENTS = 24
PUBLIC = PatientKey.load("public", key_file=None, default_file=None, environment={})


def make_set(root: Path, *, shared: bool) -> DataConfig:
    """24 patients of one photograph; if `shared`, those of patients 0 and 1 are the same in another encoding."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for number in range(NUM_PATIENTS):
        picture = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64))
        if shared and number == 0:
            picture.save(root / "images" / "1.jpg", quality=80)
        if not (shared and number == 1):
            picture.save(root / "images" / f"{number}.jpg", quality=95)
        lines.append(f"images/{number}.jpg,P{number},C{number},{'Acne' if number % 2 else 'Eczema'},2,F,31,arm")
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return DataConfig(dataset="cases", name="derm", root=str(root), key="public")


def prepare(store: Store, root: Path, config: DataConfig) -> Made:
    source = data.fingerprint(store, config, root=str(root), code_version="1")
    return data.ingest(
        store,
        config,
        root=str(root),
        data_digest=source.metadata["digest"],
        key_id=PUBLIC.key_id,
        code_version="1",
    )


def test_the_same_picture_under_two_patients_is_counted_listed_and_kept_in_one_split(tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), make_set(tmp_path / "set", shared=True)
    index = store.open(prepare(store, tmp_path / "set", config).uri, kind="index")
    pairs = schema.read(index.folder / layout.DUPLICATES, schema.DUPLICATES).to_pylist()
    patients = {PUBLIC.identify("derm", "patient", name) for name in ("P0", "P1")}
    assert [{pair["patient_a"], pair["patient_b"]} for pair in pairs] == [patients]
    counted = json.loads((index.folder / layout.SUMMARY).read_text())["duplicates"]
    assert counted["pairs_between_patients"] == 1
    assert counted["images_compared"] == NUM_PATIENTS
    for seed in range(8):
        sizes = SplitConfig(train=10, validation=6, test=8, seed=seed)
        made = data.assign_splits(store, sizes, index_uri=index.uri, code_version="1")
        splits = schema.read(store.open(made.uri).folder / layout.SPLITS, schema.SPLIT_TABLE)
        split_of = dict(zip(splits["patient_id"].to_pylist(), splits["split"].to_pylist(), strict=True))
        assert len({split_of[patient] for patient in patients}) == 1
        assert sorted(split_of.values()) == ["test"] * 8 + ["train"] * 10 + ["validation"] * 6


def test_earlier_splits_of_the_store_are_extended_by_their_digest(tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), make_set(tmp_path / "set", shared=False)
    first = prepare(store, tmp_path / "set", config)
    sizes = SplitConfig(train=0.5, validation=0.25, test=0.25)
    before = data.assign_splits(store, sizes, index_uri=first.uri, code_version="1")
    table = tmp_path / "set" / "cases.csv"
    with table.open("a") as file:
        file.writelines(f"images/{n}.jpg,P{n},C{n},Acne,2,F,31,arm\n" for n in range(NUM_PATIENTS, 2 * NUM_PATIENTS))
    second = prepare(store, tmp_path / "set", config)
    extended = sizes.model_copy(update={"extend": before.metadata["digest"]})
    after = data.assign_splits(store, extended, index_uri=second.uri, code_version="1")
    old, new = (
        schema.read(store.open(made.uri).folder / layout.SPLITS, schema.SPLIT_TABLE) for made in (before, after)
    )
    kept = new.filter(pa.array(np.isin(new["patient_id"].to_pylist(), old["patient_id"].to_pylist())))
    assert kept.to_pylist() == old.to_pylist()
    assert new.num_rows == 2 * NUM_PATIENTS


def test_an_external_set_is_stored_whole_and_again_found_in_the_store(tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), make_set(tmp_path / "set", shared=False)
    versions = dict.fromkeys(("fingerprint", "ingest", "write_shards", "prepare_dataset"), "1")
    shards = ShardConfig(image_size_px=32, channels=3, num_parts=1)
    made, again = (
        data.prepare_dataset(store, config, shards, key_id=PUBLIC.key_id, code_versions=versions) for _ in range(2)
    )
    assert made == again
    dataset = store.open(made.uri, kind="dataset")
    content = json.loads((dataset.folder / layout.DATASET).read_text())
    assert content["name"] == dataset.summary["name"] == "derm"
    assert store.open(store.uri("index", content["index"])).summary["num_images"] == NUM_PATIENTS
    assert store.open(store.uri("shards", content["shards"])).summary["num_images"] == NUM_PATIENTS


def test_beams_options_reach_the_pipeline_and_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = Store(str(tmp_path / "store")), make_set(tmp_path / "set", shared=False)
    index = prepare(store, tmp_path / "set", config)
    digest = data.fingerprint(store, config, root=str(tmp_path / "set"), code_version="1").metadata["digest"]

    def write(code_version: str) -> str:
        made = data.write_shards(
            store,
            ShardConfig(image_size_px=16, channels=3, num_parts=2),
            root=str(tmp_path / "set"),
            data_digest=digest,
            index_uri=index.uri,
            code_version=code_version,
        )
        return str(made.metadata["digest"])

    alone = write("1")
    monkeypatch.setenv(data.BEAM_OPTIONS_VARIABLE, "--direct_num_workers=2 --direct_running_mode=multi_threading")
    assert write("2") == alone
    monkeypatch.setenv(data.BEAM_OPTIONS_VARIABLE, "--runner=NoSuchRunner")
    with pytest.raises(ValueError, match="NoSuchRunner"):
        write("3")
