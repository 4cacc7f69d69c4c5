"""What can be known to fail before any work is done: read the tables, try the split, count what training will need."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medssl import labels, layout, schema
from medssl.config import DataConfig, Study
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey
from medssl.stages.data import load_key
from medssl.store import Store


def check(study: Study, root: Path, store: Store) -> str:
    """Check a study against its data; returns the key_id of its identifiers.

    Raises:
        BadInputError: The tables, the findings, the split, a batch or a label fraction cannot work.
    """
    from medssl.data import readers, splits

    if root.is_file():
        raise BadInputError("data.root is a file, expected the folder of the data set; give the folder that holds it")
    key = load_key(study.data, create=True)
    index = readers.read(root, study.data, key).index
    previous = None
    if study.splits.extend:
        earlier = store.open(store.uri("splits", study.splits.extend), kind="splits")
        previous = schema.read(earlier.folder / layout.SPLITS, schema.SPLIT_TABLE)
    assigned = splits.assign(index, study.splits, previous=previous).splits
    classes = labels.classes(index, assigned, study.task)
    for one in study.external:
        _check_external(study, one, key, classes)
    _check_batches(study, index, assigned)
    train = assigned.filter(pc.equal(assigned["split"], pa.scalar("train")))
    for fraction in study.finetune.label_fractions:
        for draw in range(study.splits.draws):
            if not splits.select_fraction(train, fraction=fraction, draw=draw):
                raise BadInputError(
                    f"finetune.label_fractions: {fraction:g} leaves none of {train.num_rows} training patients "
                    f"in draw {draw}; raise it"
                )
    return key.key_id


def _check_external(study: Study, one: DataConfig, key: PatientKey, classes: Sequence[str]) -> None:
    from medssl.data import readers

    if one.key != study.data.key:
        raise BadInputError(
            f"external: {one.name}: key is {one.key}, that of the study's own data {study.data.key}; give both the same"
        )
    try:
        read = readers.read(Path(str(one.root)), one, key)
    except BadInputError as error:
        raise BadInputError(f"external: {one.name}: {error}") from None
    if not set(classes) & set(schema.label_columns(read.index)):
        raise BadInputError(
            f"external: {one.name}: it has a label for none of the study's {len(classes)} {study.task.kind}; "
            "choose a set that shares some, or give their names by condition_names"
        )


def _check_batches(study: Study, index: pa.Table, assigned: pa.Table) -> None:
    """Pretraining draws from the images or patients of the training split and of the unlabelled pool."""
    in_pool = pc.is_in(assigned["split"], value_set=pa.array(["train", schema.UNLABELLED]))
    pool = schema.rows_of(index, assigned.filter(in_pool))
    num_units = {"simclr": pool.num_rows, "micle": len(pool["patient_id"].unique())}
    for run in study.pretraining:
        thing = "images" if run.method == "simclr" else "patients"
        if run.batch_size > num_units[run.method]:
            raise BadInputError(
                f"pretraining: {run.name}: batch_size is {run.batch_size}, but the training split has "
                f"{num_units[run.method]} {thing}; lower it to at most that"
            )
        if run.batch_size % study.resources.processes:
            raise BadInputError(
                f"pretraining: {run.name}: batch_size {run.batch_size} must be a multiple of resources.processes, "
                f"{study.resources.processes}"
            )
