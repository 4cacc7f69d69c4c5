"""`medssl compare` from predictions alone: no study, no store, no images, whoever wrote the tables."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl import schema
from medssl.config import CompareConfig, ConfigError, read_yaml, validate
from medssl.exit_codes import BadInputError
from medssl.metrics import PRIMARY
from medssl.progress import Progress
from medssl.stages import analysis
from medssl.store import write_json
from medssl.table_commands import TableCommand

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# With more arms, all pairs of them are more than anyone wants to test.
_MAX_ARMS_OF_ALL_PAIRS = 20
_MAX_ARMS = 500  # in one call; their scores lie in memory together
_MAX_LINES = 40  # printed of each kind


def _options(group: "argparse._ArgumentGroup") -> None:
    fields = CompareConfig.model_fields
    group.add_argument("--predictions", type=Path, nargs="+", metavar="FILE", help="see `medssl schema predictions`")
    group.add_argument("--pairs", nargs="+", metavar="A,B", help="arms to compare (default: all pairs)")
    group.add_argument(
        "--label-efficiency", nargs="+", metavar="ARM,BASELINE", default=[], help="labels that an arm saves"
    )
    for option, name, kind, words in (
        ("--replicates", "num_replicates", int, "of the bootstrap"),
        ("--alpha", "alpha", float, "one minus the level of intervals"),
        ("--specificity", "specificity", float, "at which sensitivities are reported"),
        ("--seed", "seed", int, "of the resamples"),
    ):
        default = fields[name].default
        group.add_argument(option, dest=name, type=kind, default=default, help=f"{words} (default: {default})")
    group.add_argument("--families", type=Path, metavar="YAML", help="a list as in a study's compare.families")
    group.add_argument(
        "--resampling-units", nargs="+", metavar="UNIT", help="patient, image or case (default: patient and the unit)"
    )


def _run(options: argparse.Namespace) -> None:
    predictions = _read(options.predictions or [], options.out)
    config = _config(options, predictions)
    bar = Progress("compare", 1, unit="cells")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    curves_path = options.out.with_suffix(".calibration.parquet")
    try:
        rows = analysis.write_comparison(predictions, config, options.out, curves_path, progress=bar.of)
    except ValueError as error:
        raise BadInputError(str(error)) from None
    if options.summary is not None:
        options.summary.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.summary, _counts(rows))
    sys.stdout.write("\n".join([*_lines(rows, config), f"{len(rows):,} rows in {options.out.name}"]) + "\n")


def _read(paths: Sequence[Path], out_path: Path) -> "pa.Table":
    """The rows of all files in one table."""
    import pyarrow as pa

    if not paths:
        raise ConfigError("give --predictions: one or more tables of `medssl schema predictions`")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"--predictions: {len(paths)} files, some of them given twice; give each once")
    if out_path.is_dir() or out_path.resolve() in {path.resolve() for path in paths}:
        raise ConfigError(f"--out {out_path.name}: expected a new Parquet file, no folder and none of the predictions")
    table = pa.concat_tables([schema.read(path, schema.PREDICTIONS) for path in paths])
    if not table.num_rows:
        raise BadInputError(f"predictions: {len(paths)} files hold no row; expected one a model, unit and class")
    return table


def _config(options: argparse.Namespace, predictions: "pa.Table") -> CompareConfig:
    """The settings of a comparison, as a study would hold them."""
    arms, kinds = (sorted(map(str, predictions[name].unique().to_pylist())) for name in ("arm_id", "unit_kind"))
    if len(arms) > _MAX_ARMS:
        raise BadInputError(
            f"predictions: {len(arms):,} arms; at most {_MAX_ARMS} are compared at once: part the table"
        )
    if options.pairs is None and len(arms) > _MAX_ARMS_OF_ALL_PAIRS:
        raise ConfigError(
            f"{len(arms)} arms make {len(arms) * (len(arms) - 1) // 2:,} pairs; name those to compare by --pairs"
        )
    names = ("num_replicates", "alpha", "specificity", "seed")
    settings = {name: getattr(options, name) for name in names} | {
        "pairs": list(combinations(arms, 2)) if options.pairs is None else _pairs("--pairs", options.pairs, arms),
        "label_efficiency": _pairs("--label-efficiency", options.label_efficiency, arms),
        "resampling_units": options.resampling_units or ["patient", *(kind for kind in kinds if kind in PRIMARY)],
        "families": [] if options.families is None else read_yaml(options.families, "families file"),
    }
    return validate(CompareConfig, settings, "compare")


def _pairs(option: str, texts: Sequence[str], arms: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        first, separator, second = text.partition(",")
        if not separator or not {first, second} <= set(arms):
            possible = ", ".join(arms[:5]) + (f" and {len(arms) - 5} more" if len(arms) > 5 else "")
            raise ConfigError(f"{option} {text}: expected two arms with a comma between them; there are {possible}")
        pairs.append((first, second))
    return pairs


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """How many rows there are of each status and metric."""
    return {
        "rows": len(rows),
        **{
            key: {value: sum(row[key] == value for row in rows) for value in sorted({row[key] for row in rows})}
            for key in ("status", "metric")
        },
    }


def _lines(rows: Sequence[Row], config: CompareConfig) -> Iterator[str]:
    """The primary metric of selected models, its differences, and label efficiency, as a table for a terminal."""
    from medssl.analysis.label_efficiency import SAVED
    from medssl.analysis.results import words
    from medssl.analysis.tables import percent
    from medssl.metrics import unit_kind

    primary = PRIMARY[unit_kind({row["metric"] for row in rows})]
    selected = [row for row in rows if row["repeat"] == "selected" and not row["class"]]
    first = [row for row in selected if row["resampling_unit"] in _first_units(selected, config)]
    of_primary = [row for row in first if (row["metric"], row["k"]) == (primary.name, primary.k)]
    level = percent(1 - config.alpha)
    for title, found in (
        (f"{words(primary.name, primary.k)} [{level} interval]", [r for r in of_primary if r["arm_b"] is None]),
        (f"difference in {words(primary.name, primary.k)} [{level} interval]", [r for r in of_primary if r["arm_b"]]),
        (f"labels saved [{level} interval]", [r for r in first if r["metric"] == SAVED]),
    ):
        if found:
            yield from ("", title, *map(_line, found[:_MAX_LINES]))
        if len(found) > _MAX_LINES:
            yield f"… and {len(found) - _MAX_LINES:,} more in the table"
    if not selected:
        yield "nothing to compare on: no predictions of a split but train and validation"


def _first_units(rows: Sequence[Row], config: CompareConfig) -> set[str]:
    """What is resampled for the unit that is named first: a data set's patients may be lesions."""
    others = set(config.resampling_units[1:])
    found = {row["resampling_unit"] for row in rows}
    return (found - others) or found


def _line(row: Row) -> str:
    from medssl.analysis.results import with_interval
    from medssl.analysis.tables import percent

    cell = with_interval(row)
    arms = row["arm_a"] if row["arm_b"] is None else f"{row['arm_a']} minus {row['arm_b']}"
    where = f"{row['dataset']}, {row['split']}, {percent(row['label_fraction'])} of labels, draw {row['draw']}"
    p_values = [f"{name} {row[key]:.4f}" for name, key in (("p", "p"), ("Holm", "p_adjusted")) if row[key] is not None]
    note = f"  ({cell.note})" if cell.note else ""
    return f"  {arms:40} {where:40} {cell.text:24} n {row['n_units']:,}  {'  '.join(p_values)}{note}".rstrip()


COMMAND = TableCommand(_options, _run)
