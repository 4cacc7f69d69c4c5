"""`medssl ingest` and `medssl assign-splits` from table to table: no study, no store and, if need be, no images."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from medssl.config import ConfigError, DataConfig, SplitConfig, validate
from medssl.stages import data
from medssl.store import write_json

Json = Mapping[str, Any]


@dataclass(frozen=True)
class TableCommand:
    """The form of a stage's subcommand that is used where no study is given.

    Attributes:
        add_options: Adds what it takes.
        run: Carries it out.
        out: What `--out` is.
    """

    add_options: Callable[["argparse._ArgumentGroup"], None]
    run: Callable[[argparse.Namespace], None]
    out: str = "Parquet file to write"


def add(parser: argparse.ArgumentParser, command: TableCommand) -> None:
    """Let `parser` take `command`'s options in place of a study."""
    with_study = parser.get_default("command")
    options = parser.add_argument_group("without a study, from table to table")
    options.add_argument("--out", type=Path, help=command.out)
    options.add_argument("--summary", type=Path, help="JSON file for all counts")
    command.add_options(options)

    def run(given: argparse.Namespace) -> None:
        if given.study is not None:
            with_study(given)
        elif given.out is None:
            raise ConfigError("give a study file, or --out and the options for a table; see --help")
        else:
            command.run(given)

    parser.set_defaults(command=run)


def _ingest_options(group: "argparse._ArgumentGroup") -> None:
    fields = DataConfig.model_fields
    group.add_argument("--dataset", choices=get_args(fields["dataset"].annotation), help="kind of the data set")
    group.add_argument("--table", type=Path, help="its label table, .csv or .csv.gz")
    group.add_argument("--valid-table", type=Path, help="CheXpert: the official validation table, if any")
    group.add_argument("--root", type=Path, help="what its file names are relative to (default: the table's folder)")
    group.add_argument("--no-files", action="store_true", help="the table alone: look for no image")
    group.add_argument("--name", help="enters every identifier (default: the kind)")
    group.add_argument(
        "--key",
        choices=get_args(fields["key"].annotation),
        default="private",
        help="of the identifiers: yours, or the constant for public sets (default: private)",
    )
    group.add_argument("--views", choices=get_args(fields["views"].annotation), default="both")
    group.add_argument("--columns", default="", metavar="FIELD=HEADER,…", help="the table's own header of each field")
    group.add_argument("--condition-names", default="", metavar="OWN=STUDY,…", help="other names for conditions")
    group.add_argument("--group", choices=get_args(fields["group"].annotation), default="file")
    group.add_argument("--skip-duplicates", action="store_true", help="do not look for pictures that occur twice")


def _ingest(options: argparse.Namespace) -> None:
    if options.dataset is None or (options.table is None and options.root is None):
        raise ConfigError("give --dataset, and --table or --root; `medssl ingest --help` lists the kinds")
    root = (options.root or options.table.parent).resolve()
    settings = {
        "dataset": options.dataset,
        "name": options.name or options.dataset,
        "root": str(root),
        "key": options.key,
        **({"train_table": str(options.table.resolve())} if options.table else {}),
        "valid_table": str(options.valid_table.resolve()) if options.valid_table else "",
        "views": options.views,
        "columns": _pairs("--columns", options.columns),
        "condition_names": _pairs("--condition-names", options.condition_names),
        "group": options.group,
        "find_duplicates": not options.skip_duplicates,
    }
    config = validate(DataConfig, settings, "ingest")
    summary = data.index_table(config, root=root, out_path=options.out, with_files=not options.no_files)
    _save(options.summary, summary)
    group = summary.get("group_kind", "patient")
    counts = {"images": summary["images"], f"{group}s": summary["patients"], "cases": summary["cases"]}
    if group == "image":
        del counts["cases"]
    lines = [f"{_row(counts)} in {options.out.name}"]
    if shared := summary.get("duplicates"):
        lines.append(f"pictures under two patients: {shared['pairs_between_patients']} pairs")
    states = ("positive", "negative", "uncertain", "blank", "not assessed")
    width = max(map(len, summary["findings"]), default=0)
    if width:
        lines.append(f"{'label':{width}}" + "".join(f"{state:>14}" for state in states))
    for finding, found in summary["findings"].items():
        lines.append(f"{finding:{width}}" + "".join(f"{found[state]:>14,}" for state in states))
    _say(lines)


