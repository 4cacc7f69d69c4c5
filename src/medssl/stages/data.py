"""The data stages, in pipeline order: paths and settings in, content-addressed artifacts out."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medssl import layout, schema
from medssl.config import MAX_BYTES, MAX_PIXELS, NAMES_OF_FILES, DataConfig, ShardConfig, SplitConfig
from medssl.exit_codes import BadInputError
from medssl.identifiers import KEY_FILE_VARIABLE, PatientKey
from medssl.progress import begin_task, counted, say
from medssl.stages import step as steps
from medssl.store import Store, StoreError, write_json

if TYPE_CHECKING:
    from medssl.data.reading import Reading

BEAM_OPTIONS_VARIABLE = "MEDSSL_BEAM_OPTIONS"  # which runner writes shards changes no byte of them
# What an external set goes through in one task; each has its own code version.
DATASET_STAGES = ("fingerprint", "ingest", "write_shards", "prepare_dataset")


def fingerprint(store: Store, config: DataConfig, *, root: str, code_version: str, item: str = "") -> steps.Made:
    """Digest the raw data set; always done anew, so that changed data is seen and unchanged data is not re-read."""
    from medssl.data.fingerprint import fingerprint as digest_of

    settings = {"name": config.name, "fingerprint_files": config.fingerprint_files}
    with steps.start(
        "fingerprint", store=store, code_version=code_version, config=settings, inputs={}, reuse=False, item=item
    ) as step:
        found = digest_of(Path(root), config.tables, files=config.fingerprint_files)
        summary = {
            "fingerprint": found.digest,
            "table_digest": found.table_digest,
            "num_files": found.num_files,
            "num_bytes": found.num_bytes,
        }
        write_json(step.folder / layout.SUMMARY, summary)
        step.finish("source", summary, [("files", 0, found.num_files), ("bytes", 0, found.num_bytes)])
    return step.result


def ingest(
    store: Store,
    config: DataConfig,
    *,
    root: str,
    data_digest: str,
    key_id: str,
    code_version: str,
    item: str = "",
) -> steps.Made:
    """Read the label tables into the index; the table that leads back to the files stays in the private store."""
    from medssl.data import readers

    source = store.open(store.uri("source", data_digest), kind="source")
    settings = config.model_dump(mode="json", exclude={"root", "key", "generate", "fingerprint_files"})
    settings["key_id"] = key_id
    with steps.start(
        "ingest",
        store=store,
        code_version=code_version,
        config=settings,
        inputs={"source": source},
        unlogged=NAMES_OF_FILES,
        item=item,
    ) as step:
        if step.made is None or not _has_sources(store, step.made.uri):
            key = load_key(config, expected=key_id)
            read = readers.read(Path(root), config, key)
            with store.build() as private:
                schema.write(read.sources, schema.SOURCES, private / layout.SOURCES)
                sources = store.put("private", private, {"num_images": read.sources.num_rows})
            metadata = {**read.metadata, "key_id": key.key_id, "sources": sources.digest}
            schema.write(read.index, schema.INDEX, step.folder / layout.INDEX, metadata=metadata)
            counts = {"images": read.index.num_rows}
            if config.find_duplicates:
                shared, summary = shared_pictures(read, Path(root))
                schema.write(shared, schema.DUPLICATES, step.folder / layout.DUPLICATES)
                counts["pairs_of_shared_pictures_between_patients"] = summary["pairs_between_patients"]
                read.summary["duplicates"] = summary
            write_json(step.folder / layout.SUMMARY, read.summary)
            step.finish("index", {"num_images": read.index.num_rows}, [(n, 0, value) for n, value in counts.items()])
    return step.result


def shared_pictures(read: "Reading", root: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The pairs of images that show the same picture (schema DUPLICATES), and their counts."""
    from medssl.data import duplicates

    files, image_ids, patient_ids = (
        list(map(str, column.to_pylist()))
        for column in (read.sources["file"], read.index["image_id"], read.index["patient_id"])
    )
    bounds: dict[str, Any] = {
        "max_bytes": MAX_BYTES,
        "max_pixels": MAX_PIXELS,
        "num_threads": len(os.sched_getaffinity(0)),
    }
    hashed = duplicates.hash_files(files, root, **bounds)
    pairs = duplicates.confirm(duplicates.candidates(hashed), files, root, **bounds)
    table = duplicates.table(pairs, image_ids, patient_ids)
    num_same = table["is_same_patient"].to_pylist().count(True)
    summary = {
        "images_compared": int(hashed.is_hashed.sum()),
        "images_without_hash": dict(hashed.without),
        "pairs_of_one_patient": num_same,
        "pairs_between_patients": table.num_rows - num_same,
    }
    return table, summary


