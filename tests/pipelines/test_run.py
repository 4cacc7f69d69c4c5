"""The tiny study through the real pipeline: killed and resumed, repeated, and with changed data and code."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from medssl import schema
from medssl.config import load_study
from medssl.data import phantom
from medssl.store import MANIFEST
from pipelines.plan import make_plan

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 900


@dataclass(frozen=True)
class Copy:
    """A copy of the project, whose sources a test may edit, and the folder of its results."""

    project: Path
    out: Path

    def command(self, *arguments: str) -> list[str]:
        study = str(self.project / "pipelines" / "studies" / "tiny.yaml")
        return [sys.executable, "-m", "pipelines", "run", study, "--out", str(self.out), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSSL_", "MLFLOW_"))}
        return {**clean, "PYTHONPATH": f"{self.project / 'src'}{os.pathsep}{self.project}"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def finished(self, *arguments: str) -> str:
        """Run to the end; returns what it printed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def tasks(self) -> dict[str, bool]:
        """By task of the last run: whether its result was reused."""
        record = json.loads((self.out / "run.json").read_text())
        return {task["task"]: task["is_cached"] for task in record["tasks"]}


def new_copy(folder: Path) -> Copy:
    project = folder / "project"
    for name in ("src", "components", "pipelines"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return Copy(project, folder / "out")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A run that was killed while it trained and then started again."""
    copy = new_copy(tmp_path_factory.mktemp("study"))
    with subprocess.Popen(
        copy.command(), env=copy.environment, cwd=copy.project, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "pretrain simclr:" in line:
                break
        process.send_signal(signal.SIGKILL)
    printed = copy.finished()
    for stage in ("ingest", "assign_splits", "write_shards"):
        assert f"{stage}: unchanged, reused" in printed
    assert "fingerprint: unchanged" not in printed
    assert (copy.out / "run.log").read_text().count("=== run began 20") == 2
    assert re.search(r"write_shards: \d+ of 149 images set aside \(.*\d truncated", (copy.out / "run.log").read_text())
    assert re.search(r"^\[\d+/19\] search_hyperparameters random$", printed, flags=re.MULTILINE)
    return copy


def test_a_finished_run_leaves_every_result_with_its_digest(study: Copy) -> None:
    record = json.loads((study.out / "run.json").read_text())
    for artifact in record["artifacts"].values():
        path = study.out / artifact["path"] if "path" in artifact else Path(artifact["uri"]) / MANIFEST
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]
    assert {"checkpoint: pretrain micle", "models: finetune random", "selection: select"} < set(record["artifacts"])
    assert {"index.parquet", "splits.parquet", "shards", "predictions.parquet", "metrics.parquet"} < set(
        record["artifacts"]
    )
    assert (study.out / "report" / "index.html").is_file()
    assert (study.out / "mlflow.db").is_file()
    planned = make_plan(load_study(PROJECT / "pipelines" / "studies" / "tiny.yaml")).tasks
    assert sorted(task["task"] for task in record["tasks"]) == sorted(planned)
    assert len(planned) == 19
    assert all(task["code_version"] and task["seconds"] >= 0 for task in record["tasks"])


def test_predictions_cover_every_test_image_of_every_model_and_no_patient_is_in_two_splits(study: Copy) -> None:
    predictions = schema.read(study.out / "predictions.parquet", schema.PREDICTIONS)
    splits = schema.read(study.out / "splits.parquet", schema.SPLIT_TABLE)
    split_of = dict(zip(splits["patient_id"].to_pylist(), splits["split"].to_pylist(), strict=True))
    rows = predictions.select(["split", "patient_id", "arm_id", "label_fraction", "unit_id"]).to_pylist()
    assert all(split_of[row["patient_id"]] == row["split"] for row in rows)
    images: dict[tuple[str, float], set[str]] = {(r["arm_id"], r["label_fraction"]): set() for r in rows}
    for row in rows:
        images[row["arm_id"], row["label_fraction"]].add(row["unit_id"])
    assert len(images) == 4
    assert len({frozenset(found) for found in images.values()}) == 1


def test_mlflow_has_one_parent_and_one_finished_run_a_task(study: Copy) -> None:
    record = json.loads((study.out / "run.json").read_text())
    client = MlflowClient(record["mlflow_tracking_uri"])
    parent = client.get_run(record["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=100
    )
    assert {run.info.status for run in children} == {"FINISHED"}
    assert len(children) == 19
    predict = next(run for run in children if run.info.run_name == "predict micle")
    assert {found.dataset.name for found in predict.inputs.dataset_inputs} >= {"index", "splits", "shards", "models"}
    assert any("report" in str(path.path) for path in client.list_artifacts(parent.info.run_id))


def test_an_unchanged_study_is_taken_from_cache_and_still_shows_its_tree(study: Copy) -> None:
    study.finished()
    tasks = study.tasks()
    assert [task for task, is_cached in tasks.items() if not is_cached] == ["fingerprint"]
    record = json.loads((study.out / "run.json").read_text())
    client = MlflowClient(record["mlflow_tracking_uri"])
    parent = client.get_run(record["mlflow_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=100
    )
    assert len(children) == len(tasks)


def test_edited_report_code_runs_write_report_alone(study: Copy) -> None:
    with (study.project / "src" / "medssl" / "analysis" / "report.py").open("a") as file:
        file.write("\n# edited\n")
    study.finished()
    assert {task for task, is_cached in study.tasks().items() if not is_cached} == {"fingerprint", "write_report"}


def test_a_changed_setting_runs_what_depends_on_it(study: Copy) -> None:
    study.finished("--set", "subgroups.min_patients=4")
    executed = {task for task, is_cached in study.tasks().items() if not is_cached}
    assert executed == {"fingerprint", "analyze_subgroups", "write_report"}


def test_an_external_set_is_evaluated_by_the_finished_models(study: Copy, tmp_path: Path) -> None:
    phantom.generate(tmp_path / "set", phantom.PhantomConfig(patients=20, seed=5, image_size_px=32))
    external = f"[{{name: elsewhere, root: {tmp_path / 'set'}, key: public}}]"
    printed = study.finished("--set", f"external={external}")
    executed = {task for task, is_cached in study.tasks().items() if not is_cached}
    assert executed == {
        "fingerprint", "fingerprint elsewhere", "ingest elsewhere", "write_shards elsewhere",
        "prepare_dataset elsewhere", "collect datasets", "predict micle", "predict random", "compare",
        "analyze_subgroups", "write_report",
    }  # fmt: skip
    assert "external (elsewhere)" in printed
    rows = schema.read(study.out / "metrics.parquet", schema.METRICS).to_pylist()
    assert {(row["dataset"], row["split"]) for row in rows} >= {("tiny", "test"), ("elsewhere", "external")}


def test_pretraining_on_natural_images_comes_first_and_absent_weights_are_not_replaced_by_random_ones(
    study: Copy, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "set" / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(folder / f"{number}.png")
    common = "method: simclr, encoder: resnet18-eighth, num_steps: 2, batch_size: 16, image_size_px: 32"
    settings = {
        "pretraining_data": f"[{{name: natural, dataset: images, root: {tmp_path / 'set'}, key: public}}]",
        "weights": "[{name: bought, encoder: resnet18-eighth}]",
        "pretraining": f"[{{name: natural-simclr, dataset: natural, {common}}}, "
        f"{{name: both, init: natural-simclr, {common}}}]",
        "arms": "[{name: both, encoder: resnet18-eighth, init: both, method: SimCLR Natural->Phantom}, "
        "{name: imported, encoder: resnet18-eighth, init: bought, method: Supervised}]",
        "compare.pairs": "[[both, imported]]",
    }
    printed = study.finished(*(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))
    assert "not run: imported, which needs bought: no checkpoint is given" in printed
    tasks = list(study.tasks())
    order = ("prepare_dataset natural", "pretrain natural-simclr", "pretrain both", "finetune both")
    assert [task for task in tasks if task in order] == list(order)
    assert not any("imported" in task for task in tasks)
    page = (study.out / "report" / "index.html").read_text()
    assert "Arms that were not run" in page
    record = json.loads((study.out / "run.json").read_text())
    by_task = {task["task"]: task for task in record["tasks"]}
    assert by_task["pretrain natural-simclr"]["inputs"].keys() >= {"index", "shards", "data set natural"}
    assert "splits" not in by_task["pretrain natural-simclr"]["inputs"]
    first = by_task["pretrain natural-simclr"]["output"]["digest"]
    assert by_task["pretrain both"]["inputs"]["initial"]["digest"] == first


def test_one_replaced_image_runs_everything_that_looks_at_images(study: Copy) -> None:
    before = json.loads((study.out / "run.json").read_text())["artifacts"]
    images = sorted(study.out.glob("generated/*/*/train/*/*/*.jpg"), key=lambda path: path.stat().st_size)
    with Image.open(images[-1]) as image:  # still a picture like no other: a shared one would change the splits
        turned = image.transpose(Image.Transpose.ROTATE_180)
    turned.save(images[-1], quality=95)
    study.finished()
    after = json.loads((study.out / "run.json").read_text())["artifacts"]
    assert after["shards"]["sha256"] != before["shards"]["sha256"]
    assert after["index.parquet"] == before["index.parquet"]
    executed = {task for task, is_cached in study.tasks().items() if not is_cached}
    assert "assign_splits" not in executed
    assert {"ingest", "write_shards", "pretrain simclr", "finetune random", "predict micle", "compare"} <= executed


def test_no_raw_patient_identifier_or_path_leaves_the_private_store(study: Copy) -> None:
    for path in study.out.rglob("*"):
        inside = path.relative_to(study.out).parts
        if path.is_file() and inside[0] != "generated" and inside[:2] != ("store", "private"):
            assert b"patient00" not in path.read_bytes(), path.name
            if path.suffix == ".parquet":
                assert "patient00" not in str(pq.read_table(path).to_pydict()), path.name


def test_a_damaged_result_is_noticed_and_made_again(study: Copy) -> None:
    predictions = (study.out / "predictions.parquet").resolve()
    predictions.write_bytes(predictions.read_bytes()[:-1])
    noticed = study.run()
    assert noticed.returncode == 78
    assert "remove its folder from the store and run again: compare will make it anew" in noticed.stderr
    shutil.rmtree(predictions.parent)
    study.finished()
    assert {task for task, is_cached in study.tasks().items() if not is_cached} == {"fingerprint", "compare"}


def test_too_many_corrupt_images_stop_the_run_with_one_message(tmp_path: Path) -> None:
    copy = Copy(PROJECT, tmp_path / "out")
    done = copy.run("--set", "shards.max_undecodable_share=0")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "max_undecodable_share" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
)
HEADER += (
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
ROW = "set/train/patient00007/study1/view1_frontal.jpg,Male,60,Frontal,AP,,,,,,1.0,,,,,,,,"
OTHER = ROW.replace("study1", "study2")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "folder"),
        ([HEADER.replace("Edema", "Edemma"), ROW], "Edemma"),
        ([HEADER, OTHER, ROW.replace("1.0", "2.0")], "row 3"),
        ([HEADER, OTHER, ROW.replace("patient00007", "somebody")], "row 3"),
        ([HEADER, ROW, OTHER, ROW], "row 4"),
    ],
)
def test_a_bad_table_stops_before_any_work_with_one_line(tmp_path: Path, table: list[str] | None, message: str) -> None:
    root = tmp_path / "set"
    if table is not None:
        for name in ("study1", "study2"):
            image = root / "train" / "patient00007" / name / "view1_frontal.jpg"
            image.parent.mkdir(parents=True)
            image.write_bytes(b"")
        (root / "train.csv").write_text("\n".join(table) + "\n")
    copy = Copy(PROJECT, tmp_path / "out")
    done = copy.run("--set", f"data.root={root}", "--set", "data.generate=null", "--set", "data.valid_table=null")
    assert done.returncode == 78
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "patient00007" not in done.stderr
    assert str(root) not in done.stderr
    assert not (copy.out / "run.log").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.num_stepss=3", "unknown key"),
        ("splits={train: 100000, validation: 10, test: 10}", "split"),
        ("task.findings=[Edemaa]", "no label for Edemaa"),
        ("pretraining.1.batch_size=500", "batch_size is 500"),
        ("finetune.label_fractions=[0.000001, 1.0]", "leaves none"),
    ],
)
def test_a_study_that_cannot_work_stops_before_any_work(tmp_path: Path, setting: str, message: str) -> None:
    copy = Copy(PROJECT, tmp_path / "out")
    done = copy.run("--set", setting)
    assert done.returncode == 78
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (copy.out / "run.log").exists()


def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    generated = Copy(PROJECT, tmp_path / "file").run()
    own = Copy(PROJECT, tmp_path / "out").run("--set", f"data.root={tmp_path / 'file'}", "--set", "data.generate=null")
    assert (generated.returncode, own.returncode) == (78, 78)
    assert generated.stderr.startswith("error: --out is a file, expected a folder")
    assert own.stderr.startswith("error: data.root is a file, expected the folder")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy(PROJECT, tmp_path_factory.mktemp("uninterrupted") / "out")
    copy.finished()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["write_shards", "pretrain micle:", "search_hyperparameters micle", "predict"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_stopped_at_any_stage_ends_with_the_same_results(
    uninterrupted: Copy, tmp_path: Path, moment: str, how: signal.Signals
) -> None:
    copy = Copy(PROJECT, tmp_path / "out")
    with subprocess.Popen(
        copy.command(), env=copy.environment, cwd=copy.project, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if moment in line:
                process.send_signal(how)
                break
        process.stdout.read()
    assert process.returncode == (143 if how == signal.SIGTERM else -9)
    copy.finished()
    found, expected = (json.loads((c.out / "run.json").read_text())["artifacts"] for c in (copy, uninterrupted))
    assert {name: a["sha256"] for name, a in found.items()} == {name: a["sha256"] for name, a in expected.items()}
