"""Exit codes of every process of the project, and the hook that ends a process with the right one.

A scheduler reads these codes: bad configuration or input (78) must not be retried, an interruption (143) must be.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

OK = 0
FAILURE = 1
USAGE = 2
BAD_INPUT = 78  # EX_CONFIG of sysexits.h: retrying cannot help
TERMINATED = 128 + signal.SIGTERM

FAILURE_FILE_VARIABLE = "MEDSSL_FAILURE_FILE"


class BadInputError(Exception):
    """What a user gave cannot be used: a file, a table, a configuration. The message says what to do."""


class TerminatedError(BaseException):
    """The process was asked to stop (SIGTERM) and has saved its work.

    No `Exception`: code that carries on after an error must not carry on after this.
    """


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Within, SIGTERM raises TerminatedError, so that runs are closed and work is kept."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TerminatedError("stopped by SIGTERM; run again to go on")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def exit_code(error: BaseException) -> int:
    """The exit code with which a process that dies of `error` should end."""
    if isinstance(error, BadInputError):
        return BAD_INPUT
    if isinstance(error, TerminatedError):
        return TERMINATED
    return FAILURE


def record_failure(error: BaseException) -> None:
    """Write the reason into the file named by MEDSSL_FAILURE_FILE, unless one stands there.

    A parent that sees only a failed task (KFP reports no more) finds it there; it removes what an earlier try left. Of
    several processes the first one counts: those that lose their partner die of that, and not of the cause.
    """
    if failure_file := os.environ.get(FAILURE_FILE_VARIABLE):
        with suppress(FileExistsError), Path(failure_file).open("x") as file:
            file.write(json.dumps({"exit_code": exit_code(error), "message": f"{error}"}))


def install_excepthook() -> None:
    """End this process with the code of the project's own errors, told in one line instead of a traceback.

    The line is recorded for the parent, too. Other errors keep their traceback and exit code 1.
    """
    previous: Callable[[type[BaseException], BaseException, TracebackType | None], object] = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        code = exit_code(error)
        record_failure(error)
        if code == FAILURE:
            previous(kind, error, trace)
            return
        sys.stderr.write(f"error: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        # An exception hook cannot change the exit code; at this point nothing is left to clean up.
        os._exit(code)

    sys.excepthook = hook
