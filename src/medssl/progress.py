"""Progress lines of long loops: how far, how fast, how long still.

Every line starts with a mark, so that a parent process can tell it from the chatter of libraries, and names the task
that it comes from, since two tasks may talk at the same time.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MARK = "» "
TASK_MARK = "▸ "  # a task begins
TASK_VARIABLE = "MEDSSL_TASK"


def say(message: str) -> None:
    """Print one line for the person who watches the run; within a task it starts with the task's name."""
    task = os.environ.get(TASK_VARIABLE, "")
    if task and not message.startswith(task):
        stage = task.partition(" ")[0]
        message = f"{task}: {message.removeprefix(f'{stage}: ')}"
    sys.stdout.write(f"{MARK}{message}\n")
    sys.stdout.flush()


@contextmanager
def begin_task(name: str) -> Iterator[None]:
    """Tell that a task begins; within, it and the processes that it starts speak under its name.

    A step inside a task is part of it and begins silently.
    """
    if TASK_VARIABLE in os.environ:
        yield
        return
    sys.stdout.write(f"{TASK_MARK}{name}\n")
    sys.stdout.flush()
    os.environ[TASK_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[TASK_VARIABLE]


def duration(seconds: float) -> str:
    """`seconds` as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, thing: str) -> str:
    """A number with its noun, such as "1 task" or "2,000 tasks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


class Progress:
    """Progress of one loop of known length, told at most every `every_s` seconds.

    Args:
        label: What is being done, for example "pretrain simclr".
        total: Number of items of the whole loop, > 0.
        unit: Name of an item, plural.
        done: Items finished before (a resumed loop): they count as done but not for the speed.
        every_s: Least time between two lines, in seconds.
        clock: Monotonic time in seconds; a test passes its own.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str = "items",
        done: int = 0,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._start_done = done
        self._every_s, self._clock = every_s, clock
        self._start_s = self._last_s = clock()

    def of(self, done: int, total: int, detail: str = "") -> None:
        """As `update`, for a loop that knows its length only once it runs."""
        self._total = total
        self.update(done, detail)

    def update(self, done: int, detail: str = "") -> None:
        """Tell that `done` of the items are finished; `detail` may add a loss or a rate."""
        now_s = self._clock()
        if done < self._total and now_s - self._last_s < self._every_s:
            return
        self._last_s = now_s
        elapsed_s = now_s - self._start_s
        is_known = done > self._start_done and done < self._total
        left = f", {duration(self._remaining_s(done, elapsed_s))} left" if is_known else ""
        took = f", took {duration(elapsed_s)}" if done >= self._total else ""
        extra = f", {detail}" if detail else ""
        say(f"{self._label}: {done}/{self._total} {self._unit}{extra}{left}{took}")

    def remaining_s(self, done: int) -> float:
        """Seconds that the rest takes at the speed so far, once `done` items, more than at the start, are finished."""
        return self._remaining_s(done, self._clock() - self._start_s)

    def _remaining_s(self, done: int, elapsed_s: float) -> float:
        return elapsed_s / (done - self._start_done) * (self._total - done)
