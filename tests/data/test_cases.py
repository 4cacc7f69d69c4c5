import csv
import io
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medssl import schema
from medssl.config import ConfigError, DataConfig
from medssl.data import attributes, readers
from medssl.data.conditions import MAX_CONDITIONS
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
SHARED_DATA_DIR = Path(__file__).parents[2] / "../shared/data"
HEADER = ("image", "patient", "case", "condition", "skin_type", "sex", "age", "site")
PAD_HEADER = ("img_id", "patient_id", "lesion_id", "diagnostic", "fitspatrick", "region", "gender", "age", "smoke")
HAM_HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
SECRETS = ("Erika", "mustermann", "lesion77", "photo9", "Secretosis")


def row(image="photo1.jpg", patient="Erika", case="lesion77", condition="Acne", **cells):
    return {"image": image, "patient": patient, "case": case, "condition": condition, **cells}


def table_text(rows, columns=HEADER):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(root, *, with_files=False, **options):
    config = DataConfig(**{"dataset": "cases", "name": "set", "root": str(root), **options})
    return readers.read(root, config, KEY, with_files=with_files)


def read_rows(root, rows, header=HEADER, **options):
    (root / "cases.csv").write_text(table_text(rows, header))
    return read(root, train_table="cases.csv", **options)


def error_of(root, rows, header=HEADER, **options):
    """The message for a table; whatever is wrong, it names neither a path nor a patient nor what a cell holds."""
    with pytest.raises(BadInputError) as caught:
        read_rows(root, rows, header, **options)
    message = str(caught.value)
    for secret in (*SECRETS, str(root)):
        assert secret not in message
    return message


def by_file(result):
    """Rows of the index by the file that each describes."""
    files = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    return {files[r["image_id"]]: r for r in result.index.to_pylist()}


def states(rows):
    """Label states of each file, conditions without their prefix."""
    prefix = schema.LABEL_PREFIX
    return {
        file: {name.removeprefix(prefix): value for name, value in r.items() if name.startswith(prefix)}
        for file, r in rows.items()
    }


def test_a_table_of_cases_becomes_an_index_without_the_names_of_the_source(tmp_path):
    rows = [
        row("a/1.jpg", skin_type="II", sex="F", age="45.0", site=" Left  ARM "),
        row("a/2.jpg", skin_type="II", sex="F", age="45.0", site="left arm"),
        row("b.png", patient="Max", case="2", condition="Eczema|Acne", sex="male", age="0", site="unknown"),
        row("c.png", patient="Max", case="3", condition="Other"),
    ]
    result = read_rows(tmp_path, rows)
    index = by_file(result)
    columns = ("skin_type", "sex", "age_years", "site", "view_position", "source_split")
    assert {file: tuple(r[c] for c in columns) for file, r in index.items()} == {
        "a/1.jpg": ("2", "female", 45.0, "left arm", None, "train"),
        "a/2.jpg": ("2", "female", 45.0, "left arm", None, "train"),
        "b.png": (None, "male", 0.0, None, None, "train"),
        "c.png": (None, None, None, None, None, "train"),
    }
    assert states(index)["b.png"] == {"Acne": 1, "Eczema": 1, "Other": 0}
    assert schema.label_columns(result.index) == ["Acne", "Eczema", "Other"]
    assert index["a/1.jpg"]["patient_id"] == KEY.identify("set", "patient", "Erika")
    assert index["a/1.jpg"]["case_id"] == index["a/2.jpg"]["case_id"] == KEY.identify("set", "case", "lesion77")
    assert index["a/1.jpg"]["image_id"] == KEY.identify("set", "image", "a/1.jpg")
    assert (result.group_kind, result.metadata["group_kind"]) == ("patient", "patient")
    summary = result.summary
    assert (summary["images"], summary["cases"], summary["patients"]) == (4, 3, 2)
    assert summary["images_per_case"] == {"1": 2, "2": 1, "3": 0, "4": 0, "5": 0, "6": 0, "7+": 0}
    assert summary["skin_types"] == {"2": 2, "unknown": 2}
    assert (summary["rows"], summary["ignored_columns"]) == ({"cases.csv": 4}, {"cases.csv": 0})
    assert summary["cases_with_several_conditions"] == 1
    assert summary["cases_whose_rows_disagreed"] == 0


