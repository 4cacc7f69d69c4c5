import csv
import gzip
import io
import os
import re
import time
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from medssl import schema
from medssl.config import DataConfig
from medssl.data import cells as cells_module
from medssl.data import chexpert, readers
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
SHARED_DATA_DIR = Path(__file__).parents[2] / "../shared/data"
PATIENT = "patient00077"


def row(path="Set/train/patient00077/study1/view1_frontal.jpg", **cells):
    view = "Lateral" if "lateral" in path else "Frontal"
    return {"Path": path, "Sex": "Male", "Age": "61", "Frontal/Lateral": view, "AP/PA": "AP", **cells}


def ordinary_rows(count, folder="train", first=1):
    return [row(f"Set/{folder}/patient{first + i:05d}/study1/view1_frontal.jpg") for i in range(count)]


def table_text(rows, columns=chexpert.COLUMNS):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def touch(root, rows):
    for cells in rows:
        file = root / cells["Path"].split("/", 1)[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def read(root, **options):
    return readers.read(root, DataConfig(name="set", root=str(root), **{"valid_table": "", **options}), KEY)


def read_rows(root, rows, **options):
    touch(root, rows[:1])
    (root / "train.csv").write_text(table_text(rows))
    return read(root, **options)


def error_of(root, text, **options):
    """The message for a `train.csv` of `text`; whatever is wrong, it names neither a path nor a patient."""
    touch(root, [row()])
    (root / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInputError) as caught:
        read(root, **options)
    message = str(caught.value)
    for secret in (PATIENT, "patient0", str(root), "study1/view2", "view7"):
        assert secret not in message.replace("SET/train/patient…/study1/view1_frontal.jpg", "")
    return message


def rows_by_file(result):
    files = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    return {files[r["image_id"]]: r for r in result.index.to_pylist()}


def test_a_table_becomes_an_index_without_the_names_of_the_source(tmp_path):
    rows = [
        row("Set/train/patient00002/study2/view1_frontal.jpg", Sex="Female", Age="0", **{"Edema": "-1.0"}),
        row("Set/train/patient00002/study2/view2_lateral.png", **{"AP/PA": "", "Edema": "1.0"}),
        row("Set/train/patient123456/study1/view1_frontal.jpeg", Sex="Unknown", Age="", **{"AP/PA": "", "Edema": "0"}),
        row("Set/train/patient00003/study1/view1_frontal.jpg", Age="90", **{"AP/PA": "LL", "Edema": "1.00"}),
        row("Set/train/patient00003/study1/view3_frontal.jpg", Sex="", Age=" 61.5 ", **{"AP/PA": "PA"}),
    ]
    result = read_rows(tmp_path, rows)
    index = rows_by_file(result)
    assert list(index) != sorted(index)  # row order never follows the source
    columns = ("sex", "age_years", "view_position", "label:Edema", "label:Fracture")
    assert [tuple(index[r["Path"].removeprefix("Set/")][c] for c in columns) for r in rows] == [
        ("female", 0.0, "AP", schema.UNCERTAIN, schema.BLANK),
        ("male", 61.0, "lateral", schema.POSITIVE, schema.BLANK),
        (None, None, None, schema.NEGATIVE, schema.BLANK),
        ("male", 90.0, "lateral", schema.POSITIVE, schema.BLANK),
        (None, 61.5, "PA", schema.BLANK, schema.BLANK),
    ]
    assert schema.label_columns(result.index) == list(chexpert.FINDINGS)
    image = index["train/patient00002/study2/view1_frontal.jpg"]
    assert image["patient_id"] == KEY.identify("set", "patient", "patient00002")
    assert image["case_id"] == KEY.identify("set", "case", "patient00002/study2")
    assert image["image_id"] == KEY.identify("set", "image", "train/patient00002/study2/view1_frontal.jpg")
    assert image["case_id"] == index["train/patient00002/study2/view2_lateral.png"]["case_id"]
    summary = result.summary
    assert (summary["images"], summary["patients"], summary["cases"]) == (5, 3, 3)
    assert (summary["frontal"], summary["lateral"]) == (4, 1)
    assert (summary["unknown_sex"], summary["unknown_age"], summary["unknown_view_position"]) == (2, 1, 1)
    edema = {"positive": 2, "negative": 1, "uncertain": 1, "blank": 1, "not assessed": 0}
    assert summary["findings"]["Edema"] == edema


def test_the_index_does_not_depend_on_row_order_or_folder_name_or_compression(tmp_path):
    rows = ordinary_rows(20)
    first = read_rows(tmp_path, rows)
    moved = [{**r, "Path": r["Path"].replace("Set/", "Other-v2/")} for r in reversed(rows)]
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(table_text(moved).encode()))
    second = read(tmp_path, train_table="train.csv.gz")
    assert first.index.equals(second.index)
    assert first.sources.equals(second.sources)
    schema.write(first.index, schema.INDEX, tmp_path / "a.parquet")
    schema.write(second.index, schema.INDEX, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_official_validation_table_keeps_its_own_source_split(tmp_path):
    (tmp_path / "valid.csv").write_text(table_text(ordinary_rows(2, folder="valid", first=64541)))
    result = read_rows(tmp_path, ordinary_rows(3), valid_table="valid.csv")
    assert sorted(result.index["source_split"].to_pylist()) == ["official_valid"] * 2 + ["train"] * 3
    assert result.summary["rows"] == {"train.csv": 3, "valid.csv": 2}


def test_unknown_columns_are_ignored_and_counted_and_column_order_is_free(tmp_path):
    rows = [{**r, "Note": "a, b\n\nc", "Site": "x"} for r in ordinary_rows(3)]
    touch(tmp_path, rows[:1])
    (tmp_path / "train.csv").write_text("\ufeff" + table_text(rows, ("Note", *reversed(chexpert.COLUMNS), "Site")))
    result = read(tmp_path)
    assert result.summary["ignored_columns"] == {"train.csv": 2}
    assert result.index.equals(read_rows(tmp_path, ordinary_rows(3)).index)


def test_blank_rows_and_line_breaks_in_cells_do_not_shift_row_numbers(tmp_path):
    lines = table_text(ordinary_rows(4)).splitlines()
    bad = table_text([row(Sex="Robot")]).splitlines()[1]
    broken = '"Set/train/patient00009/study1/view1_frontal.jpg\n",Male,1,Frontal,AP' + "," * 14
    text = "\r\n".join([lines[0], lines[1], "", broken, "   ", "," * 18, lines[2], bad, ""])
    assert 'column "Sex" holds a text of 5 characters in 1 row (row 8);' in error_of(tmp_path, text)


@pytest.fixture
def four_threads():
    before = pa.cpu_count()
    pa.set_cpu_count(4)
    yield
    pa.set_cpu_count(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_table_of_many_blocks_has_the_cells_and_row_numbers_that_python_finds(tmp_path, line_end, quote):
    # Over 2 MB, lines of different lengths: breaks fall anywhere within the parser's blocks.
    lines = [f"{quote}{'x' * (i % 97)}é{i}{quote},{i % 7}," for i in range(40_000)]
    for with_blank_lines in (False, True):
        if with_blank_lines:
            lines[100], lines[30_001], lines[39_999] = "", "  ", ""
        text = line_end.join(["a,b,c", *lines]) + line_end
        (tmp_path / "t.csv").write_text(text, newline="")
        found = cells_module.read(tmp_path, "t.csv", setting="", required=("c", "a", "b"))
        expected = [
            (n, row) for n, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1) if "".join(row).strip()
        ][1:]
        assert found.rows.tolist() == [n for n, _ in expected]
        for i, column in enumerate("abc"):
            assert found.columns[column].to_pylist() == [row[i] for _, row in expected]
    lines[35_000] = "too,many,cells,here"
    (tmp_path / "t.csv").write_text(line_end.join(["a,b,c", *lines]), newline="")
    with pytest.raises(BadInputError, match=r"in 1 row \(row 35002; row 35002 has 4"):
        cells_module.read(tmp_path, "t.csv", setting="", required=("a",))


def test_row_numbers_are_right_far_down_a_long_table(tmp_path):
    rows = [
        *ordinary_rows(30_000),
        row("Set/train/patient00077/study9/view7_frontal.jpg", Age="131"),
    ]  # several of the parser's blocks
    text = table_text(rows)
    assert len(text) > 2**21
    assert 'column "Age" holds "131" in 1 row (row 30002);' in error_of(tmp_path, text)
    assert "in 1 row (row 30003; row 30003 has 2)" in error_of(tmp_path, text + "a,b\n")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"Edema": "2.0"}, r'column "Edema" holds "2.0" in 1 row \(row 4\); expected 1, 0, -1 or blank'),
        ({"Fracture": "nan"}, r'column "Fracture" holds "nan" in 1 row \(row 4\)'),
        ({"Edema": "Set/train/patient00077"}, r"Edema\" holds a text of 22 characters in 1 row \(row 4\)"),
        ({"Sex": "patient00077"}, r"Sex\" holds a text of 12 characters in 1 row \(row 4\); expected Female, Male"),
        ({"Age": "-1"}, r'"Age" holds "-1" in 1 row \(row 4\); expected a number from 0 to 130'),
        ({"Age": "061Y"}, r'"Age" holds a text of 4 characters in 1 row \(row 4\)'),
        ({"Age": "nan"}, r'"Age" holds "nan" in 1 row \(row 4\)'),
        ({"AP/PA": "Oblique"}, r'"AP/PA" holds a text of 7 characters in 1 row \(row 4\); expected AP, PA'),
        ({"AP/PA": "ap"}, r'"AP/PA" holds "ap" in 1 row \(row 4\); expected AP, PA'),
        ({"Sex": "Femal"}, r'"Sex" holds "Femal" in 1 row \(row 4\); expected Female, Male'),
        ({"Frontal/Lateral": "latteral"}, r'"Frontal/Lateral" holds "latteral" in 1 row \(row 4\)'),
        ({"Frontal/Lateral": "Lateral"}, r"disagree in 1 row \(row 4\); a file of a Frontal row ends in _frontal"),
        ({"Frontal/Lateral": ""}, r'"Frontal/Lateral" holds a text of 0 characters in 1 row \(row 4\)'),
        ({"Path": ""}, r'column "Path" is not of the form .* in 1 row \(row 4\)'),
        ({"Path": "train/patient00077/study1/view1_frontal.jpg"}, r"not of the form .* \(row 4\)"),
        ({"Path": "S/../train/patient00077/study1/view1_frontal.jpg"}, r"not of the form .* \(row 4\)"),
        ({"Path": "S/train/patient77/study1/view1_frontal.jpg"}, r"not of the form .* \(row 4\); .* 5 digits"),
        ({"Path": "S/test/patient00077/study1/view1_frontal.jpg"}, r"not of the form .* \(row 4\)"),
        ({"Path": "S/train/patient00077/study1/view1_frontal.jpg.exe"}, r"not of the form .* \(row 4\)"),
        ({"Path": "S\\train\\patient00077\\study1\\view1_frontal.jpg"}, r"not of the form .* \(row 4\)"),
    ],
)
def test_a_wrong_cell_is_told_by_column_row_and_what_may_stand_there(tmp_path, cells, expected):
    text = table_text([*ordinary_rows(2), {**row(), **cells}])
    message = error_of(tmp_path, text)
    assert message.startswith("train.csv: ")
    assert re.search(expected, message), message


