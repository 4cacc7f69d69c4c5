"""`medssl promote` without a study: who is champion, a person's approval, and the way back."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from medssl.config import ConfigError
from medssl.registry import Move, Registry, Version

_DATABASE = "mlflow.db"  # in the folder of a run's results
# Of these a person may decide; "keep" was decided by the comparison.
APPROVABLE = ("first", "needs approval", "not comparable")


def add(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take these options in place of a study."""
    with_study = parser.get_default("command")
    group = parser.add_argument_group("without a study, in the model registry")
    group.add_argument("--model", help="name of the registered model, by default that of the study")
    group.add_argument("--out", type=Path, help="folder of a run's results (default: MLFLOW_TRACKING_URI)")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print versions, decisions and champions")
    what.add_argument("--approve", type=int, metavar="VERSION", help="make a candidate champion that may be one")
    what.add_argument("--rollback", action="store_true", help="make the previous champion champion again")

    def run(given: argparse.Namespace) -> None:
        is_registry = given.list or given.rollback or given.approve is not None
        if given.study is not None and not is_registry:
            with_study(given)
        elif given.study is not None or not is_registry or not given.model:
            raise ConfigError("give a study file, or --model with --list, --approve or --rollback; see --help")
        else:
            _run(given)

    parser.set_defaults(command=run)


def _run(given: argparse.Namespace) -> None:
    if given.out is not None:
        database = given.out.resolve() / _DATABASE
        if not database.is_file():
            raise ConfigError(f"--out {given.out.name}: holds no {_DATABASE}; give the folder of a run's results")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    registry = Registry.from_environment(given.model)
    if given.rollback:
        move = registry.roll_back()
        sys.stdout.write(f"version {move.version} of {registry.name} is champion again\n")
    elif given.approve is not None:
        move = approve(registry, given.approve)
        sys.stdout.write(f"version {move.version} of {registry.name} is champion now\n")
    else:
        versions, history = registry.versions(), registry.history()
        if not versions:
            raise ConfigError(f"model {registry.name} is not registered; `promote` in a study registers it")
        sys.stdout.writelines(f"{line}\n" for line in _lines(versions, history))


def approve(registry: Registry, number: int) -> Move:
    """Make a version champion on a person's word.

    Raises:
        BadInputError: There is no such version, or it was not compared with the present champion, or it was found
            not to be better.
        OutrunError: Another model became champion at the same moment.
    """
    version, champion = registry.version(number), registry.champion()
    if champion and champion.version == number:
        raise ConfigError(f"version {number} of {registry.name} is the champion already")
    if version.verdict not in APPROVABLE:
        raise ConfigError(
            f'version {number} of {registry.name} cannot be approved: its comparison ended with "{version.verdict}"; '
            f"{version.reasons.splitlines()[0] if version.reasons else 'run promote in its study'}"
        )
    if version.compared_after != (champion.number if champion else 0):
        raise ConfigError(
            f"version {number} of {registry.name} was compared with an earlier champion; run promote in its study "
            "again, which compares it with the present one"
        )
    return registry.promote(version, after=champion, why="approved")


def _lines(versions: list[Version], history: list[Move]) -> Iterator[str]:
    champion = history[-1].version if history else 0
    for one in versions:
        mark = "  champion" if one.number == champion else ""
        model = one.reference
        yield (
            f"version {one.number}: {model.study}, {model.arm_id}, {model.label_fraction:g} of the labels, "
            f"{model.checkpoint_digest[:12]}: {one.verdict or 'no decision'}{mark}"
        )
        yield from (f"    {reason}" for reason in one.reasons.splitlines())
    for move in history:
        yield f"move {move.number}: version {move.version}, {move.why}"
