"""Grids of pretraining settings in a study file: shorthand for as many runs, and arms, as it has points (spec 1.6).

Which point is best, validation of the fine-tuned models tells: each has an arm of its own, and all of them the same
method and group.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeGuard

KEY = "grid"


def expand(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study, as read from YAML, with each run that has a grid replaced by one run a point.

    Point number i of the run NAME is called NAME-i, from 1, the last key of the grid changing fastest. A run or an arm
    that starts from NAME is replaced likewise, so that it starts from each of the points; these arms are a group:
    that of the one that they replace, else one with its name.

    Raises:
        ValueError: A grid is not a list of values by key, or gives a key that the run itself gives.
    """
    pretraining, arms = study.get("pretraining"), study.get("arms")
    if not _are_mappings(pretraining) or not any(KEY in run for run in pretraining):
        return dict(study)
    number_of: dict[str, int] = {}
    runs: list[dict[str, Any]] = []
    waiting = [dict(run) for run in pretraining]
    while waiting:
        names = {str(run.get("name")) for run in waiting}
        ready = [run for run in waiting if run.get("init") not in names] or waiting  # a circle is told by the study
        for run in ready:
            name = str(run.get("name"))
            points = [point for start in _starts(run, number_of) for point in _points(start)]
            if len(points) > 1 or KEY in run:
                number_of[name] = len(points)
                points = [point | {"name": f"{name}-{i}"} for i, point in enumerate(points, start=1)]
            runs += points
        waiting = [run for run in waiting if run not in ready]
    expanded = {**study, "pretraining": runs}
    if _are_mappings(arms):
        expanded["arms"] = [
            own
            | (
                {"group": arm.get("group") or arm["name"], "name": f"{arm['name']}-{i}"}
                if arm.get("init") in number_of and "name" in arm
                else {}
            )
            for arm in arms
            for i, own in enumerate(_starts(arm, number_of), start=1)
        ]
    return expanded


def _are_mappings(items: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(items, Sequence) and all(isinstance(item, Mapping) for item in items)


def _starts(item: Mapping[str, Any], number_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """The item once for each point of the grid that it starts from."""
    init = str(item.get("init"))
    if init not in number_of:
        return [dict(item)]
    return [{**item, "init": f"{init}-{i}"} for i in range(1, number_of[init] + 1)]


def _points(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    grid = run.get(KEY, {})
    name = run.get("name")
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError(
            f"pretraining: {name}: grid: expected a list of values for each key, such as temperature: [0.1, 0.5]"
        )
    if doubled := sorted(set(grid) & set(run)):
        raise ValueError(f"pretraining: {name}: {doubled} stand both in the run and in its grid; remove one")
    plain = {key: value for key, value in run.items() if key != KEY}
    return [plain | dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
