"""Re-training: when it stops early, and the whole way from a first champion to grown data through the real pipeline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medssl import layout, schema
from medssl.config import load_study
from medssl.data import phantom
from medssl.exit_codes import BadInputError
from medssl.stages import data
from medssl.store import Store, write_json
from pipelines import retrain
from pipelines.__main__ import main
from pipelines.retrain import LastRun

PROJECT = Path(__file__).parents[2]
TINY = PROJECT / "pipelines" / "studies" / "tiny.yaml"
TIMEOUT_S = 1800


def finished_run(out: Path, root: Path, *, with_splits: bool = False) -> LastRun:
    """What a finished run of the tiny study on the data in `root` leaves, as far as re-training reads it."""
    study = load_study(TINY, overrides(root))
    store = Store(str(out / "store"))
    source = data.fingerprint(store, study.data, root=str(root), code_version="1")
    digests = {layout.INDEX: "i" * 64, layout.SPLITS: "s" * 64}
    if with_splits:
        key = data.load_key(study.data)
        index = data.ingest(
            store,
            study.data,
            root=str(root),
            data_digest=source.metadata["digest"],
            key_id=key.key_id,
            code_version="1",
        )
        splits = data.assign_splits(store, study.splits, index_uri=index.uri, code_version="1")
        digests = {layout.INDEX: index.metadata["digest"], layout.SPLITS: splits.metadata["digest"]}
    output = {"kind": "source", "digest": source.metadata["digest"]}
    artifacts = {name: {"artifact_digest": digest} for name, digest in digests.items()}
    write_json(out / "run.json", {"tasks": [{"task": "fingerprint", "output": output}], "artifacts": artifacts})
    last = LastRun.read(out)
    assert last is not None
    return last


def overrides(root: Path) -> list[str]:
    return ["data.generate=null", f"data.root={root}", "data.find_duplicates=false"]


def generated(folder: Path, patients: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    phantom.generate(folder, phantom.PhantomConfig(patients=patients, seed=0, image_size_px=32))
    return folder


def test_unchanged_data_stops_early_and_green(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = generated(tmp_path / "set", 20)
    finished_run(tmp_path / "out", root)
    settings = [argument for one in overrides(root) for argument in ("--set", one)]
    assert main(["retrain", str(TINY), "--out", str(tmp_path / "out"), *settings]) == 0
    assert capsys.readouterr().out.endswith("the data of tiny are those of the last run; nothing to do\n")
    assert not (tmp_path / "out" / "pipeline.yaml").exists()


def test_a_changed_label_and_a_new_data_set_are_seen(tmp_path: Path) -> None:
    root = generated(tmp_path / "set", 20)
    last = finished_run(tmp_path / "out", root)
    store, study = Store(str(tmp_path / "out" / "store")), load_study(TINY, overrides(root))
    assert list(retrain._changed(study, tmp_path / "out", store, last)) == []
    other = generated(tmp_path / "other", 20)
    external = f"external=[{{name: elsewhere, root: {other}, key: public}}]"
    with_external = load_study(TINY, [*overrides(root), external])
    assert list(retrain._changed(with_external, tmp_path / "out", store, last)) == ["elsewhere"]
    table = root / "train.csv"
    table.write_text(table.read_text().replace("Female", "Male", 1))
    assert list(retrain._changed(study, tmp_path / "out", store, last)) == ["tiny"]


def test_the_splits_of_the_last_run_are_extended_and_exact_numbers_become_shares(tmp_path: Path) -> None:
    root = generated(tmp_path / "set", 20)
    last = finished_run(tmp_path / "out", root, with_splits=True)
    store, study = Store(str(tmp_path / "out" / "store")), load_study(TINY, overrides(root))
    assert retrain._extending(study, store, last) == [f"splits.extend={last.splits}"]
    exact = load_study(TINY, [*overrides(root), "splits={train: 30, validation: 15, test: 15}"])
    settings = retrain._extending(exact, store, last)
    extended = load_study(TINY, [*overrides(root), "splits={train: 30, validation: 15, test: 15}", *settings]).splits
    assert not extended.exact
    assert extended.extend == last.splits
    assert sum(extended.sizes.values()) == pytest.approx(1)
    assert extended.train == pytest.approx(0.5, abs=0.1)


def test_a_record_that_is_none_is_told(tmp_path: Path) -> None:
    assert LastRun.read(tmp_path) is None
    (tmp_path / "run.json").write_text('{"tasks": []}')
    with pytest.raises(BadInputError, match=r"run\.json in --out is not that of a finished run"):
        LastRun.read(tmp_path)


def pipelines(command: str, out: Path, root: Path) -> str:
    """Run a command of the pipeline on the data in `root`; returns what it printed."""
    settings = [*overrides(root), "promote={enabled: true, arm: micle, auto_first: true}"]
    arguments = [argument for one in settings for argument in ("--set", one)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSSL_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", command, str(TINY), "--out", str(out), *arguments],
        env={**clean, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def patients_of(out: Path) -> dict[str, str]:
    table = schema.read(out / "splits.parquet", schema.SPLIT_TABLE)
    return dict(zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.slow
def test_a_champion_meets_a_candidate_on_grown_data_and_on_the_first_test_cohort(tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    generated(root, 40)
    assert "version 1 of tiny is champion now" in pipelines("retrain", out, root)
    first = patients_of(out)
    assert "nothing to do" in pipelines("retrain", out, root)
    generated(root, 60)
    printed = pipelines("retrain", out, root)
    assert "retrain: changed since the last run: tiny" in printed
    assert "rescore champion on first test cohort" in printed
    second = patients_of(out)
    assert len(second) > len(first)
    assert {patient: second[patient] for patient in first} == first
    decisions = [json.loads(path.read_text()) for path in (out / "store" / "promotion").glob("*/decision.json")]
    (contested,) = [one for one in decisions if one["champion"]]
    assert {check["cohort"] for check in contested["checks"]} == {"test", "first test cohort"}
    # What the champion needs stays when all else goes.
    (out / "run.json").unlink()
    store = Store(str(out / "store"))
    command = [sys.executable, "-m", "medssl", "gc", "--store", store.root, "--min-age-hours", "-1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    )
    assert done.returncode == 0, done.stderr
    assert not list((out / "store" / "report").iterdir())
    store.open(store.uri("models", contested["champion"]["models"]))
    for kind in ("index", "splits", "shards"):
        store.open(store.uri(kind, contested["first_test_cohort"][kind]))