@pytest.mark.parametrize("column", ["Sex", "Age", "AP/PA", "Frontal/Lateral", "Edema"])
@pytest.mark.parametrize("name", ["Emma", "Amal", "Kamal", "Rolf", "Paul", "Pat", "Nan", "Blanka", "Jane Doe", "Adele"])
def test_no_message_shows_what_could_be_a_name(tmp_path, column, name):
    message = error_of(tmp_path, table_text([row(**{column: name})]))
    assert f'column "{column}" holds a text of {len(name)} characters in 1 row (row 2)' in message


@pytest.mark.parametrize(("table", "folder"), [("train.csv", "valid"), ("valid.csv", "train")])
def test_rows_of_the_other_folder_are_told_by_number(tmp_path, table, folder):
    rows = {
        "train.csv": ordinary_rows(3),
        "valid.csv": ordinary_rows(3, folder="valid", first=10),
    }
    rows[table] += ordinary_rows(2, folder=folder, first=20)
    (tmp_path / "valid.csv").write_text(table_text(rows["valid.csv"]))
    message = error_of(tmp_path, table_text(rows["train.csv"]), valid_table="valid.csv")
    own = table.removesuffix(".csv")
    assert message.startswith(f'{table}: column "Path" names another folder than {own} in 2 rows (row 5, row 6); ')
    assert "move these rows to the table of their folder" in message