def assign_splits(store: Store, config: SplitConfig, *, index_uri: str, code_version: str) -> steps.Made:
    """Assign every patient to train, validation or test, and to nested label fractions."""
    index = store.open(index_uri, kind="index")
    inputs = {"index": index}
    if config.extend:
        inputs["previous"] = store.open(store.uri("splits", config.extend), kind="splits")
    with steps.start(
        "assign_splits", store=store, code_version=code_version, config=config.dump(), inputs=inputs
    ) as step:
        if step.made is None:
            previous = inputs["previous"].folder / layout.SPLITS if config.extend else None
            pairs = index.folder / layout.DUPLICATES
            summary = split_table(
                index.folder / layout.INDEX,
                step.folder / layout.SPLITS,
                config,
                previous_path=previous,
                pairs_path=pairs if pairs.exists() else None,
            )
            write_json(step.folder / layout.SUMMARY, summary)
            leaked = summary["patients_in_two_splits"]
            num_patients = sum(summary["patients"].values())
            step.finish("splits", {"num_patients": num_patients}, [("patients_in_two_splits", 0, leaked)])
    return step.result


def prepare_dataset(
    store: Store,
    config: DataConfig,
    shards: ShardConfig,
    *,
    key_id: str,
    code_versions: Mapping[str, str],
) -> steps.Made:
    """Fingerprint, read and store a data set that finished models are evaluated on; all of it, and no split of it."""
    # What the set shares with training is not looked for: within it alone, a shared picture does no harm.
    config = config.model_copy(update={"find_duplicates": False})
    with begin_task(f"prepare_dataset {config.name}"):
        root = str(config.root)
        source = fingerprint(store, config, root=root, code_version=code_versions["fingerprint"], item=config.name)
        digest = source.metadata["digest"]
        index = ingest(
            store,
            config,
            root=root,
            data_digest=digest,
            key_id=key_id,
            code_version=code_versions["ingest"],
            item=config.name,
        )
        stored = write_shards(
            store,
            shards,
            root=root,
            data_digest=digest,
            index_uri=index.uri,
            code_version=code_versions["write_shards"],
            item=config.name,
        )
        made = {"source": source, "index": index, "shards": stored}
        inputs = {kind: store.open(one.uri, kind=kind) for kind, one in made.items()}
        with steps.start(
            "prepare_dataset",
            store=store,
            code_version=code_versions["prepare_dataset"],
            config={"name": config.name},
            inputs=inputs,
            item=config.name,
        ) as step:
            if step.made is None:
                content = {"name": config.name, **{kind: artifact.digest for kind, artifact in inputs.items()}}
                write_json(step.folder / layout.DATASET, content)
                num_images = inputs["index"].summary["num_images"]
                summary = {"name": config.name, "num_images": num_images}
                step.finish("dataset", summary, [("images", 0, num_images)])
        return step.result


def index_table(config: DataConfig, *, root: Path, out_path: Path, with_files: bool) -> dict[str, Any]:
    """Read one data set into an index file, outside any store; returns the reader's summary.

    Args:
        config: Kind of the set and its tables.
        root: What the names in the tables are relative to.
        out_path: Where the index goes; with files, the table that leads to them goes beside it, readable by the
            owner alone, and so do pairs of images that show the same picture.
        with_files: False where only the table exists.
    """
    from medssl.data import readers

    key = load_key(config, create=True)
    read = readers.read(root, config, key, with_files=with_files)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    schema.write(read.index, schema.INDEX, out_path, metadata={**read.metadata, "key_id": key.key_id})
    if with_files:
        schema.write(read.sources, schema.SOURCES, _beside(out_path, layout.SOURCES), mode=0o600)
        if config.find_duplicates:
            shared, read.summary["duplicates"] = shared_pictures(read, root)
            schema.write(shared, schema.DUPLICATES, _beside(out_path, layout.DUPLICATES))
    return read.summary


def pairs_beside(index_path: Path) -> Path | None:
    """The pairs of images that `index_table` found for an index; None where it did not look for any."""
    path = _beside(index_path, layout.DUPLICATES)
    return path if path.is_file() else None


def _beside(index_path: Path, name: str) -> Path:
    return index_path.with_name(f"{index_path.stem}.{name}")


