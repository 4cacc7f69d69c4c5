"""PadChest: its table of images, reports' labels and DICOM fields, and the image files it lists, read as an index.

Bustos et al. 2020, PadChest: A large chest x-ray image dataset with multi-label annotated reports. A report's labels
come from a fixed vocabulary that is arranged in a tree; what the vocabulary can state and a report does not is
negative, and a finding of CheXpert's for which it has no word of the same meaning is not assessed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from medssl import schema
from medssl.config import DataConfig
from medssl.data.cells import Cells, Column
from medssl.data.cells import read as read_cells
from medssl.data.chexpert import FINDINGS
from medssl.data.radiographs import count_lateral, label_columns, select_views
from medssl.data.reading import (
    MAX_AGE_YEARS,
    Reading,
    finish,
    locate,
    probe,
    readable_ids,
    reject_repeated_images,
    reject_unsafe_files,
)
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

FILE, FOLDER, DATE, STUDY, PATIENT, BIRTH, SEX, PROJECTION, LABELS = COLUMNS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
    "Labels",
)  # fmt: skip
LEFT_OUT = "left out"
PROJECTIONS = {
    "PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "lateral",
    # Ribs, other parts of the body, and unknown.
    "COSTAL": LEFT_OUT, "EXCLUDE": LEFT_OUT, "UNK": LEFT_OUT,
}  # fmt: skip
MISSING = ("", "nan", "NaN", "None")  # a table written by pandas
SEXES = {"F": "female", "M": "male", "O": None, **dict.fromkeys(MISSING)}
FOLDERS = ("", "images")  # besides those that the table names
LABEL = r"'[^']*'|\"[^\"]*\""
LABEL_PATTERN = re.compile(LABEL)
LIST_PATTERN = re.compile(rf"\[\s*(?:(?:{LABEL})\s*(?:,\s*(?:{LABEL})\s*)*)?\]")

NORMAL = "normal"
# Words of the vocabulary, each below the first of its line in PadChest's tree, with CheXpert's name for that one.
WORDS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Atelectasis": (
            "atelectasis", "total atelectasis", "lobar atelectasis", "segmental atelectasis", "laminar atelectasis",
            "round atelectasis", "atelectasis basal",
        ),
        "Cardiomegaly": ("cardiomegaly",),
        "Consolidation": ("consolidation", "air bronchogram"),
        "Edema": ("pulmonary edema",),
        "Pleural Effusion": (
            "pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax",
            "empyema", "hemothorax",
        ),
        "Pneumonia": ("pneumonia", "atypical pneumonia"),
        "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
        "Fracture": (
            "fracture", "clavicle fracture", "humeral fracture", "vertebral fracture", "rib fracture",
            "callus rib fracture",
        ),
    }
)  # fmt: skip
NO_STATEMENTS = frozenset(("exclude", "suboptimal study", "unchanged"))
# The rest of the vocabulary. It is closed: a word that is not in it might be another name of a finding above.
OTHER_WORDS = """
abnormal foreign body; abscess; adenopathy; air fluid level; air trapping; alveolar pattern; aortic aneurysm;
aortic atheromatosis; aortic button enlargement; aortic elongation; aortic endoprosthesis; apical pleural thickening;
artificial aortic heart valve; artificial heart valve; artificial mitral heart valve; asbestosis signs;
ascendent aortic elongation; axial hyperostosis; azygoesophageal recess shift; azygos lobe; blastic bone lesion;
bone cement; bone metastasis; breast mass; bronchiectasis; bronchovascular markings; bullas; calcified adenopathy;
calcified densities; calcified fibroadenoma; calcified granuloma; calcified mediastinal adenopathy;
calcified pleural plaques; calcified pleural thickening; catheter; cavitation; central vascular redistribution;
central venous catheter; central venous catheter via jugular vein; central venous catheter via subclavian vein;
central venous catheter via umbilical vein; cervical rib; chest drain tube; chilaiditi sign; chronic changes;
copd signs; costochondral junction hypertrophy; costophrenic angle blunting; cyst; dai; descendent aortic elongation;
dextrocardia; diaphragmatic eventration; double j stent; dual chamber device; electrical device; emphysema;
end on vessel; endoprosthesis; endotracheal tube; esophagic dilatation; external foreign body; fibrotic band;
fissure thickening; flattened diaphragm; gastrostomy tube; goiter; granuloma; ground glass pattern; gynecomastia;
heart insufficiency; heart valve calcified; hemidiaphragm elevation; hiatal hernia; hilar congestion;
hilar enlargement; humeral prosthesis; hyperinflated lung; hypoexpansion; hypoexpansion basal; increased density;
infiltrates; interstitial pattern; kerley lines; kyphosis; lepidic adenocarcinoma; lipomatosis; lung metastasis;
lung vascular paucity; lymphangitis carcinomatosa; lytic bone lesion; major fissure thickening; mammary prosthesis;
mass; mastectomy; mediastinal enlargement; mediastinal mass; mediastinal shift; mediastinic lipomatosis; metal;
miliary opacities; minor fissure thickening; multiple nodules; nephrostomy tube; nipple shadow; nodule;
non axial articular degenerative changes; nsg tube; obesity; osteopenia; osteoporosis; osteosynthesis material;
pacemaker; pectum carinatum; pectum excavatum; pericardial effusion; pleural mass; pleural plaques; pleural thickening;
pneumomediastinum; pneumoperitoneo; post radiotherapy changes; prosthesis; pseudonodule; pulmonary artery enlargement;
pulmonary artery hypertension; pulmonary fibrosis; pulmonary hypertension; pulmonary mass;
pulmonary venous hypertension; reservoir central venous catheter; respiratory distress; reticular interstitial pattern;
reticulonodular interstitial pattern; right sided aortic arch; sclerotic bone lesion; scoliosis; single chamber device;
soft tissue mass; sternoclavicular junction hypertrophy; sternotomy; subacromial space narrowing;
subcutaneous emphysema; superior mediastinal enlargement; supra aortic elongation; surgery; surgery breast;
surgery heart; surgery humeral; surgery lung; surgery neck; suture material; thoracic cage deformation; tracheal shift;
tracheostomy tube; tuberculosis; tuberculosis sequelae; vascular hilar enlargement; vascular redistribution;
ventriculoperitoneal drain tube; vertebral anterior compression; vertebral compression; vertebral degenerative changes;
volume loss
"""
FINDING_WORDS = frozenset(word for words in WORDS_OF.values() for word in words).union(
    word.strip() for word in OTHER_WORDS.split(";")
)


def read(root: Path, config: DataConfig, key: PatientKey, *, with_files: bool = True) -> Reading:
    """Read and check the table of PadChest; image files are not opened.

    Left out and counted: images of other projections than PA, AP and lateral, and those without a patient's id. The
    age is the year of the study less that of birth; one that is unknown or not from 0 to 130 is null. A row that
    lists nothing, or nothing but remarks on the report, has no label assessed. See `readers.read` for the arguments.
    """
    cells = read_cells(root, config.train_table, setting="data.train_table", required=COLUMNS)
    listed = _rows(cells)
    is_known: Column = pc.not_equal(listed["patient_id"], pa.scalar(""))
    is_chest: Column = pc.not_equal(listed["view_position"], pa.scalar(LEFT_OUT))
    is_kept: Column = pc.and_(is_known, is_chest)
    kept = listed.filter(is_kept)
    if not kept.num_rows:
        raise BadInputError(f"{cells.name} lists no chest image of a known patient; give the complete table")
    num_lateral = count_lateral(kept)
    rows = select_views(kept, config.views)
    files = rows["image_id"]
    if with_files:
        named = [str(folder) for folder in rows["folder"].unique().to_pylist()]
        files = locate(root, (*FOLDERS, *named, *(f"{FOLDERS[1]}/{name}" for name in named)), files)
        probe(root, files)
    summary = {
        "rows": {cells.name: int(cells.rows.size)},
        "ignored_columns": {cells.name: cells.num_ignored_columns},
        "frontal": kept.num_rows - num_lateral,
        "lateral": num_lateral,
        "left_out_by_view": kept.num_rows - rows.num_rows,
        "left_out_by_projection": listed.num_rows - pc.sum(is_chest).as_py(),
        "left_out_without_patient": listed.num_rows - pc.sum(is_known).as_py(),
    }
    return finish(rows.drop_columns(["folder"]), dataset=config.name, key=key, summary=summary, files=files)


def _rows(cells: Cells) -> pa.Table:
    """All rows of the index with the source's own names, patient_id "" where it is missing, and a column `folder`."""
    file, study = cells.columns[FILE], readable_ids(cells, STUDY)
    reject_unsafe_files(cells, FILE, file)
    reject_repeated_images(cells, file)
    cells.reject(pc.equal(study, pa.scalar("")), f'column "{STUDY}" is blank', "give the study of each image")
    patient = _blank_if_missing(readable_ids(cells, PATIENT))
    num_rows = cells.rows.size
    columns: dict[str, Column] = {
        "patient_id": patient,
        "case_id": pc.binary_join_element_wise(patient, study, pa.scalar("/")),
        "image_id": file,
        "source_split": pa.repeat("train", num_rows),
        "view_position": cells.translate(
            PROJECTION, PROJECTIONS.__getitem__, pa.string(), expected=", ".join(PROJECTIONS), words=PROJECTIONS
        ),
        "sex": cells.translate(SEX, SEXES.__getitem__, pa.string(), expected="F, M, O or blank", words=SEXES),
        "age_years": _age_years(cells),
        "skin_type": pa.nulls(num_rows, pa.string()),
        "site": pa.nulls(num_rows, pa.string()),
        "folder": cells.translate(FOLDER, _folder, pa.string(), expected="the number of a folder"),
    }
    expected = "a list of PadChest's labels such as ['normal'], or blank"
    words = (NORMAL, *NO_STATEMENTS, *FINDING_WORDS)
    return pa.table(columns | label_columns(cells, LABELS, _states, FINDINGS, expected=expected, words=words))