def test_rows_of_a_case_that_disagree_give_it_the_union_and_are_counted(tmp_path):
    rows = [
        row("1.jpg", condition="Acne"),
        row("2.jpg", condition="Rosacea; Acne"),
        row("3.jpg", condition=""),
        row("4.jpg", case="other", condition="Acne;Rosacea"),
        row("5.jpg", case="other", condition="Rosacea | Acne|Acne"),
        row("6.jpg", case="blank", condition=""),
        row("7.jpg", case="half", condition=""),
        row("8.jpg", case="half", condition="Acne|Rosacea"),
    ]
    result = read_rows(tmp_path, rows)
    both, none = {"Acne": 1, "Rosacea": 1}, {"Acne": schema.NOT_ASSESSED, "Rosacea": schema.NOT_ASSESSED}
    assert states(by_file(result)) == {**{f"{i}.jpg": both for i in (1, 2, 3, 4, 5, 7, 8)}, "6.jpg": none}
    counted = {name: result.summary[name] for name in result.summary if name.startswith(("cases_", "rows_"))}
    assert counted == {
        "cases_with_several_conditions": 3,
        "cases_whose_rows_disagreed": 1,
        "cases_without_condition": 1,
        "rows_labelled_by_others_of_their_case": 2,
    }


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.sets(st.sampled_from("ABCD"), max_size=3), st.integers(0, 6)),
    min_size=1,
    max_size=14,
).filter(lambda rows: any(conditions for _, _, conditions, _ in rows))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.randoms(use_true_random=False))
def test_cases_partition_images_their_truth_is_the_union_and_row_order_never_matters(tmp_path, drawn, order):
    rows = [
        row(f"{i}.jpg", f"p{patient}", f"p{patient}c{case}", "|".join(conditions), skin_type=str(skin or ""))
        for i, (patient, case, conditions, skin) in enumerate(drawn)
    ]
    result = read_rows(tmp_path, rows)
    truth, members = defaultdict(set), defaultdict(set)
    for i, (patient, case, conditions, _) in enumerate(drawn):
        truth[patient, case] |= conditions
        members[patient, case].add(f"{i}.jpg")
    index = by_file(result)
    named = defaultdict(set)
    for file, r in index.items():
        named[r["patient_id"], r["case_id"]].add(file)
    assert sorted(map(sorted, named.values())) == sorted(map(sorted, members.values()))
    stated = defaultdict(set)
    for patient, case, conditions, _ in drawn:
        stated[patient, case] |= {frozenset(conditions)} - {frozenset()}
    assert result.summary["cases_whose_rows_disagreed"] == sum(len(sets) > 1 for sets in stated.values())
    all_conditions = set().union(*truth.values())
    for i, (patient, case, _, _) in enumerate(drawn):
        union = truth[patient, case]
        expected = {c: (1 if c in union else 0) if union else schema.NOT_ASSESSED for c in all_conditions}
        assert states(index)[f"{i}.jpg"] == expected
    order.shuffle(rows)
    shuffled = read_rows(tmp_path, rows)
    assert shuffled.index.equals(result.index)
    assert shuffled.sources.equals(result.sources)
    assert shuffled.summary == result.summary


def test_conditions_take_the_studys_names_and_several_may_take_one(tmp_path):
    rows = [row("1.jpg", condition="acne v."), row("2.jpg", case="2", condition="Akne|Tinea"), row("3.jpg", case="3")]
    names = {"acne v.": "Acne", "Akne": "Acne", "Tinea": "Fungus, other", "absent": "Absent"}
    result = read_rows(tmp_path, rows, condition_names=names)
    assert states(by_file(result)) == {
        "1.jpg": {"Acne": 1, "Fungus, other": 0},
        "2.jpg": {"Acne": 1, "Fungus, other": 1},
        "3.jpg": {"Acne": 1, "Fungus, other": 0},
    }


def test_the_headers_of_ones_own_set_are_named_in_the_study(tmp_path):
    header = ("Datei", "Person", "Befund", "Diagnose", "sex")
    rows = [{"Datei": "1.jpg", "Person": "p", "Befund": "7", "Diagnose": "Acne", "sex": "robot"}]
    columns = {"image": "Datei", "patient": "Person", "lesion": "Befund", "condition": "Diagnose", "sex": ""}
    index = by_file(read_rows(tmp_path, rows, header, columns=columns))
    assert index["1.jpg"]["case_id"] == KEY.identify("set", "case", "p/7")
    assert index["1.jpg"]["sex"] is None  # "" says that the column is not to be read


