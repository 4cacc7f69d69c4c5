"""What gc takes from a store and what it leaves, on a store of small artifacts."""

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow import MlflowClient

from medssl import cleanup, layout, schema, tracking
from medssl.__main__ import main
from medssl.exit_codes import BadInputError
from medssl.references import Cohort, Reference
from medssl.registry import Registry
from medssl.stages import step as steps
from medssl.store import Artifact, Store, write_json
from pipelines import local


def make(store: Store, kind: str, text: str, *inputs: Artifact, stage: str = "stage") -> Artifact:
    """An artifact of one file, made by a step from others."""
    with steps.start(
        stage, store=store, code_version=text, config={}, inputs={str(i): one for i, one in enumerate(inputs)}
    ) as step:
        (step.folder / "a.txt").write_text(text)
        step.finish(kind, {})
    return store.open(step.result.uri)


def make_index(store: Store) -> tuple[Artifact, Artifact]:
    """An index and its private table."""
    with store.build() as folder:
        (folder / layout.SOURCES).write_text("where the files are")
        private = store.put("private", folder, {})
    with steps.start("ingest", store=store, code_version="1", config={}, inputs={}) as step:
        empty = pa.Table.from_pylist([], schema=schema.INDEX.columns)
        schema.write(empty, schema.INDEX, step.folder / layout.INDEX, metadata={"sources": private.digest})
        step.finish("index", {})
    return store.open(step.result.uri), private


def let_age(store: Store) -> None:
    """Everything in the store becomes a year old, as far as a file system lets it."""
    then_s = time.time() - 365 * 24 * 3600
    for path in sorted(Path(store.root).rglob("*"), reverse=True):
        os.utime(path, (then_s, then_s), follow_symlinks=False)


def finished_run(out: Path, *made: Artifact) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tasks = [{"output": {"kind": one.kind, "digest": one.digest}, "inputs": {}} for one in made]
    write_json(out / "run.json", {"tasks": tasks, "artifacts": {}})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run's results, with a store in it."""
    for name in ("MLFLOW_TRACKING_URI", "MEDSSL_STORE"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone
        monkeypatch.delenv(name)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def gc(home: Path, *options: str) -> int:
    return main(["gc", "--store", str(home / "store"), "--min-age-hours", "-1", *options])


def test_what_leads_to_a_kept_run_stays_and_the_rest_goes_with_its_keys(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(home / "store"))
    index, private = make_index(store)
    splits = make(store, "splits", "splits", index)
    report = make(store, "report", "report", splits)
    old = make(store, "report", "an old report", splits)
    weights = make(store, "checkpoint", "bought", stage="import_weights")
    finished_run(home, report)
    num_records = len(store.records())
    assert gc(home, "--dry-run") == 0
    assert "2 items would be removed" in capsys.readouterr().out
    assert Path(old.uri).is_dir()
    assert gc(home) == 0
    printed = capsys.readouterr().out
    assert f"report {old.digest[:12]}: " in printed
    assert "2 items removed" in printed  # the artifact and the key that led to it
    assert not Path(old.uri).exists()
    for one in (index, private, splits, report, weights):
        store.open(one.uri)
    assert len(store.records()) == num_records
    assert len(list((home / "store" / "keys").iterdir())) == 4
    assert gc(home) == 0
    assert "0 items removed, 0 B" in capsys.readouterr().out


def test_what_is_young_may_be_part_of_a_result_that_is_being_made(home: Path) -> None:
    store = Store(str(home / "store"))
    finished_run(home, make(store, "report", "kept"))
    make(store, "report", "young")
    (store.work_dir("0" * 64) / "state").write_text("half a training")
    assert cleanup.removable(store, cleanup.of_run(home), min_age_hours=1) == []
    assert len(cleanup.removable(store, cleanup.of_run(home), min_age_hours=-1)) == 3
    let_age(store)
    # An artifact was renamed into its place just now, which its folder tells whatever its times say.
    (left,) = cleanup.removable(store, cleanup.of_run(home), min_age_hours=1)
    assert left.what == f"unfinished: work/{12 * '0'}"


def test_a_second_run_is_kept_where_it_is_named(home: Path, tmp_path: Path) -> None:
    store = Store(str(home / "store"))
    own, other = (make(store, "report", text) for text in ("own", "other"))
    finished_run(home, own)
    finished_run(tmp_path / "second", other)
    assert gc(home, "--keep-runs", str(tmp_path / "second")) == 0
    assert Path(other.uri).is_dir()
    assert gc(home) == 0
    assert not Path(other.uri).exists()
    assert Path(own.uri).is_dir()


def test_links_are_neither_followed_nor_removed(home: Path, tmp_path: Path) -> None:
    store = Store(str(home / "store"))
    kept, gone = make(store, "report", "kept"), make(store, "report", "gone")
    finished_run(home, kept)
    outside = tmp_path / "outside"
    (outside / ("e" * 64)).mkdir(parents=True)
    (outside / ("e" * 64) / "precious").write_text("x" * 1000)
    (home / "store" / "models").symlink_to(outside)
    (home / "store" / "report" / ("f" * 64)).symlink_to(outside)
    (Path(gone.uri) / "link").symlink_to(outside)
    listed = cleanup.removable(store, cleanup.of_run(home), min_age_hours=-1)
    assert sum(one.num_bytes for one in listed) < 1000
    assert gc(home) == 0
    assert not Path(gone.uri).exists()
    assert (outside / ("e" * 64) / "precious").is_file()
    assert (home / "store" / "report" / ("f" * 64)).is_symlink()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda home: (home / "run.json").unlink(), "nothing would stay"),
        (lambda home: (home / "state.json").write_text("{}"), "1 run of this store not finished"),
        (lambda home: (home / "run.json").write_text("[]"), "holds no run.json of a finished run"),
    ],
)
def test_it_refuses_to_take_what_someone_may_want(
    home: Path, prepare, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(home / "store"))
    made = make(store, "report", "r")
    finished_run(home, make(store, "report", "kept"))
    prepare(home)
    assert gc(home) == 78
    assert words in capsys.readouterr().err
    assert Path(made.uri).is_dir()


