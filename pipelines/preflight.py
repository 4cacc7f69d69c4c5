"""What can be known to fail before any work is done: read the tables, try the split, count what training will need."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medssl import labels, layout, schema
from medssl.config import DataConfig, PretrainRun, Study
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
    train = assigned.filter(pc.equal(assigned["split"], pa.scalar("train")))
    others = {one.name: _read("pretraining_data", study, one, key) for one in study.pretraining_data}
    for run in study.pretraining:
        _check_batch(study, run, others[run.dataset] if run.dataset else _pool(index, assigned, run))
    for fraction in study.finetune.label_fractions:
        for draw in range(study.splits.draws):
            if not splits.select_fraction(train, fraction=fraction, draw=draw):
                raise BadInputError(
                    f"finetune.label_fractions: {fraction:g} leaves none of {train.num_rows} training patients "
                    f"in draw {draw}; raise it"
                )
    return key.key_id


def _check_external(study: Study, one: DataConfig, key: PatientKey, classes: Sequence[str]) -> None:
    if not set(classes) & set(schema.label_columns(_read("external", study, one, key))):
        raise BadInputError(
            f"external: {one.name}: it has a label for none of the study's {len(classes)} {study.task.kind}; "
            "choose a set that shares some, or give their names by condition_names"
        )


def _read(section: str, study: Study, one: DataConfig, key: PatientKey) -> pa.Table:
    """The index of a further data set of the study."""
    from medssl.data import readers

    if one.key != study.data.key:
        raise BadInputError(
            f"{section}: {one.name}: key is {one.key}, that of the study's own data {study.data.key}; "
            "give both the same"
        )
    try:
        return readers.read(Path(str(one.root)), one, key).index
    except BadInputError as error:
        raise BadInputError(f"{section}: {one.name}: {error}") from None


def _pool(index: pa.Table, assigned: pa.Table, run: PretrainRun) -> pa.Table:
    """What a run sees of the study's own set."""
    opened = ["train", schema.UNLABELLED] if run.unlabelled else ["train"]
    rows = schema.rows_of(index, assigned.filter(pc.is_in(assigned["split"], value_set=pa.array(opened))))
    if run.unlabelled:
        return rows
    return rows.filter(pc.not_equal(rows["source_split"], pa.scalar(schema.UNLABELLED)))


def _check_batch(study: Study, run: PretrainRun, pool: pa.Table) -> None:
    """A run draws from the images or patients of its pool."""
    place = run.dataset or "the training split"
    num_units = pool.num_rows if run.method == "simclr" else len(pool["patient_id"].unique())
    thing = "images" if run.method == "simclr" else "patients"
    if run.batch_size > num_units:
        raise BadInputError(
            f"pretraining: {run.name}: batch_size is {run.batch_size}, but {place} has "
            f"{num_units} {thing}; lower it to at most that"
        )
    run.check_processes(study.resources.processes)