def test_many_wrong_rows_are_counted_and_five_are_shown(tmp_path):
    message = error_of(tmp_path, table_text([{**r, "Edema": "3"} for r in ordinary_rows(9, first=77)]))
    assert 'holds "3" in 9 rows (row 2, row 3, row 4, row 5, row 6, …); expected' in message


def test_a_missing_column_is_named_with_the_likely_misspelt_one(tmp_path):
    columns = ["Pleural effusion" if c == "Pleural Effusion" else c for c in chexpert.COLUMNS if c != "Sex"]
    message = error_of(tmp_path, table_text(ordinary_rows(2), columns))
    assert 'row 1 lacks 2 of 19 columns: "Sex", "Pleural Effusion" (found "Pleural effusion");' in message


def test_a_table_without_its_header_does_not_show_its_first_row(tmp_path):
    assert "row 1 lacks 19 of 19 columns" in error_of(tmp_path, table_text([row(), row()]).split("\n", 1)[1])


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    assert 'column "Sex" occurs 2 times in row 1' in error_of(tmp_path, table_text([row()], (*chexpert.COLUMNS, "Sex")))


def test_a_repeated_image_is_told_with_both_rows(tmp_path):
    rows = [*ordinary_rows(3), row("Renamed/train/patient00002/study1/view1_frontal.jpg")]
    message = error_of(tmp_path, table_text(rows))
    assert "an image listed before in 1 row (row 5 repeats row 3); remove the repeated rows" in message