def _blank_if_missing(texts: Column) -> Column:
    is_missing = pc.is_in(texts, value_set=pa.array(MISSING))
    return pc.if_else(is_missing, pa.scalar(""), texts)


def _age_years(cells: Cells) -> Column:
    """Year of the study less year of birth, null where either is unknown or the age is not from 0 to 130."""
    studied = cells.translate(DATE, _year_of_date, pa.float32(), expected="a date such as 20140915, or blank")
    born = cells.translate(BIRTH, _year, pa.float32(), expected="a year or blank")
    age: Column = pc.subtract(studied, born)
    is_possible: Column = pc.and_(
        pc.greater_equal(age, pa.scalar(0.0, pa.float32())), pc.less_equal(age, pa.scalar(MAX_AGE_YEARS, pa.float32()))
    )
    return pc.if_else(is_possible, age, pa.scalar(None, pa.float32()))


def _year_of_date(text: str) -> int | None:
    if text in MISSING:
        return None
    if not re.fullmatch(r"[0-9]{8}", text):
        raise ValueError
    return int(text[:4])


def _year(text: str) -> float | None:
    if text in MISSING:
        return None
    if not re.fullmatch(r"[0-9]{4}(\.0)?", text):
        raise ValueError
    return float(text)


def _folder(text: str) -> str:
    return str(int(text))


