"""Fine-tuning and prediction of cases of several images, in this process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from medssl import layout, schema
from medssl.config import EncoderConfig, FinetuneConfig, PredictConfig, ShardConfig, TaskConfig
from medssl.data import shards
from medssl.model.networks import Classifier, build_encoder
from medssl.shardset import ShardSet
from medssl.train.checkpoint import load_weights
from medssl.train.distributed import Ranks
from medssl.train.finetune import finetune
from medssl.train.jobs import FinetuneItem, FinetuneJob, Inputs, PredictItem, PredictJob
from medssl.train.predict import predict
from medssl.train.scoring import fusion

ALONE = Ranks(0, 1, torch.device("cpu"))
ENCODER = EncoderConfig(depth=18, width=0.125)
TASK = TaskConfig(kind="conditions", conditions=("Acne", "Eczema"), min_train_cases=2, max_images_per_case=2)
ITEM = FinetuneItem(label_fraction=1.0, draw=0, repeat=0, learning_rate=0.1, weight_decay=0.0)
SIZE = 16
CONDITIONS = ("Acne", "Eczema", "Wart")  # a bright left half, a bright right half, a bright middle
NUM_PATIENTS = 24


@dataclass(frozen=True)
class Prepared:
    inputs: Inputs
    folder: Path
    index: pa.Table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """24 patients with a case each, of one to three images; the last was not assessed."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for patient in range(NUM_PATIENTS):
        condition = patient % 3
        for _ in range(1 + patient % 4 % 3):
            pixels = rng.integers(60, 120, (SIZE, SIZE), dtype=np.uint8)
            bright = (slice(0, 8), slice(8, 16), slice(5, 11))[condition]
            pixels[:, bright] += np.uint8(100)
            number = len(rows)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            labels = {f"label:{name}": int(k == condition) for k, name in enumerate(CONDITIONS)}
            if patient == NUM_PATIENTS - 1:
                labels = dict.fromkeys(labels, schema.NOT_ASSESSED)
            names = {"patient_id": f"{patient:032x}", "case_id": f"{patient + 500:032x}"}
            names |= {"image_id": f"{number + 100:032x}", "source_split": "train", "skin_type": str(1 + patient % 6)}
            rows.append(names | labels)
    empty = dict.fromkeys(("view_position", "sex", "age_years", "site"))
    columns = [*schema.INDEX.columns, *(pa.field(f"label:{name}", pa.int8()) for name in CONDITIONS)]
    index = pa.Table.from_pylist([row | empty for row in rows], schema=pa.schema(columns))
    schema.write(index, schema.INDEX, folder / "index.parquet", metadata={"group_kind": "lesion"})
    sources = pa.table({"image_id": index["image_id"], "file": [f"{n}.png" for n in range(len(rows))]})
    schema.write(sources, schema.SOURCES, folder / "sources.parquet")
    splits = pa.table(
        {
            "patient_id": [f"{patient:032x}" for patient in range(NUM_PATIENTS)],
            "split": ["train"] * 12 + ["validation"] * 6 + ["test"] * 6,
            "label_ranks": [[patient / 12 % 1] for patient in range(NUM_PATIENTS)],
        }
    )
    schema.write(splits, schema.SPLIT_TABLE, folder / "splits.parquet")
    (folder / "shards").mkdir()
    config = ShardConfig(image_size_px=SIZE, num_parts=1)
    shards.write(folder / "index.parquet", folder / "sources.parquet", folder, folder / "shards", config)
    inputs = Inputs(
        index_path=folder / "index.parquet", splits_path=folder / "splits.parquet", shards_dir=folder / "shards"
    )
    return Prepared(inputs, folder, index)


def finetuned(data: Prepared, name: str, task: TaskConfig) -> FinetuneJob:
    for part in ("work", "out", "predict-work", "predicted"):
        (data.folder / f"{name}-{part}").mkdir()
    settings: dict[str, Any] = {"num_steps": 40, "batch_size": 6, "learning_rates": [0.1], "label_fractions": [1.0]}
    settings |= {"image_size_px": SIZE, "evaluate_every_steps": 10, "crop_area_min": 1, "rotation_deg": 0}
    job = FinetuneJob(
        inputs=data.inputs,
        arm="x",
        items=(ITEM,),
        settings=FinetuneConfig.model_validate(settings | {"flip_probability": 0}),
        task=task,
        encoder=ENCODER,
        channels=1,
        initial_dir=None,
        work_dir=data.folder / f"{name}-work",
        out_dir=data.folder / f"{name}-out",
    )
    finetune(job, ALONE)
    return job


