"""No name of a patient, study or file leaves the private store, whatever a run writes and whether or not it ends well.

A set in CheXpert's layout whose every name holds a canary goes through the whole pipeline under a private key; then
all that the run left is searched byte by byte, with Parquet and SQLite also read as tables.
"""

import json
import os
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medssl import layout, schema
from medssl.__main__ import main
from medssl.config import ShardConfig
from medssl.data import chexpert, shards

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 1200
PATIENT, CASE, VIEW = "9021037755", "study471147", "view808680"  # each patient's number adds three digits
OWNER = "ward-of-ottilie-quimby"  # in the path of data.root
KEY = "canary-key-of-the-hospital-6d1f9c"
NAMES = re.compile("|".join((PATIENT, CASE, VIEW)).encode())
# Where the path of data.root may stand: what the child process is given, and KFP's own record of its parameters.
WITH_ROOT = {"study.json", "run.log"}
STUDY = """
name: canary
data: {name: canary, key: private, valid_table: null}
splits: {train: 0.5, validation: 0.25, test: 0.25}
shards: {image_size_px: 32, channels: 1, num_parts: 2, max_undecodable_share: 0.2}
encoders:
  small: {depth: 18, width: 0.125}
pretraining:
  - {name: simclr, method: simclr, encoder: small, num_steps: 2, batch_size: 8, image_size_px: 32}
arms:
  - {name: simclr, encoder: small, init: simclr, method: SimCLR}
finetune: {num_steps: 2, batch_size: 8, learning_rates: [0.1], label_fractions: [1.0], repeats: 1, image_size_px: 32}
compare: {num_replicates: 100}
subgroups: {min_patients: 3, num_replicates: 100}
report: {title: Canary}
"""


@dataclass(frozen=True)
class Done:
    """An ended run: its exit code, and every place that it could write to."""

    code: int
    said: bytes
    out: Path
    places: tuple[Path, ...]


