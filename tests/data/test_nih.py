import csv
import gzip
import io
import re
import time

import pytest

from medssl import schema
from medssl.config import DataConfig
from medssl.data import nih, readers
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
TABLE = "Data_Entry_2017_v2020.csv"
# As the releases of 2020 and 2017 write them: the names of the last columns hold commas.
HEADER_2020 = (*nih.COLUMNS, "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
HEADER_2017 = (*HEADER_2020, "")
P, N, X = schema.POSITIVE, schema.NEGATIVE, schema.NOT_ASSESSED
BEYOND = (
    "Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def row(name="00000001_000.png", labels="No Finding", **cells):
    patient = str(int(name.split("_")[0])) if name[:8].isdecimal() else "1"
    usual = {"Image Index": name, "Finding Labels": labels, "Follow-up #": "0", "Patient ID": patient}
    return {**usual, "Patient Age": "58", "Patient Gender": "M", "View Position": "PA", **cells}


def table_text(rows, header=HEADER_2020):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONE)
    writer.writerow(header)
    writer.writerows([cells.get(column, "") for column in header] for cells in rows)
    return text.getvalue()


def config_of(root, **options):
    return DataConfig(name="set", root=str(root), dataset="nih", **options)


def read_rows(root, rows, header=HEADER_2020, **options):
    (root / TABLE).write_text(table_text(rows, header))
    return readers.read(root, config_of(root, **options), KEY, with_files=False)


def error_of(root, rows, **options):
    with pytest.raises(BadInputError) as caught:
        read_rows(root, rows, **options)
    message = str(caught.value)
    assert "00000077" not in message
    assert str(root) not in message
    return message


def rows_by_file(result):
    files = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    return {files[r["image_id"]]: r for r in result.index.to_pylist()}


def states_of(root, labels):
    (index,) = read_rows(root, [row(labels=labels)]).index.to_pylist()
    return {finding: index[f"label:{finding}"] for finding in nih.FINDINGS}


def test_a_listed_finding_is_positive_an_unlisted_one_negative_and_one_never_looked_for_not_assessed(tmp_path):
    states = states_of(tmp_path, "Effusion|Pleural_Thickening|Mass")
    assert {finding for finding, state in states.items() if state == P} == {
        "Pleural Effusion", "Pleural Thickening", "Mass",
    }  # fmt: skip
    assert {finding for finding, state in states.items() if state == X} == set(BEYOND)
    assert sum(state == N for state in states.values()) == 12  # 11 of the 14, and No Finding
    assert list(states) == [*nih.CHEXPERT_FINDINGS, *nih.OWN_NAMES.values()]


def test_no_finding_makes_the_fourteen_negative_and_the_others_stay_unassessed(tmp_path):
    states = states_of(tmp_path, "No Finding")
    assert states.pop("No Finding") == P
    assert {finding for finding, state in states.items() if state == X} == set(BEYOND)
    assert sum(state == N for state in states.values()) == 14


def test_each_word_of_the_table_has_a_column_of_its_own(tmp_path):
    for word, finding in nih.ASSESSED.items():
        states = states_of(tmp_path, word)
        assert [name for name, state in states.items() if state == P] == [finding]
    assert len(nih.ASSESSED) == 14


def test_a_table_becomes_an_index_without_the_names_of_the_source(tmp_path):
    rows = [
        row("00000002_000.png", **{"Patient Gender": "F", "View Position": "AP", "Patient Age": "0"}),
        row("00000002_001.png", **{"Follow-up #": "3", "Patient Gender": "", "View Position": "", "Patient Age": ""}),
        row("00030805_000.png"),
    ]
    result = read_rows(tmp_path, rows)
    index = rows_by_file(result)
    assert [tuple(index[r["Image Index"]][c] for c in ("sex", "age_years", "view_position")) for r in rows] == [
        ("female", 0.0, "AP"), (None, None, None), ("male", 58.0, "PA"),
    ]  # fmt: skip
    image = index["00000002_001.png"]
    assert image["patient_id"] == KEY.identify("set", "patient", "2")
    assert image["case_id"] == KEY.identify("set", "case", "2/3")
    assert image["image_id"] == KEY.identify("set", "image", "00000002_001.png")
    assert (result.summary["images"], result.summary["patients"], result.summary["cases"]) == (3, 2, 3)
    assert (result.summary["frontal"], result.summary["lateral"]) == (3, 0)
    assert result.summary["ignored_columns"] == {TABLE: 4}


@pytest.mark.parametrize(
    ("text", "years"),
    [("058Y", 58), ("58", 58), ("013M", 13 / 12), ("001D", 1 / 365.25), ("004W", 28 / 365.25), ("130", 130)],
)
def test_ages_of_both_releases_become_years(tmp_path, text, years):
    result = read_rows(tmp_path, [row(**{"Patient Age": text})])
    assert result.index["age_years"].to_pylist() == [pytest.approx(years)]


def test_impossible_ages_are_unknown_and_counted_apart_from_blank_ones(tmp_path):
    ages = ["414", "155Y", "411", "", "58"]
    result = read_rows(tmp_path, [row(f"{i + 1:08d}_000.png", **{"Patient Age": a}) for i, a in enumerate(ages)])
    assert (result.summary["impossible_age"], result.summary["unknown_age"]) == (3, 4)


def test_all_forms_of_the_table_give_the_same_index(tmp_path):
    rows = [row(f"{i:08d}_000.png", "Mass|Edema") for i in range(1, 9)]
    usual = read_rows(tmp_path, rows)
    old = [{**r, "Patient Age": "058Y", "Follow-up #": "000", "Patient ID": r["Image Index"][:8]} for r in rows]
    assert read_rows(tmp_path, old[::-1], HEADER_2017).index.equals(usual.index)
    renamed = ["Patient Sex" if c == "Patient Gender" else c for c in HEADER_2020]
    later = read_rows(tmp_path, [{**r, "Patient Sex": "M"} for r in rows], renamed)
    assert later.index.equals(usual.index)
    assert later.summary == usual.summary
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table_text(rows).encode()))
    packed = readers.read(tmp_path, config_of(tmp_path, train_table="t.csv.gz"), KEY, with_files=False)
    assert packed.index.equals(usual.index)


