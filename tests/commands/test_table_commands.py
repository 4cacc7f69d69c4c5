"""`medssl ingest` and `medssl assign-splits` from table to table, by the command line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medssl import schema
from medssl.__main__ import main
from medssl.data import chexpert
from medssl.exit_codes import BAD_INPUT

SHARED_DATA_DIR = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(autouse=True)
def own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSSL_PATIENT_KEY", "0f" * 32)
    monkeypatch.delenv("MEDSSL_PATIENT_KEY_FILE", raising=False)


def write_table(path: Path, num_patients: int) -> Path:
    lines = [",".join(chexpert.COLUMNS)]
    for patient in range(num_patients):
        for view in range(1 + patient % 3):
            name = f"Set/train/patient{patient:05d}/study1/view{view + 1}_frontal.jpg"
            cells = [name, ("Male", "Female")[patient % 2], "61", "Frontal", "AP", *[""] * len(chexpert.FINDINGS)]
            lines.append(",".join(cells))
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def ingest(table: Path, out: Path, *options: str) -> int:
    return main(["ingest", "--dataset", "chexpert", "--table", str(table), "--no-files", "--out", str(out), *options])


def assign(index: Path, out: Path, *options: str) -> int:
    return main(["assign-splits", "--index", str(index), "--out", str(out), *options])


def test_a_table_alone_becomes_an_index_and_exact_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "train.csv.gz", 60)
    index, out, summary = tmp_path / "index.parquet", tmp_path / "splits.parquet", tmp_path / "summary.json"
    assert ingest(table, index) == 0
    assert "120 images, 60 patients, 60 cases in index.parquet" in capsys.readouterr().out
    sizes = ("--train", "70", "--validation", "20", "--test", "30")
    assert assign(index, out, *sizes, "--summary", str(summary)) == 0
    assert "patients in two splits: 0" in capsys.readouterr().out
    splits = schema.read(out, schema.SPLIT_TABLE)
    assert splits.column_names == ["patient_id", "split", "label_ranks"]
    assert json.loads(summary.read_text())["images"]["train"] == 70
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.parquet", "splits.parquet", "summary.json", "train.csv.gz"
    ]  # fmt: skip


def test_extending_keeps_the_shares_of_the_earlier_splits_and_refuses_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    ingest(write_table(tmp_path / "a.csv.gz", 30), old)
    ingest(write_table(tmp_path / "b.csv.gz", 60), new)
    assign(old, before, "--train", "0.5", "--validation", "0.25", "--test", "0.25")
    capsys.readouterr()
    assert assign(new, after, "--extend", str(before)) == 0
    printed = capsys.readouterr().out
    assert "kept from the previous splits: 30" in printed
    first, second = (schema.read(path, schema.SPLIT_TABLE).to_pylist() for path in (before, after))
    places = {row["patient_id"]: row for row in second}
    assert all(places[row["patient_id"]] == row for row in first)
    assert "60 " in printed.split("train")[1].split("\n")[0]
    monkeypatch.setenv("MEDSSL_PATIENT_KEY", "1f" * 32)
    ingest(tmp_path / "b.csv.gz", new)
    assert assign(new, after, "--extend", str(before), "--mode", "paper") == BAD_INPUT
    assert "no patient can be recognised" in capsys.readouterr().err


def test_files_beside_a_table_of_cases_are_compared_and_their_patients_kept_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(20)]
    rows = ["file,who,what"]
    for number in range(20):
        pictures[number // 2 if number < 8 else number].save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,P{number},{'Acne' if number % 2 else 'Eczema'}")
    (tmp_path / "photos.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out" / "cases.parquet"
    columns = "image=file,patient=who,condition=what"
    arguments = ["ingest", "--dataset", "cases", "--table", str(tmp_path / "photos.csv"), "--columns", columns]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "pictures under two patients: 4 pairs" in capsys.readouterr().out
    assert (out.with_name("cases.sources.parquet").stat().st_mode & 0o777) == 0o600
    assert assign(out, tmp_path / "splits.parquet", "--train", "10", "--validation", "4", "--test", "6") == 0
    assert "patients who share a picture, kept together: 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest"], "give a study file, or --out"),
        (["ingest", "--out", "x.parquet"], "give --dataset, and --table or --root"),
        (["assign-splits", "--out", "x.parquet"], "give --index"),
        (
            ["ingest", "--dataset", "cases", "--table", "t.csv", "--columns", "image", "--out", "x"],
            "expected NAME=VALUE",
        ),
    ],
)
def test_what_is_missing_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not SHARED_DATA_DIR.is_dir(), reason="needs the folder shared beside the repository")
def test_sets_without_patients_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = SHARED_DATA_DIR.resolve() / "tables" / "ham10000_metadata_dev.csv"
    out = str(tmp_path / "index.parquet")
    assert main(["ingest", "--dataset", "ham10000", "--table", str(table), "--no-files", "--out", out]) == 0
    assert "9,221 images, 6,937 lesions, 6,937 cases" in capsys.readouterr().out
    assert schema.metadata_of(schema.read(Path(out), schema.INDEX))["group_kind"] == "lesion"
