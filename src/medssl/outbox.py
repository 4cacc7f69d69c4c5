"""What MLflow is to be told, kept on disk until it has been told: a journal for each task and each study.

Tracking writes here and delivers from here, so that a tracking server that is away costs nothing: the next task, the
end of the study or `medssl deliver` hands over what it has not taken. A journal is only appended to; beside it stands
how far it has been delivered, and to which run. Every entry may be delivered twice with the same effect, and a metric
keeps the time at which it was written, by which MLflow knows it again.

A process that works on a journal holds its lock, which the system takes away when the process dies: a journal without
an end whose lock is free belongs to a task that was killed.
"""

import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from medssl.store import write_json

BEGINNINGS = ("task", "study")  # kinds of entries with which an attempt begins
_JOURNAL, _STATE, _LOCK = ".jsonl", ".json", ".lock"
_UNREACHABLE = "unreachable"
_PAUSE_S = 60.0  # after a failure, for which no task tries again: a server that hangs costs seconds a minute, not more

_PATH = re.compile(r"\S*[/\\]\S*")
_MAX_REASON_CHARS = 200


class Entry(NamedTuple):
    """One thing to tell: what it is, and where its line ends in the file."""

    kind: str
    content: Mapping[str, Any]
    end: int


@dataclass(frozen=True)
class State:
    """How far a journal has been delivered.

    Attributes:
        offset: Bytes that have been.
        run_id: Of the MLflow run that took them, or "".
        has_ended: Whether the last entry so far was an end.
    """

    offset: int = 0
    run_id: str = ""
    has_ended: bool = False


@dataclass
class Journal:
    """The journal called `key` in `folder`.

    Args:
        folder: See `folder_of`; made when something is written.
        key: Step key of a task, or run key of a study.
    """

    folder: Path
    key: str
    _lock: TextIO | None = field(default=None, repr=False)

    def claim(self) -> bool:
        """Take the lock, if no other process holds it; held until `release` or the end of this process."""
        if self._lock is not None:
            return True
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._path(_LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, kind: str, **content: Any) -> None:
        """Write one entry, on disk when this returns."""
        line = json.dumps({"kind": kind, **content}) + "\n"
        path = self._path(_JOURNAL)
        with path.open("ab") as file:
            if file.tell() and not _ends_a_line(path):  # a process was killed while it wrote
                file.write(b"\n")
            file.write(line.encode())

    def pending(self) -> Iterator[Entry]:
        """Entries that have not been delivered, oldest first; a line that a killed process left broken is none."""
        path = self._path(_JOURNAL)
        if not path.exists():
            return
        with path.open("rb") as file:
            end = file.seek(self.state.offset)
            for line in file:
                end += len(line)
                if not line.endswith(b"\n"):  # still being written, or never finished
                    return
                try:
                    content = json.loads(line)
                    kind = content.pop("kind")
                except (ValueError, KeyError, AttributeError):
                    continue
                yield Entry(kind, content, end)

    @property
    def state(self) -> State:
        """How far it has been delivered."""
        try:
            return State(**json.loads(self._path(_STATE).read_text()))
        except FileNotFoundError:
            return State()

    def mark(self, entry: Entry, run_id: str) -> None:
        """Remember that everything up to `entry` has been delivered, to the run `run_id`."""
        self._save(State(entry.end, run_id, _ends(entry, self.state.has_ended)))

    def has_ended(self) -> bool:
        """Whether the last attempt that it tells of, delivered or not, says how it ended."""
        ended = self.state.has_ended
        for entry in self.pending():
            ended = _ends(entry, ended)
        return ended

    def shorten(self) -> None:
        """Drop what has been delivered, if that is all and the run has ended; its id stays."""
        state, path = self.state, self._path(_JOURNAL)
        if state.has_ended and path.exists() and not any(self.pending()):
            # In this order: what a kill between them leaves is delivered twice, which does no harm.
            self._save(State(0, state.run_id, state.has_ended))
            path.unlink()

    def _save(self, state: State) -> None:
        write_json(self._path(_STATE), vars(state))

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.key}{suffix}"


def journals(folder: Path) -> list[Journal]:
    """Every journal with something in it, the oldest first."""
    paths = sorted(folder.glob(f"*{_JOURNAL}"), key=lambda path: path.stat().st_mtime_ns)
    return [Journal(folder, path.stem) for path in paths]


def run_ids(folder: Path) -> dict[str, str]:
    """By step or run key, the MLflow run that took the journal's entries."""
    keys = [path.stem for path in folder.glob(f"*{_STATE}")]
    return {key: run_id for key in keys if (run_id := Journal(folder, key).state.run_id)}


def note_unreachable(folder: Path) -> None:
    """Remember that a delivery from `folder` failed just now."""
    (folder / _UNREACHABLE).touch()


def note_reachable(folder: Path) -> None:
    """Forget that a delivery failed."""
    (folder / _UNREACHABLE).unlink(missing_ok=True)


def was_unreachable(folder: Path) -> bool:
    """Whether a delivery from `folder` failed within the last minute."""
    try:
        return time.time() - (folder / _UNREACHABLE).stat().st_mtime < _PAUSE_S
    except FileNotFoundError:
        return False


def reason(error: BaseException) -> str:
    """Class and first line of what an error came from, without paths."""
    while error.__cause__:
        error = error.__cause__
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {_PATH.sub('…', first)[:_MAX_REASON_CHARS]}"


def _ends(entry: Entry, has_ended: bool) -> bool:
    """Whether the run is over after `entry`."""
    return entry.kind == "end" or (has_ended and entry.kind not in BEGINNINGS)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
