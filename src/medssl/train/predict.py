"""Predictions of fine-tuned models; the only place where test images are opened."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medssl import labels, layout, schema
from medssl.model.networks import Classifier, build_encoder
from medssl.progress import Progress
from medssl.shardset import Cohort, ShardSet, whole
from medssl.train.checkpoint import load_weights
from medssl.train.distributed import Ranks
from medssl.train.finetune import Split, predict_scores
from medssl.train.jobs import PredictItem, PredictJob
from medssl.train.worker import run_worker

_CARRIED = ("sex", "age_years", "skin_type", "view_position", "site")


@dataclass(frozen=True)
class _Evaluated:
    """One split of one data set, as the rows of the predictions name it."""

    dataset: str
    dataset_digest: str
    name: str
    group_kind: str
    split: Split


def predict(job: PredictJob, ranks: Ranks) -> None:
    """Write `predictions.parquet`: every model of the job on every split and external set, one row a class."""
    if not ranks.is_first:
        return
    index = schema.read(job.inputs.index_path, schema.INDEX)
    splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
    classes = labels.classes(index, splits, job.task)
    num_sets = len(job.settings.splits) + len(job.external)
    progress = Progress("predict", len(job.items) * num_sets, unit="model and split")
    tables: list[pa.Table] = []
    for evaluated in _evaluated(job, index, splits, classes):
        for item in job.items:
            scores_MK = predict_scores(
                _model(job, item, len(classes)).to(ranks.device),
                evaluated.split,
                size_px=job.image_size_px,
                batch_size=job.settings.batch_size,
                precision=job.settings.precision,
                device=ranks.device,
            )
            tables.append(_rows(job, item, evaluated, classes, scores_MK))
            progress.update(len(tables))
    schema.write(pa.concat_tables(tables), schema.PREDICTIONS, job.out_dir / layout.PREDICTIONS)


def _evaluated(job: PredictJob, index: pa.Table, splits: pa.Table, classes: tuple[str, ...]) -> Iterator[_Evaluated]:
    """The splits of the study's own data set, then the external sets; one in memory at a time."""
    shards = ShardSet.open(job.inputs.shards_dir)
    for name in job.settings.splits:
        split = Split.open(Cohort.select(index, splits, shards, split=name), job.task, classes)
        yield _Evaluated(job.dataset, job.dataset_digest, name, _group_kind(index), split)
    for external in job.external:
        own = schema.read(external.index_path, schema.INDEX)
        cohort = Cohort.select(own, whole(own), ShardSet.open(external.shards_dir), split=schema.EXTERNAL)
        split = Split.open(cohort, job.task, classes)
        yield _Evaluated(external.name, external.digest, schema.EXTERNAL, _group_kind(own), split)


def _group_kind(index: pa.Table) -> str:
    return schema.metadata_of(index)["group_kind"]


def _model(job: PredictJob, item: PredictItem, num_classes: int) -> Classifier:
    encoder = build_encoder(job.encoder, image_channels=job.channels)
    model = Classifier(encoder, num_classes=num_classes)
    load_weights(model, item.weights_path)
    return model


def _rows(
    job: PredictJob, item: PredictItem, evaluated: _Evaluated, classes: tuple[str, ...], scores_MK: np.ndarray
) -> pa.Table:
    labelled = evaluated.split.labelled
    num, (m, k) = scores_MK.size, scores_MK.shape
    repeated = evaluated.split.rows.take(np.repeat(labelled.row_M, k))
    constant: dict[str, Any] = {
        "study_id": job.study_id,
        "dataset": evaluated.dataset,
        "dataset_digest": evaluated.dataset_digest,
        "split": evaluated.name,
        "arm_id": item.arm_id,
        "label_fraction": item.label_fraction,
        "draw": item.draw,
        "repeat": item.repeat,
        "unit_kind": labelled.kind,
        "group_kind": evaluated.group_kind,
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
