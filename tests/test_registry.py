"""The model registry on a real SQLite database, with several processes at once."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from medssl import tracking
from medssl.exit_codes import BadInputError
from medssl.references import Cohort, Reference
from medssl.registry import OutrunError, Registry

COHORT = Cohort("clinic", "i" * 64, "s" * 64, "d" * 64, "u" * 64, 30, 20)
MODEL = Reference(
    study="s",
    models="m" * 64,
    folder="fraction1-draw0-repeat0",
    checkpoint_digest="c" * 64,
    arm_id="micle",
    label_fraction=1.0,
    draw=0,
    repeat=0,
    encoder={"depth": 18},
    fusion="representation",
    task="findings",
    classes=("Edema", "Atelectasis"),
    channels=1,
    image_size_px=32,
    cohort=COHORT,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    tracking.create_database(uri)
    return uri


@pytest.fixture
def registry(database: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Registry]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return Registry.from_environment(request.node.name.partition("[")[0])


def models(registry: Registry, number: int) -> list[int]:
    """Register models; returns the numbers of their versions."""
    return [
        registry.register(replace(MODEL, checkpoint_digest=str(i) * 64), uri="file:///store", run_id="").number
        for i in range(number)
    ]


def alias(registry: Registry, name: str) -> int:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return int(client.get_model_version_by_alias(registry.name, name).version)


def test_a_model_is_registered_once_and_reads_back_as_it_was(registry: Registry) -> None:
    first = registry.register(MODEL, uri="file:///store/models/m", run_id="")
    assert registry.register(MODEL, uri="file:///elsewhere", run_id="") == first
    assert (first.number, first.reference, first.uri) == (1, MODEL, "file:///store/models/m")
    other = registry.register(replace(MODEL, repeat=1), uri="file:///store/models/m", run_id="")
    assert other.number == alias(registry, "candidate") == 2
    assert registry.champion() is None


def test_no_path_of_this_machine_is_where_a_server_says_the_model_is(registry: Registry) -> None:
    registry.register(MODEL, uri="file:///store/models/m", run_id="")
    (version,) = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_model_versions(f"name = '{registry.name}'")
    assert version.source == f"medssl-store:/models/{'m' * 64}/fraction1-draw0-repeat0"


def test_a_decision_replaces_the_one_before_with_all_its_numbers(registry: Registry) -> None:
    version = registry.register(MODEL, uri="u", run_id="")
    registry.decide(version, verdict="keep", reasons=["a", "b"], checks=["1", "2", "3"], after=0)
    registry.decide(version, verdict="needs approval", reasons=["c"], checks=["4"], after=2)
    found = registry.version(version.number)
    assert (found.verdict, found.reasons, found.compared_after) == ("needs approval", "c", 2)
    tags = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_model_version(registry.name, "1").tags
    assert {key: value for key, value in tags.items() if key.startswith("medssl.check.")} == {"medssl.check.001": "4"}


def test_champions_follow_each_other_and_the_first_test_cohort_stays(registry: Registry) -> None:
    one = registry.register(MODEL, uri="u", run_id="")
    two = registry.register(replace(MODEL, repeat=1, cohort=replace(COHORT, index="j" * 64)), uri="u", run_id="")
    first = registry.promote(one, after=None, why="first")
    second = registry.promote(two, after=first, why="better")
    assert registry.champion() == second
    assert (second.version, second.previous, second.cohort) == (2, 1, COHORT)
    assert alias(registry, "champion") == 2


def test_of_two_who_saw_the_same_champion_the_second_is_told_to_compare_again(registry: Registry) -> None:
    one, two, three = (registry.version(number) for number in models(registry, 3))
    seen = registry.promote(one, after=None, why="first")
    registry.promote(two, after=seen, why="better")
    with pytest.raises(OutrunError, match=r"version 2 of .* became champion meanwhile; version 3 stays a candidate"):
        registry.promote(three, after=seen, why="better")
    now = registry.champion()
    assert now is not None
    assert (now.version, alias(registry, "champion")) == (2, 2)
    assert registry.promote(three, after=now, why="better").previous == 2
    assert [move.version for move in registry.history()] == [1, 2, 3]


def test_roll_backs_go_back_one_by_one_and_then_say_that_nothing_is_left(registry: Registry) -> None:
    move = None
    for number in models(registry, 3):
        move = registry.promote(registry.version(number), after=move, why="better")
    assert [registry.roll_back().version, alias(registry, "champion")] == [2, 2]
    assert [registry.roll_back().version, alias(registry, "champion")] == [1, 1]
    with pytest.raises(BadInputError, match="no earlier champion"):
        registry.roll_back()
    again = registry.promote(registry.version(3), after=registry.champion(), why="approved")
    assert (again.version, again.previous) == (3, 1)
    assert registry.kept() == {1, 2, 3}


def test_versions_that_others_made_by_hand_are_passed_by(registry: Registry) -> None:
    models(registry, 1)
    registry.promote(registry.version(1), after=None, why="first")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    for name in (registry.name, f"{registry.name}.history"):
        client.create_model_version(name, "s3://bucket/model")
    assert [one.number for one in registry.versions()] == [1]
    assert [move.version for move in registry.history()] == [1]
    with pytest.raises(BadInputError, match="has no version 2"):
        registry.version(2)


def test_without_a_tracking_server_it_is_said_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BadInputError, match="MLFLOW_TRACKING_URI is not set"):
        Registry.from_environment("m")


RACER = """
import json, os, sys
from medssl.registry import OutrunError, Registry
registry = Registry.from_environment(sys.argv[1])
version, seen = registry.version(int(sys.argv[2])), registry.champion()
print("ready", flush=True)
sys.stdin.readline()
try:
    print(json.dumps(registry.promote(version, after=seen, why="better").number))