def test_a_patient_in_both_tables_is_told_with_the_rows_of_both(tmp_path):
    shared = ordinary_rows(1, folder="valid", first=2) + ordinary_rows(2, folder="valid", first=64541)
    (tmp_path / "valid.csv").write_text(table_text(shared))
    message = error_of(tmp_path, table_text([*ordinary_rows(4), row()]), valid_table="valid.csv")
    assert (
        "valid.csv and train.csv share 1 patients, in 1 row of valid.csv (row 2) and 1 row of train.csv (row 3)"
        in message
    )


def test_ragged_rows_are_told_by_number(tmp_path):
    text = table_text(ordinary_rows(3)) + "Set/train/patient00077/study1/view1_frontal.jpg,Male\n"
    assert "other than 19 cells in 1 row (row 5; row 5 has 2)" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        '"' + table_text(ordinary_rows(3000)),  # more than the csv module takes for one cell
        '"' + table_text(ordinary_rows(3)),
        table_text(ordinary_rows(3)).replace("Sex", '"Sex', 1),
    ],
)
def test_a_quotation_mark_that_nothing_closes_is_told(tmp_path, text):
    assert "train.csv cannot be parsed as comma-separated rows; close quotation marks" in error_of(tmp_path, text)


def test_a_damaged_archive_is_told(tmp_path):
    whole = gzip.compress(table_text(ordinary_rows(500)).encode())
    middle = len(whole) // 2
    damaged = {
        "zlib.error": whole[:10] + b"\xff" + whole[11:],
        "EOFError": whole[:middle],
        "BadGzipFile": whole[:-8] + bytes(8),
        "no archive": b"Path,Sex\n",
    }
    for kind, data in damaged.items():
        (tmp_path / "train.csv.gz").write_bytes(data)
        with pytest.raises(BadInputError, match=r"train.csv.gz is damaged: .*; copy it anew"):
            read(tmp_path, train_table="train.csv.gz")
        if kind == "zlib.error":
            with pytest.raises(zlib.error):
                gzip.decompress(data)


def test_text_that_is_not_utf8_is_told_by_row(tmp_path):
    text = table_text([*ordinary_rows(2), row(Sex="Mäle")]).encode("latin-1")
    assert "train.csv is not UTF-8 text (first seen in row 4)" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("encode", "row_number"),
    [
        (lambda text: text.encode("utf-16"), 1),
        (lambda text: text.encode("utf-16-le"), 1),  # valid UTF-8, but for the NUL in each character
        (lambda text: text.replace("Male", "Ma\0le").encode(), 2),
        (lambda text: b"PK\3\4" + bytes(60), 1),
        (lambda text: gzip.compress(text.encode()), 1),
        (lambda text: (text + "\ud800").encode(errors="surrogatepass"), 4),
        (lambda text: text.encode() + "é".encode()[:1], 4),
        (lambda text: text.encode() + b"," * (2**20 - len(text.encode()) - 1) + "é".encode()[:1] + b"x", 4),
        (lambda text: text.encode() + b"," * (2**20 - len(text.encode())) + b"\n\xff", 5),
        (lambda text: text.encode() + b"," * (2**20 - len(text.encode()) - 2) + "€".encode() + b"\xff\n", 4),
    ],
)
def test_bytes_that_are_no_text_are_told_by_row_wherever_they_stand(tmp_path, encode, row_number):
    message = error_of(tmp_path, encode(table_text(ordinary_rows(2))))
    assert f"train.csv is not UTF-8 text (first seen in row {row_number}); save it as UTF-8" in message


