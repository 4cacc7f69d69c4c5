import pytest

from medssl.progress import MARK, TASK_MARK, Progress, begin_task, duration, say


def test_a_line_tells_how_far_and_how_long_still(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 1.0, 10.0, 40.0])
    bar = Progress("pretrain", 40, unit="steps", every_s=5, clock=lambda: next(now))
    for done in (1, 10, 40):
        bar.update(done, "loss 1.5")
    assert capsys.readouterr().out.splitlines() == [
        f"{MARK}pretrain: 10/40 steps, loss 1.5, 0:30 left",
        f"{MARK}pretrain: 40/40 steps, loss 1.5, took 0:40",
    ]


def test_steps_of_an_earlier_process_count_as_done_but_not_for_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 10.0])
    Progress("x", 100, done=80, clock=lambda: next(now)).update(90)
    assert capsys.readouterr().out == f"{MARK}x: 90/100 items, 0:10 left\n"


def test_within_a_task_every_line_names_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    with begin_task("predict micle"):
        for message in ("decode test: 1/2", "predict: 1/2", "predict micle: done"):
            say(message)
    say("after")
    assert capsys.readouterr().out.splitlines() == [
        f"{TASK_MARK}predict micle",
        f"{MARK}predict micle: decode test: 1/2",
        f"{MARK}predict micle: 1/2",
        f"{MARK}predict micle: done",
        f"{MARK}after",
    ]


def test_durations_are_written_as_clocks_do() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
