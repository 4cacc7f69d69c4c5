"""The fingerprint of a raw data set: a digest that changes whenever the set does.

The stage that takes it is never cached, and every later stage has the digest as a parameter: so unchanged data is
found in the cache and changed data is not.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medssl.config import MAX_TABLE_BYTES
from medssl.data.root import check_root
from medssl.exit_codes import BadInputError
from medssl.progress import Progress

FilesBy = Literal["stat", "content"]


@dataclass(frozen=True)
class Fingerprint:
    """What a data set's folder holds.

    Attributes:
        digest: SHA-256 over tables, files, links and `files`, in hex. Independent of where the folder lies.
        table_digest: SHA-256 over names and contents of the tables only, in hex.
        num_files: Regular files, tables included.
        num_bytes: Their size.
    """

    digest: str
    table_digest: str
    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class _Listing:
    """What lies below a folder, as paths relative to it, in no order."""

    files: dict[str, os.DirEntry[str]]
    links: dict[str, str]  # to the target, relative as well: a target is digested where it lies


def fingerprint(root: Path, tables: Sequence[str], *, files: FilesBy) -> Fingerprint:
    """Digest the tables by content and every other file below `root`.

    Args:
        root: The data set's folder.
        tables: Names of the label tables below it.
        files: "stat" takes a file's path, size and modification time; "content" its path and bytes, which reads
            everything but does not change when files are copied.

    Raises:
        BadInputError: The folder or a table is missing, something cannot be read, or a link leaves the folder.
    """
    check_root(root)
    root = root.resolve()
    names = {Path(os.path.normpath(name)).as_posix() for name in tables}
    try:
        listing = _list(root)
        table_digest = _digest_tables(root, names, listing)
        digest = hashlib.sha256(f"{files}\0{table_digest}\0".encode())
        others = sorted(path for path in listing.files if path not in names)
        progress = Progress("fingerprint", max(len(others), 1), unit="files")
        for done, path in enumerate(others, 1):
            _add(digest, "file", path, *_state(listing.files[path], files))
            progress.update(done)
        for path, target in sorted(listing.links.items()):
            _add(digest, "link", path, target)
        num_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in listing.files.values())
    except OSError as error:  # its own text holds the path
        raise BadInputError(
            f"something below data.root cannot be read ({error.strerror}); check permissions, and that nothing else "
            "writes there"
        ) from None
    return Fingerprint(digest.hexdigest(), table_digest, len(listing.files), num_bytes)


def _list(root: Path) -> _Listing:
    listing = _Listing({}, {})
    num_leaving = 0
    for path, entry in _walk(root):
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            num_leaving += not target.is_relative_to(root)
            listing.links[path] = os.path.relpath(target, root)
        elif entry.is_file(follow_symlinks=False):
            listing.files[path] = entry
    if num_leaving:
        raise BadInputError(
            f"{num_leaving} symbolic links lead out of data.root, where changes go unseen; replace them by the files"
        )
    return listing


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `root` but folders, with its path; links are not followed."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                else:
                    yield path, entry


def _digest_tables(root: Path, names: set[str], listing: _Listing) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        path = listing.links.get(name, name)
        if path not in listing.files:
            raise BadInputError(f"{Path(name).name} is not in the data set's folder; give the names of its tables")
        if listing.files[path].stat(follow_symlinks=False).st_size > MAX_TABLE_BYTES:
            raise BadInputError(f"{Path(name).name} has more than {MAX_TABLE_BYTES:,} bytes; give the table of labels")
        _add(digest, name, _sha256(listing.files[path].path))
    return digest.hexdigest()


def _state(entry: os.DirEntry[str], files: FilesBy) -> tuple[str, ...]:
    if files == "content":
        return (_sha256(entry.path),)
    status = entry.stat(follow_symlinks=False)
    return str(status.st_size), str(status.st_mtime_ns)


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(digest: "hashlib._Hash", *fields: str) -> None:
    """Add a record whose fields cannot run into each other: no path holds a NUL."""
    digest.update(b"".join(os.fsencode(field) + b"\0" for field in fields) + b"\0")