def _split_options(group: "argparse._ArgumentGroup") -> None:
    fields = SplitConfig.model_fields
    group.add_argument("--index", type=Path, help="index that `medssl ingest --out` wrote")
    for split in ("train", "validation", "test"):
        group.add_argument(f"--{split}", type=float, metavar="SIZE", help="images, or a fraction of them")
    group.add_argument(
        "--mode",
        choices=get_args(fields["mode"].annotation),
        help="the paper's sizes (the default where none are given), or with the training images that it prints",
    )
    default = fields["group_by"].default
    choices = get_args(fields["group_by"].annotation)
    group.add_argument("--group-by", choices=choices, default=default, help=f"what stays whole (default: {default})")
    for name, words in (
        ("seed", "of the order of patients"),
        ("draws", "independent orders for label fractions"),
        ("balance_seeds", "seeds to try for the best balance"),
    ):
        default = fields[name].default
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=int, default=default, help=f"{words} (default: {default})")
    group.add_argument(
        "--extend", type=Path, metavar="PREVIOUS", help="earlier splits, of which every patient keeps his place"
    )
    group.add_argument(
        "--duplicates",
        type=Path,
        help="pairs of one picture, by ingest (default: beside the index)",
    )


def _assign_splits(options: argparse.Namespace) -> None:
    if options.index is None:
        raise ConfigError("give --index: the file that `medssl ingest --out` wrote")
    sizes = {split: getattr(options, split) for split in ("train", "validation", "test")}
    settings = {split: size for split, size in sizes.items() if size is not None} | {
        name: getattr(options, name) for name in ("group_by", "seed", "draws", "balance_seeds")
    }
    if options.mode:
        settings["mode"] = options.mode
    elif options.extend and not any(sizes.values()):
        settings |= data.shares_of(options.index, options.extend)
    config = validate(SplitConfig, settings, "assign-splits")
    summary = data.split_table(
        options.index,
        options.out,
        config,
        previous_path=options.extend,
        pairs_path=options.duplicates or data.pairs_beside(options.index),
    )
    _save(options.summary, summary)
    rows = [(split, summary["images"][split], summary["patients"][split]) for split in summary["images"]]
    lines = [f"{'split':16}{'images':>10}{'patients':>10}"]
    lines += [f"{split:16}{images:>10,}{patients:>10,}" for split, images, patients in rows if images]
    lines.append(f"patients in two splits: {summary['patients_in_two_splits']}")
    lines.append(f"patients who share a picture, kept together: {summary['patients_in_groups_of_shared_pictures']}")
    if torn := summary["shared_pictures_in_two_splits"]:
        lines.append(f"warning: {torn} shared pictures lie in two of the previous splits; start anew to part them")
    if options.extend:
        lines.append(f"kept from the previous splits: {summary['kept_from_previous']:,}")
    if largest := summary["balance"]["largest_deviation"]:
        lines.append(
            f"largest deviation from the whole: {100 * largest['absolute']:.2f} percentage points "
            f"({largest['of'].removeprefix('share_')}, {largest['split']})"
        )
    _say(lines)


def _pairs(option: str, text: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator:
            raise ConfigError(f"{option} {part}: expected NAME=VALUE, several with commas between them")
        pairs[name.strip()] = value.strip()
    return pairs


def _row(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _save(path: Path | None, summary: Json) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, summary)


def _say(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


COMMANDS: Mapping[str, TableCommand] = MappingProxyType(
    {
        "ingest": TableCommand(_ingest_options, _ingest),
        "assign_splits": TableCommand(_split_options, _assign_splits),
    }
)
