import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from medssl import mlflow_notes, mlflow_runs, outbox, tracking
from medssl.__main__ import main
from medssl.exit_codes import BAD_INPUT, FAILURE, BadInputError
from medssl.lineage import RAW_DATA
from medssl.stages import step as steps
from medssl.store import Artifact, Store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    tracking.create_database(uri)
    return uri


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv(tracking.RUN_KEY_VARIABLE, "key")
    return MlflowClient(database)


def start(tmp_path: Path, run_key: str = "key") -> str:
    """Open a study's run and leave it, as its process does that is killed; returns its id."""
    run = open_study(tmp_path, run_key)
    run.release()
    return run.run_id


def open_study(tmp_path: Path, run_key: str = "key") -> tracking.TaskRun:
    return tracking.start_study(
        "s",
        run_key,
        {"a": {"b": 1}},
        {"medssl.study_digest": "d" * 64},
        folder=tmp_path / "store" / "outbox",
        artifact_location=(tmp_path / "artifacts").as_uri(),
    )


def end(
    tmp_path: Path,
    status: str,
    tasks: Mapping[str, tracking.TaskResult] = MappingProxyType({}),
    *,
    run_key: str = "key",
) -> None:
    """End a study as its runner does."""
    run = open_study(tmp_path, run_key)
    tracking.complete_study(run, run_key, tasks, is_finished=status == "FINISHED")
    run.end(status)


def work(store: Store, stage: str = "ingest", *, fail: bool = False) -> None:
    with steps.start(stage, store=store, code_version="1", config={"rate": 0.1}, inputs={}) as step:
        if fail:
            raise BadInputError("no")
        if step.made is None:
            (step.folder / "a.txt").write_text(stage)
            step.finish("index", {}, [("images", 0, 3.0)])


def children(client: MlflowClient, parent: str) -> Iterator[Run]:
    experiment = client.get_run(parent).info.experiment_id
    yield from client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


def test_a_task_is_one_nested_run_with_settings_numbers_and_result(client: MlflowClient, tmp_path: Path) -> None:
    parent = start(tmp_path)
    work(Store(str(tmp_path / "store")))
    (child,) = children(client, parent)
    assert (child.data.params["rate"], child.data.metrics["images"], child.info.status) == ("0.1", 3.0, "FINISHED")
    assert child.data.tags["medssl.output"].startswith("index/")
    assert client.get_run(parent).data.params["a.b"] == "1"


def test_a_repeated_or_failed_and_retried_task_keeps_its_run(client: MlflowClient, tmp_path: Path) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with pytest.raises(BadInputError):
        work(store, fail=True)
    (failed,) = children(client, parent)
    assert failed.info.status == "FAILED"
    work(store)
    work(store)
    (child,) = children(client, parent)
    assert (child.info.run_id, child.info.status) == (failed.info.run_id, "FINISHED")
    assert len(client.get_metric_history(child.info.run_id, "images")) == 1
    assert start(tmp_path) == parent


def test_inputs_are_data_sets_with_their_digests(client: MlflowClient, tmp_path: Path) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with store.build() as folder:
        index = store.put("index", folder, {})
    with steps.start("assign_splits", store=store, code_version="1", config={}, inputs={"index": index}) as step:
        step.finish("splits", {})
    (child,) = children(client, parent)
    assert child.inputs is not None
    (found,) = child.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("index", index.digest[:36])


def test_a_reused_task_is_linked_to_the_run_that_did_the_work(client: MlflowClient, tmp_path: Path) -> None:
    first, store = start(tmp_path), Store(str(tmp_path / "store"))
    work(store)
    (original,) = children(client, first)
    second = start(tmp_path, "other")
    step_key = original.data.tags[mlflow_runs.STEP_KEY_TAG]
    reused = tracking.TaskResult("ingest", tracking.Output("index/0", "", "ingest"), [], 0.0, is_reused=True)
    for _ in range(2):  # ending twice links once
        end(tmp_path, "FINISHED", {step_key: reused}, run_key="other")
    (linked,) = children(client, second)
    assert linked.data.tags[mlflow_runs.CACHED_FROM_TAG] == original.info.run_id
    assert linked.data.metrics == original.data.metrics
    assert linked.data.tags["medssl.output"] == original.data.tags["medssl.output"]
    assert original.info.run_id in linked.data.tags["mlflow.note.content"]


