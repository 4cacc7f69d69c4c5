"""The stage promote on generated radiographs, with real networks and a real registry on SQLite.

The networks are not trained. What a candidate predicts of its own test set is written into the table of its study's
comparison, as good as a test wants it; what is scored anew comes from the weights.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient

from medssl import labels, layout, registry, schema, tracking
from medssl.__main__ import main
from medssl.config import (
    CompareConfig,
    DataConfig,
    EncoderConfig,
    PredictConfig,
    PromoteConfig,
    ShardConfig,
    SplitConfig,
    SubgroupConfig,
    TaskConfig,
)
from medssl.data import phantom
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey
from medssl.model.networks import Classifier, build_encoder
from medssl.references import Reference
from medssl.registry import Registry
from medssl.shardset import Cohort as Images
from medssl.shardset import ShardSet
from medssl.stages import data, promotion, train
from medssl.stages import step as steps
from medssl.stages.contest import Champion, Rules
from medssl.stages.step import Made
from medssl.store import Artifact, Store, file_digest, write_json
from medssl.train.checkpoint import save_weights

ENCODER = EncoderConfig(depth=18, width=0.125)
TASK = TaskConfig(findings=("Atelectasis", "Pleural Effusion"), uncertain="u_ones")
RULES = Rules(
    PromoteConfig(enabled=True, arm="micle", auto_first=True, margin=0.9, ece_margin=0.9),
    CompareConfig(num_replicates=100),
    SubgroupConfig(by=("sex",), min_patients=5),
    PredictConfig(),
    TASK,
)
KEY = PatientKey.load("public", key_file=None, default_file=None, environment={})


def prepared(store: Store, root: Path, splits: SplitConfig) -> train.Data:
    """Index, splits and shards of a set."""
    config = DataConfig(name="clinic", root=str(root), key="public", find_duplicates=False)
    source = data.fingerprint(store, config, root=str(root), code_version="1")
    shared: dict[str, Any] = {"root": str(root), "data_digest": source.metadata["digest"], "code_version": "1"}
    index = data.ingest(store, config, key_id=KEY.key_id, **shared)
    shards = data.write_shards(
        store, ShardConfig(image_size_px=32, num_parts=2, max_undecodable_share=0.5), index_uri=index.uri, **shared
    )
    split = data.assign_splits(store, splits, index_uri=index.uri, code_version="1")
    return train.Data(store, index_uri=index.uri, splits_uri=split.uri, shards_uri=shards.uri)


SPLITS = SplitConfig(train=0.4, validation=0.2, test=0.4)


@dataclass(frozen=True)
class World:
    """A store with a small set of images and an empty registry."""

    store: Store
    data: train.Data
    database: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("promotion")
    phantom.generate(folder / "set", phantom.PhantomConfig(patients=100, seed=0, image_size_px=32))
    store = Store(str(folder / "store"))
    database = f"sqlite:///{folder / 'mlflow.db'}"
    tracking.create_database(database)
    return World(store, prepared(store, folder / "set", SPLITS), database)


@pytest.fixture
def models(world: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry:
    monkeypatch.setenv("MEDSSL_THREADS", "1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "promotion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.database)
    return Registry(request.node.name, MlflowClient(world.database))


def catalog(store: Store, seed: int, classes: int = 2) -> Artifact:
    """A fine-tuned model of the arm micle, with random weights, as two repeats of which the second was chosen."""
    torch.manual_seed(seed)
    network = Classifier(build_encoder(ENCODER, image_channels=1), num_classes=classes, fusion=TASK.fusion)
    with steps.start("finetune", store=store, code_version=str(seed), config={"c": classes}, inputs={}) as step:
        listed = []
        for repeat in (0, 1):
            folder = step.folder / f"repeat{repeat}"
            folder.mkdir()
            save_weights(network, folder / layout.MODEL)
            key = {"arm_id": "micle", "label_fraction": 1.0, "draw": 0, "repeat": repeat, "is_selected": repeat == 1}
            listed.append(key | {"folder": folder.name, "checkpoint_digest": file_digest(folder / layout.MODEL)})
        write_json(step.folder / layout.MODELS, listed)
        step.finish("models", {"name": "micle", "encoder": ENCODER.dump(), "num_models": 2})
    with store.build() as folder:
        entry = {"kind": "models", "digest": step.result.metadata["digest"]}
        write_json(folder / layout.CATALOG, {"micle": entry})
        return store.put("catalog", folder, {})


def comparison(store: Store, own: train.Data, skill: float, seed: int, task: TaskConfig = TASK) -> Artifact:
    """Predictions of the test split that are right by `skill`: 0 guesses, 1 is the truth."""
    index = schema.read(own.index.folder / layout.INDEX, schema.INDEX)
    splits = schema.read(own.splits.folder / layout.SPLITS, schema.SPLIT_TABLE)
    rows = Images.select(index, splits, ShardSet.open(own.shards.folder), split="test").rows
    found, classes = labels.labelled(rows, task, task.findings), task.findings
    m, k = found.mask_MK.shape
    noise = np.random.default_rng(seed).random((m, k))
    scores = skill * found.targets_MK + (1 - skill) * noise
    columns = {column: rows[column].take(np.repeat(found.row_M, k)) for column in ("patient_id", "sex", "age_years")}
    constant = {"study_id": "s", "dataset": "clinic", "dataset_digest": own.index.digest, "split": "test"}
    constant |= {"arm_id": "micle", "unit_kind": "image", "group_kind": "patient", "checkpoint_digest": "c"}
    table = {
        **columns,
        **{name: pa.repeat(value, m * k) for name, value in constant.items()},
        "label_fraction": pa.repeat(1.0, m * k),
        **{name: pa.repeat(pa.scalar(v, pa.int32()), m * k) for name, v in (("draw", 0), ("repeat", 1))},
        **{name: pa.nulls(m * k, pa.string()) for name in ("skin_type", "view_position", "site")},
        "unit_id": pa.array(np.repeat(found.ids, k), pa.string()),
        "class": pa.array(list(classes) * m),
        "y_true": pa.array(found.targets_MK.ravel().astype(np.int8), mask=~found.mask_MK.ravel()),
        "y_score": pa.array(scores.ravel()),
        "is_selected": pa.repeat(True, m * k),
    }
    with store.build() as folder:
        schema.write(pa.table(table), schema.PREDICTIONS, folder / layout.PREDICTIONS)
        return store.put("comparison", folder, {"seed": seed})


def promote(
    world: World,
    name: str,
    seed: int,
    *,
    skill: float,
    own: train.Data | None = None,
    rules: Rules = RULES,
    compare: Callable[..., Artifact] = comparison,
) -> dict[str, Any]:
    """Let a model try to become champion of `name`; returns what was decided."""
    own = own or world.data
    rules = replace(rules, promote=rules.promote.model_copy(update={"model": name}))
    made: Made = promotion.promote(
        world.store,
        rules,
        encoder=ENCODER,
        data=own,
        study_id="study",
        dataset="clinic",
        image_size_px=32,
        catalog_uri=catalog(world.store, seed, len(rules.task.findings)).uri,
        comparison_uri=compare(world.store, own, skill, seed, rules.task).uri,
        code_version="1",
    )
    folder = world.store.open(made.uri, kind="promotion").folder
    decision: dict[str, Any] = json.loads((folder / layout.DECISION).read_text())
    return decision


def test_the_first_model_waits_for_a_person_unless_the_study_says_otherwise(
    world: World, models: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = replace(RULES, promote=RULES.promote.model_copy(update={"auto_first": False}))
    assert promote(world, models.name, 1, skill=0.2, rules=patient)["verdict"] == "first"
    assert models.champion() is None
    assert main(["promote", "--model", models.name, "--approve", "1"]) == 0
    champion = models.champion()
    assert champion is not None
    assert (champion.version, champion.why) == (1, "approved")
    assert main(["promote", "--model", models.name, "--list"]) == 0
    printed = capsys.readouterr().out
    assert "version 1: study, micle, 1 of the labels" in printed
    assert "move 1: version 1, approved" in printed
    assert main(["promote", "--model", models.name, "--approve", "1"]) == 78
    assert "is the champion already" in capsys.readouterr().err


def test_a_better_model_takes_the_place_and_a_worse_one_does_not(
    world: World, models: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    first = promote(world, models.name, 1, skill=0.0)
    assert (first["verdict"], first["checks"], first["test_uses"]) == ("first", [], {})
    assert promote(world, models.name, 1, skill=0.0)["verdict"] == "is champion"
    better = promote(world, models.name, 2, skill=0.8)
    assert better["verdict"] == "promote"
    assert [(check["cohort"], check["subgroup"], check["status"]) for check in better["checks"]] == [
        ("test", "all", "holds"), ("test", "all", "holds"),
        ("test", "sex=female", "holds"), ("test", "sex=male", "holds"),
    ]  # fmt: skip
    champion = models.champion()
    assert champion is not None
    assert (champion.version, champion.previous, champion.why) == (2, 1, "better")
    tags = MlflowClient(world.database).get_model_version(models.name, "2").tags
    assert tags[registry.VERDICT_TAG] == "promote"
    assert json.loads(tags["medssl.check.001"]) == better["checks"][0]
    worse = promote(world, models.name, 3, skill=0.0)
    assert worse["verdict"] == "keep"
    assert models.champion() == champion
    assert main(["promote", "--model", models.name, "--approve", "3"]) == 78
    assert 'its comparison ended with "keep"; test, over all: not better' in capsys.readouterr().err
    # The worse one was the second to use the test set for a decision.
    assert (better["test_uses"]["uses_of_test/clinic"], worse["test_uses"]["uses_of_test/clinic"]) == (1, 2)
    assert main(["promote", "--model", models.name, "--rollback"]) == 0
    assert models.champion().version == 1


def test_neither_weights_nor_patients_are_in_the_registry(world: World, models: Registry) -> None:
    promote(world, models.name, 1, skill=0.0)
    index = schema.read(world.data.index.folder / layout.INDEX, schema.INDEX)
    names = {name for column in ("patient_id", "image_id") for name in index[column].to_pylist()}
    client = MlflowClient(world.database)
    for model in (models.name, f"{models.name}.history"):
        for version in client.search_model_versions(f"name = '{model}'"):
            text = json.dumps([version.tags, version.description, version.source])
            assert not any(name in text for name in names)


def test_too_many_uses_of_a_test_set_are_warned_of_and_reading_it_once_more_counts_once(
    world: World, models: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = replace(RULES, promote=RULES.promote.model_copy(update={"max_test_uses": 1}))
    promote(world, models.name, 1, skill=0.0)
    before = promote(world, models.name, 4, skill=0.0, rules=strict)["test_uses"]["uses_of_test/clinic"]
    assert ("warning: test of clinic has been used more than 1 times" in capsys.readouterr().out) == (before > 1)
    again = promote(world, models.name, 4, skill=0.0, rules=strict)["test_uses"]["uses_of_test/clinic"]
    assert again == before
    assert promote(world, models.name, 5, skill=0.0, rules=strict)["test_uses"]["uses_of_test/clinic"] == before + 1
    assert "warning: test of clinic has been used more than 1 times" in capsys.readouterr().out


def test_models_that_tell_other_classes_apart_are_not_compared(world: World, models: Registry) -> None:
    promote(world, models.name, 1, skill=0.0)
    task = TASK.model_copy(update={"findings": ("Edema", "Consolidation", "Atelectasis")})
    decision = promote(world, models.name, 6, skill=0.9, rules=replace(RULES, task=task))
    assert decision["verdict"] == "not comparable"
    (reason,) = decision["reasons"]
    assert reason.startswith("the champion tells 2 classes apart, the candidate 3, 1 in common")


def test_a_test_set_that_the_champion_was_trained_on_is_no_test_set(world: World, models: Registry) -> None:
    promote(world, models.name, 1, skill=0.0)
    other = data.assign_splits(
        world.store,
        SPLITS.model_copy(update={"seed": 7}),
        index_uri=world.data.index.uri,
        code_version="1",
    )
    redrawn = train.Data(
        world.store, index_uri=world.data.index.uri, splits_uri=other.uri, shards_uri=world.data.shards.uri
    )
    decision = promote(world, models.name, 7, skill=0.9, own=redrawn)
    assert decision["verdict"] == "not comparable"
    assert [reason.split(" patients")[0].rstrip("0123456789") for reason in decision["reasons"]] == [
        "the champion was trained on ",
        "the candidate was trained on ",
    ]
    assert f"splits.extend={world.data.splits.digest}" in decision["reasons"][0]


def test_patients_of_a_set_with_another_name_cannot_be_told_apart(world: World, models: Registry) -> None:
    promote(world, models.name, 1, skill=0.0)
    champion = Champion.find(world.store, models)
    assert champion is not None
    reference = champion.version.reference
    renamed = replace(reference, cohort=replace(reference.cohort, dataset="elsewhere"))
    version = models.register(renamed, uri=champion.version.uri, run_id="")
    models.promote(version, after=champion.move, why="approved")
    decision = promote(world, models.name, 2, skill=0.9)
    assert decision["verdict"] == "not comparable"
    assert "the name of the data set (clinic, elsewhere)" in decision["reasons"][0]


@pytest.mark.slow
def test_when_data_grew_the_first_test_cohort_is_scored_too_and_stays_as_it_was(
    world: World, models: Registry, tmp_path: Path
) -> None:
    promote(world, models.name, 1, skill=0.0)
    phantom.generate(tmp_path / "set", phantom.PhantomConfig(patients=140, seed=0, image_size_px=32))
    splits = SPLITS.model_copy(update={"extend": world.data.splits.digest})
    grown = prepared(world.store, tmp_path / "set", splits)
    decision = promote(world, models.name, 8, skill=0.9, own=grown)
    checks = {(c["cohort"], c["kind"], c["subgroup"]): c for c in decision["checks"]}
    own, first = (checks[cohort, "better", "all"] for cohort in ("test", "first test cohort"))
    assert own["status"] == "holds"
    assert first["status"] == "fails"  # random weights against random weights
    assert decision["verdict"] == "keep"
    assert own["n_patients"] > first["n_patients"]
    frozen = decision["first_test_cohort"]
    assert (frozen["index"], frozen["splits"]) == (world.data.index.digest, world.data.splits.digest)
    assert frozen["num_units"] == Reference.from_json(decision["champion"]).cohort.num_units
    assert frozen["num_patients"] == first["n_patients"]


def test_a_champion_of_another_store_is_found_where_it_was_registered_and_told_when_it_is_gone(
    world: World, models: Registry, tmp_path: Path
) -> None:
    promote(world, models.name, 1, skill=0.0)
    elsewhere = Store(str(tmp_path / "store"))
    champion = Champion.find(elsewhere, models)
    assert champion is not None
    assert champion.models.digest == champion.version.reference.models
    moved = models.register(replace(champion.version.reference, models="0" * 64), uri="/nowhere/models/0", run_id="")
    models.promote(moved, after=champion.move, why="approved")
    with pytest.raises(
        BadInputError,
        match="version 2 in the model registry: its models 000000000000 is neither",
    ):
        Champion.find(elsewhere, models)
