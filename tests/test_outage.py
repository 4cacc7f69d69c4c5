"""Tracking against a real MLflow server that goes away and comes back, and against one that never answers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from medssl import outbox, tracking
from medssl.stages import step as steps
from medssl.store import Store

START_S = 120.0


@dataclass
class Server:
    """`mlflow server` on a port of its own, which may be stopped and started again on the same database."""

    folder: Path
    port: int = 0
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.port = self.port or free_port()
        database = f"sqlite:///{self.folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
        command += ["--port", str(self.port), "--artifacts-destination", str(self.folder / "artifacts")]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MEDSSL_"))}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**clean, **tracking.ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv(tracking.RUN_KEY_VARIABLE, "key")
    for name, value in tracking.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Store(str(tmp_path / "store"))


def open_study(store: Store) -> tracking.TaskRun:
    return tracking.start_study("s", "key", {}, {}, folder=store.outbox, artifact_location="")


def train(store: Store, *, large_bytes: int = 10) -> None:
    """A task with a curve and weights."""
    with steps.start("pretrain", store=store, code_version="1", config={}, inputs={}, item="simclr") as step:
        (step.folder / "weights.safetensors").write_bytes(os.urandom(large_bytes))
        step.run.metrics([("loss", number, 1.0 / (1 + number)) for number in range(20)])
        step.finish("checkpoint", {}, [("seconds", 0, 1.0)])


def end(store: Store) -> None:
    run = open_study(store)
    tracking.complete_study(run, "key", {}, is_finished=True)
    run.end("FINISHED")


def runs_of(server: Server, experiment: str) -> list[Run]:
    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


@pytest.mark.slow
def test_what_a_stopped_server_missed_is_there_once_it_is_back_exactly_once(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    open_study(store).release()
    with steps.start("ingest", store=store, code_version="1", config={"a": 1}, inputs={}) as step:
        step.run.metrics([("loss", number, 1.0 / (1 + number)) for number in range(10)])
        assert step.run.deliver()
        server.stop()
        step.run.metrics([("loss", number, 1.0 / (1 + number)) for number in range(10, 20)])
        began_s = time.monotonic()
        step.finish("index", {}, [("images", 0, 3.0)])
    train(store)
    assert time.monotonic() - began_s < 5
    assert capsys.readouterr().out.count("warning") == 1
    assert sum(any(journal.pending()) for journal in outbox.journals(store.outbox)) == 2
    told = shutil.copytree(store.outbox, store.root + "-told")
    server.start()
    end(store)
    check_delivered_once(server, store)
    shutil.copytree(told, store.outbox, dirs_exist_ok=True)  # as if no answer had come back: all is told again
    end(store)
    check_delivered_once(server, store)


def check_delivered_once(server: Server, store: Store) -> None:
    assert not outbox.journals(store.outbox)
    runs = runs_of(server, os.environ["MLFLOW_EXPERIMENT_NAME"])
    by_name = {run.info.run_name: run for run in runs}
    assert sorted(by_name) == ["ingest", "pretrain simclr", "s"]
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    for name in ("ingest", "pretrain simclr"):
        history = MlflowClient(server.uri).get_metric_history(by_name[name].info.run_id, "loss")
        assert sorted((one.step, one.value) for one in history) == [(n, 1.0 / (1 + n)) for n in range(20)]
        assert by_name[name].data.tags["mlflow.parentRunId"] == by_name["s"].info.run_id
    assert by_name["ingest"].data.metrics["images"] == 3.0


@pytest.mark.slow
def test_weights_are_a_model_by_address_and_digest_and_never_uploaded(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    open_study(store).release()
    train(store, large_bytes=5_000_000)
    end(store)
    runs = runs_of(server, os.environ["MLFLOW_EXPERIMENT_NAME"])
    (run,) = [run for run in runs if run.info.run_name == "pretrain simclr"]
    assert run.outputs is not None
    (made,) = run.outputs.model_outputs
    model = MlflowClient(server.uri).get_logged_model(made.model_id)
    (record,) = store.records()
    assert (model.name, model.source_run_id) == ("simclr", run.info.run_id)
    assert model.tags["medssl.uri"] == store.uri("checkpoint", record["output"]["digest"])
    kept = sum(path.stat().st_size for path in (server.folder / "artifacts").rglob("*") if path.is_file())
    assert kept < 100_000


def test_a_server_that_never_answers_costs_a_task_seconds(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as deaf:  # connections are taken by the system, nobody reads them
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(100)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began_s = time.monotonic()
        for _ in range(3):  # the first waits, the others know
            train(store)
        took_s = time.monotonic() - began_s
    assert took_s < 12
    assert capsys.readouterr().out.count("warning") == 1
    (journal,) = outbox.journals(store.outbox)
    told = [entry.kind for entry in journal.pending()]
    assert told.count("end") == 3


SLOW = """
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(1)
    do_POST = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_server_that_answers_a_byte_a_second_costs_a_process_seconds(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_outage import train; from medssl.store import Store;"
        "train(Store(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None
        uri = f"http://127.0.0.1:{slow.stdout.readline().strip()}"
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, store.root, str(Path(__file__).parent)],
            env={**os.environ, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            timeout=100,
        )
        took_s = time.monotonic() - began_s
        slow.kill()
    assert done.returncode == 0, done.stderr
    assert "no answer within 8 s" in done.stdout
    assert took_s < 30  # imports included
    assert len(store.records()) == 1
