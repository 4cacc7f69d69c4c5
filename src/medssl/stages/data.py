"""The data stages, in pipeline order: paths and settings in, content-addressed artifacts out."""

import os
from pathlib import Path

from medssl import layout, schema
from medssl.config import DataConfig, ShardConfig, SplitConfig
from medssl.identifiers import KEY_FILE_VARIABLE, PatientKey
from medssl.stages import step as steps
from medssl.store import Store, StoreError, write_json


def fingerprint(store: Store, config: DataConfig, *, root: str, code_version: str) -> steps.Made:
    """Digest the raw data set; always done anew, so that changed data is seen and unchanged data is not re-read."""
    from medssl.data.fingerprint import fingerprint as digest_of

    settings = {"name": config.name, "fingerprint_files": config.fingerprint_files}
    with steps.start(
        "fingerprint", store=store, code_version=code_version, config=settings, inputs={}, reuse=False
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
    store: Store, config: DataConfig, *, root: str, data_digest: str, key_id: str, code_version: str
) -> steps.Made:
    """Read the label tables into the index; the table that leads back to the files stays in the private store."""
    from medssl.data import readers

    source = store.open(store.uri("source", data_digest), kind="source")
    settings = config.model_dump(mode="json", exclude={"root", "key", "generate", "fingerprint_files"})
    settings["key_id"] = key_id
    with steps.start(
        "ingest", store=store, code_version=code_version, config=settings, inputs={"source": source}
    ) as step:
        if step.made is None or not _has_sources(store, step.made.uri):
            key = load_key(config, expected=key_id)
            read = readers.read(Path(root), config, key)
            with store.build() as private:
                schema.write(read.sources, schema.SOURCES, private / layout.SOURCES)
                sources = store.put("private", private, {"num_images": read.sources.num_rows})
            schema.write(
                read.index,
                schema.INDEX,
                step.folder / layout.INDEX,
                metadata={**read.metadata, "key_id": key.key_id, "sources": sources.digest},
            )
            write_json(step.folder / layout.SUMMARY, read.summary)
            step.finish("index", {"num_images": read.index.num_rows}, [("images", 0, read.index.num_rows)])
    return step.result


def assign_splits(store: Store, config: SplitConfig, *, index_uri: str, code_version: str) -> steps.Made:
    """Assign every patient to train, validation or test, and to nested label fractions."""
    from medssl.data import splits

    index = store.open(index_uri, kind="index")
    with steps.start(
        "assign_splits", store=store, code_version=code_version, config=config.dump(), inputs={"index": index}
    ) as step:
        if step.made is None:
            table = schema.read(index.folder / layout.INDEX, schema.INDEX)
            assignment = splits.assign(table, config)
            schema.write(assignment.splits, schema.SPLIT_TABLE, step.folder / layout.SPLITS)
            write_json(step.folder / layout.SUMMARY, assignment.summary)
            leaked = assignment.summary["patients_in_two_splits"]
            step.finish(
                "splits",
                {"num_patients": assignment.splits.num_rows},
                [("patients_in_two_splits", 0, leaked)],
            )
    return step.result


def write_shards(
    store: Store, config: ShardConfig, *, root: str, data_digest: str, index_uri: str, code_version: str
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
    ) as step:
        if step.made is None:
            table_path = index.folder / layout.INDEX
            digest = schema.metadata_of(schema.read(table_path, schema.INDEX, columns=[]))["sources"]
            try:
                private = store.open(store.uri("private", digest), kind="private")
            except StoreError:
                raise StoreError(
                    f"the private table that leads from images to files is gone; remove the folder of index "
                    f"{index.digest[:12]} from the store and run again: ingest will make both anew"
                ) from None
            summary = shards.write(table_path, private.folder / layout.SOURCES, Path(root), step.folder, config)
            counts = {"num_images": summary["num_images"], "num_undecodable": len(summary["undecodable"])}
            step.finish("shards", counts, [(name, 0, value) for name, value in counts.items()])
    return step.result


def _has_sources(store: Store, index_uri: str) -> bool:
    """Whether the private table that belongs to an index is still there and whole."""
    table = schema.read(store.open(index_uri, kind="index").folder / layout.INDEX, schema.INDEX)
    try:
        store.open(store.uri("private", schema.metadata_of(table)["sources"]), kind="private")
    except StoreError:
        return False
    return True


def load_key(config: DataConfig, *, expected: str | None = None, create: bool = False) -> PatientKey:
    """The key of this set's identifiers: the public constant, or the file or environment of this machine.

    Raises:
        BadInputError: There is none, or not the one that the run was submitted with.
    """
    from medssl.exit_codes import BadInputError

    key_file = os.environ.get(KEY_FILE_VARIABLE)
    key = PatientKey.load(
        config.key,
        key_file=Path(key_file) if key_file else None,
        default_file=Path.home() / ".medssl" / "patient.key",
        environment=os.environ,
        create=create,
    )
    if expected is not None and key.key_id != expected:
        raise BadInputError(
            f"the patient key here has key_id {key.key_id}, the run was submitted with {expected}; "
            f"give the same key to both, or start a new run"
        )
    return key