def _states(text: str) -> list[int]:
    """Label states of FINDINGS, in their order, for the list of labels of a row.

    A report that calls something normal and states a finding leaves "No Finding" uncertain.
    """
    listed = _labels(text)
    findings = listed & FINDING_WORDS
    if not findings and NORMAL not in listed:
        return [schema.NOT_ASSESSED] * len(FINDINGS)
    states = {
        finding: schema.NEGATIVE if findings.isdisjoint(words) else schema.POSITIVE
        for finding, words in WORDS_OF.items()
    }
    if NORMAL in listed:
        states["No Finding"] = schema.UNCERTAIN if findings else schema.POSITIVE
    else:
        states["No Finding"] = schema.NEGATIVE
    return [states.get(finding, schema.NOT_ASSESSED) for finding in FINDINGS]


def _labels(text: str) -> frozenset[str]:
    """The labels of a list such as "['atelectasis', ' pleural effusion', '']".

    Raises:
        ValueError: It is no list, or holds a word that is not in the vocabulary.
    """
    if text in MISSING:
        return frozenset()
    if not LIST_PATTERN.fullmatch(text):
        raise ValueError
    labels = {" ".join(quoted[1:-1].split()).casefold() for quoted in LABEL_PATTERN.findall(text)} - {""}
    if unknown := labels - FINDING_WORDS - NO_STATEMENTS - {NORMAL}:
        raise ValueError(f"{len(unknown)} unknown labels")
    return frozenset(labels)
