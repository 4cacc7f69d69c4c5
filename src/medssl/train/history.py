"""Training curves: (metric, step, value) triples."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from medssl import schema

History = list[tuple[str, int, float]]

COLLAPSED = "collapsed"  # a curve with a point at each change: 1 where a run collapses, 0 where it recovers


def last(history: Sequence[tuple[str, int, float]], name: str) -> float | None:
    """The latest value of a metric; None where it has none yet."""
    return next((value for metric, _, value in reversed(history) if metric == name), None)


def from_state(points: Iterable[Any]) -> History:
    """Curves as they were before they went through a file."""
    return [(str(metric), int(step), float(value)) for metric, step, value in points]


def write_history(run: str, history: History, path: Path) -> None:
    """Write training curves as a table."""
    metric, step, value = zip(*history, strict=True) if history else ((), (), ())
    columns = {"run": [run] * len(metric), "metric": list(metric), "step": list(step), "value": list(value)}
    schema.write(pa.table(columns, schema=schema.HISTORY.columns), schema.HISTORY, path)
