"""The processes of one run on this machine: only one run a folder, stopped together, none left behind."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from medssl.exit_codes import BadInputError

RUN_DIR_VARIABLE = "MEDSSL_RUN_DIR"  # marks every process of a run, so that one that outlives it is found
STOP_GRACE_S = 90.0


@contextmanager
def only_run_in(out_dir: Path) -> Iterator[None]:
    """Within, no other run works in `out_dir`; what a killed one left running is ended first.

    Raises:
        BadInputError: Another run is at work there.
    """
    with (out_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInputError(f"another run is at work in {out_dir}; wait for it, or give another --out") from None
        end_leftovers(out_dir)
        yield


class Stop:
    """Whether a stop was asked for."""

    requested = False


@contextmanager
def stopping(group: int) -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM are passed on to the process group of the run."""
    stop = Stop()

    def pass_on(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_leftovers(out_dir: Path, *, grace_s: float = STOP_GRACE_S) -> None:
    """End processes of a run in `out_dir` that outlived it (a killed parent leaves them), first gently."""
    deadline_s = time.monotonic() + grace_s
    asked: set[int] = set()
    while pids := _processes_of(out_dir):
        last_call = time.monotonic() > deadline_s
        for pid in pids:
            if last_call or pid not in asked:
                asked.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if last_call else signal.SIGTERM)
        time.sleep(0.2)


def _processes_of(out_dir: Path) -> list[int]:
    """Other live processes that carry this run's mark in their environment (Linux only)."""
    mark = f"{RUN_DIR_VARIABLE}={out_dir}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark in (entry / "environ").read_bytes().split(b"\0")
            is_dead = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            continue
        if is_ours and not is_dead and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
