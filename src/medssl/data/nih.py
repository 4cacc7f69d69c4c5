"""NIH ChestX-ray14: `Data_Entry_2017.csv` or its revision of 2020, and the image files it lists, read as an index.

Wang et al. 2017, ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. The labels are text-mined from the
reports over fourteen findings, so one of these that a row does not list is negative; a finding of CheXpert's that is
not among them was never looked for and is not assessed.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl import schema
from medssl.config import DataConfig
from medssl.data.cells import Cells, Column
from medssl.data.cells import read as read_cells
from medssl.data.chexpert import FINDINGS as CHEXPERT_FINDINGS
from medssl.data.radiographs import label_columns, select_views
from medssl.data.reading import MAX_AGE_YEARS, Reading, finish, locate, probe, reject_repeated_images
from medssl.identifiers import PatientKey

FILE, LABELS, FOLLOW_UP, PATIENT, AGE, SEX, VIEW = COLUMNS = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
)  # fmt: skip
OTHER_NAMES = {SEX: "Patient Sex"}  # in later copies of the table of 2020
# The words of the table that mean a finding of CheXpert's; the others keep a column under their own name.
CHEXPERT_NAMES = {
    **{name: name for name in ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax")},
    "Effusion": "Pleural Effusion",
}
OWN_NAMES = {
    word: word.replace("_", " ")
    for word in ("Infiltration", "Mass", "Nodule", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
}
ASSESSED = {**CHEXPERT_NAMES, **OWN_NAMES}
NO_FINDING = "No Finding"
FINDINGS = (*CHEXPERT_FINDINGS, *OWN_NAMES.values())

# The number in a name counts a patient's images; it is not always the follow-up number.
FILE_PATTERN = r"^0*(?P<patient>[0-9]+)_[0-9]+\.(?:png|jpg|jpeg)$"
PATIENT_PATTERN = r"^0*(?P<patient>[0-9]+)$"
AGE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)([YMWD]?)")  # the unit stands in the first release only
UNITS_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
SEXES = {"F": "female", "M": "male", "": None}
VIEW_POSITIONS = {"PA": "PA", "AP": "AP", "": None}
# Of copies that hold all images in one folder, and of the twelve archives as they unpack.
FOLDERS = ("", "images", *(f"images_{part:03d}/images" for part in range(1, 13)))


def read(root: Path, config: DataConfig, key: PatientKey, *, with_files: bool = True) -> Reading:
    """Read and check the table of ChestX-ray14; image files are not opened.

    A listed finding is positive, an unlisted one of the fourteen negative, and CheXpert's findings beyond them are
    not assessed; "No Finding" is positive or negative. Unknown sex, age or view position are null, and so are ages
    above 130, which the first release is known to hold: these are counted in the summary. Every image is frontal. See
    `readers.read` for the arguments.
    """
    cells = read_cells(root, config.train_table, setting="data.train_table", required=COLUMNS, other_names=OTHER_NAMES)
    rows = select_views(_rows(cells), config.views)
    files = locate(root, FOLDERS, rows["image_id"]) if with_files else rows["image_id"]
    if with_files:
        probe(root, files)
    stated: Column = pc.not_equal(cells.columns[AGE], pa.scalar(""))
    summary = {
        "rows": {cells.name: int(cells.rows.size)},
        "ignored_columns": {cells.name: cells.num_ignored_columns},
        "frontal": rows.num_rows,
        "lateral": 0,
        "left_out_by_view": 0,
        "impossible_age": pc.sum(stated).as_py() - (rows.num_rows - rows["age_years"].null_count),
    }
    return finish(rows, dataset=config.name, key=key, summary=summary, files=files)


def _rows(cells: Cells) -> pa.Table:
    """The rows of the index, with the source's own names where identifiers will stand."""
    patient = _patients(cells)
    follow_up = cells.translate(FOLLOW_UP, _whole, pa.string(), expected="a whole number")
    reject_repeated_images(cells, cells.columns[FILE])
    num_rows = cells.rows.size
    columns: dict[str, Column] = {
        "patient_id": patient,
        "case_id": pc.binary_join_element_wise(patient, follow_up, pa.scalar("/")),
        "image_id": cells.columns[FILE],
        "source_split": pa.repeat("train", num_rows),
        "view_position": cells.translate(
            VIEW, VIEW_POSITIONS.__getitem__, pa.string(), expected="PA, AP or blank", words=VIEW_POSITIONS
        ),
        "sex": cells.translate(SEX, SEXES.__getitem__, pa.string(), expected="F, M or blank", words=SEXES),
        "age_years": cells.translate(
            AGE, _age_years, pa.float32(), expected="an age such as 58, 058Y or 013M, or blank"
        ),
        "skin_type": pa.nulls(num_rows, pa.string()),
        "site": pa.nulls(num_rows, pa.string()),
    }
    words = (NO_FINDING, *ASSESSED)
    expected = f'"{NO_FINDING}" alone, or findings of ChestX-ray14 separated by |'
    return pa.table(columns | label_columns(cells, LABELS, _states, FINDINGS, expected=expected, words=words))


def _patients(cells: Cells) -> Column:
    """The patient of each row, without leading zeros, which not all copies of the table have."""
    named: Column = pc.extract_regex(cells.columns[FILE], FILE_PATTERN)
    cells.reject(
        named.is_null(),
        f'column "{FILE}" is not of the form 00000001_000.png',
        "expected the patient's number, the image's number, and png, jpg or jpeg",
    )
    stated: Column = pc.extract_regex(cells.columns[PATIENT], PATIENT_PATTERN)
    cells.reject(stated.is_null(), f'column "{PATIENT}" is no number', "correct or remove these rows")
    patient = stated.field(0)
    cells.reject(
        np.not_equal(patient.to_numpy(zero_copy_only=False), named.field(0).to_numpy(zero_copy_only=False)),
        f'columns "{FILE}" and "{PATIENT}" disagree',
        "a file's name starts with its patient's number; correct these rows",
    )
    return patient


def _whole(text: str) -> str:
    return str(int(text))


def _age_years(text: str) -> float | None:
    """The age in a cell; None where it is blank or above 130 years."""
    if not text:
        return None
    match = AGE_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError
    years = float(match[1]) / UNITS_PER_YEAR[match[2]]
    return years if years <= MAX_AGE_YEARS else None


def _states(text: str) -> list[int]:
    """Label states of FINDINGS, in their order, for the text of a row."""
    listed = text.split("|")
    if listed == [NO_FINDING]:
        positive = {NO_FINDING}
    elif all(word in ASSESSED for word in listed):
        positive = {ASSESSED[word] for word in listed}
    else:
        raise ValueError
    assessed = {NO_FINDING, *ASSESSED.values()}
    return [
        (schema.POSITIVE if finding in positive else schema.NEGATIVE) if finding in assessed else schema.NOT_ASSESSED
        for finding in FINDINGS
    ]
