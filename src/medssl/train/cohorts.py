"""What fine-tuned models are trained and evaluated on: the images of a split with the truth of its images or cases.

Shape suffixes: N images, M units (images or cases), K findings or conditions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa

from medssl import labels, schema
from medssl.config import TaskConfig
from medssl.exit_codes import BadInputError
from medssl.shardset import Cohort, ShardSet
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.loader import Images
from medssl.train.resources import cache_bytes


@dataclass(frozen=True)
class Split:
    """Images of one split with the truth of what is classified: M images, or M cases of several images.

    Attributes:
        images: The pixels, in the order of `rows`.
        rows: Rows of the index.
        labelled: The units and their truth.
        images_of: Numbers of the images of each unit, M arrays.
    """

    images: Images
    rows: pa.Table
    labelled: labels.Labelled
    images_of: list[np.ndarray]

    @classmethod
    def open(cls, cohort: Cohort, task: TaskConfig, classes: tuple[str, ...], *, max_bytes: int | None = None) -> Self:
        """Open the images of a cohort, decoded where they take at most `max_bytes`, and read their truth."""
        labelled = labels.labelled(cohort.rows, task, classes)
        by_unit = np.argsort(labelled.unit_N, kind="stable")
        ends = np.cumsum(np.bincount(labelled.unit_N, minlength=labelled.ids.size))
        return cls(Images(cohort, max_bytes=max_bytes), cohort.rows, labelled, np.split(by_unit, ends[:-1]))


@dataclass(frozen=True)
class Cohorts:
    """The tables and images that all items of a job share.

    Attributes:
        classes: What is predicted.
        train: Images and truth of the whole training split.
        validation: The same of validation.
        fraction: Rows of the index that a label fraction and draw of the training split holds.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split
    fraction: Callable[[float, int], pa.Table]

    @classmethod
    def read(cls, job: FinetuneJob) -> Self:
        """Read the tables, and open the images of train and validation; test images are not opened."""
        index = schema.read(job.inputs.index_path, schema.INDEX)
        splits = schema.read(job.inputs.splits_path, schema.SPLIT_TABLE)
        shards = ShardSet.open(job.inputs.shards_dir)
        classes = labels.classes(index, splits, job.task)
        select = partial(Cohort.select, index, splits, shards)
        max_bytes = cache_bytes()
        train = Split.open(select(split="train"), job.task, classes, max_bytes=max_bytes)
        rest = max_bytes - train.images.num_bytes_kept
        validation = Split.open(select(split="validation"), job.task, classes, max_bytes=rest)

        def fraction(label_fraction: float, draw: int) -> pa.Table:
            return select(split="train", label_fraction=label_fraction, draw=draw).rows

        return cls(classes, train, validation, fraction)

    def units_of(self, item: FinetuneItem) -> np.ndarray:
        """Numbers of the training units with a known label in the item's label fraction, ascending."""
        chosen = self.fraction(item.label_fraction, item.draw)["image_id"].to_numpy()
        labelled = self.train.labelled
        units = np.unique(labelled.unit_N[np.isin(self.train.rows["image_id"].to_numpy(), chosen)])
        known = units[labelled.mask_MK[units].any(axis=1)]
        if not known.size:
            raise BadInputError(f"finetune.label_fractions: {item.label_fraction:g} holds no known label; raise it")
        return known
