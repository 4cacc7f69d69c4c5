"""`medssl compare` from predictions alone: no study, no store, no images, whoever wrote the tables."""

import argparse
import os
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medssl import schema
from medssl.commands.tables import TableCommand
from medssl.config import Attribute, CompareConfig, ConfigError, SubgroupConfig, read_yaml, validate
from medssl.exit_codes import BadInputError
from medssl.metrics import PRIMARY
from medssl.progress import Progress
from medssl.stages import analysis
from medssl.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# With more arms, all pairs of them are more than anyone wants to test.
_MAX_ARMS_OF_ALL_PAIRS = 20
_MAX_ARMS = 500  # in one call; their scores lie in memory together
_MAX_LINES = 40  # printed of each kind
_CURVES = "the calibration table of --out"


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
    group.add_argument("--by", metavar="ATTRIBUTE,…", help=f"subgroups as well, by {', '.join(get_args(Attribute))}")
    default = SubgroupConfig.model_fields["min_patients"].default
    words = f"of a subgroup, or it is not assessed (default: {default})"
    group.add_argument("--min-patients", type=int, default=default, help=words)
    group.add_argument(
        "--resampling-units", nargs="+", metavar="UNIT", help="patient, image or case (default: patient and the unit)"
    )


def _run(options: argparse.Namespace) -> None:
    paths = list(options.predictions or [])
    outputs = _outputs(options.out, options.summary)
    _check_paths(paths, [] if options.families is None else [options.families], outputs)
    predictions = _read(paths)
    config, subgroups = _config(options, predictions), _subgroups(options)
    bar = Progress("compare", 1, unit="cells")
    try:
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(0, "its folder may not be written to")
        more = []
        if subgroups is not None:
            more = analysis.subgroup_rows(
                predictions,
                subgroups,
                arm_pairs=config.pairs,
                groups={},
                specificity=config.specificity,
                progress=bar.of,
            )
        rows = analysis.write_comparison(predictions, config, options.out, outputs[_CURVES], more=more, progress=bar.of)
        if options.summary is not None:
            write_json(options.summary, _counts(rows))
    except ValueError as error:
        raise BadInputError(str(error)) from None
    except OSError as error:
        names = ", ".join(path.name for path in outputs.values())
        raise ConfigError(
            f"--out, --summary: {names} cannot be written: {error.strerror}; name another folder"
        ) from None
    sys.stdout.write("\n".join([*_lines(rows, config), f"{len(rows):,} rows in {options.out.name}"]) + "\n")


def _outputs(out_path: Path, summary_path: Path | None) -> dict[str, Path]:
    """What is written, by what names it."""
    if not out_path.name or out_path.is_dir():
        raise ConfigError(f"--out {out_path.name}: expected a new Parquet file, found a folder")
    outputs = {"--out": out_path, _CURVES: out_path.with_suffix(".calibration.parquet")}
    return outputs if summary_path is None else outputs | {"--summary": summary_path}


def _check_paths(predictions: Sequence[Path], others: Sequence[Path], outputs: Mapping[str, Path]) -> None:
    """No file is read twice, and none is written over another."""
    if not predictions:
        raise ConfigError("give --predictions: one or more tables of `medssl schema predictions`")
    taken: dict[Hashable, str] = {_identity(path): "one of the inputs" for path in predictions}
    if len(taken) < len(predictions):
        raise ConfigError(f"--predictions: {len(predictions)} files, some of them given twice; give each once")
    taken |= {_identity(path): "one of the inputs" for path in others}
    for name, path in outputs.items():
        identity = _identity(path)
        if path.is_dir() or identity in taken:
            found = "a folder" if path.is_dir() else taken[identity]
            raise ConfigError(f"{name} {path.name}: expected a new file, found {found}; name another")
        taken[identity] = f"what {name} names"


def _identity(path: Path) -> Hashable:
    """The same for two names of one file."""
    resolved = path.resolve()
    try:
        status = resolved.stat()
    except OSError:
        return resolved
    return status.st_dev, status.st_ino


def _read(paths: Sequence[Path]) -> "pa.Table":
    """The rows of all files in one table."""
    import pyarrow as pa

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