def write_set(root: Path) -> None:
    """32 patients of two images: one image is damaged, one missing, and one stands under two patients."""
    draw = random.Random(0)
    rng = np.random.default_rng(0)
    lines = [",".join(chexpert.COLUMNS)]
    files = []
    for patient in range(32):
        for view in range(2):
            name = f"train/patient{PATIENT}{patient:03d}/{CASE}{patient}/{VIEW}{view}_frontal.png"
            files.append(root / name)
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(files[-1])
            labels = [draw.choice(("1.0", "0.0", "")) for _ in chexpert.FINDINGS]
            age = str(draw.randrange(20, 90))
            lines.append(",".join((f"set/{name}", draw.choice(("Female", "Male")), age, "Frontal", "AP", *labels)))
    files[20].write_bytes(files[20].read_bytes()[:200])
    files[30].unlink()
    shutil.copyfile(files[0], files[-1])
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def run(folder: Path, root: Path, *overrides: str) -> Done:
    places = tuple(folder / name for name in ("out", "tmp", "home"))
    for place in places[1:]:
        place.mkdir(exist_ok=True)
    study = folder / "canary.yaml"
    study.write_text(STUDY)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSSL_", "MLFLOW_"))}
    environment = clean | {
        "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}",
        "MEDSSL_PATIENT_KEY": KEY,
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
    }
    settings = [
        part for setting in (f"data.root={root}", "data.generate=null", *overrides) for part in ("--set", setting)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", str(study), "--out", str(folder / "out"), *settings],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    return Done(done.returncode, done.stdout + done.stderr, folder / "out", places)


@pytest.fixture(scope="module")
def canary_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / OWNER
    write_set(root)
    return root


def text_of(path: Path) -> bytes:
    """A file's bytes, with the cells of a Parquet file and the rows of an SQLite database after them."""
    content = path.read_bytes()
    if content.startswith(b"PAR1"):
        table = pq.read_table(path)
        content += repr((table.schema.metadata, table.to_pydict())).encode()
    if content.startswith(b"SQLite format 3"):
        connection = sqlite3.connect(path)
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        rows = [connection.execute(f'select * from "{name}"').fetchall() for name in tables]
        connection.close()
        content += repr(rows).encode()
    return content


def leaks(done: Done) -> list[str]:
    """Files outside the private store that hold what only it may hold, or the root where it may not stand."""
    found = []
    for place in done.places:
        for path in place.rglob("*"):
            name = str(path.relative_to(place))
            if NAMES.search(name.encode()) or OWNER in name:
                found.append(f"{name}: the name itself")
            if not path.is_file() or path.is_symlink():
                continue
            content = text_of(path)
            if not name.startswith("store/private/") and (hit := NAMES.search(content)):
                found.append(f"{name}: {hit[0]!r}")
            if KEY.encode() in content:
                found.append(f"{name}: the key")
            if OWNER.encode() in content and name not in WITH_ROOT:
                found.append(f"{name}: the root")
    if hit := NAMES.search(done.said) or re.search(f"{KEY}|{OWNER}".encode(), done.said):
        found.append(f"printed: {hit[0]!r}")
    return found


@pytest.fixture(scope="module")
def failed(canary_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run that stops at the shards, because no image may be damaged."""
    folder = tmp_path_factory.mktemp("runs")
    done = run(folder, canary_set, "shards.max_undecodable_share=0")
    found = leaks(done)  # before the next run changes what this one left
    assert found == []
    return done


@pytest.fixture(scope="module")
def finished(failed: Done, canary_set: Path) -> Done:
    """The same study in the same folder, allowed to end."""
    return run(failed.out.parent, canary_set)


def test_a_run_that_stops_at_damaged_images_names_none_of_them(failed: Done) -> None:
    assert failed.code == 78
    assert b"cannot be used" in failed.said


def test_a_whole_run_leaves_no_name_and_no_key_outside_the_private_store(finished: Done) -> None:
    assert finished.code == 0, finished.said[-3000:]
    assert leaks(finished) == []
    reasons = json.loads((finished.out / "shards" / layout.SHARDS).read_text())["undecodable_by_reason"]
    assert sum(reasons.values()) == 2
    assert "missing file" in reasons
    pairs = schema.read((finished.out / layout.INDEX).resolve().with_name(layout.DUPLICATES), schema.DUPLICATES)
    assert False in pairs["is_same_patient"].to_pylist()


def test_nothing_is_wrong_with_a_finished_run(finished: Done, capsys: pytest.CaptureFixture[str]) -> None:
    """`medssl verify` agrees with what the pipeline itself wrote, `run.json` included."""
    assert main(["verify", str(finished.out)]) == 0
    said = capsys.readouterr().out
    assert "ok: 15 artifacts, " in said
    assert "note" not in said
    assert not NAMES.search(said.encode())


def test_the_private_store_holds_the_names_for_its_owner_alone(finished: Done) -> None:
    folders = [path for path in (finished.out / "store" / "private").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folders[0].iterdir())
    assert NAMES.search(text_of(folders[0] / layout.SOURCES))


def test_a_search_that_finds_nothing_would_have_found_a_planted_name(tmp_path: Path) -> None:
    schema.write(
        schema.SOURCES.columns.empty_table().from_pydict({"image_id": ["0" * 32], "file": [f"{CASE}/x.png"]}),
        schema.SOURCES,
        tmp_path / "table.parquet",
    )
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table params (value text)")
        connection.execute("insert into params values (?)", ("x" * 4080 + KEY,))
    (tmp_path / "state.json").write_text(f'"/data/{OWNER}/set"')
    done = Done(0, f"reading patient{PATIENT}001".encode(), tmp_path, (tmp_path,))
    assert [leak.partition(":")[0] for leak in sorted(leaks(done))] == [
        "mlflow.db",
        "printed",
        "state.json",
        "table.parquet",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",Frontal,AP,", ",Frontal,Quimby,"),
        ("_frontal.png", "_frontal.dcm"),
        (f"{CASE}0/{VIEW}1", f"{CASE}0/{VIEW}0"),
        ("train/patient", "train/somebody"),
    ],
)
def test_a_table_that_is_refused_is_not_quoted(canary_set: Path, tmp_path: Path, old: str, new: str) -> None:
    root = tmp_path / OWNER
    root.mkdir()
    table = (canary_set / "train.csv").read_text()
    (root / "train.csv").write_text(table.replace(old, new, 1))
    assert table.count(old)
    (root / "train").symlink_to(canary_set / "train")
    done = run(tmp_path, root)
    assert done.code == 78
    assert b"train.csv" in done.said
    assert leaks(done) == []
    assert b"Quimby" not in done.said


def test_the_counters_of_the_beam_pipeline_hold_no_identifier(
    canary_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import apache_beam

    monkeypatch.setenv("MEDSSL_PATIENT_KEY", KEY)
    index_path = tmp_path / "index.parquet"
    arguments = ["ingest", "--dataset", "chexpert", "--table", str(canary_set / "train.csv")]
    assert main([*arguments, "--out", str(index_path)]) == 0
    results = []
    start = apache_beam.Pipeline.run
    monkeypatch.setattr(
        apache_beam.Pipeline, "run", lambda self, *a, **k: results.append(start(self, *a, **k)) or results[-1]
    )
    config = ShardConfig(image_size_px=32, num_parts=2, max_undecodable_share=0.2)
    shards.write(index_path, tmp_path / "index.sources.parquet", canary_set, tmp_path / "shards", config)
    (result,) = results
    told = repr((result.metrics().query(), list(result.monitoring_infos()))) + "".join(capsys.readouterr())
    assert "Write parts" in told
    assert not NAMES.search(told.encode())
    assert OWNER not in told
    ids = schema.read(index_path, schema.INDEX)["patient_id"].to_pylist()
    assert not any(patient_id in told for patient_id in ids)


def test_cases_from_table_to_table_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSSL_PATIENT_KEY", KEY)
    root = tmp_path / OWNER
    root.mkdir()
    lines = ["image,patient,case,condition"]
    for number in range(12):
        Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(root / f"{VIEW}{number}.png")
        lines.append(f"{VIEW}{number}.png,{PATIENT}{number // 2:03d},{CASE}{number},Acne")
    table = root / "cases.csv"
    out = tmp_path / "out"
    arguments = ["ingest", "--dataset", "cases", "--table", str(table), "--out", str(out / "index.parquet")]
    for rows, code in ((lines, 0), ([*lines, lines[-1]], 78), ([*lines, f"../{VIEW}0.png,{PATIENT},{CASE},Acne"], 78)):
        table.write_text("\n".join(rows) + "\n")
        assert main([*arguments, "--summary", str(out / "summary.json")]) == code
        said = "".join(capsys.readouterr())
        assert not re.search(f"{NAMES.pattern.decode()}|{OWNER}|{KEY}", said)
    for path in out.iterdir():
        if path.name == f"index.{layout.SOURCES}":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert NAMES.search(text_of(path))
        else:
            assert not NAMES.search(text_of(path)), path.name
            assert OWNER.encode() not in text_of(path), path.name