def test_images_are_found_in_every_layout_and_keep_their_identifiers(tmp_path):
    rows = [row(f"{i:08d}_000.png") for i in range(1, 5)]
    without = read_rows(tmp_path, rows)
    folders = ["", "images/", "images_001/images/", "images_012/images/"]
    for folder, cells in zip(folders, rows, strict=True):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / cells["Image Index"]).touch()
    result = readers.read(tmp_path, config_of(tmp_path), KEY)
    assert result.index.equals(without.index)
    expected = [folder + cells["Image Index"] for folder, cells in zip(folders, rows, strict=True)]
    assert sorted(result.sources["file"].to_pylist()) == sorted(expected)


def test_a_few_missing_images_are_no_error_but_none_of_the_first_hundred_is(tmp_path):
    rows = [row(f"{i:08d}_000.png") for i in range(1, 151)]
    (tmp_path / TABLE).write_text(table_text(rows))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/00000150_000.png").touch()
    with pytest.raises(BadInputError, match=r"none of the first 100 listed images exists below data.root"):
        readers.read(tmp_path, config_of(tmp_path), KEY)
    (tmp_path / "images/00000100_000.png").touch()
    assert readers.read(tmp_path, config_of(tmp_path), KEY).index.num_rows == 150


def test_lateral_views_are_not_in_the_set(tmp_path):
    assert "data.views is lateral, and the tables list no such image" in error_of(tmp_path, [row()], views="lateral")
    assert read_rows(tmp_path, [row(**{"View Position": ""})], views="frontal").index.num_rows == 1


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"labels": "Efusion"}, r'"Finding Labels" holds "Efusion" in 1 row \(row 3\); expected "No Finding" alone'),
        ({"labels": "Mass|Jane Doe"}, r'"Finding Labels" holds a text of 13 characters in 1 row \(row 3\)'),
        ({"labels": "Jane No Finding"}, r'"Finding Labels" holds a text of 15 characters in 1 row \(row 3\)'),
        ({"labels": ""}, r"holds a text of 0 characters in 1 row \(row 3\)"),
        ({"labels": "No Finding|Mass"}, r"holds \"No Finding\|Mass\" in 1 row \(row 3\)"),
        ({"Patient Age": "old"}, r'"Patient Age" holds a text of 3 characters in 1 row \(row 3\); expected an age'),
        ({"Patient Age": "-1"}, r'"Patient Age" holds "-1" in 1 row \(row 3\)'),
        ({"Patient Gender": "X"}, r'"Patient Gender" holds a text of 1 characters in 1 row \(row 3\); expected F, M'),
        ({"View Position": "LL"}, r'"View Position" holds a text of 2 characters in 1 row \(row 3\); expected PA, AP'),
        ({"Follow-up #": "a"}, r'"Follow-up #" holds a text of 1 characters in 1 row \(row 3\); expected a whole'),
        ({"Patient ID": "x77"}, r'column "Patient ID" is no number in 1 row \(row 3\)'),
        ({"Patient ID": "78"}, r'columns "Image Index" and "Patient ID" disagree in 1 row \(row 3\)'),
        ({"name": "../00000077_000.png"}, r'column "Image Index" is not of the form .* in 1 row \(row 3\)'),
        ({"name": "00000001_000.png"}, r"an image listed before in 1 row \(row 3 repeats row 2\)"),
    ],
)
def test_a_wrong_cell_is_told_by_column_row_and_what_may_stand_there(tmp_path, cells, expected):
    message = error_of(tmp_path, [row(), row(**{"name": "00000077_000.png", **cells})])
    assert message.startswith(f"{TABLE}: ")
    assert re.search(expected, message), message


def test_a_table_of_the_full_size_is_read_in_seconds(tmp_path):
    words = [*nih.ASSESSED, "No Finding", "Mass|Nodule|Effusion"]
    names = [f"{i // 4 + 1:08d}_{i % 4:03d}.png" for i in range(112_120)]
    rows = [row(name, words[i % len(words)]) for i, name in enumerate(names)]
    (tmp_path / TABLE).write_text(table_text(rows))
    start_s = time.perf_counter()
    result = readers.read(tmp_path, config_of(tmp_path), KEY, with_files=False)
    assert time.perf_counter() - start_s < 30  # 2 s on an idle core
    assert result.summary["images"] == 112_120
    assert result.summary["findings"]["Mass"]["positive"] == sum("Mass" in words[i % 16] for i in range(112_120))
