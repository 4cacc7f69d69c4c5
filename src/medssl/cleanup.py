"""What a store can do without: all that neither a champion nor a kept run was made from or made.

Who was made from what stands in the records of the steps. The records themselves stay, which are small: how often a
test set has been used is counted over them. So do the results of `import-weights`, which no stage makes anew.
"""

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl import layout, schema
from medssl.exit_codes import BadInputError
from medssl.store import MAKER, MANIFEST, Store, StoreError
from medssl.verification.artifacts import RUN_FILE

# Of the folder of a run's results, beside `RUN_FILE`; the first is that of an unfinished run.
STATE_FILE, OUTPUTS_FILE = "state.json", "outputs.json"
_SECONDS_PER_HOUR = 3600
_DIGEST_CHARS = 64


@dataclass(frozen=True)
class Removable:
    """Something that can go.

    Attributes:
        path: A file or a folder in the store.
        what: Kind, and digest where it has one.
        num_bytes: Of its files.
    """

    path: Path
    what: str
    num_bytes: int


def removable(store: Store, roots: Iterable[str], *, min_age_hours: float) -> list[Removable]:
    """What nothing in `roots` reaches, in the order of its paths.

    Args:
        store: A folder on this machine.
        roots: Digests of artifacts that stay, and with them all that they were made from.
        min_age_hours: What is younger stays: it may be part of a result that is being made.

    Raises:
        BadInputError: The store is not a folder.
    """
    root = folder_of(store)
    kept = _reached(store, root, roots)
    last_s = time.time() - min_age_hours * _SECONDS_PER_HOUR
    found = [
        _measured(path, f"{path.parent.name} {path.name[:12]}") for path in _artifacts(root) if path.name not in kept
    ]
    for name in ("work", "tmp"):
        found += [_measured(path, f"unfinished: {name}/{path.name[:12]}") for path in _entries(root / name)]
    old = [one for one in found if _newest_s(one.path) < last_s]
    gone = {one.path for one in old}
    return sorted([*old, *_stale_keys(root, gone)], key=lambda one: one.path)


def remove(store: Store, listed: Sequence[Removable]) -> None:
    """Remove what `removable` found; a folder vanishes at once, so nobody finds half of it."""
    grave = folder_of(store) / "tmp"
    grave.mkdir(exist_ok=True)
    for one in listed:
        if one.path.is_dir() and not one.path.is_symlink():
            buried = grave / f"removed-{os.getpid()}-{one.path.name}"
            one.path.rename(buried)
            shutil.rmtree(buried)
        else:
            one.path.unlink(missing_ok=True)


def folder_of(store: Store) -> Path:
    """The folder of a store.

    Raises:
        BadInputError: It is none on this machine.
    """
    folder = Path(store.root)
    if "://" in store.root or not folder.is_dir():
        raise BadInputError("--store: only a store in a folder of this machine can be cleaned up; found none there")
    return folder


def of_run(run_dir: Path) -> set[str]:
    """Digests of all that a finished run made and read.

    Raises:
        BadInputError: There is no record of a finished run.
    """
    try:
        record = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        tasks = [one for task in record["tasks"] for one in (task["output"], *task["inputs"].values())]
        named = {one["artifact_digest"] for one in record["artifacts"].values() if "artifact_digest" in one}
        if (run_dir / OUTPUTS_FILE).is_file():
            outputs = json.loads((run_dir / OUTPUTS_FILE).read_text(encoding="utf-8"))
            named |= {one["metadata"]["digest"] for one in outputs.values()}
        return named | {str(one["digest"]) for one in tasks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInputError(f"--keep-runs {run_dir.name}: holds no {RUN_FILE} of a finished run") from None


def decisions(store: Store) -> dict[str, dict[str, Any]]:
    """By digest of the artifact, what every promotion in the store decided."""
    found = {}
    for path in _entries(folder_of(store) / "promotion"):
        try:
            found[path.name] = json.loads((store.open(str(path)).folder / layout.DECISION).read_text())
        except StoreError:  # half of one promises nothing
            continue
    return found


def of_champions(store: Store, kept: Callable[[str], Mapping[str, Iterable[str]]]) -> set[str]:
    """Digests of the models that are champion, were champion or are the candidate, and of all that tells about them.

    Args:
        store: Whose promotions name the models of the registry.
        kept: For the name of a model, by digest of the weights of each version that stays, the artifacts it needs.
    """
    listed = decisions(store)
    roots: set[str] = set()
    for model in sorted({str(one["model"]) for one in listed.values()}):
        needed = kept(model)
        roots |= {digest for digests in needed.values() for digest in digests}
        roots |= {
            name
            for name, one in listed.items()
            if one["model"] == model and one["candidate"]["checkpoint_digest"] in needed
        }
    return roots


def _reached(store: Store, root: Path, roots: Iterable[str]) -> set[str]:
    """Digests that lead to a root, over all that made the same bytes."""
    made_from: dict[str, set[str]] = defaultdict(set)
    waiting = list(roots)
    for record in store.records():
        made_from[record["output"]["digest"]] |= {one["digest"] for one in record["inputs"].values()}
        if record["stage"] == "import_weights":
            waiting.append(record["output"]["digest"])
    reached: set[str] = set()
    while waiting:
        digest = waiting.pop()
        if digest not in reached:
            reached.add(digest)
            waiting += [*made_from[digest], *_private(root / "index" / digest)]
    return reached


def _private(index_dir: Path) -> Iterator[str]:
    """The table that leads from the images of an index to their files."""
    path = index_dir / layout.INDEX
    if path.is_file():
        metadata = schema.metadata_of(schema.read(path, schema.INDEX, columns=[]))
        yield from filter(None, [metadata.get("sources")])


def _artifacts(root: Path) -> Iterator[Path]:
    for kind in MAKER:
        yield from (path for path in _entries(root / kind) if len(path.name) == _DIGEST_CHARS)


def _entries(folder: Path) -> list[Path]:
    """Folders in a folder; links are nobody's to remove or to follow."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _stale_keys(root: Path, gone: set[Path]) -> Iterator[Removable]:
    """Entries that lead to artifacts which are removed."""
    folder = root / "keys"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []:
        entry = json.loads(path.read_text())
        if root / entry["kind"] / entry["digest"] in gone:
            yield Removable(path, f"key {path.stem[:12]}", path.lstat().st_size)


def _files(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path):  # does not follow links
        yield from (Path(folder, name) for name in names)


def _measured(path: Path, what: str) -> Removable:
    return Removable(path, what, sum(file.lstat().st_size for file in _files(path)))


def _newest_s(path: Path) -> float:
    """When something in it was last changed: of an artifact, which never changes, when it was made."""
    if (path / MANIFEST).is_file():
        return max(path.lstat().st_ctime, (path / MANIFEST).lstat().st_mtime)
    return max([path.lstat().st_mtime, *(file.lstat().st_mtime for file in _files(path))])
