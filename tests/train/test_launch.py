"""Real torchrun processes: how each kind of end comes back to the stage that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medssl.config import Section
from medssl.exit_codes import BAD_INPUT, FAILURE, FAILURE_FILE_VARIABLE, TERMINATED, BadInputError, TerminatedError
from medssl.train.launch import PROCESSES_VARIABLE, launch

WORKER = """
import os, signal, sys, time
from pathlib import Path
from medssl.config import Section
from medssl.exit_codes import BadInputError, TerminatedError
from medssl.train.distributed import StopRequest
from medssl.train.worker import run_worker

class Job(Section):
    folder: Path
    what: str

def work(job, ranks):
    (job.folder / f"began-{ranks.rank}").write_text(str(os.getpid()))
    if job.what == "refuse" and ranks.rank == ranks.world_size - 1:
        raise BadInputError("batch_size is 7, expected an even number")
    if job.what == "crash" and ranks.rank == ranks.world_size - 1:
        raise ValueError("a bug")
    if job.what == "die" and ranks.rank == ranks.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.what == "wait":
        stop = StopRequest()
        while not ranks.any(stop.requested):
            time.sleep(0.05)
        (job.folder / f"saved-{ranks.rank}").touch()
        raise TerminatedError("stopped after saving")
    ranks.wait()
    (job.folder / f"done-{ranks.rank}").touch()

if __name__ == "__main__":
    run_worker(work, Job)
"""
# What a component does with the stage's own errors: the exit code that the scheduler sees.
STAGE = """
import sys
from pathlib import Path
from medssl.config import Section
from medssl.exit_codes import install_excepthook
from medssl.train.launch import launch

class Job(Section):
    folder: Path
    what: str

install_excepthook()
job = Job(folder=Path(sys.argv[1]), what=sys.argv[2])
launch("worker_under_test", job, job.folder / "job.json", has_machine_alone=True)
"""


class Job(Section):
    folder: Path
    what: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "worker_under_test.py").write_text(WORKER)
    (tmp_path / "stage_under_test.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setenv(FAILURE_FILE_VARIABLE, str(tmp_path / "failure-of-stage.json"))
    return tmp_path


def run(folder: Path, what: str) -> None:
    launch("worker_under_test", Job(folder=folder, what=what), folder / "job.json", has_machine_alone=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_that_end_well_return(folder: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setenv(PROCESSES_VARIABLE, str(processes))
    run(folder, "finish")
    assert sorted(path.name for path in folder.glob("done-*")) == [f"done-{rank}" for rank in range(processes)]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("refuse", BadInputError, "batch_size is 7, expected an even number"),
        ("crash", RuntimeError, "worker_under_test failed with exit code 1: a bug"),
        ("die", RuntimeError, r"worker_under_test failed with exit code 1: (see the lines above|.*Connection)"),
    ],
)
def test_the_last_ranks_end_is_the_stages_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    with pytest.raises(kind, match=message):
        run(folder, what)


@pytest.mark.parametrize(("what", "code"), [("refuse", BAD_INPUT), ("crash", FAILURE)])
def test_the_stage_process_ends_with_the_documented_code(folder: Path, what: str, code: int) -> None:
    command = [sys.executable, str(folder / "stage_under_test.py"), str(folder), what]
    assert subprocess.run(command, timeout=120).returncode == code


def test_sigterm_reaches_every_rank_and_the_stage_ends_as_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    stage = subprocess.Popen([sys.executable, str(folder / "stage_under_test.py"), str(folder), "wait"])
    deadline_s = time.monotonic() + 120
    while len(list(folder.glob("began-*"))) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    time.sleep(0.5)  # until the handlers are there
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(timeout=120) == TERMINATED
    assert {path.name for path in folder.glob("saved-*")} == {"saved-0", "saved-1"}


def test_a_failure_of_an_earlier_try_is_not_taken_for_this_ones(folder: Path) -> None:
    with pytest.raises(BadInputError):
        run(folder, "refuse")
    with pytest.raises(RuntimeError, match="see the lines above"):
        run(folder, "die")


def test_an_interruption_is_no_exception_that_carries_on() -> None:
    assert not issubclass(TerminatedError, Exception)
