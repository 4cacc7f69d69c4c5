"""The content-addressed store: every artifact is a folder named by the digest of what it holds.

Equal bytes have equal addresses wherever they were made, which is what makes KFP's cache right. `manifest.json`
lists the files with their digests; it is written last and its own digest is the folder's name, so a folder that
opens is complete. Nothing in it is a host, a path or a time.

Layout under the root: `<kind>/<sha256>/…` artifacts, `keys/<key>.json` results found by what they were made from,
`records/<key>.json` how they were made, `runs/<key>.json` runs of the pipeline, `outbox/` what MLflow has not been told
yet, `work/<key>/` training state, `private/<sha256>/` the table that leads from image_id to its file.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import fsspec

from medssl.exit_codes import BadInputError

STORE_VARIABLE = "MEDSSL_STORE"
MANIFEST = "manifest.json"
# Which stage makes an artifact of each kind: named when its bytes are gone.
MAKER: Mapping[str, str] = MappingProxyType(
    {
        "source": "fingerprint",
        "index": "ingest",
        "private": "ingest",
        "splits": "assign_splits",
        "shards": "write_shards",
        "dataset": "prepare_dataset",
        "checkpoint": "pretrain or import_weights",
        "catalog": "collect",
        "scores": "finetune (search)",
        "selection": "select",
        "models": "finetune (repeats)",
        "predictions": "predict",
        "comparison": "compare",
        "subgroups": "analyze_subgroups",
        "report": "write_report",
        "rescored": "promote",
        "promotion": "promote",
    }
)


class StoreError(BadInputError):
    """An artifact is missing, incomplete or altered; the message names the stage that makes it."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact.

    Attributes:
        kind: One of `MAKER`.
        digest: SHA-256 of its manifest, in hex; the name of its folder.
        uri: Where it lies.
        folder: Its files on this machine.
        summary: Counts and settings that its maker put into the manifest.
    """

    kind: str
    digest: str
    uri: str
    folder: Path
    summary: Mapping[str, Any]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as canonical JSON, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    temporary.replace(path)


class Store:
    """A store under `root`: a folder, or any URL that fsspec knows."""

    def __init__(self, root: str) -> None:
        self._fs, path = fsspec.core.url_to_fs(root)
        self._local = (
            "file" in self._fs.protocol if isinstance(self._fs.protocol, tuple) else self._fs.protocol == "file"
        )
        self.root = str(Path(path).resolve()) if self._local else root.rstrip("/")
        # Scratch and training state are always local: torch and Arrow map files.
        self._scratch = Path(self.root) if self._local else Path(tempfile.gettempdir()) / "medssl-store"

    @classmethod
    def from_environment(cls) -> "Store":
        """The store that MEDSSL_STORE names.

        Raises:
            BadInputError: The variable is not set.
        """
        root = os.environ.get(STORE_VARIABLE)
        if not root:
            raise BadInputError(f"{STORE_VARIABLE} is not set; give the folder or URL under which artifacts are kept")
        return cls(root)

    @contextmanager
    def build(self) -> Iterator[Path]:
        """An empty local folder in which to make an artifact; removed unless `put` has taken it."""
        folder = Path(tempfile.mkdtemp(prefix="build-", dir=self._folder("tmp")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, kind: str, folder: Path, summary: Mapping[str, Any]) -> Artifact:
        """Take the files in `folder` as an artifact of `kind`; the folder is moved or copied away.

        Args:
            kind: One of `MAKER`.
            folder: A folder from `build`; sub-folders are allowed.
            summary: JSON values that depend on nothing but the content.
        """
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        files = {n: {"bytes": (folder / n).stat().st_size, "sha256": file_digest(folder / n)} for n in names}
        write_json(folder / MANIFEST, {"kind": kind, "files": files, "summary": dict(summary)})
        digest = file_digest(folder / MANIFEST)
        uri = self.uri(kind, digest)
        if self._local:
            target = Path(uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "private":
                _restrict(folder)
            if target.exists() and not self._is_intact(target):
                shutil.rmtree(target)  # an earlier copy was damaged: the new bytes take its place
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():
                    raise
        else:
            for name in [*names, MANIFEST]:  # the manifest last: its presence means complete
                self._fs.put_file(str(folder / name), f"{uri}/{name}")
        return self.open(uri, kind=kind, verify="size")

    def uri(self, kind: str, digest: str) -> str:
        """Where the artifact of `kind` with `digest` lies in this store."""
        return f"{self.root}/{kind}/{digest}"

    def open(self, uri: str, *, kind: str | None = None, verify: Literal["digest", "size"] = "digest") -> Artifact:
        """Open a complete artifact.

        Args:
            uri: As `put` returned it.
            kind: What is expected; checked where given.
            verify: "digest" reads and checks every byte; "size" trusts files of the right length.

        Raises:
            StoreError: Something is missing or altered. The message names the stage to run again.
        """
        digest = uri.rstrip("/").rsplit("/", 1)[-1]
        folder = Path(uri) if self._local else self._download(uri, digest)
        where = f"{kind or uri.rstrip('/').rsplit('/', 2)[-2]} {digest[:12]}"
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            found = file_digest(folder / MANIFEST)
        except (FileNotFoundError, json.JSONDecodeError):
            raise StoreError(self._gone(where, "its manifest is missing", kind)) from None
        if found != digest:
            raise StoreError(self._gone(where, f"its manifest has digest {found[:12]}", manifest.get("kind")))
        if kind is not None and manifest["kind"] != kind:
            raise StoreError(f"{where}: expected an artifact of kind {kind}, found {manifest['kind']}")
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise StoreError(self._gone(where, f"{name} is missing or has another size", manifest["kind"]))
            if verify == "digest" and file_digest(path) != entry["sha256"]:
                raise StoreError(self._gone(where, f"{name} was altered", manifest["kind"]))
        return Artifact(manifest["kind"], digest, uri, folder, manifest["summary"])

    def remember(self, key: str, artifact: Artifact) -> None:
        """Record that what `key` describes has been made."""
        self._write("keys", key, {"kind": artifact.kind, "digest": artifact.digest})

    def recall(self, key: str) -> Artifact | None:
        """What was made for `key`, or None where nothing was or its bytes are no longer right."""
        path = f"{self.root}/keys/{key}.json"
        if not self._fs.exists(path):
            return None
        with self._fs.open(path) as file:
            entry = json.load(file)
        try:
            return self.open(self.uri(entry["kind"], entry["digest"]), kind=entry["kind"])
        except StoreError:
            return None

    def record(self, key: str, entry: Mapping[str, Any]) -> None:
        """Keep how the result of `key` was made: what `records` returns."""
        self._write("records", key, entry)

    def records(self) -> list[dict[str, Any]]:
        """How every result in this store was made, in no order."""
        paths = self._fs.glob(f"{self.root}/records/*.json")
        return [json.loads(self._fs.cat_file(path)) for path in paths]

    def record_of(self, key: str) -> dict[str, Any]:
        """How the result of `key` was made; empty where that is not known."""
        path = f"{self.root}/records/{key}.json"
        return dict(json.loads(self._fs.cat_file(path))) if self._fs.exists(path) else {}

    def record_run(self, run_key: str, entry: Mapping[str, Any]) -> None:
        """Keep of which study, code and machine a run of the pipeline is: what `runs` returns."""
        self._write("runs", run_key, entry)

    def runs(self) -> dict[str, dict[str, Any]]:
        """By run key, what is known of every run of the pipeline that worked in this store."""
        paths = self._fs.glob(f"{self.root}/runs/*.json")
        return {
            str(path).rsplit("/", 1)[-1].removesuffix(".json"): json.loads(self._fs.cat_file(path)) for path in paths
        }

    @property
    def outbox(self) -> Path:
        """The local folder of what MLflow has still to be told."""
        return self._scratch / "outbox"

    def work_dir(self, key: str) -> Path:
        """The local folder for unfinished work on what `key` describes; kept until `forget_work`."""
        return self._folder("work", key)

    def forget_work(self, key: str) -> None:
        """Remove the unfinished work on `key`."""
        shutil.rmtree(self._scratch / "work" / key, ignore_errors=True)

    def _folder(self, *names: str) -> Path:
        """A local folder; a new store is open to its owner alone, since shards and checkpoints come from patients."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self._scratch.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write(self, kind: str, key: str, entry: Mapping[str, Any]) -> None:
        folder = self._folder(kind)
        write_json(folder / f"{key}.json", entry)
        if not self._local:
            self._fs.put_file(str(folder / f"{key}.json"), f"{self.root}/{kind}/{key}.json")

    def _is_intact(self, folder: Path) -> bool:
        try:
            self.open(str(folder))
        except StoreError:
            return False
        return True

    def _download(self, uri: str, digest: str) -> Path:
        folder = self._scratch / "cache" / digest
        if not (folder / MANIFEST).exists():
            if not self._fs.exists(f"{uri}/{MANIFEST}"):
                return folder
            temporary = folder.with_name(f".{digest}.{os.getpid()}")
            shutil.rmtree(temporary, ignore_errors=True)
            self._fs.get(f"{uri}/", f"{temporary}/", recursive=True)
            if not folder.exists():
                temporary.rename(folder)
        return folder

    @staticmethod
    def _gone(where: str, what: str, kind: str | None) -> str:
        maker = MAKER.get(kind or "", "the stage that makes it")
        return f"{where}: {what}; remove its folder from the store and run again: {maker} will make it anew"


def _restrict(folder: Path) -> None:
    """Only the owner reads a private artifact."""
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.chmod(0o600)