def test_it_waits_for_a_run_in_the_same_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(home, make(Store(str(home / "store")), "report", "kept"))
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert gc(home) == 78
    assert "a run is at work" in capsys.readouterr().err
    assert gc(home) == 0


def promoted(store: Store, registry: Registry, text: str, index: Artifact, first: Cohort | None) -> Reference:
    """A registered model with its promotion; on its own data, whose index is `index`."""
    data = {kind: make(store, kind, f"{kind} of {text}", index) for kind in ("splits", "shards")}
    models = make(store, "models", text, *data.values())
    cohort = Cohort("d", index.digest, data["splits"].digest, data["shards"].digest, "u", 1, 1)
    model = Reference("s", models.digest, "f", text, "a", 1.0, 0, 0, {}, "", "findings", ("E",), 1, 32, first or cohort)
    with steps.start("promote", store=store, code_version=text, config={}, inputs={"models": models}) as step:
        record = {"model": registry.name, "candidate": model.as_json()}
        write_json(step.folder / layout.DECISION, record)
        step.finish("promotion", {})
    return model


def test_champions_and_those_before_them_stay_with_their_data_and_the_first_test_cohort(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(home / "store"))
    database = f"sqlite:///{home / 'mlflow.db'}"
    tracking.create_database(database)
    registry = Registry("m", MlflowClient(database))
    index, private = make_index(store)
    models, move = [], None
    for text in ("one", "two", "three", "four"):
        models.append(promoted(store, registry, text, index, None))
        version = registry.register(models[-1], uri=store.uri("models", models[-1].models), run_id="")
        if text in ("one", "two"):
            move = registry.promote(version, after=move, why="better")
    make(store, "report", "of nobody")
    before = {path.parent.name: len(list(path.parent.iterdir())) for path in Path(store.root).glob("*/*")}
    assert gc(home) == 0
    # The third is neither champion nor candidate any more.
    left = {path.name for path in (home / "store" / "models").iterdir()}
    assert left == {model.models for model in models if model.checkpoint_digest != "three"}
    assert before["promotion"] == 4
    assert len(list((home / "store" / "promotion").iterdir())) == 3
    assert not list((home / "store" / "report").iterdir())
    store.open(private.uri)
    store.open(store.uri("shards", models[0].cohort.shards))
    registry.roll_back()
    assert gc(home) == 0
    store.open(store.uri("models", models[0].models))
    capsys.readouterr()


def test_a_registry_that_does_not_know_the_promoted_models_is_not_believed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(home / "store"))
    index, _ = make_index(store)
    finished_run(home, index)
    model = promoted(store, Registry("m", MlflowClient("sqlite://")), "one", index, None)
    assert gc(home) == 78
    assert "MLFLOW_TRACKING_URI is not set" in capsys.readouterr().err
    tracking.create_database(f"sqlite:///{home / 'mlflow.db'}")
    assert gc(home) == 78
    assert "the model m, which this MLflow does not know" in capsys.readouterr().err
    store.open(store.uri("models", model.models))


def test_a_run_folder_without_a_record_is_told() -> None:
    with pytest.raises(BadInputError, match=r"holds no run\.json"):
        cleanup.of_run(Path("/nonexistent"))


def test_the_files_of_a_run_have_the_names_that_it_gives_them() -> None:
    assert (cleanup.STATE_FILE, cleanup.OUTPUTS_FILE) == (local.STATE_FILE, local.OUTPUTS_FILE)


def test_references_read_back_as_they_were() -> None:
    cohort = Cohort("d", "i", "s", "h", "u", 1, 1)
    model = Reference("s", "m", "f", "c", "a", 0.1, 0, 0, {"depth": 18}, "", "findings", ("E", "A"), 1, 32, cohort)
    assert Reference.from_json(json.loads(json.dumps(model.as_json()))) == model
    assert replace(model, repeat=1) != model