@pytest.mark.parametrize(
    ("header", "kind", "groups"),
    [
        (("image", "patient", "case", "condition"), "patient", [{"1", "2", "3"}, {"4"}]),
        (("image", "patient", "condition"), "patient", [{"1", "2", "3"}, {"4"}]),
        (("image", "case", "condition"), "lesion", [{"1", "2"}, {"3"}, {"4"}]),
        (("image", "lesion", "condition"), "lesion", [{"1", "2"}, {"3"}, {"4"}]),
        (("image", "condition"), "image", [{"1"}, {"2"}, {"3"}, {"4"}]),
    ],
)
def test_without_a_patient_the_case_is_the_group_and_without_both_each_image(tmp_path, header, kind, groups):
    rows = [row("1"), row("2"), row("3", case="x"), row("4", patient="Max", case="y")]
    result = read_rows(tmp_path, [{**r, "lesion": r["case"]} for r in rows], header)
    found = defaultdict(set)
    for file, r in by_file(result).items():
        found[r["patient_id"]].add(file)
    assert sorted(found.values(), key=min) == groups
    assert result.group_kind == result.summary["group_kind"] == kind
    # An empty column is none.
    filled = read_rows(tmp_path, [{c: r.get(c, r["case"]) for c in header} for r in rows], (*header, "age", "site"))
    assert filled.index.equals(result.index)
    assert read_rows(tmp_path, [{c: r[c] for c in ("image", "condition")} for r in rows]).group_kind == "image"


def test_a_lesion_number_counts_within_its_patient(tmp_path):
    rows = [row("1", "a", "1"), row("2", "b", "1"), row("3", "b", "1")]
    index = by_file(read_rows(tmp_path, rows, columns={"lesion": "case", "case": ""}))
    assert index["1"]["case_id"] != index["2"]["case_id"] == index["3"]["case_id"]
    message = error_of(tmp_path, rows)
    assert "a case has another patient than in an earlier row in 2 rows (row 3, row 4); a case is of one" in message
    assert 'data.columns: {lesion: HEADER, case: ""}' in message


FITZPATRICK = {
    "1": (
        "1",
        "1.0",
        "I",
        "i",
        "FST-I",
        "fst 1",
        "type 1",
        "Type I",
        "Fitzpatrick I",
        "Fitzpatrick skin type 1",
        "FST1",
    ),
    "2": ("2", "2.00", "II", "FST-II", "skin type II", "phototype: ii", "fitzpatrick_2"),
    "3": ("3", "3.0", "III", "type 3", "FST III"),
    "4": ("4", "IV", "type-IV", "fst.4"),
    "5": ("5", "5.0", "V", "v", "FST-5"),
    "6": ("6", "6.0", "VI", "type VI"),
    None: ("", "unknown", "Unknown", "-1", "-1.0"),
}


@pytest.mark.parametrize(("skin_type", "spellings"), FITZPATRICK.items())
def test_a_fitzpatrick_type_is_read_from_any_usual_spelling(skin_type, spellings):
    assert {attributes.skin_type(text) for text in spellings} == {skin_type}


