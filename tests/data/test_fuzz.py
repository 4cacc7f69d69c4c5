"""Tables and names made at random: whatever comes in, a reading or a defined error comes out, and no message leaks."""

import csv
import io
import os
import posixpath
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medssl.config import USUAL_TABLES, DataConfig
from medssl.data import cells, chexpert, nih, padchest, readers, reading
from medssl.data.reading import Reading, is_safe
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
CANARY = "Zzyzx"  # no word, and nothing that a message of ours could hold
NUM_QUICK, NUM_SLOW = 60, 3000
TABLES = {dataset: table or "list.csv" for dataset, table in USUAL_TABLES.items()}
CASES = ("image", "patient", "case", "condition", "skin_type", "sex", "age", "site")
HEADERS = {
    "chexpert": chexpert.COLUMNS,
    "nih": nih.COLUMNS,
    "padchest": padchest.COLUMNS,
    "cases": CASES,
    "pad_ufes": ("img_id", "patient_id", "lesion_id", "diagnostic", "fitspatrick", "region", "gender", "age"),
    "ham10000": ("image_id", "lesion_id", "dx", "age", "sex", "localization"),
    "images": tuple(column for column in CASES if column != "condition"),
}
# What the readers take for granted elsewhere: numbers of every form, paths, words of each vocabulary, and signs that
# mean something to a parser, a terminal, a spreadsheet or a file system.
CELLS = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "", " ", "0", "1.0", "-1", "1e400", "nan", "-inf", "0x10", "1_0", "²", "٣", "9" * 5000, "058Y", "\u202e",
            "=1+1", "a|b", ";", "['normal']", "['", "20140915", "PA", "F", "Frontal", "No Finding", "Mass|Nodule", "II",
            "\ufeff", ".", "..", "../x.png", "/etc/passwd", "a/../../x", "C:\\x", "~/x", "x" * 300, "\x1b[2J", "a\nb",
            "a\rb", '"', "Set/train/patient00001/study1/view1_frontal.jpg", "00000001_000.png",
            "../train/patient00001/study1/view1_lateral.png",
        ]
    ),
)  # fmt: skip
HEADER_TEXT = st.sampled_from([*dict.fromkeys(name for header in HEADERS.values() for name in header), "x", ""])
BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([b",", b'"', b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"a", b"b", b"1"])
    ).map(b"".join),
    st.tuples(st.lists(HEADER_TEXT, max_size=20), st.binary(max_size=100)).map(
        lambda drawn: ",".join(drawn[0]).encode() + b"\n" + drawn[1]
    ),
)
quick = settings(
    max_examples=NUM_QUICK, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
slow = settings(quick, max_examples=NUM_SLOW)


def config_of(root, dataset):
    return DataConfig(dataset=dataset, name="set", root=str(root), train_table=TABLES[dataset], valid_table="")


def message_of(root, dataset):
    """What a reader says of the table that lies there, without a path; "" where it reads it."""
    message = ""
    try:
        assert isinstance(readers.read(root, config_of(root, dataset), KEY), Reading)
    except BadInputError as error:
        message = str(error)
    assert str(root) not in message
    return message


def csv_text(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="replace")


def ordinary_row(dataset, number):
    """A row that the reader of the set takes, with one image of one patient."""
    name = f"{number:08d}_000.png"
    special = {
        "chexpert": {
            "Path": f"Set/train/patient{number:05d}/study1/view1_frontal.jpg",
            "Sex": "Male",
            "Frontal/Lateral": "Frontal",
        },
        "nih": {nih.FILE: name, nih.LABELS: "Mass", nih.FOLLOW_UP: "0", nih.PATIENT: f"{number}"},
        "padchest": {
            padchest.FILE: name,
            padchest.FOLDER: "1",
            padchest.STUDY: f"{number}",
            padchest.PATIENT: f"{number}",
            padchest.PROJECTION: "PA",
            padchest.LABELS: "['normal']",
        },
    }
    general = {"image": name, "img_id": name, "image_id": name, "condition": "Acne", "diagnostic": "NEV", "dx": "nv"}
    ids = dict.fromkeys(("patient", "case", "patient_id", "lesion_id"), f"{number}")
    given_cells = special.get(dataset, general | ids)
    return [given_cells.get(column, "") for column in HEADERS[dataset]]


def check_random_bytes(root, text):
    (root / "t.csv").write_bytes(text)
    for required in (("a",), ("a", "b")):
        try:
            table = cells.read(root, "t.csv", setting="data.train_table", required=required)
        except BadInputError:
            continue
        assert {len(column) for column in table.columns.values()} <= {table.rows.size}
    for dataset, name in TABLES.items():
        (root / name).write_bytes(text)
        message_of(root, dataset)


def check_random_cells(root, dataset, drawn):
    """A table in the right form whose cells are anything; some are marked, so that a message that quotes one shows."""
    header = HEADERS[dataset]
    rows = [ordinary_row(dataset, number) for number in range(1, 4)]
    for row, column, text, is_marked in drawn:
        rows[row][column % len(header)] = f"{CANARY}{text}" if is_marked else text
    (root / TABLES[dataset]).write_bytes(csv_text([header, *rows]))
    assert CANARY.casefold() not in message_of(root, dataset).casefold()


CHANGES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 18), CELLS, st.booleans()), min_size=1, max_size=4)


@pytest.fixture
def root(tmp_path):
    """A folder in which one image lies under each name that the ordinary rows list."""
    (tmp_path / "00000001_000.png").touch()
    (tmp_path / "00000001_000.png.jpg").touch()
    image = tmp_path / "train/patient00001/study1/view1_frontal.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    return tmp_path


