"""Starts training processes through torchrun, one process included, and tells how they ended.

torchrun turns every failure of a worker into exit code 1; the worker's own reason comes back through a file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from medssl.config import Section
from medssl.exit_codes import BAD_INPUT, FAILURE_FILE_VARIABLE, TERMINATED, BadInputError, TerminatedError
from medssl.train.resources import SHARING_VARIABLE, num_cores

PROCESSES_VARIABLE = "MEDSSL_PROCESSES"
THREADS_VARIABLE = "MEDSSL_THREADS"
PARALLEL_TASKS_VARIABLE = "MEDSSL_PARALLEL_TASKS"
# The allocator keeps freed memory of any size for the next step instead of giving it back to the system, whose new
# pages cost a training step on a CPU a seventh of its time; the peak of memory grows by some percent.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
GRACE_S = 60.0  # for a worker to save its state after SIGTERM


def num_processes() -> int:
    """Processes of one training task; negatives and batch norms span them all, so results differ by rounding alone."""
    return int(os.environ.get(PROCESSES_VARIABLE, "1"))


def launch(module: str, job: Section, job_path: Path, *, has_machine_alone: bool) -> None:
    """Run `job` in MEDSSL_PROCESSES processes (default 1) of MEDSSL_THREADS threads and wait for its end.

    The default number of threads divides the cores among all processes that run at the same time: a thread too many
    waits for the others in a busy loop and slows training many times over.

    Args:
        module: What each process runs. The name stands in the calling stage as a literal, which makes the module
            part of that stage's code version.
        job: What to do; written to `job_path` for the workers.
        job_path: A file in a folder that exists.
        has_machine_alone: Whether no other of MEDSSL_PARALLEL_TASKS tasks runs beside this one.

    Raises:
        BadInputError: A worker found that its input cannot be used.
        TerminatedError: SIGTERM came; the message says whether the workers have saved their state.
        RuntimeError: A worker failed; its traceback has been printed.
    """
    processes = num_processes()
    neighbours = 1 if has_machine_alone else int(os.environ.get(PARALLEL_TASKS_VARIABLE, "1"))
    sharing = processes * neighbours
    threads = int(os.environ.get(THREADS_VARIABLE, "0")) or max(1, num_cores() // sharing)
    job_path.write_text(job.model_dump_json())
    failure_file = job_path.with_suffix(".failure")
    failure_file.unlink(missing_ok=True)
    environment = {
        # Threads that wait give their core away soon: under any other load, long busy waiting more than doubles the
        # time of a step, while on an idle machine this short one costs nothing.
        "GOMP_SPINCOUNT": "10000",
        **ALLOCATOR,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        SHARING_VARIABLE: str(sharing),
        FAILURE_FILE_VARIABLE: str(failure_file),
        "PYTHONUNBUFFERED": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    command += ["-m", module, str(job_path)]
    code, stopped = _run(command, environment)
    if code == 0 and not stopped:
        return
    reason = json.loads(failure_file.read_text()) if failure_file.is_file() else {}
    if reason.get("exit_code") == TERMINATED:
        raise TerminatedError("training was stopped and has saved its state; run again to go on")
    if stopped:
        raise TerminatedError("training was stopped before it could save its state; run again from the last one saved")
    if reason.get("exit_code") == BAD_INPUT:
        raise BadInputError(reason["message"])
    raise RuntimeError(f"{module} failed with exit code {code}: {reason.get('message', 'see the lines above')}")


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Exit code of `command`, and whether it was asked to stop by a SIGTERM passed on from here."""
    process = subprocess.Popen(command, env=environment)
    stopped = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        process.send_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        deadline_s = None
        while process.poll() is None:
            if stopped and deadline_s is None:
                deadline_s = time.monotonic() + GRACE_S
            if deadline_s is not None and time.monotonic() > deadline_s:
                process.kill()
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if process.poll() is None:
            process.kill()
    return process.returncode, stopped
