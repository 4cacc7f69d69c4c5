"""Predictions of fine-tuned models; the only place where test images are opened."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medssl import labels, layout, schema
from medssl.exit_codes import TerminatedError
from medssl.model.networks import Classifier, build_encoder
from medssl.progress import Progress
from medssl.shardset import Cohort, ShardSet, whole
from medssl.train.checkpoint import load_weights
from medssl.train.cohorts import Split
from medssl.train.distributed import Ranks, StopRequest
from medssl.train.jobs import ExternalSet, PredictItem, PredictJob
from medssl.train.scoring import predict_scores
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


@dataclass(frozen=True)
class _Study:
    """The study's own tables.

    Attributes:
        index: Schema INDEX.
        splits: Schema SPLIT_TABLE.
        classes: What is predicted.
    """

    index: pa.Table
    splits: pa.Table
    classes: tuple[str, ...]


def predict(job: PredictJob, ranks: Ranks) -> None:
    """Write `predictions.parquet`: every model of the job on every split and external set, one row a class.

    The predictions of each model and split are kept in `job.work_dir`, and those already there are not made again;
    images of a split are opened where something is missing, one split in memory at a time.

    Raises:
        TerminatedError: SIGTERM came; what is finished is kept.
    """
    if not ranks.is_first:
        return
    alone = Ranks(0, 1, ranks.device)
    stop = StopRequest()
    index = schema.read(job.inputs.index_path, schema.INDEX)
    splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
    study = _Study(index, splits, job.classes or labels.classes(index, splits, job.task))
    sources = [*job.settings.splits, *job.external]
    parts = [[job.work_dir / f"part-{s}-{i}.parquet" for i in range(len(job.items))] for s in range(len(sources))]
    num_done = sum(part.is_file() for of_source in parts for part in of_source)
    progress = Progress("predict", len(job.items) * len(sources), unit="model and split", done=num_done)
    for source, of_source in zip(sources, parts, strict=True):
        missing = [(item, part) for item, part in zip(job.items, of_source, strict=True) if not part.is_file()]
        if not missing:
            continue
        evaluated = _open(job, study, source)
        for item, part in missing:
            schema.write(_predicted(job, item, evaluated, study.classes, alone), schema.PREDICTIONS, part)
            num_done += 1
            progress.update(num_done)
            if stop.requested:
                raise TerminatedError(f"predict stopped after {num_done} of {len(parts) * len(job.items)} parts")
        del evaluated  # before the next split is read
    tables = [schema.read(part, schema.PREDICTIONS) for of_source in parts for part in of_source]
    schema.write(pa.concat_tables(tables), schema.PREDICTIONS, job.out_dir / layout.PREDICTIONS)


def _open(job: PredictJob, study: _Study, source: str | ExternalSet) -> _Evaluated:
    """Open the images of a split of the study's own data set, or of an external set."""
    if isinstance(source, str):
        cohort = Cohort.select(study.index, study.splits, ShardSet.open(job.inputs.shards_dir), split=source)
        split = Split.open(cohort, job.task, study.classes)
        return _Evaluated(job.dataset, job.dataset_digest, source, _group_kind(study.index), split)
    own = schema.read(source.index_path, schema.INDEX)
    cohort = Cohort.select(own, whole(own), ShardSet.open(source.shards_dir), split=schema.EXTERNAL)
    split = Split.open(cohort, job.task, study.classes)
    return _Evaluated(source.name, source.digest, schema.EXTERNAL, _group_kind(own), split)


def _predicted(
    job: PredictJob, item: PredictItem, evaluated: _Evaluated, classes: tuple[str, ...], ranks: Ranks
) -> pa.Table:
    """The rows of one model and split."""
    scores_MK = predict_scores(
        _model(job, item, len(classes)).to(ranks.device),
        evaluated.split,
        size_px=job.image_size_px,
        batch_size=job.settings.batch_size,
        precision=job.settings.precision,
        ranks=ranks,
    )
    return _rows(job, item, evaluated, classes, scores_MK)


def _group_kind(index: pa.Table) -> str:
    return schema.metadata_of(index)["group_kind"]


def _model(job: PredictJob, item: PredictItem, num_classes: int) -> Classifier:
    encoder = build_encoder(job.encoder, image_channels=job.channels)
    model = Classifier(encoder, num_classes=num_classes, fusion=job.task.fusion)
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
