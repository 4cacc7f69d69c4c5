import csv
import gzip
import io
import re
import time

import pytest

from medssl import schema
from medssl.config import DataConfig
from medssl.data import padchest, readers
from medssl.data.chexpert import FINDINGS
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = ("", *padchest.COLUMNS, "ViewPosition_DICOM", "Report", "MethodLabel")
P, N, U, X = schema.POSITIVE, schema.NEGATIVE, schema.UNCERTAIN, schema.NOT_ASSESSED
NOT_STATED = {"Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pleural Other", "Support Devices"}


def row(number=1, labels="['normal']", **cells):
    usual = {"ImageID": f"77770{number}_x.png", "ImageDir": "13", "StudyDate_DICOM": "20140915"}
    usual |= {"StudyID": f"88880{number}", "PatientID": f"99990{number}", "PatientBirth": "1954.0"}
    return {**usual, "PatientSex_DICOM": "M", "Projection": "PA", "Labels": labels, "Report": 'a "b", c\nd', **cells}


def table_text(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def config_of(root, **options):
    return DataConfig(name="set", root=str(root), dataset="padchest", **options)


def read_rows(root, rows, **options):
    (root / TABLE).write_text(table_text(rows))
    return readers.read(root, config_of(root, **options), KEY, with_files=False)


def states_of(root, labels):
    (index,) = read_rows(root, [row(labels=labels)]).index.to_pylist()
    return {finding: index[f"label:{finding}"] for finding in FINDINGS}


def with_state(states, state):
    return {finding for finding, found in states.items() if found == state}


def error_of(root, rows, **options):
    with pytest.raises(BadInputError) as caught:
        read_rows(root, rows, **options)
    message = str(caught.value)
    for secret in ("7777", "8888", "9999", str(root)):
        assert secret not in message
    return message


def test_what_a_report_states_is_positive_what_the_vocabulary_could_state_negative_the_rest_not_assessed(tmp_path):
    states = states_of(tmp_path, "['laminar atelectasis', ' pulmonary edema', 'scoliosis']")
    assert with_state(states, P) == {"Atelectasis", "Edema"}
    assert with_state(states, X) == NOT_STATED
    assert with_state(states, N) == set(FINDINGS) - NOT_STATED - {"Atelectasis", "Edema"}


@pytest.mark.parametrize(
    ("label", "findings"),
    [
        ("atelectasis basal", {"Atelectasis"}),
        ("cardiomegaly", {"Cardiomegaly"}),
        ("consolidation", {"Consolidation"}),
        ("loculated pleural effusion", {"Pleural Effusion"}),
        ("atypical pneumonia", {"Pneumonia"}),
        ("pneumothorax", {"Pneumothorax"}),
        ("hydropneumothorax", {"Pneumothorax", "Pleural Effusion"}),
        ("callus rib fracture", {"Fracture"}),
        ("normal", {"No Finding"}),
        ("COPD signs", set()),
        ("nodule", set()),
    ],
)
def test_a_label_means_what_its_place_in_the_tree_says(tmp_path, label, findings):
    states = states_of(tmp_path, f"['{label}']")
    assert with_state(states, P) == findings
    assert with_state(states, X) == NOT_STATED


@pytest.mark.parametrize("labels", ["", "nan", "[]", "['']", "['unchanged']", "['exclude', ' suboptimal study', '']"])
def test_a_row_that_states_nothing_has_no_label_assessed(tmp_path, labels):
    assert with_state(states_of(tmp_path, labels), X) == set(FINDINGS)


def test_normal_beside_a_finding_is_uncertain_and_beside_a_remark_it_is_not(tmp_path):
    for labels in ("['pneumonia', ' normal']", "[' normal', 'scoliosis']"):
        assert states_of(tmp_path, labels)["No Finding"] == U
    assert states_of(tmp_path, "['suboptimal study', ' normal']")["No Finding"] == P


@pytest.mark.parametrize(
    "labels", ["['pleural effusion']", "[ ' pleural  effusion ' ]", "['Pleural Effusion','']", '["pleural effusion"]']
)
def test_spaces_case_and_kind_of_quotes_do_not_matter(tmp_path, labels):
    assert with_state(states_of(tmp_path, labels), P) == {"Pleural Effusion"}


def test_no_word_means_two_things():
    stated = {word for words in padchest.WORDS_OF.values() for word in words}
    others = {word.strip() for word in padchest.OTHER_WORDS.split(";")}
    assert not others & stated
    assert not (others | stated) & (padchest.NO_STATEMENTS | {padchest.NORMAL})
    assert all(word == word.casefold() and word == " ".join(word.split()) for word in others | stated)


def test_a_table_becomes_an_index_without_the_names_of_the_source(tmp_path):
    rows = [
        row(1, PatientSex_DICOM="F", Projection="AP_horizontal", PatientBirth="2014.0"),
        row(2, PatientSex_DICOM="O", Projection="L", PatientBirth="", PatientID="999901"),
        row(3, PatientSex_DICOM="nan", Projection="AP", PatientBirth="1850.0"),
        row(4, StudyDate_DICOM="19500101"),
    ]
    result = read_rows(tmp_path, rows)
    files = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    index = {files[r["image_id"]]: r for r in result.index.to_pylist()}
    assert [tuple(index[r["ImageID"]][c] for c in ("sex", "age_years", "view_position")) for r in rows] == [
        ("female", 0.0, "AP"), (None, None, "lateral"), (None, None, "AP"), ("male", None, "PA"),
    ]  # fmt: skip
    image = index["777702_x.png"]
    assert image["patient_id"] == KEY.identify("set", "patient", "999901") == index["777701_x.png"]["patient_id"]
    assert image["case_id"] == KEY.identify("set", "case", "999901/888802")
    assert image["image_id"] == KEY.identify("set", "image", "777702_x.png")
    assert (result.summary["frontal"], result.summary["lateral"], result.summary["unknown_age"]) == (3, 1, 3)


def test_other_projections_and_images_without_a_patient_are_left_out_and_counted(tmp_path):
    rows = [row(i, Projection=p) for i, p in enumerate(["PA", "COSTAL", "EXCLUDE", "UNK"])]
    rows += [row(5, PatientID=" "), row(6, PatientID="nan"), row(7, PatientID="None", Projection="COSTAL")]
    summary = read_rows(tmp_path, rows).summary
    counts = [summary[key] for key in ("images", "left_out_by_projection", "left_out_without_patient")]
    assert counts == [1, 4, 3]
    assert "lists no chest image of a known patient" in error_of(tmp_path, rows[1:])


@pytest.mark.parametrize(("views", "positions"), [("frontal", ["AP", "AP", "PA"]), ("lateral", ["lateral"])])
def test_only_the_projections_that_are_asked_for_are_read(tmp_path, views, positions):
    rows = [row(i, Projection=p) for i, p in enumerate(["PA", "AP", "AP_horizontal", "L", "COSTAL"])]
    result = read_rows(tmp_path, rows, views=views)
    assert sorted(result.index["view_position"].to_pylist()) == positions
    assert result.summary["left_out_by_view"] == 4 - len(positions)


def test_row_order_and_compression_do_not_change_the_index(tmp_path):
    rows = [row(i) for i in range(9)]
    first = read_rows(tmp_path, rows)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table_text(rows[::-1]).encode()))
    second = readers.read(tmp_path, config_of(tmp_path, train_table="t.csv.gz"), KEY, with_files=False)
    assert second.index.equals(first.index)


