"""`medssl write-report` from tables alone: metrics, and what there is of arms, training histories and predictions."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl import schema
from medssl.commands.tables import TableCommand
from medssl.config import ConfigError, Study, read_yaml, validate
from medssl.exit_codes import BadInputError
from medssl.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa


def _options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--metrics", type=Path, nargs="+", metavar="FILE", help="see `medssl schema metrics`")
    group.add_argument("--arms", type=Path, metavar="FILE", help="what each arm is (default: its name alone)")
    group.add_argument("--history", type=Path, nargs="+", metavar="FILE", default=[], help="training curves")
    group.add_argument("--calibration", type=Path, metavar="FILE", help="reliability curves, as compare writes them")
    group.add_argument(
        "--predictions", type=Path, nargs="+", metavar="FILE", default=[], help="for these curves, where not given"
    )
    group.add_argument(
        "--settings", type=Path, metavar="FILE", help="the study: its YAML file, or study.json of a run's folder"
    )


def _run(options: argparse.Namespace) -> None:
    import pyarrow as pa

    from medssl.analysis import report
    from medssl.analysis.inputs import ReportInputs

    if not options.metrics:
        raise ConfigError("give --metrics: one or more tables of `medssl schema metrics`")
    if options.out.is_file():
        raise ConfigError(f"--out {options.out.name}: expected a folder, found a file")
    metrics = pa.concat_tables([schema.read(path, schema.METRICS) for path in options.metrics])
    if not metrics.num_rows:
        raise BadInputError(f"metrics: {len(options.metrics)} files hold no row; expected what compare writes")
    histories = [schema.read(path, schema.HISTORY) for path in options.history]
    options.out.mkdir(parents=True, exist_ok=True)
    written = report.write(
        ReportInputs(
            metrics=metrics,
            arms=schema.read(options.arms, schema.ARMS) if options.arms else _named(metrics),
            study=_study(options.settings),
            history=pa.concat_tables(histories) if histories else None,
            calibration=_curves(options.calibration, options.predictions),
        ),
        options.out,
    )
    if options.summary is not None:
        options.summary.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.summary, asdict(written))
    counts = f"{written.num_tables} tables, {written.num_figures} figures"
    sys.stdout.write(f"{metrics.num_rows:,} rows of metrics, {counts} in {options.out.name}\n")


def _named(metrics: "pa.Table") -> "pa.Table":
    """A table of arms of which nothing is known but their names."""
    import pyarrow as pa

    names = sorted({str(name) for side in ("arm_a", "arm_b") for name in metrics[side].unique().to_pylist() if name})
    nothing = {"architecture": "Models", "num_steps": 0, "batch_size": None, "augmentation": None}
    rows = [{"arm_id": name, "method": name, "display_name": name, **nothing} for name in names]
    return pa.Table.from_pylist(rows, schema=schema.ARMS.columns)


def _curves(path: Path | None, predictions: Sequence[Path]) -> "pa.Table | None":
    """The reliability curves of a file, or of predictions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if path is not None:
        return schema.read(path, schema.CALIBRATION)
    if not predictions:
        return None
    from medssl.analysis.compare import reliability_curves
    from medssl.analysis.runs import read_runs

    table = pa.concat_tables([schema.read(file, schema.PREDICTIONS) for file in predictions])
    # What a report shows of them is at the largest label fraction.
    largest = pc.max(table["label_fraction"])
    shown = table.filter(pc.and_(pc.equal(table["label_fraction"], largest), table["is_selected"]))
    if not shown.num_rows:
        raise BadInputError(
            f"predictions: none of {table.num_rows:,} rows is of a selected model at the largest label fraction; mark "
            "one repeat of each arm with is_selected"
        )
    try:
        rows = reliability_curves(read_runs(shown))
    except ValueError as error:
        raise BadInputError(str(error)) from None
    return pa.Table.from_pylist(rows, schema=schema.CALIBRATION.columns)


def _study(path: Path | None) -> Mapping[str, Any] | None:
    """The study as JSON values; a run's folder keeps it beside where its data lies."""
    if path is None:
        return None
    raw = read_yaml(path, "study file")
    if isinstance(raw, dict) and set(raw) >= {"study", "key_id"}:
        raw = raw["study"]
    settings: dict[str, Any] = json.loads(validate(Study, raw, path.name).model_dump_json())
    return settings


COMMAND = TableCommand(_options, _run, out="folder to write: index.html, figures and tables")
