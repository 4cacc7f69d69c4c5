"""Training curves: (metric, step, value) triples."""

from pathlib import Path

import pyarrow as pa

from medssl import schema

History = list[tuple[str, int, float]]


def write_history(run: str, history: History, path: Path) -> None:
    """Write training curves as a table."""
    metric, step, value = zip(*history, strict=True) if history else ((), (), ())
    columns = {"run": [run] * len(metric), "metric": list(metric), "step": list(step), "value": list(value)}
    schema.write(pa.table(columns, schema=schema.HISTORY.columns), schema.HISTORY, path)
