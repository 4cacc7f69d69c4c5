"""Collapse, divergence and speed of a run."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medssl.config import PretrainRun
from medssl.exit_codes import BadInputError
from medssl.model.losses import nt_xent
from medssl.progress import Progress
from medssl.train.history import COLLAPSED, History
from medssl.train.monitors import (
    PATIENCE_POINTS,
    Divergence,
    Throughput,
    chance_loss,
    collapse,
    spread,
    watch_collapse,
)

CPU = torch.device("cpu")
HEALTHY = {"loss": 1.0, "projection_std": 0.9, "representation_std": 0.4}


def make_run(**changes: Any) -> PretrainRun:
    base = {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 1000, "batch_size": 8, "warmup_steps": 10}
    return PretrainRun.model_validate(base | changes)


def history_of(points: list[dict[str, float]], *, first_step: int = 10) -> History:
    return [(name, first_step + i, value) for i, point in enumerate(points) for name, value in point.items()]


def test_spread_is_zero_where_rows_coincide_and_one_where_directions_are_even() -> None:
    assert spread(torch.ones(9, 4) * torch.arange(1.0, 10)[:, None]) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert spread(torch.randn(2000, 64)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("reduction", ["paper", "code"])
def test_the_loss_of_chance_is_that_of_projections_that_coincide(reduction: str) -> None:
    run = make_run(loss_reduction=reduction)
    z = torch.ones(8, 3)
    loss = nt_xent(z, z, temperature=run.temperature, reduction=run.loss_reduction)
    assert loss.item() == pytest.approx(chance_loss(run))
    assert chance_loss(make_run(loss_reduction="paper")) == pytest.approx(math.log(15))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"projection_std": 0.001}, "projections coincide"),
        ({"representation_std": 0.001}, "representations coincide"),
        ({"loss": 2 * math.log(15)}, "no better than"),
        ({"loss": 2 * math.log(15) + 1}, "no better than"),
    ],
)
def test_a_collapse_is_told_after_ten_points_in_a_row_and_not_in_the_warm_up(
    bad: dict[str, float], reason: str
) -> None:
    run, ill = make_run(), HEALTHY | bad
    assert reason in collapse(history_of([HEALTHY] + [ill] * PATIENCE_POINTS), run)
    assert not collapse(history_of([HEALTHY] + [ill] * (PATIENCE_POINTS - 1)), run)
    assert not collapse(history_of([ill] * PATIENCE_POINTS + [HEALTHY]), run)
    assert not collapse(history_of([ill] * PATIENCE_POINTS, first_step=9), run)
    assert not collapse(history_of([HEALTHY] * 50), run)


def test_one_point_of_projections_that_coincide_is_enough_at_the_end() -> None:
    points = history_of([HEALTHY, HEALTHY | {"projection_std": 0.001}])
    assert "coincide" in collapse(points, make_run(), is_over=True)
    assert not collapse(history_of([HEALTHY, HEALTHY | {"loss": 9.0}]), make_run(), is_over=True)


def test_a_collapse_is_said_once_and_noted_with_its_recovery(capsys: pytest.CaptureFixture[str]) -> None:
    run, history = make_run(), History()
    ill = HEALTHY | {"projection_std": 0.001}
    for step, point in enumerate([ill] * 15 + [HEALTHY] * 3 + [ill] * 12, start=10):
        history += [(name, step, value) for name, value in point.items()]
        watch_collapse(history, run, step, speaks=True)
    assert [(step, value) for name, step, value in history if name == COLLAPSED] == [(19, 1.0), (25, 0.0), (37, 1.0)]
    assert capsys.readouterr().out.count("warning: pretrain a: collapsed by step 19") == 1


def test_a_collapse_ends_a_run_that_wants_it_on_every_rank() -> None:
    history = history_of([HEALTHY | {"projection_std": 0.001}] * PATIENCE_POINTS)
    with pytest.raises(BadInputError, match="lower learning_rate or lengthen warmup_steps"):
        watch_collapse(history, make_run(on_collapse="stop"), 19, speaks=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_was_not_finite_once_is_not_forgotten(bad: float) -> None:
    model, divergence = nn.Linear(2, 2), Divergence(make_run(), CPU)
    divergence.note(torch.tensor(1.0))
    divergence.refuse(model, 0)
    for loss in (bad, 1.0):
        divergence.note(torch.tensor(loss))
    with pytest.raises(BadInputError, match="not finite by step 3; lower learning_rate"):
        divergence.refuse(model, 3)


def test_a_weight_that_is_not_finite_is_refused_though_no_loss_has_shown_it() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 1] = math.nan
    with pytest.raises(BadInputError, match="a weight is not finite"):
        Divergence(make_run(), CPU).refuse(model, 0)


def ticking() -> tuple[Callable[[], float], Callable[[float], None]]:
    now = [0.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    return lambda: now[0], advance


def test_speed_and_waiting_are_of_the_last_window_and_the_rest_of_the_whole_run() -> None:
    clock, advance = ticking()
    throughput = Throughput(64, Progress("x", 10, done=2, clock=clock), CPU, clock=clock)
    for wait_s, work_s in ((1.0, 3.0), (1.0, 3.0)):
        with throughput.waiting_for_data():
            advance(wait_s)
        advance(work_s)
    assert throughput.measure(4) == {"images_per_s": 16.0, "data_wait_share": 0.25, "remaining_s": 24.0}
    advance(100)  # a probe
    throughput.begin_window()
    with throughput.waiting_for_data():
        advance(0)
    advance(2)
    found = throughput.measure(5)
    assert (found["images_per_s"], found["data_wait_share"]) == (32.0, 0.0)
    assert found["remaining_s"] == pytest.approx((8 + 102) / 3 * 5)