@pytest.mark.parametrize(
    "text", ["0", "7", "2.5", "-2", "type -2", "- 2", "IIII", "VII", "IX", "12", "type", "FST", "1-2"]
)
def test_what_is_no_fitzpatrick_type_is_refused(tmp_path, text):
    message = error_of(tmp_path, [row(), row("2.jpg", skin_type=text)])
    assert re.search(
        r'column "skin_type" holds .* in 1 row \(row 3\); expected a Fitzpatrick type from 1 to 6', message
    )


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"sex": "Erika"}, 'column "sex" holds a text of 5 characters in 1 row (row 4); expected female, male, F, M,'),
        ({"sex": "femal"}, 'column "sex" holds "femal" in 1 row (row 4)'),
        ({"age": "131"}, 'column "age" holds "131" in 1 row (row 4); expected a number from 0 to 130 or blank'),
        ({"age": "Erika"}, 'column "age" holds a text of 5 characters in 1 row (row 4)'),
        ({"site": "Erika" * 13}, 'column "site" holds a text of 65 characters in 1 row (row 4); expected printable'),
        ({"site": "arm\u200b"}, 'column "site" holds a text of 4 characters in 1 row (row 4)'),
        ({"condition": "Secretosis\x1b[2J"}, 'column "condition" holds a text of 14 characters in 1 row (row 4); exp'),
        ({"condition": "Secretosis\u202e"}, 'column "condition" holds a text of 11 characters in 1 row (row 4)'),
        ({"condition": "Secretosis|"}, 'column "condition" holds a text of 11 characters in 1 row (row 4); expected n'),
        ({"condition": "x" * 101}, "expected names of at most 100 printable characters, several separated by"),
        ({"condition": "acne"}, "that differ in capitals or spaces only, in 3 rows (row 2, row 3, row 4); give each"),
        ({"patient": ""}, 'column "patient" (the patient) is blank, but filled elsewhere, in 1 row (row 4); fill'),
        ({"case": ""}, 'column "case" (the case) is blank, but filled elsewhere, in 1 row (row 4); fill these cells'),
        ({"image": "photo1.jpg"}, "an image listed before in 1 row (row 4 repeats row 2); remove"),
        ({"image": "./photo1.jpg"}, "an image listed before in 1 row (row 4 repeats row 2); remove"),
        ({"image": ""}, 'column "image" holds no name of a file below the data set\'s folder in 1 row (row 4)'),
        ({"image": "../photo9.jpg"}, 'column "image" holds no name of a file below the data set\'s folder in 1 row'),
        ({"image": "/photo9.jpg"}, "expected relative paths without .. or control characters"),
        ({"patient": "Max"}, "a case has another patient than in an earlier row in 1 row (row 4); a case is of one"),
    ],
)
def test_a_wrong_cell_is_told_by_column_row_and_what_may_stand_there(tmp_path, cells, expected):
    message = error_of(tmp_path, [row(), row("photo2.jpg"), {**row("photo9.jpg"), **cells}])
    assert message.startswith("cases.csv: ")
    assert expected in message


def test_a_column_that_is_not_of_conditions_is_told_by_their_number(tmp_path):
    rows = [row(f"{i}", "p", f"{i}", f"Secretosis {i}") for i in range(MAX_CONDITIONS)]
    assert len(schema.label_columns(read_rows(tmp_path, rows).index)) == MAX_CONDITIONS
    message = error_of(tmp_path, [*rows, row(condition="one more")])
    assert 'column "condition" holds 1001 distinct conditions, more than 1000; most likely it is another' in message
    blank = error_of(tmp_path, [row(condition="")])
    assert 'column "condition" is blank throughout; give the column of conditions as data.columns' in blank


@pytest.mark.parametrize("column", ["patient", "case"])
@pytest.mark.parametrize(
    "name", ["Erika\u200b", "Erika\u202e", "\ufeffErika", "Eri\u00a0ka", "Eri\x1bka", "Eri\u2028ka"]
)
def test_ids_that_only_look_the_same_are_refused(tmp_path, column, name):
    message = error_of(tmp_path, [row(), row("photo2.jpg", **{column: name})])
    assert f'column "{column}" holds characters that cannot be seen in 1 row (row 3); remove control' in message


def test_an_id_is_the_same_however_its_letters_were_composed(tmp_path):
    rows = [row("1.jpg", "M\u00fcller", "1"), row("2.jpg", "Mu\u0308ller", "1")]
    assert len(set(read_rows(tmp_path, rows).index["patient_id"].to_pylist())) == 1


@pytest.mark.parametrize("name", ["patient 00077", "Patient-7", "patient\x1b[2", "\u202epatient"])
def test_a_first_row_that_may_be_no_header_is_not_shown(tmp_path, name):
    message = error_of(tmp_path, [row()], ("image", name, "condition"))
    assert message.isprintable()
    assert name not in message
    assert "cases.csv has a column of that kind, its 2. one, and no field for the patient is named; give" in message


@pytest.mark.parametrize("name", [".", "./", "//", "a/../b.jpg", "a\\b.jpg", "a\nb.jpg", "~\u202egpj.exe"])
def test_names_that_are_folders_climb_or_deceive_are_no_images(tmp_path, name):
    message = error_of(tmp_path, [row(), row(name, case="2")])
    assert 'column "image" holds no name of a file below the data set\'s folder in 1 row (row 3)' in message