except OutrunError as error:
    print(json.dumps(str(error)))
"""


def race(registry: Registry, versions: list[int]) -> list[int | str]:
    """Let one process a version promote it at the same moment; returns numbers of moves, or what was told."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, registry.name, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in versions
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=120)[0]) for process in processes]


def test_of_several_processes_at_once_one_wins_and_none_is_lost(registry: Registry) -> None:
    numbers = models(registry, 2)
    told = race(registry, numbers)
    (winner,) = [number for number, result in zip(numbers, told, strict=True) if isinstance(result, int)]
    assert all(f"version {winner} of" in text for text in told if isinstance(text, str))
    assert [move.version for move in registry.history()] == [winner]
    assert alias(registry, "champion") == winner
    # The one that lost is there still, and wins once it has seen the new champion.
    (loser,) = [number for number in numbers if number != winner]
    assert registry.promote(registry.version(loser), after=registry.champion(), why="better").previous == winner


def test_a_move_whose_maker_died_before_it_pointed_the_alias_counts(registry: Registry, database: str) -> None:
    models(registry, 2)
    registry.promote(registry.version(1), after=None, why="first")
    registry.promote(registry.version(2), after=registry.champion(), why="better")
    MlflowClient(database).set_registered_model_alias(registry.name, "champion", "1")  # as if the last step was lost
    champion = registry.champion()
    assert champion is not None
    assert champion.version == 2
    assert registry.roll_back().version == alias(registry, "champion") == 1


@pytest.mark.slow
def test_behind_a_server_a_race_has_one_winner_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.create_database(database)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port)]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    environment = {**os.environ, **tracking.ENVIRONMENT}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            _wait_for(f"{address}/health")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            registry = Registry.from_environment(request.node.name)
            client = MlflowClient(address)
            run = client.create_run(client.create_experiment("e")).info.run_id
            version = registry.register(replace(MODEL, repeat=9), uri="/srv/store/models/m", run_id=run)
            assert client.get_model_version(registry.name, str(version.number)).run_id == run
            registry.decide(version, verdict="first", reasons=["a"], checks=["{}"], after=0)
            told = race(registry, models(registry, 2))
            assert sum(isinstance(result, int) for result in told) == 1
            assert len(registry.history()) == 1
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _wait_for(url: str) -> None:
    for _ in range(240):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.5)
    raise TimeoutError(url)
