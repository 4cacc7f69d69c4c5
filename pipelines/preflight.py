"""What can be known to fail before any work is done: read the tables, try the split, count what training will need."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl import labels
from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.stages.data import load_key


def check(study: Study, root: Path) -> str:
    """Check a study against its data; returns the key_id of its identifiers.

    Raises:
        BadInputError: The tables, the findings, the split, a batch or a label fraction cannot work.
    """
    from medssl.data import readers, splits

    if root.is_file():
        raise BadInputError("data.root is a file, expected the folder of the data set; give the folder that holds it")
    key = load_key(study.data, create=True)
    index = readers.read(root, study.data, key).index
    for one in study.external:
        if one.key != study.data.key:
            raise BadInputError(
                f"external: {one.name}: key is {one.key}, that of the study's own data {study.data.key}; "
                "give both the same"
            )
        readers.read(Path(str(one.root)), one, key)
    assigned = splits.assign(index, study.splits).splits
    labels.classes(index, assigned, study.task)
    train = assigned.filter(pc.equal(assigned["split"], pa.scalar("train")))
    is_train = pc.is_in(index["patient_id"], value_set=train["patient_id"])
    num_units = {"simclr": int(np.count_nonzero(is_train)), "micle": train.num_rows}
    for run in study.pretraining:
        unit = "images" if run.method == "simclr" else "patients"
        if run.batch_size > num_units[run.method]:
            raise BadInputError(
                f"pretraining: {run.name}: batch_size is {run.batch_size}, but the training split has "
                f"{num_units[run.method]} {unit}; lower it to at most that"
            )
        if run.batch_size % study.resources.processes:
            raise BadInputError(
                f"pretraining: {run.name}: batch_size {run.batch_size} must be a multiple of resources.processes, "
                f"{study.resources.processes}"
            )
    for fraction in study.finetune.label_fractions:
        for draw in range(study.splits.draws):
            if not splits.select_fraction(train, fraction=fraction, draw=draw):
                raise BadInputError(
                    f"finetune.label_fractions: {fraction:g} leaves none of {train.num_rows} training patients "
                    f"in draw {draw}; raise it"
                )
    return key.key_id