def test_a_character_across_two_chunks_of_the_check_is_text(tmp_path):
    text = table_text(ordinary_rows(2), (*chexpert.COLUMNS, "Note")).encode()
    (tmp_path / "train.csv").write_bytes(text[:-1] + b"n" * (2**20 - len(text)) + "éé\n".encode())
    touch(tmp_path, ordinary_rows(1))
    assert read(tmp_path).index.num_rows == 2


def test_lines_that_end_in_cr_alone_are_told(tmp_path):
    text = table_text(ordinary_rows(3)).replace("\n", "\r")
    assert "train.csv has lines that end in CR alone; save it with LF or CRLF" in error_of(tmp_path, text)


def test_an_open_quotation_mark_in_a_column_that_is_not_read_does_not_swallow_the_rest(tmp_path):
    rows = [{**r, "Note": note} for r, note in zip(ordinary_rows(4), "abcd", strict=True)]
    text = table_text(rows, (*chexpert.COLUMNS, "Note"))
    assert "train.csv cannot be parsed" in error_of(tmp_path, text.replace(",b\n", ',"b\n'))


def test_a_row_or_header_of_a_million_cells_and_a_cell_of_100_mb_are_refused_in_seconds(tmp_path):
    start_s = time.perf_counter()
    header, *rows = table_text(ordinary_rows(2)).splitlines()
    wide = ",".join(f"c{i}" for i in range(10**6))
    assert "train.csv: row 1 has 1,000,019 columns, more than 10,000; give" in error_of(tmp_path, f"{header},{wide}\n")
    message = error_of(tmp_path, "\n".join([header, *rows, "," * (10**6 - 1)]))
    assert "train.csv: other than 19 cells in 1 row (row 4; row 4 has 1000000)" in message
    for text in (f"{header}\n{rows[0]}{'x' * 10**8}\n", f"{header},{'x' * 10**8}\n{rows[0]},\n"):
        assert "train.csv cannot be parsed" in error_of(tmp_path, text)
    assert time.perf_counter() - start_s < 30  # 3 s on an idle core


def test_a_table_over_the_bound_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    (tmp_path / "sparse.csv").touch()
    os.truncate(tmp_path / "sparse.csv", 10 * 2**30)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(bytes(2**26)))
    (tmp_path / "whole.csv.gz").write_bytes(gzip.compress(table_text(ordinary_rows(1)).encode()))
    touch(tmp_path, ordinary_rows(1))
    with pytest.raises(BadInputError, match=r"sparse.csv has more than 2,147,483,647 bytes"):
        read(tmp_path, train_table="sparse.csv")
    monkeypatch.setattr(cells_module, "MAX_TABLE_BYTES", 2**24)
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match=r"bomb.csv.gz has more than 16,777,216 bytes, decompressed"):
            read(tmp_path, train_table="bomb.csv.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert read(tmp_path, train_table="whole.csv.gz").index.num_rows == 1


def test_a_table_that_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    for name in ("train.csv", "zero.csv", "folder.csv"):
        with pytest.raises(BadInputError, match=rf"^{name} is not a regular file; give the table itself"):
            read(tmp_path, train_table=name)
    for name in ("a\0b.csv", "x" * 300, "zero.csv/below"):
        with pytest.raises(BadInputError, match=r"data.train_table is no name|cannot be read: ") as caught:
            read(tmp_path, train_table=name)
        assert str(tmp_path) not in str(caught.value)


def test_a_header_with_control_characters_is_not_shown(tmp_path):
    columns = ["Pleural Effusion\x1b[2J" if c == "Pleural Effusion" else c for c in chexpert.COLUMNS]
    message = error_of(tmp_path, table_text(ordinary_rows(2), columns))
    assert message.isprintable()
    assert 'row 1 lacks 1 of 19 columns: "Pleural Effusion"; name' in message


@pytest.mark.parametrize("name", ["set.zip", "set.TAR.gz", "set.tgz"])
def test_an_archive_in_place_of_the_folder_is_not_unpacked_but_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(BadInputError, match=r"^data.root is an archive; unpack it, and give the folder that contains"):
        read(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_exist_is_told_without_its_name(tmp_path):
    for name in ("x" * 300, "a\0b", "y/" * 3000):
        with pytest.raises(BadInputError, match=r"^data.root (is no folder that exists|cannot be entered)") as caught:
            read(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "train.csv is empty"),
        (" \n\n", "train.csv is empty"),
        (table_text([]), "train.csv has a header but no rows"),
        (table_text([]).strip(), "train.csv cannot be parsed"),
        (table_text([]) + "\n\n," * 3 + "\n", "train.csv: other than 19 cells"),
        (table_text([]) + "," * 18 + "\n", "train.csv has a header but no rows"),
    ],
)
def test_an_empty_table_is_refused(tmp_path, text, expected):
    assert expected in error_of(tmp_path, text)


