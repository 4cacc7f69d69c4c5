import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medssl.exit_codes import BAD_INPUT, TERMINATED, BadInputError
from medssl.stages import step as steps
from medssl.store import Store


def make(store: Store, *, code_version: str = "1", text: str = "x", config: dict[str, int] | None = None) -> list[str]:
    """Run one step; returns the URI of its result, and "worked" where the work was done."""
    done = []
    with steps.start("ingest", store=store, code_version=code_version, config=config or {}, inputs={}) as step:
        if step.made is None:
            done.append("worked")
            (step.folder / "a.txt").write_text(text)
            step.finish("index", {})
    return [step.result.uri, *done]


def test_the_same_work_is_done_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert make(store)[1:] == ["worked"]
    assert make(store)[1:] == []
    assert make(store, config={"a": 1})[1:] == ["worked"]
    assert make(store, code_version="2")[1:] == ["worked"]


def test_a_result_whose_bytes_are_gone_is_made_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    uri = make(store)[0]
    (Path(uri) / "a.txt").unlink()
    assert make(store) == [uri, "worked"]
    assert (Path(uri) / "a.txt").read_text() == "x"


def test_metadata_is_the_same_for_the_same_work_in_another_store(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        with steps.start("ingest", store=Store(str(tmp_path / name)), code_version="1", config={}, inputs={}) as step:
            step.finish("index", {})
        made.append(step.result.metadata)
    assert made[0] == made[1]


def test_another_way_to_the_same_inputs_is_the_same_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    catalogs = [store.open(make(store, text=text, config={"t": text})[0]) for text in ("p", "q")]
    keys = set()
    for catalog in catalogs:
        with steps.start(
            "finetune", store=store, code_version="1", config={}, inputs={}, lineage={"catalog": catalog}
        ) as step:
            if step.made is None:
                step.finish("models", {})
        keys.add(step.key)
    assert len(keys) == 1


def test_a_record_of_the_work_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make(store)
    (record,) = store.records()
    assert (record["stage"], record["code_version"], record["output"]["kind"]) == ("ingest", "1", "index")


def test_a_step_that_fails_is_not_remembered(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(BadInputError), steps.start("x", store=store, code_version="1", config={}, inputs={}):
        raise BadInputError("no")
    assert make(store)[1:] == ["worked"]


PROGRAM = """
import os, sys, time
from medssl.exit_codes import BadInputError
from medssl.stages import step as steps
from medssl.store import Store
with steps.start("x", store=Store(sys.argv[1]), code_version="1", config={}, inputs={}) as step:
    print("ready", flush=True)
    if sys.argv[2] == "bad":
        raise BadInputError("row 7 is wrong; mend it")
    if sys.argv[2] == "bug":
        raise KeyError("bug")
    time.sleep(30)
"""


@pytest.mark.parametrize(
    ("how", "code", "stderr"),
    [
        ("bad", BAD_INPUT, "error: row 7 is wrong; mend it\n"),
        ("stop", TERMINATED, "error: stopped"),
        ("bug", 1, "Traceback"),
    ],
)
def test_a_process_ends_with_the_code_of_its_reason(tmp_path: Path, how: str, code: int, stderr: str) -> None:
    failure = tmp_path / "failure.json"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), how],
        env={**os.environ, "MEDSSL_FAILURE_FILE": str(failure)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["▸ x\n", "ready\n"]
    if how == "stop":
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.startswith(stderr)
    assert json.loads(failure.read_text())["exit_code"] == code
