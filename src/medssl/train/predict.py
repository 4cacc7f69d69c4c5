"""Predictions of fine-tuned models; the only place where test images are opened."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medssl import labels, layout, schema
from medssl.model.networks import Classifier, ResNet
from medssl.progress import Progress
from medssl.shardset import Cohort, ShardSet
from medssl.train.checkpoint import load_weights
from medssl.train.distributed import Ranks
from medssl.train.finetune import predict_scores
from medssl.train.jobs import PredictItem, PredictJob
from medssl.train.worker import run_worker

_CARRIED = ("sex", "age_years", "skin_type", "view_position", "site")


def predict(job: PredictJob, ranks: Ranks) -> None:
    """Write `predictions.parquet`: every model of the job on every image of its splits, one row a finding."""
    index = schema.read(job.inputs.index_path, schema.INDEX)
    group_kind = schema.metadata_of(index)["group_kind"]
    splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
    shards = ShardSet.open(job.inputs.shards_dir)
    if not ranks.is_first:
        return
    progress = Progress("predict", len(job.items) * len(job.settings.splits), unit="model and split")
    tables, done = [], 0
    for split in job.settings.splits:
        cohort = Cohort.select(index, splits, shards, split=split)
        pixels = torch.from_numpy(cohort.decode_all(Progress(f"decode {split}", len(cohort), unit="images")))
        targets_NK, mask_NK = labels.targets(cohort.rows, job.task)
        for item in job.items:
            model = _model(job, item).to(ranks.device)
            scores_NK = predict_scores(
                model,
                pixels,
                size_px=job.image_size_px,
                batch_size=job.settings.batch_size,
                device=ranks.device,
            )
            tables.append(_rows(job, item, split, group_kind, cohort.rows, targets_NK, mask_NK, scores_NK))
            done += 1
            progress.update(done)
    schema.write(pa.concat_tables(tables), schema.PREDICTIONS, job.out_dir / layout.PREDICTIONS)


def _model(job: PredictJob, item: PredictItem) -> Classifier:
    encoder = ResNet(depth=job.encoder.depth, width=job.encoder.width, in_channels=job.channels)
    model = Classifier(encoder, num_classes=len(job.task.findings))
    load_weights(model, item.weights_path)
    return model


def _rows(
    job: PredictJob,
    item: PredictItem,
    split: str,
    group_kind: str,
    rows: pa.Table,
    targets_NK: np.ndarray,
    mask_NK: np.ndarray,
    scores_NK: np.ndarray,
) -> pa.Table:
    num, (n, k) = scores_NK.size, scores_NK.shape
    repeated = rows.take(np.repeat(np.arange(n), k))
    constant: dict[str, Any] = {
        "study_id": job.study_id,
        "dataset": job.dataset,
        "dataset_digest": job.dataset_digest,
        "split": split,
        "arm_id": item.arm_id,
        "label_fraction": item.label_fraction,
        "draw": item.draw,
        "repeat": item.repeat,
        "unit_kind": "image",
        "group_kind": group_kind,
        "is_selected": item.is_selected,
        "checkpoint_digest": item.checkpoint_digest,
    }
    columns = {name: pa.repeat(value, num) for name, value in constant.items()}
    columns |= {name: repeated[name] for name in ("patient_id", *_CARRIED)}
    columns["unit_id"] = repeated["image_id"]
    columns["class"] = pa.array(list(job.task.findings) * n, pa.string())
    columns["y_true"] = pa.array(targets_NK.ravel().astype(np.int8), mask=~mask_NK.ravel())
    columns["y_score"] = pa.array(scores_NK.ravel())
    return schema.check(pa.table(columns), schema.PREDICTIONS, layout.PREDICTIONS)


if __name__ == "__main__":
    run_worker(predict, PredictJob)
