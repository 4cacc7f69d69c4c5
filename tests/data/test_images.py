import os
import subprocess
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medssl import schema
from medssl.config import DataConfig
from medssl.data import readers
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))


def touch(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root, **options):
    return readers.read(root, DataConfig(dataset="images", name="set", root=str(root), **options), KEY)


def error_of(root, **options):
    """The message, which names neither a path nor a folder of a patient."""
    with pytest.raises(BadInputError) as caught:
        read(root, **options)
    message = str(caught.value)
    for secret in ("erika", "photo", str(root)):
        assert secret not in message
    return message


def grouped(result, column):
    files = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    found = defaultdict(set)
    for row in result.index.to_pylist():
        found[row[column]].add(files[row["image_id"]])
    return sorted(found.values(), key=min)


def test_every_image_below_the_folder_is_listed_without_labels(tmp_path):
    touch(tmp_path, "a.jpg", "b/c.JPEG", "b/d/e.Png", "b/notes.txt", "g.gif", ".h.jpg", ".hidden/i.jpg", "jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "folder").symlink_to(tmp_path / "b")
    result = read(tmp_path)
    assert set(result.sources["file"].to_pylist()) == {"a.jpg", "b/c.JPEG", "b/d/e.Png"}
    assert result.summary["left_out"] == {"hidden": 2, "links": 2, "other files": 3}
    assert result.summary["images_per_case"]["1"] == 3
    assert schema.label_columns(result.index) == []
    assert set(result.index["source_split"].to_pylist()) == {"unlabelled"}
    assert result.index["age_years"].null_count == result.index["skin_type"].null_count == 3
    assert grouped(result, "patient_id") == grouped(result, "case_id") == [{"a.jpg"}, {"b/c.JPEG"}, {"b/d/e.Png"}]
    assert result.group_kind == result.summary["group_kind"] == "image"
    schema.write(result.index, schema.INDEX, tmp_path / "index.parquet")


def test_first_folders_are_patients_and_the_folders_of_files_cases(tmp_path):
    touch(tmp_path, "p1/1.jpg", "p1/v1/2.jpg", "p1/v1/3.jpg", "p2/v1/4.jpg")
    result = read(tmp_path, group="folder")
    assert grouped(result, "patient_id") == [{"p1/1.jpg", "p1/v1/2.jpg", "p1/v1/3.jpg"}, {"p2/v1/4.jpg"}]
    assert grouped(result, "case_id") == [{"p1/1.jpg"}, {"p1/v1/2.jpg", "p1/v1/3.jpg"}, {"p2/v1/4.jpg"}]
    assert result.group_kind == "patient"
    assert result.summary["images_per_case"] == {"1": 2, "2": 1, "3": 0, "4": 0, "5": 0, "6": 0, "7+": 0}


PATHS = st.sets(
    st.lists(st.sampled_from(["a", "b", "ß c", "é"]), min_size=1, max_size=3).map(lambda parts: "/".join(parts)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS)
def test_cases_partition_the_images_whatever_the_order_of_creation(tmp_path_factory, paths):
    files = [f"{path}/x.jpg" for path in paths]
    roots = [tmp_path_factory.mktemp("set") for _ in range(2)]
    touch(roots[0], *files)
    touch(roots[1], *reversed(files))
    first, second = (read(root, group="folder") for root in roots)
    assert first.index.equals(second.index)
    assert first.sources.equals(second.sources)
    assert grouped(first, "case_id") == sorted(({file} for file in files), key=min)
    patients = defaultdict(set)
    for file in files:
        patients[file.split("/")[0]].add(file)
    assert grouped(first, "patient_id") == sorted(patients.values(), key=min)


def test_a_folder_without_images_and_images_without_a_folder_say_what_to_do(tmp_path):
    touch(tmp_path, "erika.gif", ".erika.jpg")
    assert "no .jpg, .jpeg, .png below data.root, and 2 other, hidden or linked entries; give" in error_of(tmp_path)
    touch(tmp_path, "erika/photo.jpg", "photo.jpg")
    message = error_of(tmp_path, group="folder")
    assert "1 of 2 images lie in data.root itself, in no patient's folder; move them into one, or" in message


@pytest.mark.parametrize("name", [b"erika\n.jpg", b"erika\xff.jpg", b"erika\\photo.jpg", b"erika\x1b[2J/photo.jpg"])
def test_names_that_cannot_be_shown_or_stored_as_text_are_counted_and_refused(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - a Path holds no bytes
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    os.close(os.open(path, os.O_CREAT))
    touch(tmp_path, "good.jpg")
    assert "1 of 2 images have names that are no UTF-8, or hold control characters or backslashes; rename" in error_of(
        tmp_path
    )


def test_folders_deeper_than_the_interpreters_stack_are_listed(tmp_path):
    deep = "a/" * 1200
    subprocess.run(["mkdir", "-p", tmp_path / deep], check=True)  # pathlib makes folders recursively
    (tmp_path / deep / "photo.jpg").touch()
    try:
        assert read(tmp_path).sources["file"].to_pylist() == [f"{deep}photo.jpg"]
    finally:
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # what clears temporary folders is recursive


def test_pipes_and_sockets_among_the_images_are_left_out_and_not_waited_for(tmp_path):
    touch(tmp_path, "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    result = read(tmp_path)
    assert result.sources["file"].to_pylist() == ["good.jpg"]
    assert result.summary["left_out"] == {"hidden": 0, "links": 0, "other files": 1}


def test_a_table_groups_the_images_and_its_conditions_become_no_labels(tmp_path):
    touch(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text(
        "file,person,case,condition,sex,age,site,type\n"
        "1.jpg,a,a1,Acne,F,40,Arm,II\n2.jpg,a,a1,Acne,F,40,Arm,II\n3.jpg,b,b1,,,,,\n"
    )
    columns = {"image": "file", "patient": "person", "skin_type": "type"}
    result = read(tmp_path, train_table="list.csv", columns=columns)
    assert grouped(result, "case_id") == [{"1.jpg", "2.jpg"}, {"3.jpg"}]
    assert schema.label_columns(result.index) == []
    assert set(result.index["source_split"].to_pylist()) == {"unlabelled"}
    assert sorted(set(result.index["skin_type"].to_pylist()), key=str) == ["2", None]
    assert result.summary["ignored_columns"] == {"list.csv": 1}
    message = error_of(tmp_path, train_table="list.csv", columns={**columns, "condition": "condition"})
    assert "data.columns: condition: no such field; possible: image, patient, case, lesion, skin_type, sex" in message
    assert "row 1 has no column named image; say which" in error_of(tmp_path, train_table="list.csv")
    (tmp_path / "1.jpg").unlink()
    assert "none of the first 3 listed images" in error_of(tmp_path, train_table="list.csv", columns=columns)