def test_no_run_stays_running_after_the_end(client: MlflowClient, tmp_path: Path) -> None:
    parent = start(tmp_path)
    run = tracking.start_task("killed", "some step key", tmp_path / "store" / "outbox")
    run.deliver()
    (child,) = children(client, parent)
    assert child.info.status == "RUNNING"
    run.release()  # as the system does for a process that is killed
    end(tmp_path, "KILLED")
    assert {run.info.status for run in children(client, parent)} == {"KILLED"}
    assert client.get_run(parent).info.status == "KILLED"


def test_a_run_of_kfps_plugin_is_adopted(client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = start(tmp_path)
    adopted = client.create_run(client.get_run(parent).info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", adopted)
    work(Store(str(tmp_path / "store")))
    assert client.get_run(adopted).data.metrics["images"] == 3.0
    assert list(children(client, parent)) == []


def test_runs_of_kfps_plugin_become_two_levels_and_lead_to_kfp(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("kfp")
    url = "https://kfp.example/#/runs/details/7"
    root = client.create_run(experiment, tags={"kfp.pipeline_run_id": "7", "kfp.pipeline_run_url": url}).info.run_id
    loop = client.create_run(experiment, tags={"mlflow.parentRunId": root}).info.run_id
    task = client.create_run(experiment, run_name="iteration", tags={"mlflow.parentRunId": loop}).info.run_id
    monkeypatch.delenv(tracking.RUN_KEY_VARIABLE)
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    monkeypatch.setenv("KFP_RUN_ID", "7")
    monkeypatch.setenv("MEDSSL_IMAGE", "registry/train@sha256:1")
    store = Store(str(tmp_path / "store"))
    for _ in range(2):  # a retried task
        with steps.start("pretrain", store=store, code_version="1", config={}, inputs={}, item="simclr"):
            work(store)  # a step within the task
    assert {run.info.run_id for run in children(client, root)} == {loop, task, within(client, root).info.run_id}
    adopted = client.get_run(task)
    assert adopted.data.tags["medssl.kfp_run_id"] == "7"
    assert f"[run of Kubeflow Pipelines]({url})" in note(adopted)
    assert "container image `registry/train@sha256:1`" in note(adopted)


def within(client: MlflowClient, root: str) -> Run:
    (found,) = [run for run in children(client, root) if run.info.run_name == "ingest"]
    return found


def note(run: Run) -> str:
    return str(run.data.tags["mlflow.note.content"])


def test_notes_lead_from_a_model_to_its_pretraining_and_the_raw_data_and_back(
    client: MlflowClient, tmp_path: Path
) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))

    def make(stage: str, kind: str, item: str = "", **inputs: Artifact) -> Artifact:
        with steps.start(stage, store=store, code_version="1", config={}, inputs=inputs, item=item) as step:
            (step.folder / "a.txt").write_text(stage)
            step.finish(kind, {RAW_DATA: "f00d" * 16} if kind == "source" else {})
        return store.open(step.result.uri)

    source = make("fingerprint", "source")
    shards = make("write_shards", "shards", source=source)
    checkpoint = make("pretrain", "checkpoint", "simclr", shards=shards)
    models = make("finetune", "models", "simclr", shards=shards, initial=checkpoint)
    end(tmp_path, "FINISHED")
    by_name = {run.info.run_name: run for run in children(client, parent)}

    def link(run: Run) -> str:
        return f"(#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"

    for reader, made in [
        ("finetune simclr", "pretrain simclr"),
        ("finetune simclr", "write_shards"),
        ("pretrain simclr", "write_shards"),
        ("write_shards", "fingerprint"),
    ]:
        assert f"| [{made}]{link(by_name[made])} |" in note(by_name[reader])
    assert "f00d" * 16 in note(by_name["fingerprint"])
    for name, run in by_name.items():
        assert f"[s]{link(client.get_run(parent))}" in note(run)
        assert f"[{name}]{link(run)}" in note(client.get_run(parent))
    files = {file.path for file in client.list_artifacts(parent)}
    assert "study.json" in files
    experiment = by_name["pretrain simclr"].info.experiment_id
    study_file = f"#/experiments/{experiment}/runs/{parent}/artifacts/study.json"
    assert f"[study file]({study_file})" in note(by_name["finetune simclr"])

    address = note(by_name["fingerprint"]).split("searchFilter=")[1].split(")")[0]
    found = client.search_runs([experiment], unquote(address))
    assert {run.info.run_name for run in found} == {"write_shards", "pretrain simclr", "finetune simclr"}
    finetune, pretrain = (client.get_run(by_name[f"{name} simclr"].info.run_id) for name in ("finetune", "pretrain"))
    assert finetune.inputs is not None
    assert finetune.outputs is not None
    assert pretrain.outputs is not None
    (initial,) = finetune.inputs.model_inputs
    (pretrained,) = pretrain.outputs.model_outputs
    (trained,) = finetune.outputs.model_outputs
    assert initial.model_id == pretrained.model_id
    shown = {"weights": f"models/{models.digest}", "uri": models.uri}
    assert client.get_logged_model(trained.model_id).params == shown


def test_a_description_longer_than_mlflow_takes_says_how_much_it_leaves_out() -> None:
    lines = [f"| task {number:03} |" + "x" * 86 for number in range(120)]
    text = mlflow_notes._fitting(lines)
    num_shown = text.count("| task ")
    assert num_shown == 7500 // 100
    assert f"… and {120 - num_shown} more lines" in text
    assert mlflow_notes._fitting(lines[:70]) == "\n".join(lines[:70]) + "\n"


def test_what_was_told_twice_is_there_once(client: MlflowClient, tmp_path: Path) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    run = tracking.start_task("pretrain", "some step key", store.outbox)
    run.metrics([("loss", 0, 1.0), ("loss", 1, 0.5)])
    run.output(tracking.Output("checkpoint/12", "there", "simclr"))
    told = (store.outbox / "some step key.jsonl").read_bytes()
    run.end("FINISHED")
    (store.outbox / "some step key.jsonl").write_bytes(told)
    (store.outbox / "some step key.json").unlink()
    assert tracking.deliver_all(store.outbox) == 0
    (child,) = children(client, parent)
    assert [m.value for m in client.get_metric_history(child.info.run_id, "loss")] == [1.0, 0.5]
    outputs = client.get_run(child.info.run_id).outputs
    assert outputs is not None
    assert len(outputs.model_outputs) == 1
    assert len(client.search_logged_models([child.info.experiment_id])) == 1


def test_a_result_found_in_the_store_is_told_to_the_run_of_another_study(client: MlflowClient, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    start(tmp_path)
    work(store)
    second = start(tmp_path, "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tracking.RUN_KEY_VARIABLE, "other")
        work(store)
    (child,) = children(client, second)
    assert child.data.metrics == {"images": 3.0}
    assert child.data.tags["medssl.output"].startswith("index/")


@pytest.mark.slow
def test_processes_that_open_a_new_database_at_the_same_time_all_find_its_tables(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = "import sys; from medssl import tracking; tracking.create_database(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", code, uri]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert MlflowClient(uri).search_experiments()


def test_a_store_that_cannot_be_reached_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    work(Store(str(tmp_path / "store")))
    printed = capsys.readouterr().out
    assert printed.count("warning: MLflow does not take these records now") == 1  # and is not asked again


def table(database: str, *, rename: tuple[str, str]) -> None:
    """Another connection takes a table of the store away or gives it back; whoever needs it is refused at once."""
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(f"ALTER TABLE {rename[0]} RENAME TO {rename[1]}")


def test_a_store_that_another_connection_locks_for_a_moment_gets_every_record(
    client: MlflowClient, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = start(tmp_path)
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"), check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.7, other.rollback)
        release.start()
        work(Store(str(tmp_path / "store")))
        release.join()
    (child,) = children(client, parent)
    assert (child.data.params["rate"], child.data.metrics["images"], child.info.status) == ("0.1", 3.0, "FINISHED")
    assert "warning" not in capsys.readouterr().out


def test_a_store_that_refuses_for_a_moment_is_asked_again(
    client: MlflowClient, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = start(tmp_path)
    table(database, rename=("params", "away"))
    back = threading.Timer(0.7, table, args=[database], kwargs={"rename": ("away", "params")})
    back.start()
    work(Store(str(tmp_path / "store")))
    back.join()
    (child,) = children(client, parent)
    assert (child.data.params["rate"], child.data.metrics["images"], child.info.status) == ("0.1", 3.0, "FINISHED")
    assert "warning" not in capsys.readouterr().out


def test_a_store_that_was_slow_for_a_while_gets_the_rest_later(
    client: MlflowClient, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = start(tmp_path)
    run = tracking.start_task("pretrain", "some step key", tmp_path / "store" / "outbox")
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not run.deliver(within_s=0.2)
        run.metrics([("loss", 0, 1.0)])
        assert not run.deliver(within_s=0.2, eagerly=True)  # the first still waits
        other.rollback()
    deadline_s = time.monotonic() + 10
    while not run.deliver(eagerly=True) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    run.end("FINISHED")
    (child,) = children(client, parent)
    assert (child.data.metrics, child.info.status) == ({"loss": 1.0}, "FINISHED")


def test_the_command_delivers_what_killed_tasks_left(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    end(tmp_path, "FINISHED")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        work(store)
        tracking.start_task("pretrain", "some step key", store.outbox).release()  # and is killed
        with pytest.raises(SystemExit, match=str(FAILURE)):
            main(["deliver", "--store", store.root])
    assert "0 runs delivered, 2 left" in capsys.readouterr().out
    assert main(["deliver", "--store", store.root]) == 0
    assert "2 runs delivered, 0 left" in capsys.readouterr().out
    assert {run.info.run_name: run.info.status for run in children(client, parent)} == {
        "ingest": "FINISHED",
        "pretrain": "KILLED",
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["deliver", "--store", store.root]) == BAD_INPUT


def results_of(store: Store) -> dict[str, tracking.TaskResult]:
    return {
        r["step_key"]: tracking.TaskResult(
            "ingest", tracking.Output("index/1", "", "ingest"), r["metrics"], r["finished_unix_s"]
        )
        for r in store.records()
    }


def test_what_a_store_refuses_at_the_end_of_a_task_is_delivered_at_the_end_of_the_study(
    client: MlflowClient,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mlflow_runs, "_PATIENCE_S", 0.2)
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with steps.start("ingest", store=store, code_version="1", config={}, inputs={}) as step:
        table(database, rename=("metrics", "away"))
        step.finish("index", {}, [("images", 0, 3.0)])
    table(database, rename=("away", "metrics"))
    warning = capsys.readouterr().out
    assert "does not take these records now (OperationalError: no such table" in warning
    assert str(tmp_path) not in warning
    (lost,) = children(client, parent)
    assert (lost.info.status, lost.data.metrics) == ("RUNNING", {})
    end(tmp_path, "KILLED")
    (child,) = children(client, parent)
    assert (child.info.run_id, child.info.status) == (lost.info.run_id, "FINISHED")
    assert child.data.metrics == {"images": 3.0}
    assert child.data.tags["medssl.output"].startswith("index/")
    assert not outbox.journals(store.outbox)


def test_a_run_that_lost_its_end_with_its_machine_is_completed_from_the_result(
    client: MlflowClient, tmp_path: Path
) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with steps.start("ingest", store=store, code_version="1", config={}, inputs={}) as step:
        (child,) = children(client, parent)
        shutil.rmtree(store.outbox)  # on a disk that is gone
        store.outbox.mkdir()
        step.finish("index", {}, [("images", 0, 3.0)])
    (lost,) = children(client, parent)
    assert lost.info.status == "RUNNING"
    end(tmp_path, "KILLED", results_of(store))
    (child,) = children(client, parent)
    assert (child.info.run_id, child.info.status) == (lost.info.run_id, "FINISHED")
    assert (child.data.metrics, child.data.tags["medssl.output"]) == ({"images": 3.0}, "index/1")


def test_a_finished_study_shows_a_task_whose_run_could_not_be_opened(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with monkeypatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        work(store)
    for _ in range(2):  # ending twice shows it once
        end(tmp_path, "FINISHED", results_of(store))
    (child,) = children(client, parent)
    assert (child.info.run_name, child.info.status, child.data.metrics["images"]) == ("ingest", "FINISHED", 3.0)


def test_a_task_that_failed_after_an_earlier_success_stays_failed(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, store = start(tmp_path), Store(str(tmp_path / "store"))
    with monkeypatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        work(store)
    with pytest.raises(BadInputError):
        work(store, fail=True)
    end(tmp_path, "FAILED", results_of(store))
    (child,) = children(client, parent)
    assert (child.info.status, child.data.metrics) == ("FAILED", {})


def test_the_page_of_a_run_names_its_experiment(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "_PATIENCE_S", 0.0)
    parent = start(tmp_path)
    assert tracking.page(parent) == f"#/experiments/{client.get_run(parent).info.experiment_id}/runs/{parent}"
    assert tracking.page("0" * 32) == ""


def test_without_a_tracking_uri_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not tracking.is_on()
    work(Store(str(tmp_path / "store")))
    code = "import sys; from pathlib import Path; from medssl import tracking"
    code += "; run = tracking.start_task('a', 'b', Path('x'))"
    code += "; run.metrics([('c', 0, 1.0)]); run.end('FINISHED'); sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
