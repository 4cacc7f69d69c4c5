import os
import subprocess
import sys
from pathlib import Path

import pytest

from medssl.exit_codes import BadInputError
from pipelines.processes import RUN_DIR_VARIABLE, end_leftovers, only_run_in


def sleeper(
    out_dir: Path, program: str = "import time; print('ready', flush=True); time.sleep(60)"
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, RUN_DIR_VARIABLE: str(out_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_run_left_behind_is_ended_and_other_runs_are_left_alone(tmp_path: Path) -> None:
    ours, other = sleeper(tmp_path / "a"), sleeper(tmp_path / "b")
    end_leftovers(tmp_path / "a", grace_s=10)
    assert ours.wait(timeout=5) == -15
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_process_that_ignores_the_request_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    deaf = sleeper(tmp_path, program)
    end_leftovers(tmp_path, grace_s=0.5)
    assert deaf.wait(timeout=5) == -9


def test_two_runs_never_work_in_one_folder(tmp_path: Path) -> None:
    with only_run_in(tmp_path), pytest.raises(BadInputError, match="another run is at work"), only_run_in(tmp_path):
        pass
    with only_run_in(tmp_path):
        pass
