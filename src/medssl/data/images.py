"""Images without labels, for pretraining: whatever lies below a folder, or what a table lists.

Folders of classes, as root/class/x.jpg, are folders like any other: they become no labels.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from medssl import schema
from medssl.config import DataConfig
from medssl.data import cases, layouts
from medssl.data.reading import GroupKind, Reading, finish, is_safe, unknown_attributes
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

SUFFIXES = (".jpg", ".jpeg", ".png")
FIELDS = tuple(field for field in layouts.FIELDS if field != "condition")


def read(root: Path, config: DataConfig, key: PatientKey, *, with_files: bool = True, below: str = "") -> Reading:
    """List images without labels; no file is opened but the table, if there is one.

    Without a table every .jpg, .jpeg and .png below the folder is listed, and `with_files` says nothing. Where
    `config.group` is "folder", the first folder is the patient and the folder that holds the file the case; else
    each file is a patient of its own. `below` is the folder of the data set that the root is, if it is one. See
    `readers.read` for the other arguments.
    """
    if not config.train_table:
        return _read_folder(root, config, key, below)
    listed = cases.list_images(
        root, config, fields=FIELDS, required=("image",), source_split=schema.UNLABELLED, with_files=with_files
    )
    return finish(
        listed.rows,
        dataset=config.name,
        key=key,
        summary=listed.summary,
        group_kind=listed.group_kind,
        files=listed.files,
        below=below,
    )


def _read_folder(root: Path, config: DataConfig, key: PatientKey, below: str) -> Reading:
    left_out: Counter[str] = Counter()
    try:
        files = sorted(_walk(root, left_out))
    except OSError as error:  # its own text holds the path
        raise BadInputError(
            f"a folder below data.root cannot be read ({error.strerror}); check permissions, and that nothing else "
            "writes there"
        ) from None
    if not files:
        raise BadInputError(
            f"no {', '.join(SUFFIXES)} below data.root, and {sum(left_out.values())} other, hidden or linked entries; "
            "give the folder that contains the images"
        )
    if unsafe := sum(not is_safe(file) for file in files):
        raise BadInputError(
            f"{unsafe} of {len(files)} images have names that are no UTF-8, or hold control characters or backslashes; "
            "rename these files or their folders"
        )
    image = pa.array(files, pa.string())
    patient = case = image
    if config.group == "folder":
        if loose := sum("/" not in file for file in files):
            raise BadInputError(
                f"{loose} of {len(files)} images lie in data.root itself, in no patient's folder; move them into one, "
                "or count each file as a patient of its own: data.group: file"
            )
        patient = pa.array([file.partition("/")[0] for file in files], pa.string())
        case = pa.array([file.rpartition("/")[0] for file in files], pa.string())
    rows = pa.table(
        {
            "patient_id": patient,
            "case_id": case,
            "image_id": image,
            "source_split": pa.repeat(schema.UNLABELLED, len(files)),
            **unknown_attributes(len(files)),
        }
    )
    group_kind: GroupKind = "patient" if config.group == "folder" else "image"
    summary = {
        "group_kind": group_kind,
        "images_per_case": cases.images_per_case(np.bincount(cases.codes_of(case))),
        "left_out": {kind: left_out[kind] for kind in ("hidden", "links", "other files")},
    }
    return finish(rows, dataset=config.name, key=key, summary=summary, group_kind=group_kind, below=below)


def _walk(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Images below `root`, relative to it, in no order; what is passed over is counted, a hidden folder once."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    left_out["hidden"] += 1
                elif entry.is_symlink():
                    left_out["links"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(SUFFIXES):
                    yield f"{prefix}{entry.name}"
                else:
                    left_out["other files"] += 1
