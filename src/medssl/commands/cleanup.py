"""`medssl gc`: remove from a store what no champion and no kept run reaches."""

import argparse
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from medssl import cleanup
from medssl.exit_codes import BadInputError
from medssl.progress import counted
from medssl.registry import Registry
from medssl.store import Store
from medssl.verification.artifacts import RUN_FILE

_UNITS = ("B", "kB", "MB", "GB", "TB")


def add(parser: argparse.ArgumentParser, store: Callable[[argparse.Namespace], Store]) -> None:
    """Let `parser` take the command's options; `store` finds the store that they name."""
    parser.add_argument(
        "--keep-runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="OUT",
        help="folders of results that stay usable, beside the one that the store lies in",
    )
    parser.add_argument(
        "--min-age-hours", type=float, default=24.0, help="what is younger stays (default: %(default)s)"
    )
    parser.add_argument("--discard-unfinished", action="store_true", help="also what an unfinished run has made")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    parser.set_defaults(command=lambda options: _run(options, store(options)))


def _run(options: argparse.Namespace, store: Store) -> None:
    home = cleanup.folder_of(store).parent
    with _no_run_in(home):
        unfinished = [one for one in (home, *options.keep_runs) if (one / cleanup.STATE_FILE).is_file()]
        if unfinished and not options.discard_unfinished:
            raise BadInputError(
                f"{counted(len(unfinished), 'run')} of this store not finished: what it has made would be lost; finish "
                "it, or give --discard-unfinished"
            )
        runs = [*options.keep_runs, *([home] if (home / RUN_FILE).is_file() else [])]
        roots = {digest for run in runs for digest in cleanup.of_run(run)}
        roots |= cleanup.of_champions(store, lambda model: _kept(model, home))
        if not roots:
            raise BadInputError("nothing would stay: no champion, and no finished run in --keep-runs; name one")
        listed = cleanup.removable(store, roots, min_age_hours=options.min_age_hours)
        sys.stdout.writelines(f"{one.what}: {_size(one.num_bytes)}\n" for one in listed)
        if not options.dry_run:
            cleanup.remove(store, listed)
    verb = "would be removed" if options.dry_run else "removed"
    sys.stdout.write(f"{counted(len(listed), 'item')} {verb}, {_size(sum(one.num_bytes for one in listed))}\n")


def _kept(model: str, home: Path) -> Mapping[str, set[str]]:
    """By digest of their weights, the artifacts of the versions that the registry keeps.

    Raises:
        BadInputError: The registry is not that of the store's promotions.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ and (home / "mlflow.db").is_file():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home.resolve() / 'mlflow.db'}"
    registry = Registry.from_environment(model)
    versions = {one.number: one for one in registry.versions()}
    if not versions:
        raise BadInputError(
            f"the store holds promotions of the model {model}, which this MLflow does not know; give the "
            "MLFLOW_TRACKING_URI under which they were made"
        )
    cohorts = {digest for move in registry.history() for digest in move.cohort.artifacts.values()}
    kept = [versions[number].reference for number in registry.kept() if number in versions]
    return {one.checkpoint_digest: {one.models, *one.cohort.artifacts.values(), *cohorts} for one in kept}


@contextmanager
def _no_run_in(folder: Path) -> Iterator[None]:
    """Within, no run works in the folder of the store; a run holds the same lock."""
    path = folder / ".lock"
    if not path.is_file():
        yield
        return
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInputError("a run is at work in the folder of this store; wait for it") from None
        yield


def _size(num_bytes: float) -> str:
    """A number of bytes in words, in powers of 1000."""
    for unit in _UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} {_UNITS[-1]}"
