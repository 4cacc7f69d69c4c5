"""What a report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class ReportInputs:
    """Everything the report shows; no row of a patient among it. Only the first two must be there.

    Attributes:
        metrics: schema.METRICS of compare and of subgroups together.
        arms: schema.ARMS.
        study: The study as JSON values; None where a page is made from tables alone.
        index_summary: Counts of ingest.
        splits_summary: Counts of assign_splits.
        shards_summary: Content of `shards.json`.
        selection: Every point of the hyper-parameter search: arm_id, label_fraction, learning_rate, weight_decay,
            validation_score (None where not evaluable), step, chosen, reason.
        models: Every fine-tuned model: arm_id, label_fraction, draw, repeat, learning_rate, weight_decay,
            validation_score, num_train_images, num_train_patients, is_selected, checkpoint_digest.
        history: schema.HISTORY of pretraining and fine-tuning.
        calibration: schema.CALIBRATION.
        lineage: Digest of each artifact behind the report, by role.
    """

    metrics: pa.Table
    arms: pa.Table
    study: Mapping[str, Any] | None = None
    index_summary: Mapping[str, Any] = field(default_factory=dict)
    splits_summary: Mapping[str, Any] = field(default_factory=dict)
    shards_summary: Mapping[str, Any] = field(default_factory=dict)
    selection: Sequence[Mapping[str, Any]] = ()
    models: Sequence[Mapping[str, Any]] = ()
    history: pa.Table | None = None
    calibration: pa.Table | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
