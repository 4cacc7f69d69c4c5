"""Predictions of fine-tuned models; the only place where test images are opened."""

from typing import Any

import numpy as np
import pyarrow as pa

from medssl import labels, layout, schema
from medssl.model.networks import Classifier, ResNet
from medssl.progress import Progress
from medssl.shardset import Cohort, ShardSet
from medssl.train.checkpoint import load_weights
from medssl.train.distributed import Ranks
from medssl.train.finetune import Split, predict_scores
from medssl.train.jobs import PredictItem, PredictJob
from medssl.train.worker import run_worker

_CARRIED = ("sex", "age_years", "skin_type", "view_position", "site")


def predict(job: PredictJob, ranks: Ranks) -> None:
    """Write `predictions.parquet`: every model of the job on every image of its splits, one row a class."""
    index = schema.read(job.inputs.index_path, schema.INDEX)
    group_kind = schema.metadata_of(index)["group_kind"]
    splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
    shards = ShardSet.open(job.inputs.shards_dir)
    if not ranks.is_first:
        return
    classes = labels.classes(index, splits, job.task)
    progress = Progress("predict", len(job.items) * len(job.settings.splits), unit="model and split")
    tables, done = [], 0
    for name in job.settings.splits:
        split = Split.decode(Cohort.select(index, splits, shards, split=name), job.task, classes)
        for item in job.items:
            scores_MK = predict_scores(
                _model(job, item, len(classes)).to(ranks.device),
                split,
                size_px=job.image_size_px,
                batch_size=job.settings.batch_size,
                device=ranks.device,
            )
            tables.append(_rows(job, item, name, group_kind, split, classes, scores_MK))
            done += 1
            progress.update(done)
    schema.write(pa.concat_tables(tables), schema.PREDICTIONS, job.out_dir / layout.PREDICTIONS)


def _model(job: PredictJob, item: PredictItem, num_classes: int) -> Classifier:
    encoder = ResNet(depth=job.encoder.depth, width=job.encoder.width, in_channels=job.channels)
    model = Classifier(encoder, num_classes=num_classes)
    load_weights(model, item.weights_path)
    return model


def _rows(
    job: PredictJob,
    item: PredictItem,
    name: str,
    group_kind: str,
    split: Split,
    classes: tuple[str, ...],
    scores_MK: np.ndarray,
) -> pa.Table:
    labelled = split.labelled
    num, (m, k) = scores_MK.size, scores_MK.shape
    repeated = split.rows.take(np.repeat(labelled.row_M, k))
    constant: dict[str, Any] = {
        "study_id": job.study_id,
        "dataset": job.dataset,
        "dataset_digest": job.dataset_digest,
        "split": name,
        "arm_id": item.arm_id,
        "label_fraction": item.label_fraction,
        "draw": item.draw,
        "repeat": item.repeat,
        "unit_kind": labelled.kind,
        "group_kind": group_kind,
        "is_selected": item.is_selected,
        "checkpoint_digest": item.checkpoint_digest,
    }
    columns = {column: pa.repeat(value, num) for column, value in constant.items()}
    columns |= {column: repeated[column] for column in ("patient_id", *_CARRIED)}
    columns["unit_id"] = pa.array(np.repeat(labelled.ids, k), pa.string())
    columns["class"] = pa.array(list(classes) * m, pa.string())
    columns["y_true"] = pa.array(labelled.targets_MK.ravel().astype(np.int8), mask=~labelled.mask_MK.ravel())
    columns["y_score"] = pa.array(scores_MK.ravel())
    return schema.check(pa.table(columns), schema.PREDICTIONS, layout.PREDICTIONS)


if __name__ == "__main__":
    run_worker(predict, PredictJob)
