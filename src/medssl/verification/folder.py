"""One folder, checked as what it is: a run's results, a store, one artifact, or shards alone."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medssl import layout, schema
from medssl.exit_codes import BadInputError
from medssl.progress import Progress
from medssl.shardset import whole
from medssl.store import MAKER, MANIFEST
from medssl.verification import artifacts, predictions, shards, splits, tables
from medssl.verification.artifacts import RUN_FILE, Found
from medssl.verification.finding import Finding

STORE_FOLDER = "store"


@dataclass
class Verdict:
    """What the checks of one folder found.

    Attributes:
        findings: In the order of the checks; notes are among them.
        counts: Artifacts, files, patients and images that were looked at.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_sound(self) -> bool:
        """Whether nothing but notes was found."""
        return all(finding.is_note for finding in self.findings)


@dataclass(frozen=True)
class Contents:
    """The readable artifacts of a folder, and how the store says that they belong together.

    Attributes:
        found: Those to be checked.
        root: The store that they lie in; None for an artifact or shards alone.
    """

    found: tuple[Found, ...]
    root: Path | None

    @cached_property
    def inputs_of(self) -> Mapping[str, Mapping[str, str]]:
        """By digest of what a stage made: by role, the digest of what it read; the latest where several made it."""
        made = []
        for path in self.records:
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                inputs = {str(role): str(a["digest"]) for role, a in record["inputs"].items()}
                made.append((float(record["finished_unix_s"]), str(record["output"]["digest"]), inputs))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return {digest: inputs for _, digest, inputs in sorted(made, key=lambda one: one[0])}

    @property
    def records(self) -> list[Path]:
        """The files in which the store keeps how its artifacts were made."""
        return sorted((self.root / "records").glob("*.json")) if self.root else []

    @cached_property
    def models(self) -> set[str]:
        """SHA-256 of every file of weights in the store."""
        folders = self.root.glob("models/*") if self.root else ()
        read = [artifacts.read(folder) for folder in sorted(folders)]
        made = [found for found in read if isinstance(found, Found)]
        return {str(f.files[n]["sha256"]) for f in made for n in f.files if n.endswith(layout.MODEL)}

    def of_kind(self, kind: str) -> list[Found]:
        """The artifacts of one kind."""
        return [found for found in self.found if found.kind == kind]

    def table(self, kind: str, digest: str | None, name: str, declared: schema.TableSchema) -> pa.Table | None:
        """A table of another artifact of the store; None where there is none that can be read."""
        if self.root is None or digest is None:
            return None
        table = tables.read(self.root / kind / digest / name, declared)
        return None if isinstance(table, Finding) else table

    def origins(self, digest: str) -> set[tuple[str, str]]:
        """Index and splits behind predictions, or behind a comparison of several."""
        inputs = self.inputs_of.get(digest, {})
        if {"index", "splits"} <= set(inputs):
            return {(inputs["index"], inputs["splits"])}
        parents = [self.inputs_of.get(parent, {}) for parent in inputs.values()]
        return {(parent["index"], parent["splits"]) for parent in parents if {"index", "splits"} <= set(parent)}

    def externals(self, digest: str) -> set[str]:
        """Indexes of the external sets behind predictions, or behind a comparison of several."""
        inputs = self.inputs_of.get(digest, {})
        all_inputs = [inputs, *(self.inputs_of.get(parent, {}) for parent in inputs.values())]
        return {of for one in all_inputs for role, of in one.items() if role.startswith(layout.EXTERNAL_INDEX)}


def verify(folder: Path, *, quick: bool = False) -> Verdict:
    """Check everything below `folder`; nothing is changed.

    Args:
        folder: What `python -m pipelines run` left; or a store, one artifact, or a folder of shards.
        quick: Leave out decoding the stored images.

    Raises:
        BadInputError: The folder is none of these.
    """
    folder, verdict = folder.resolve(), Verdict()
    if (folder / STORE_FOLDER).is_dir():
        contents = _open_store(folder / STORE_FOLDER, verdict)
        if (folder / RUN_FILE).is_file():
            verdict.findings += artifacts.check_run(folder, contents.found)
        else:
            verdict.findings.append(Finding(RUN_FILE, "there is none: no run has ended here", is_note=True))
    elif any((folder / kind).is_dir() for kind in MAKER):
        contents = _open_store(folder, verdict)
    elif (folder / MANIFEST).is_file():
        root = folder.parents[1]
        contents = _open([folder], root if (root / "records").is_dir() else None, verdict)
    elif (folder / layout.SHARDS).is_file():
        contents = Contents((), None)
        threads = len(os.sched_getaffinity(0))
        verdict.findings += shards.check(folder, None, where="shards", quick=quick, num_threads=threads)
        verdict.counts["files"] = len(list(folder.iterdir()))
    else:
        raise BadInputError(
            f"the folder holds no {RUN_FILE}, no store, no {MANIFEST} and no {layout.SHARDS}; expected the folder of "
            "a run's results, a store, an artifact or shards"
        )
    verdict.findings += _contents(contents, verdict, quick=quick)
    return verdict