def _subgroups(options: argparse.Namespace) -> SubgroupConfig | None:
    """The settings of subgroups, as a study would hold them; None where none are asked for."""
    if options.by is None:
        return None
    settings = {name: getattr(options, name) for name in ("num_replicates", "alpha", "seed", "min_patients")}
    return validate(SubgroupConfig, settings | {"by": options.by.split(",")}, "--by")


def _pairs(option: str, texts: Sequence[str], arms: Sequence[str]) -> list[tuple[str, str]]:
    """Two arms each; names may hold commas, so each comma may be the one between them."""
    pairs = []
    for text in texts:
        splits = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == ","]
        found = [pair for pair in splits if set(pair) <= set(arms)]
        if len(found) != 1:
            told = f", found {len(found)} that leave two arms" if found else ""
            possible = ", ".join(arms[:5]) + (f" and {len(arms) - 5} more" if len(arms) > 5 else "")
            raise ConfigError(
                f"{option} {text}: expected two arms with a comma between them{told}; there are {possible}"
            )
        pairs += found
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

    level = f"[{percent(1 - config.alpha)} interval]"
    # By place in the list of what is printed, and title.
    tables: dict[tuple[int, str], list[Row]] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        of_dataset = [row for row in rows if row["dataset"] == dataset]
        primary = PRIMARY[unit_kind({row["metric"] for row in of_dataset})]
        named = words(primary.name, primary.k)
        places = {
            (primary.name, primary.k, "all", True): (0, f"{named} {level}"),
            (primary.name, primary.k, "all", False): (1, f"difference in {named} {level}"),
            (f"{primary.name}_gap", primary.k, "", True): (2, f"gap in {named} between groups {level}"),
            (SAVED, None, "all", False): (3, f"labels saved {level}"),
        }
        selected = [row for row in of_dataset if row["repeat"] == "selected" and not row["class"]]
        first_units = {"", *_first_units(selected, config)}
        for row in (row for row in selected if row["resampling_unit"] in first_units):
            subgroup = "" if row["metric"].endswith("_gap") else row["subgroup"]
            if place := places.get((row["metric"], row["k"], subgroup, row["arm_b"] is None)):
                tables.setdefault(place, []).append(row)
    for (_, title), found in sorted(tables.items(), key=lambda item: item[0]):
        yield from ("", title, *map(_line, found[:_MAX_LINES]))
        if len(found) > _MAX_LINES:
            yield f"… and {len(found) - _MAX_LINES:,} more in the table"
    if not tables:
        yield "nothing to compare on: no predictions of a split but train and validation"


def _first_units(rows: Sequence[Row], config: CompareConfig) -> set[str]:
    """What is resampled for the unit of a data set that is named first: its patients may be lesions."""
    others = [unit for unit in config.resampling_units if unit != "patient"]
    found = {row["resampling_unit"] for row in rows} - {""}
    if config.resampling_units[0] == "patient":
        return found - set(others) or found
    return {unit for unit in others if unit in found} or found


def _line(row: Row) -> str:
    from medssl.analysis.results import DECIMALS, with_interval
    from medssl.analysis.tables import Cell, percent

    if (row["ci_low"] is None) == (row["ci_high"] is None):
        cell = with_interval(row)
    else:  # an end that is censored, which the reason tells
        ends = ["…" if row[end] is None else f"{row[end]:.{DECIMALS}f}" for end in ("ci_low", "ci_high")]
        estimate = "…" if row["estimate"] is None else f"{row['estimate']:.{DECIMALS}f}"
        cell = Cell(f"{estimate} [{', '.join(ends)}]", row["reason"])
    arms = row["arm_a"] if row["arm_b"] is None else f"{row['arm_a']} minus {row['arm_b']}"
    arms += "" if row["subgroup"] == "all" else f", {row['subgroup']}"
    where = f"{row['dataset']}, {row['split']}, {percent(row['label_fraction'])} of labels, draw {row['draw']}"
    p_values = [f"{name} {row[key]:.4f}" for name, key in (("p", "p"), ("Holm", "p_adjusted")) if row[key] is not None]
    note = f"  ({cell.note})" if cell.note else ""
    return f"  {arms:40} {where:40} {cell.text:24} n {row['n_units']:,}  {'  '.join(p_values)}{note}".rstrip()


COMMAND = TableCommand(_options, _run)
