"""Artifacts and `run.json` against their digests: every byte is read."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medssl.store import MANIFEST, file_digest
from medssl.verification.finding import ID_DIGITS, Finding, examples

RUN_FILE = "run.json"
PRIVATE_FOLDER_MODE, PRIVATE_FILE_MODE = 0o700, 0o600


@dataclass(frozen=True)
class Found:
    """An artifact's folder whose manifest can be read.

    Attributes:
        kind: As the manifest states.
        digest: SHA-256 of the manifest, in hex.
        folder: Where it lies.
        files: By relative name, what the manifest states: `bytes` and `sha256`.
    """

    kind: str
    digest: str
    folder: Path
    files: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Kind and first digits, as every message names it."""
        return f"{self.kind} {self.digest[:ID_DIGITS]}"


def read(folder: Path) -> Found | Finding:
    """The artifact in `folder`, or why it cannot be read as one."""
    where = f"{folder.parent.name} {folder.name[:ID_DIGITS]}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): {"bytes": e["bytes"], "sha256": e["sha256"]} for name, e in manifest["files"].items()}
        kind = str(manifest["kind"])
    except OSError:
        return Finding(where, f"no readable {MANIFEST}; expected one in every artifact")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Finding(where, f"{MANIFEST} cannot be read; expected kind, files and summary in JSON")
    return Found(kind, file_digest(folder / MANIFEST), folder, files)


def check(found: Found, *, in_store: bool, tell: Callable[[], None]) -> Iterator[Finding]:
    """Check the folder's name, each file's size and digest, and that nothing else lies beside them.

    Args:
        found: From `read`.
        in_store: Whether the folder lies in a store, below that of its kind.
        tell: Called after every file.
    """
    folder, where = found.folder, f"{found.kind} {found.folder.name[:ID_DIGITS]}"
    if found.digest != folder.name:
        yield Finding(where, f"{MANIFEST} has digest {found.digest[:ID_DIGITS]}; expected that in the folder's name")
    if in_store and folder.parent.name != found.kind:
        yield Finding(where, f"{MANIFEST} states kind {found.kind}; expected {folder.parent.name}")
    present, links = _files_in(folder)
    if folder.is_symlink() or links:
        names = examples(sorted(links)) or "the folder itself"
        yield Finding(where, f"{max(len(links), 1)} links ({names}); expected files of the store")
    if beside := sorted(present - set(found.files) - {MANIFEST}):
        yield Finding(where, f"{len(beside)} files that {MANIFEST} does not list, among them {_named(beside)}")
    for name, entry in sorted(found.files.items()):
        if wrong := _wrong(folder, name, entry):
            yield Finding(where, f"{name} {wrong}")
        tell()
    if found.kind == "private":
        yield from _readable_by_others(found)


def _files_in(folder: Path) -> tuple[set[str], set[str]]:
    """Relative names of all files below `folder`, and of all links; no link is followed."""
    files, links = set(), set()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                links.add(relative)
            elif name in names:
                files.add(relative)
    return files, links


def _wrong(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    """What is wrong with a listed file, or nothing."""
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "is listed and lies outside the artifact"
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"has {size} bytes; expected {entry['bytes']}"
    return "was altered: its digest is not the listed one" if file_digest(path) != entry["sha256"] else ""


def _readable_by_others(found: Found) -> Iterator[Finding]:
    """Complain about a private table that not only its owner can reach."""
    expected = {found.folder: PRIVATE_FOLDER_MODE} | {
        path: PRIVATE_FILE_MODE for path in found.folder.rglob("*") if path.is_file()
    }
    for path, mode in sorted(expected.items()):
        if (found_mode := stat.S_IMODE(path.stat().st_mode)) != mode:
            name = "its folder" if path == found.folder else path.name
            yield Finding(found.name, f"{name} has mode {found_mode:04o}; expected {mode:04o}: it leads to patients")


def check_run(run_dir: Path, artifacts: Iterable[Found]) -> Iterator[Finding]:
    """Check that all that `run.json` names lies in the store and that the run's links lead to it."""
    digests = {(found.kind, found.digest) for found in artifacts}
    try:
        record = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        entries = sorted(record["artifacts"].items())
        named = [(role, _named_in(entry)) for role, entry in entries]
        tasks = [(str(task["task"]), [task["output"], *task["inputs"].values()]) for task in record["tasks"]]
        tied = [(str(task), [(str(a["kind"]), str(a["digest"])) for a in of_task]) for task, of_task in tasks]
        linked = {name: (str(e["path"]), str(e["sha256"])) for name, e in entries if "path" in e}
        stated = {name: str(e["sha256"]) for name, e in entries if "path" not in e}
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding(RUN_FILE, "cannot be read; expected artifacts and tasks in JSON, as a finished run writes them")
        return
    for role, artifact in named:
        if artifact not in digests:
            yield Finding(RUN_FILE, f'"{role}" is {_name(artifact)}, which is not in the store')
        elif stated.get(role, artifact[1]) != artifact[1]:
            yield Finding(RUN_FILE, f'"{role}" has digest {artifact[1][:ID_DIGITS]}; stated is {stated[role]}')
    for task, of_task in tied:
        if gone := sorted({artifact for artifact in of_task if artifact not in digests}):
            yield Finding(RUN_FILE, f"task {task} made or read {_named(map(_name, gone))}, not in the store")
    for role, (path, sha256) in linked.items():
        if wrong := _wrong_link(run_dir, path, sha256):
            yield Finding(RUN_FILE, f'"{role}" {wrong}')


def _named_in(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and digest of an entry. Only the end of its address counts: the folder of a run may be moved."""
    kind, digest = str(entry["uri"]).rstrip("/").rsplit("/", 2)[1:]
    return kind, digest


def _wrong_link(run_dir: Path, path: str, sha256: str) -> str:
    target = (run_dir / path).resolve()
    if not target.is_file():
        return "leads to no file"
    if not target.is_relative_to((run_dir / "store").resolve()):
        return "leads out of the store"
    return "has another digest than stated" if file_digest(target) != sha256 else ""


def _name(artifact: Sequence[str]) -> str:
    return f"{artifact[0]} {artifact[1][:ID_DIGITS]}"


def _named(names: Iterable[str]) -> str:
    """At most five names, whole: of files and artifacts, which are no identifiers."""
    return ", ".join(list(names)[:5])