def split_table(
    index_path: Path,
    out_path: Path,
    config: SplitConfig,
    *,
    previous_path: Path | None = None,
    pairs_path: Path | None = None,
) -> dict[str, Any]:
    """Split an index file and write the table of splits; returns the proof of it.

    Raises:
        BadInputError: The previous splits were made with another key, or the sizes cannot be met.
    """
    from medssl.data import splits

    index = schema.read(index_path, schema.INDEX)
    key_id = schema.metadata_of(index).get("key_id", "")
    previous = schema.read(previous_path, schema.SPLIT_TABLE) if previous_path else None
    if previous is not None and (found := schema.metadata_of(previous).get("key_id", "")) != key_id:
        raise BadInputError(
            f"the previous splits were made with the patient key {found}, the index with {key_id}: no patient can be "
            "recognised; ingest with the earlier key"
        )
    pairs = schema.read(pairs_path, schema.DUPLICATES) if pairs_path else None
    assignment = splits.assign(index, config, previous=previous, pairs=pairs)
    metadata = {"key_id": key_id, "group_by": config.group_by}
    out_path.parent.mkdir(parents=True, exist_ok=True)
    schema.write(assignment.splits, schema.SPLIT_TABLE, out_path, metadata=metadata)
    return assignment.summary


def shares_of(index_path: Path, splits_path: Path) -> dict[str, float]:
    """Sizes, as fractions of images, that an earlier table of splits has among the images of an index.

    Raises:
        BadInputError: The two do not belong together.
    """
    from medssl.data import splits

    return splits.shares(schema.read(index_path, schema.INDEX), schema.read(splits_path, schema.SPLIT_TABLE))


def write_shards(
    store: Store,
    config: ShardConfig,
    *,
    root: str,
    data_digest: str,
    index_uri: str,
    code_version: str,
    item: str = "",
) -> steps.Made:
    """Decode, resize and store the images, all of a patient side by side; what cannot be decoded is listed."""
    from medssl.data import shards

    index = store.open(index_uri, kind="index")
    source = store.open(store.uri("source", data_digest), kind="source")
    with steps.start(
        "write_shards",
        store=store,
        code_version=code_version,
        config=config.dump(),
        inputs={"source": source, "index": index},
        item=item,
    ) as step:
        if step.made is None:
            table_path = index.folder / layout.INDEX
            digest = _sources_digest(table_path)
            try:
                private = store.open(store.uri("private", digest), kind="private")
            except StoreError:
                raise StoreError(
                    f"the private table that leads from images to files is gone; remove the folder of index "
                    f"{index.digest[:12]} from the store and run again: ingest will make both anew"
                ) from None
            summary = shards.write(
                table_path,
                private.folder / layout.SOURCES,
                Path(root),
                step.folder,
                config,
                pipeline_options=shlex.split(os.environ.get(BEAM_OPTIONS_VARIABLE, "")),
            )
            counts = {"num_images": summary["num_images"], "num_undecodable": len(summary["undecodable"])}
            if refused := sorted(summary["undecodable_by_reason"].items()):
                reasons = ", ".join(f"{count} {reason}" for reason, count in refused)
                say(f"{counts['num_undecodable']} of {counted(sum(counts.values()), 'image')} set aside ({reasons})")
            step.finish("shards", counts, [(name, 0, value) for name, value in counts.items()])
    return step.result


def _has_sources(store: Store, index_uri: str) -> bool:
    """Whether the private table that belongs to an index is still there and whole."""
    digest = _sources_digest(store.open(index_uri, kind="index").folder / layout.INDEX)
    try:
        store.open(store.uri("private", digest), kind="private")
    except StoreError:
        return False
    return True


def _sources_digest(index_path: Path) -> str:
    """Which private table belongs to an index."""
    return schema.metadata_of(schema.read(index_path, schema.INDEX, columns=[]))["sources"]


def load_key(config: DataConfig, *, expected: str | None = None, create: bool = False) -> PatientKey:
    """The key of this set's identifiers: the public constant, or the file or environment of this machine.

    Raises:
        BadInputError: There is none, or not the one that the run was submitted with.
    """
    key_file = os.environ.get(KEY_FILE_VARIABLE)
    default_file = Path.home() / ".medssl" / "patient.key"
    is_absent = not default_file.exists()
    key = PatientKey.load(
        config.key,
        key_file=Path(key_file) if key_file else None,
        default_file=default_file,
        environment=os.environ,
        create=create,
    )
    if create and is_absent and default_file.exists():
        say(f"made a private patient key, {default_file}; keep it: another key gives other identifiers")
    if expected is not None and key.key_id != expected:
        raise BadInputError(
            f"the patient key here has key_id {key.key_id}, the run was submitted with {expected}; "
            f"give the same key to both, or start a new run"
        )
    return key