@pytest.mark.parametrize("dataset", HEADERS)
def test_ordinary_rows_are_read_so_that_their_changes_are_what_is_tested(root, dataset):
    check_random_cells(root, dataset, [])
    assert message_of(root, dataset) == ""


@quick
@given(BYTES)
@example(b"")
@example(b'"')
@example(b"a,b\n" + b"1,2\r" * 3)
def test_any_bytes_are_a_table_or_an_error_of_ours(root, text):
    check_random_bytes(root, text)


@pytest.mark.parametrize("dataset", HEADERS)
@quick
@given(CHANGES)
def test_any_cells_are_a_reading_or_an_error_that_quotes_none(root, dataset, drawn):
    check_random_cells(root, dataset, drawn)


@pytest.mark.slow
@slow
@given(BYTES)
def test_very_many_bytes_are_a_table_or_an_error_of_ours(root, text):
    check_random_bytes(root, text)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", HEADERS)
@slow
@given(CHANGES)
def test_very_many_cells_are_a_reading_or_an_error_that_quotes_none(root, dataset, drawn):
    check_random_cells(root, dataset, drawn)


PIECES = st.sampled_from(
    ["..", ".", "/", "//", "a", "train", "valid", "patient00001", "study1", "view1_frontal.jpg", "00000001_000.png",
     "\\", "~", "\n", "\0", "\u2025", "．．", "…", " ", "-", "%2e%2e", "x" * 300, "\ud800"]
)  # fmt: skip
PATHS = st.one_of(st.text(max_size=30), st.lists(PIECES).map("".join), st.lists(PIECES).map("/".join))


def is_below(path):
    """Whether the path, relative to a folder, stays below it, as the system resolves it."""
    resolved = os.path.normpath(f"/root/of/set/{path}")  # a path that starts with / would replace a Path's folder
    return resolved.startswith("/root/of/set/") and not path.startswith("/") and "\0" not in path


@settings(quick, max_examples=2000)
@given(PATHS)
@example("../x")
@example("a/../../x")
@example(".")
def test_every_name_that_is_safe_stays_below_the_folder(name):
    if is_safe(name):
        assert is_below(name)
        assert is_below(posixpath.normpath(name))
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", name)


@settings(quick, max_examples=2000)
@given(PATHS)
@example("Set/train/patient00001/study1/view1_frontal.jpg")
@example("Set/train/patient00001/study1/view1_frontal.jpg\n")
@example("../train/patient00001/study1/view1_frontal.jpg")
@example("00000001_000.png\n")
def test_every_path_that_a_pattern_takes_stays_below_the_folder(path):
    text = pa.array([path.encode(errors="replace").decode()])
    parts = [part[0].as_py() for part in chexpert.components(text, "folder", "patient", "study", "name")]
    if None not in parts:
        file = "/".join(parts)
        assert is_below(file)
        assert file == posixpath.normpath(file)
        assert file.isprintable()
    if pc.extract_regex(text, nih.FILE_PATTERN)[0].as_py() is not None:
        assert re.fullmatch(r"\d+_\d+\.(png|jpg|jpeg)", path, re.ASCII)


COMPONENTS = st.sampled_from(
    [
        "", "Set", "train", "valid", "trains", "patient00001", "patient123456", "patient0001", "xpatient00001",
        "study1", "study", "view1_frontal.jpg", "view22_lateral.jpeg", "view1_frontal.jpg\n", "view1_frontal.gif", "é",
    ]
)  # fmt: skip
WHOLE = st.tuples(
    st.sampled_from(["Set", ".."]), st.sampled_from(["train", "valid"]), *[COMPONENTS] * 2, st.just("view1_frontal.png")
)
FORM = re.compile(
    r"([^/]+)/(train|valid)/(patient[0-9]{5,})/(study[0-9]+)/(view[0-9]+_(?:frontal|lateral)\.(?:jpg|jpeg|png))"
)


@settings(quick, max_examples=500)
@given(st.lists(st.one_of(WHOLE, st.lists(COMPONENTS, max_size=7)).map("/".join), max_size=6))
@example(["Set/train/patient00001/study1/view1_frontal.jpg", "", "a/b/c/d/e/f", "a/b/c/d/e"])
@example(["Set/trains/patient00001/study1/view1_frontal.jpg", "Set/train/patient00001/study1/view1_frontal.jpg\n"])
def test_the_components_of_paths_are_those_that_one_expression_finds(paths):
    found = [part.to_pylist() for part in chexpert.components(pa.array(paths, pa.string()), *chexpert.PATH_PATTERNS)]
    for path, *parts in zip(paths, *found, strict=True):
        match = FORM.fullmatch(path)
        assert (None if None in parts else tuple(parts)) == (match and match.groups())


@quick
@given(st.lists(PATHS))
def test_files_are_located_below_the_folder_and_keep_their_names(root, names):
    names = list(filter(is_safe, names))
    for folder in ("a", "images"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "train").touch()
    folders = ("", "a", "images", "absent", "00000001_000.png")
    listed = pa.array([*names, "train", "absent.png"])
    found = reading.locate(root, folders, listed)
    assert all(map(is_below, found.to_pylist()))
    assert all(file.endswith(name) for file, name in zip(found.to_pylist(), listed.to_pylist(), strict=True))
    assert Path(found.to_pylist()[-1]) == Path("absent.png")