def _open_store(root: Path, verdict: Verdict) -> Contents:
    folders = [path for kind in MAKER for path in sorted((root / kind).glob("*"))]
    return _open(folders, root, verdict)


def _open(folders: list[Path], root: Path | None, verdict: Verdict) -> Contents:
    """Read and check every artifact by itself."""
    read = [artifacts.read(folder) for folder in folders]
    found = tuple(one for one in read if isinstance(one, Found))
    verdict.findings += [one for one in read if isinstance(one, Finding)]
    progress = Progress("verify: digests", max(sum(len(one.files) for one in found), 1), unit="files")

    def tell() -> None:
        verdict.counts["files"] += 1
        progress.update(verdict.counts["files"])

    for one in found:
        verdict.counts["artifacts"] += 1
        verdict.findings += artifacts.check(one, in_store=root is not None, tell=tell)
        verdict.findings += tables.check(one)
    return Contents(found, root)


def _contents(contents: Contents, verdict: Verdict, *, quick: bool) -> Iterator[Finding]:
    """Check the artifacts against each other."""
    patients: set[str] = set()
    for found in contents.of_kind("index"):
        table = tables.read(found.folder / layout.INDEX, schema.INDEX)
        if not isinstance(table, Finding):
            patients |= set(tables.counts(table["patient_id"]))
            verdict.counts["images"] += table.num_rows
    verdict.counts["patients"] = len(patients)
    for found in contents.of_kind("shards"):
        index = contents.table("index", _input(contents, found, "index"), layout.INDEX, schema.INDEX)
        threads = len(os.sched_getaffinity(0))
        yield from shards.check(found.folder, index, where=found.name, quick=quick, num_threads=threads)
    for found in contents.of_kind("splits"):
        yield from _splits(contents, found)
    for found in (*contents.of_kind("predictions"), *contents.of_kind("comparison")):
        yield from _predictions(contents, found)
    for found in contents.found:
        if layout.METRICS in found.files:
            table = tables.read(found.folder / layout.METRICS, schema.METRICS)
            if not isinstance(table, Finding):
                yield from tables.check_metrics(table, where=found.name)


def _input(contents: Contents, found: Found, role: str) -> str | None:
    return contents.inputs_of.get(found.folder.name, {}).get(role)


def _splits(contents: Contents, found: Found) -> Iterator[Finding]:
    digest = _input(contents, found, "index")
    index = contents.table("index", digest, layout.INDEX, schema.INDEX)
    table = tables.read(found.folder / layout.SPLITS, schema.SPLIT_TABLE)
    if isinstance(table, Finding) or index is None:
        if not isinstance(table, Finding):
            yield Finding(found.name, "the index is not at hand: sizes and disjointness are not checked", is_note=True)
        return
    yield from splits.check(table, index, where=found.name, summary_path=found.folder / layout.SUMMARY)
    pairs = contents.table("index", digest, layout.DUPLICATES, schema.DUPLICATES)
    if pairs is not None:
        yield from splits.check_shared_pictures(pairs, index, table, where=found.name)


def _predictions(contents: Contents, found: Found) -> Iterator[Finding]:
    table: Any = tables.read(found.folder / layout.PREDICTIONS, schema.PREDICTIONS)
    if isinstance(table, Finding):
        return
    yield from predictions.check(table, where=found.name, models=contents.models)
    origins = contents.origins(found.folder.name)
    for index_digest, splits_digest in sorted(origins):
        index = contents.table("index", index_digest, layout.INDEX, schema.INDEX)
        of_splits = contents.table("splits", splits_digest, layout.SPLITS, schema.SPLIT_TABLE)
        of_index = table.filter(pc.equal(table["dataset_digest"], pa.scalar(index_digest)))
        if index is not None and of_splits is not None:
            yield from predictions.check_splits(of_index, index, of_splits, where=found.name)
    known = {index_digest for index_digest, _ in origins}
    for index_digest in sorted(contents.externals(found.folder.name)):
        index = contents.table("index", index_digest, layout.INDEX, schema.INDEX)
        of_index = table.filter(pc.equal(table["dataset_digest"], pa.scalar(index_digest)))
        if index is not None:
            known.add(index_digest)
            yield from predictions.check_splits(of_index, index, whole(index), where=found.name)
    if unknown := sorted(set(tables.counts(table["dataset_digest"])) - known):
        what = f"{len(unknown)} data sets whose index and splits are not at hand: their units are not checked"
        yield Finding(found.name, what, is_note=True)
