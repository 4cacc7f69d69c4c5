"""Grids of pretraining settings: what they expand to."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from medssl.config import load_study
from medssl.pretraining_grid import expand

DEMO = Path(__file__).parents[1] / "pipelines" / "studies" / "demo.yaml"


def test_a_study_without_grids_stays_as_it_is() -> None:
    study = {"pretraining": [{"name": "a", "init": "random"}], "arms": [{"name": "x", "init": "a"}], "name": "s"}
    assert expand(study) == study


@given(st.integers(1, 3), st.integers(1, 3))
def test_there_is_a_run_and_an_arm_a_point_and_others_stay(num_rates: int, num_temperatures: int) -> None:
    rates, temperatures = [0.1 * (i + 1) for i in range(num_rates)], [0.1 * (i + 1) for i in range(num_temperatures)]
    grid = {"learning_rate": rates, "temperature": temperatures}
    study = {
        "pretraining": [{"name": "simclr", "grid": grid, "seed": 7}, {"name": "other"}],
        "arms": [{"name": "x", "init": "simclr"}, {"name": "y", "init": "other"}, {"name": "z"}],
    }
    expanded = expand(study)
    points = [(r, t) for r in rates for t in temperatures]
    runs = expanded["pretraining"][:-1]
    assert [(run["learning_rate"], run["temperature"], run["seed"]) for run in runs] == [(*p, 7) for p in points]
    names = [f"simclr-{i + 1}" for i in range(len(points))]
    assert [run["name"] for run in runs] == names
    assert expanded["pretraining"][-1] == {"name": "other"}
    assert [arm.get("init") for arm in expanded["arms"]] == [*names, "other", None]
    assert [arm["name"] for arm in expanded["arms"]] == [*(f"x-{i + 1}" for i in range(len(points))), "y", "z"]
    assert [arm.get("group") for arm in expanded["arms"]] == [*("x" for _ in points), None, None]


def test_a_grid_on_top_of_a_grid_starts_from_each_point_whatever_the_order_in_the_file() -> None:
    runs = [
        {"name": "micle", "init": "simclr", "grid": {"seed": [1, 2]}},
        {"name": "simclr", "init": "random", "grid": {"temperature": [0.1, 0.5]}},
    ]
    expanded = expand({"pretraining": runs, "arms": [{"name": "x", "init": "micle"}]})
    by_name = {run["name"]: (run["init"], run.get("seed")) for run in expanded["pretraining"]}
    assert by_name == {
        "simclr-1": ("random", None),
        "simclr-2": ("random", None),
        "micle-1": ("simclr-1", 1),
        "micle-2": ("simclr-1", 2),
        "micle-3": ("simclr-2", 1),
        "micle-4": ("simclr-2", 2),
    }
    assert len(expanded["arms"]) == 4


def test_arms_of_several_grids_are_one_group_where_they_name_it() -> None:
    runs = [{"name": name, "grid": {"seed": [1, 2]}} for name in ("small", "large")]
    arms = [{"name": f"x-{name}", "init": name, "group": "x"} for name in ("small", "large")]
    expanded = expand({"pretraining": runs, "arms": arms})["arms"]
    assert [(arm["name"], arm["group"]) for arm in expanded] == [
        (f"x-{name}-{i}", "x") for name in ("small", "large") for i in (1, 2)
    ]


def test_a_study_file_with_a_grid_is_a_study_of_all_its_points() -> None:
    pairs = "compare.pairs=[[micle-1, micle-2], [micle, random]]"
    study = load_study(DEMO, ["pretraining.micle.grid={temperature: [0.1, 0.5]}", pairs])
    assert [run.name for run in study.pretraining] == ["simclr", "micle-1", "micle-2"]
    assert [run.temperature for run in study.pretraining] == [0.1, 0.1, 0.5]
    assert [(arm.name, arm.init) for arm in study.arms[2:]] == [("micle-1", "micle-1"), ("micle-2", "micle-2")]
    assert len({arm.method for arm in study.arms[2:]}) == 1
