import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl import outbox
from medssl.outbox import Journal, State


def kinds(journal: Journal) -> list[str]:
    return [entry.kind for entry in journal.pending()]


def test_entries_come_back_in_order_until_they_are_marked(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "k")
    for number in range(4):
        journal.append("metrics", values=[number])
    entries = list(journal.pending())
    assert [entry.content["values"] for entry in entries] == [[0], [1], [2], [3]]
    journal.mark(entries[1], "run")
    again = Journal(tmp_path, "k")
    assert [entry.content["values"] for entry in again.pending()] == [[2], [3]]
    assert (again.state.run_id, again.state.offset) == ("run", entries[1].end)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 200), num=st.integers(1, 4))
def test_a_process_killed_while_it_wrote_loses_that_entry_and_no_other(
    cut: int, num: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    journal = Journal(folder, "k")
    for number in range(num):
        journal.append("metrics", value="x" * 9, number=number)
    path = folder / "k.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = whole[:cut].count(b"\n")
    assert [entry.content["number"] for entry in journal.pending()] == list(range(kept))
    journal.append("end")
    mended = kept + (whole[cut : cut + 1] == b"\n")  # nothing but the end of its line was missing
    assert kinds(journal) == ["metrics"] * mended + ["end"]


def test_an_entry_that_is_being_written_while_others_are_delivered_is_left_for_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "k")
    journal.append("task")
    line = json.dumps({"kind": "metrics"}).encode() + b"\n"
    with (tmp_path / "k.jsonl").open("ab", buffering=0) as file:
        file.write(line[:7])
        delivery = journal.pending()
        delivered = [next(delivery)]
        file.write(line[7:])
    journal.append("end")
    delivered += delivery
    journal.mark(delivered[-1], "run")
    assert [entry.kind for entry in delivered] + kinds(journal) == ["task", "metrics", "end"]


def test_a_delivered_journal_that_has_ended_shrinks_to_its_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "k")
    for kind in ("task", "metrics", "end"):
        journal.append(kind)
        entry = list(journal.pending())[-1]
        journal.mark(entry, "run")
        journal.shorten()
    assert outbox.journals(tmp_path) == []
    assert journal.state == State(0, "run", has_ended=True)
    assert outbox.run_ids(tmp_path) == {"k": "run"}
    journal.append("task")
    assert kinds(journal) == ["task"]
    assert not journal.has_ended()


@pytest.mark.parametrize(
    ("told", "has_ended"),
    [
        (["task"], False),
        (["task", "metrics", "end"], True),
        (["task", "end", "artifact"], True),  # what follows an end belongs to it
        (["task", "end", "task"], False),
        (["study", "end", "study", "tasks", "end"], True),
    ],
)
def test_a_journal_has_ended_when_its_last_attempt_has(tmp_path: Path, told: list[str], has_ended: bool) -> None:
    for num_delivered in range(len(told) + 1):
        journal = Journal(tmp_path / str(num_delivered), "k")
        journal.claim()
        for kind in told:
            journal.append(kind)
        for entry in list(journal.pending())[:num_delivered]:
            journal.mark(entry, "run")
        assert journal.has_ended() == has_ended


HOLD = """
import sys, time
from pathlib import Path
from medssl.outbox import Journal
journal = Journal(Path(sys.argv[1]), "k")
assert journal.claim()
print("held", flush=True)
time.sleep(60)
"""


def test_a_journal_belongs_to_one_process_until_that_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        journal = Journal(tmp_path, "k")
        is_free = journal.claim()
        other.kill()
    assert not is_free
    assert journal.claim()
    journal.release()


def test_a_failure_is_remembered_for_a_minute(tmp_path: Path) -> None:
    assert not outbox.was_unreachable(tmp_path)
    outbox.note_unreachable(tmp_path)
    assert outbox.was_unreachable(tmp_path)
    (mark,) = tmp_path.iterdir()
    os.utime(mark, (time.time() - 61, time.time() - 61))
    assert not outbox.was_unreachable(tmp_path)
    outbox.note_unreachable(tmp_path)
    outbox.note_reachable(tmp_path)
    assert not outbox.was_unreachable(tmp_path)


def test_the_reason_of_an_error_names_no_path() -> None:
    error = RuntimeError("outer")
    error.__cause__ = OSError("cannot open /home/someone/mlflow.db now\nmore")
    assert outbox.reason(error) == "OSError: cannot open … now"