def test_images_are_found_in_every_layout_and_keep_their_identifiers(tmp_path):
    rows = [row(i, ImageDir=d) for i, d in enumerate(["0", "54", "0", "54"])]
    without = read_rows(tmp_path, rows)
    expected = [f"{folder}77770{i}_x.png" for i, folder in enumerate(["0/", "images/54/", "images/", ""])]
    for file in expected:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    result = readers.read(tmp_path, config_of(tmp_path), KEY)
    assert result.index.equals(without.index)
    assert sorted(result.sources["file"].to_pylist()) == sorted(expected)
    for file in expected:
        (tmp_path / file).unlink()
    with pytest.raises(BadInputError, match=r"none of the first 4 listed images exists below data.root"):
        readers.read(tmp_path, config_of(tmp_path), KEY)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"labels": "['pneumonia', 'pleural efusion']"}, r"expected a list of PadChest's labels such as \['normal'\]"),
        ({"labels": "pneumonia"}, r'column "Labels" holds "pneumonia" in 1 row \(row 4\)'),
        ({"labels": "['pneumonia', x"}, r'"Labels" holds a text of 15 characters in 1 row'),
        ({"labels": "['pneumonia' 'nodule']"}, r'"Labels" holds a text of 22 characters in 1 row'),
        ({"labels": "[__import__('os')]"}, r'"Labels" holds a text of 18 characters in 1 row'),
        ({"Projection": "APP"}, r'"Projection" holds a text of 3 characters in 1 row \(row 4\); expected PA, AP'),
        ({"PatientSex_DICOM": "female"}, r'"PatientSex_DICOM" holds a text of 6 characters .*; expected F, M, O'),
        ({"PatientBirth": "12"}, r'"PatientBirth" holds "12" in 1 row \(row 4\); expected a year or blank'),
        ({"StudyDate_DICOM": "2014-09-15"}, r'"StudyDate_DICOM" holds a text of 10 characters'),
        ({"StudyID": ""}, r'column "StudyID" is blank in 1 row \(row 4\)'),
        ({"ImageDir": "../1"}, r'"ImageDir" holds a text of 4 characters in 1 row \(row 4\); expected the number'),
        ({"ImageID": "../777709.png"}, r'"ImageID" holds no name of a file below .* \(row 4\)'),
        ({"ImageID": "777701_x.png"}, r"an image listed before in 1 row \(row 4 repeats row 2\)"),
    ],
)
def test_a_wrong_cell_is_told_by_column_row_and_what_may_stand_there(tmp_path, cells, expected):
    message = error_of(tmp_path, [row(1, Report=""), row(2, Report=""), row(9, **{"Report": "", **cells})])
    assert message.startswith(f"{TABLE}: ")
    assert re.search(expected, message), message


def test_a_table_of_the_full_size_is_read_in_seconds(tmp_path):
    words = [*(word for words in padchest.WORDS_OF.values() for word in words), "normal", "scoliosis"]
    lists = [f"['{a}', ' {b}', '']" for a in words for b in words]
    rows = [row(i, lists[i % len(lists)], PatientID=str(i // 3)) for i in range(160_868)]
    (tmp_path / TABLE).write_text(table_text(rows))
    start_s = time.perf_counter()
    result = readers.read(tmp_path, config_of(tmp_path), KEY, with_files=False)
    assert time.perf_counter() - start_s < 30  # 3 s on an idle core
    assert result.summary["images"] == 160_868