def test_missing_folder_table_and_images_each_say_what_to_do(tmp_path):
    with pytest.raises(BadInputError, match=r"data.root is no folder that exists; give the folder that contains"):
        read(tmp_path / "absent")
    with pytest.raises(
        BadInputError, match=r"train.csv is not in the data set's folder; give its name as data.train_table"
    ):
        read(tmp_path)
    (tmp_path / "train.csv").write_text(table_text(ordinary_rows(200)))
    with pytest.raises(BadInputError, match=r"valid.csv is not in .* data.valid_table .null: the set has none"):
        read(tmp_path, valid_table="valid.csv")
    with pytest.raises(BadInputError, match=r"none of the first 100 listed images exists below data.root; it must be"):
        read(tmp_path)
    touch(tmp_path, ordinary_rows(1, first=100))
    assert read(tmp_path).index.num_rows == 200
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"x" * 999)[:20])
    with pytest.raises(BadInputError, match=r"train.csv.gz is damaged"):
        read(tmp_path, train_table="train.csv.gz")


@pytest.mark.skipif(not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository")
def test_the_public_training_table_has_its_published_counts_and_is_read_in_seconds(tmp_path):
    (tmp_path / "train.csv.gz").symlink_to(SHARED_DATA_DIR.resolve() / "tables/chexpert_train.csv.gz")
    touch(tmp_path, ordinary_rows(1))
    start_s = time.perf_counter()
    summary = read(tmp_path, train_table="train.csv.gz").summary
    assert time.perf_counter() - start_s < 20  # 2 s on an idle core
    assert (summary["images"], summary["patients"], summary["cases"]) == (223_414, 64_540, 187_641)
    assert (summary["frontal"], summary["lateral"], summary["unknown_sex"]) == (191_027, 32_387, 1)
    states = {name: tuple(counts.values()) for name, counts in summary["findings"].items()}
    assert states["Atelectasis"] == (33_376, 1_328, 33_739, 154_971, 0)
    assert states["Cardiomegaly"] == (27_000, 11_116, 8_087, 177_211, 0)
    assert states["Consolidation"] == (14_783, 28_097, 27_742, 152_792, 0)
    assert states["Edema"] == (52_246, 20_726, 12_984, 137_458, 0)
    assert states["Pleural Effusion"] == (86_187, 35_396, 11_628, 90_203, 0)


@pytest.mark.skipif(not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository")
@pytest.mark.parametrize(("name", "num_images"), [("CXR-nih64-v1", 723), ("CXR-covid-v1", 269)])
def test_real_sets_are_read_and_every_source_is_a_file(name, num_images):
    root = SHARED_DATA_DIR / "cxr" / name
    result = read(root, valid_table="valid.csv")
    assert result.index.num_rows == num_images
    assert all((root / file).is_file() for file in result.sources["file"].to_pylist())
    by_id = dict(zip(*(result.sources[c].to_pylist() for c in ("image_id", "file")), strict=True))
    with (root / "train.csv").open() as file:
        listed = {r["Path"].split("/", 1)[1] for r in csv.DictReader(file)}
    from_train = {by_id[r["image_id"]] for r in result.index.to_pylist() if r["source_split"] == "train"}
    assert from_train == listed