@pytest.fixture(scope="module")
def trained(data: Prepared) -> FinetuneJob:
    return finetuned(data, "mean", TASK)


def predictions(data: Prepared, name: str, trained: FinetuneJob) -> pa.Table:
    model = PredictItem(
        arm_id="x",
        label_fraction=1.0,
        draw=0,
        repeat=0,
        is_selected=True,
        checkpoint_digest="d",
        weights_path=trained.out_dir / ITEM.name / layout.MODEL,
    )
    job = PredictJob(
        inputs=data.inputs,
        study_id="s",
        dataset="d",
        dataset_digest="d",
        items=(model,),
        settings=PredictConfig(batch_size=2),
        task=trained.task,
        encoder=ENCODER,
        channels=1,
        image_size_px=SIZE,
        work_dir=data.folder / f"{name}-predict-work",
        out_dir=data.folder / f"{name}-predicted",
    )
    predict(job, ALONE)
    return schema.read(job.out_dir / layout.PREDICTIONS, schema.PREDICTIONS)


def test_cases_are_learnt_and_selected_by_their_top_1_accuracy(trained: FinetuneJob) -> None:
    rows = schema.read(trained.out_dir / ITEM.name / layout.HISTORY, schema.HISTORY).to_pylist()
    scores = [row["value"] for row in rows if row["metric"] == "validation_top_1_accuracy"]
    assert max(scores) == 1.0
    outcome = (trained.out_dir / ITEM.name / layout.OUTCOME).read_text()
    assert '"num_train_patients": 12' in outcome


def test_predictions_have_a_distribution_over_conditions_for_each_case(data: Prepared, trained: FinetuneJob) -> None:
    table = predictions(data, "mean", trained)
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_case.setdefault(row["unit_id"], []).append(row)
    assert len(by_case) == 12
    case_of = dict(zip(data.index["case_id"].to_pylist(), data.index.to_pylist(), strict=True))
    for case_id, rows in by_case.items():
        assert {row["unit_kind"] for row in rows} == {"case"}
        assert {row["group_kind"] for row in rows} == {"lesion"}
        assert {row["skin_type"] for row in rows} == {case_of[case_id]["skin_type"]}
        assert sorted(row["class"] for row in rows) == ["Acne", "Eczema", "Other"]
        assert sum(row["y_score"] for row in rows) == pytest.approx(1, abs=1e-12)
        truth = {row["class"]: row["y_true"] for row in rows}
        own = [name for name in CONDITIONS if case_of[case_id][f"label:{name}"] == schema.POSITIVE]
        if not own:
            assert set(truth.values()) == {None}
            continue
        expected = own[0] if own[0] in truth else "Other"
        assert truth == {name: int(name == expected) for name in truth}


def test_probabilities_are_fused_in_training_and_in_prediction_where_the_task_says_so(data: Prepared) -> None:
    """What is predicted for a case is the mean over its images of what the same weights say of each alone."""
    trained = finetuned(data, "probability", TASK.model_copy(update={"fusion": "probability"}))
    rows = schema.read(trained.out_dir / ITEM.name / layout.HISTORY, schema.HISTORY).to_pylist()
    assert max(row["value"] for row in rows if row["metric"] == "validation_top_1_accuracy") == 1.0
    table = predictions(data, "probability", trained).sort_by("class")
    model = Classifier(build_encoder(ENCODER, image_channels=1), num_classes=3)
    load_weights(model, trained.out_dir / ITEM.name / layout.MODEL)
    by_case: dict[str, list[float]] = {}
    for row in table.to_pylist():
        by_case.setdefault(row["unit_id"], []).append(row["y_score"])
    stored = ShardSet.open(data.inputs.shards_dir)
    num_fused = 0
    for case_id, found in by_case.items():
        own = data.index.filter(pa.array([case == case_id for case in data.index["case_id"].to_pylist()]))
        images = np.stack([stored.decode(stored.position(str(name))) for name in own["image_id"].to_pylist()])
        with torch.no_grad():
            alone = model.eval()(torch.from_numpy(images).float() / 255).double().softmax(dim=1).numpy()
        np.testing.assert_allclose(found, alone.mean(axis=0), atol=1e-5)
        num_fused += len(alone) > 1
    assert num_fused > 2


def test_fusion_averages_the_images_of_each_case() -> None:
    weights = fusion([2, 1, 3], torch.device("cpu"))
    values = torch.tensor([1.0, 3.0, 7.0, 2.0, 4.0, 9.0])
    torch.testing.assert_close(weights @ values, torch.tensor([2.0, 7.0, 5.0]))