def test_a_name_longer_than_the_system_permits_is_an_image_that_does_not_exist(tmp_path):
    (tmp_path / "photo1.jpg").touch()
    rows = [row("x" * 5000), row("y/" * 3000 + "z.jpg"), row("photo1.jpg")]
    assert read_rows(tmp_path, rows, with_files=True).index.num_rows == 3
    assert "none of the first 2 listed images exists" in error_of(tmp_path, rows[:2], with_files=True)


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        (HEADER, {"picture": "image"}, "data.columns: picture: no such field; possible: image, patient, case, lesion,"),
        (HEADER, {"site": "sex"}, "data.columns: two fields have the header sex of cases.csv; give each its own"),
        (HEADER, {"lesion": "site", "site": ""}, 'has both a case (case) and a lesion (site); keep one: {lesion: ""}'),
        (("image", "Patient ID", "condition"), {}, 'has a column "Patient ID", and no field for the patient is named'),
        (HEADER[1:], {}, "cases.csv: row 1 has no column named image; say which it is: data.columns: {image: HEADER}"),
        (("image",), {}, "cases.csv: row 1 has no column named condition; say which it is"),
        (HEADER, {"site": "plaze"}, 'row 1 lacks 1 of 8 columns: "plaze"; say which they are as data.columns, {FIELD:'),
    ],
)
def test_columns_that_do_not_fit_are_told_with_the_remedy(tmp_path, header, columns, expected):
    assert expected in error_of(tmp_path, [row()], header, columns=columns)


def test_a_key_that_is_no_field_and_names_that_no_table_could_hold_are_errors_of_the_study(tmp_path):
    (tmp_path / "cases.csv").write_text(table_text([row()]))
    with pytest.raises(ConfigError, match=r"possible: image, patient"):
        read(tmp_path, columns={"image_id": "image"})
    with pytest.raises(ConfigError, match=r"data.condition_names: 2 of 3 names cannot be used; expected one condition"):
        read(tmp_path, condition_names={"Acne": "a|b", "B": "", "C": "fine"})


def pad_row(image, patient, lesion, condition="NEV", **cells):
    return {"img_id": image, "patient_id": patient, "lesion_id": lesion, "diagnostic": condition, **cells}


def test_pad_ufes_is_read_in_its_original_form_wherever_its_images_lie(tmp_path):
    rows = [
        pad_row("PAT_1_7_1.png", "PAT_1", "7", "ACK", fitspatrick="3.0", region="NOSE", gender="FEMALE", age="8"),
        pad_row("PAT_1_7_2.png", "PAT_1", "7", "ACK", fitspatrick="3.0", region="NOSE", gender="FEMALE", age="8"),
        pad_row("PAT_2_7_3.png", "PAT_2", "7", "SEK"),
    ]
    (tmp_path / "metadata.csv").write_text(table_text(rows, PAD_HEADER))
    folders = ("imgs_part_1", "imgs_part_3", "")
    for folder, r in zip(folders, rows, strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / r["img_id"]).touch()
    result = read(tmp_path, dataset="pad_ufes", with_files=True)
    index = by_file(result)
    assert sorted(index) == ["PAT_2_7_3.png", "imgs_part_1/PAT_1_7_1.png", "imgs_part_3/PAT_1_7_2.png"]
    first = index["imgs_part_1/PAT_1_7_1.png"]
    assert (first["skin_type"], first["site"], first["sex"], first["age_years"]) == ("3", "nose", "female", 8.0)
    assert (first["label:Actinic keratosis"], first["label:Seborrheic keratosis"]) == (1, 0)
    assert (result.summary["cases"], result.summary["patients"], result.group_kind) == (2, 2, "patient")
    assert result.summary["ignored_columns"] == {"metadata.csv": 1}
    # Where the files lie changes no identifier.
    assert read(tmp_path, dataset="pad_ufes").index.equals(result.index)


def test_ham10000_is_read_in_its_original_form_and_its_lesions_stand_for_patients(tmp_path):
    rows = [
        {
            "lesion_id": "HAM_1",
            "image_id": "ISIC_1",
            "dx": "bkl",
            "age": "80.0",
            "sex": "male",
            "localization": "scalp",
        },
        {"lesion_id": "HAM_1", "image_id": "ISIC_2", "dx": "bkl", "age": "", "sex": "unknown"},
        {"lesion_id": "HAM_2", "image_id": "ISIC_3", "dx": "akiec", "localization": "unknown"},
    ]
    (tmp_path / "HAM10000_metadata").write_text(table_text(rows, HAM_HEADER))
    (tmp_path / "HAM10000_images_part_2").mkdir()
    (tmp_path / "HAM10000_images_part_2/ISIC_2.jpg").touch()
    result = read(tmp_path, dataset="ham10000", train_table="HAM10000_metadata", with_files=True)
    index = by_file(result)
    assert sorted(index) == ["HAM10000_images_part_2/ISIC_2.jpg", "ISIC_1.jpg", "ISIC_3.jpg"]
    assert states(index)["ISIC_3.jpg"] == {"Actinic keratosis": 1, "Benign keratosis": 0}
    assert index["ISIC_1.jpg"]["patient_id"] == KEY.identify("set", "patient", "HAM_1")
    assert (result.group_kind, result.summary["patients"], result.summary["unknown_sex"]) == ("lesion", 2, 2)
    (tmp_path / "HAM10000_images_part_2/ISIC_2.jpg").unlink()
    with pytest.raises(BadInputError, match=r"none of the first 3 listed images exists below data\.root"):
        read(tmp_path, dataset="ham10000", train_table="HAM10000_metadata", with_files=True)


def test_a_public_set_without_its_patients_is_refused_rather_than_split_across(tmp_path):
    header = tuple(name for name in PAD_HEADER if name != "patient_id")
    (tmp_path / "metadata.csv").write_text(table_text([pad_row("1.png", "", "7")], header))
    with pytest.raises(BadInputError, match=r'row 1 lacks 1 of 8 columns: "patient_id"; say which they are'):
        read(tmp_path, dataset="pad_ufes")
    columns = {"patient": ""}
    assert read(tmp_path, dataset="pad_ufes", columns=columns).group_kind == "lesion"


needs_shared = pytest.mark.skipif(not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository")


def expected_counts(path, *, patient, lesion, condition):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    cases = {(r.get(patient), r[lesion]) for r in rows}
    groups = {r.get(patient) or r[lesion] for r in rows}
    by_condition = defaultdict(int)
    for r in rows:
        by_condition[r[condition]] += 1
    return len(rows), len(cases), len(groups), sorted(by_condition.values())


@needs_shared
@pytest.mark.parametrize(
    ("folder", "table", "dataset", "condition"),
    [
        ("derm/pad-ufes-mini-v1", "metadata.csv", "pad_ufes", "condition"),
        ("derm/ham10000-mini-v1", "metadata.csv", "ham10000", "condition"),
        ("tables", "pad_ufes_20_metadata_dev.csv", "pad_ufes", "diagnostic"),
        ("tables", "ham10000_metadata_dev.csv", "ham10000", "dx"),
    ],
)
def test_real_sets_have_the_counts_of_their_tables_and_every_source_is_a_file(folder, table, dataset, condition):
    root = SHARED_DATA_DIR / folder
    with_files = folder != "tables"
    result = read(root, dataset=dataset, train_table=table, with_files=with_files)
    summary = result.summary
    positives = sorted(counts["positive"] for counts in summary["findings"].values())
    assert (summary["images"], summary["cases"], summary["patients"], positives) == expected_counts(
        root / table, patient="patient_id", lesion="lesion_id", condition=condition
    )
    assert result.group_kind == {"pad_ufes": "patient", "ham10000": "lesion"}[dataset]
    assert summary["cases_whose_rows_disagreed"] == summary["cases_without_condition"] == 0
    assert {"Basal cell carcinoma", "Melanoma", "Melanocytic nevus", "Actinic keratosis"} <= set(summary["findings"])
    if with_files:
        assert all((root / file).is_file() for file in result.sources["file"].to_pylist())


@needs_shared
def test_the_real_tables_in_another_order_give_the_same_index(tmp_path):
    source = SHARED_DATA_DIR / "tables/pad_ufes_20_metadata_dev.csv"
    header, *lines = source.read_text().splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / "metadata.csv").write_text("\n".join([header, *lines]))
    first = read(source.parent, dataset="pad_ufes", train_table=source.name)
    second = read(tmp_path, dataset="pad_ufes")
    assert first.index.equals(second.index)
    assert first.sources.equals(second.sources)
