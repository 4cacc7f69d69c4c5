"""What a fine-tuning starts from: its seed, its network, and the representations of an encoder that is not trained.

Shape suffixes: N images, W ranks, D representation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from medssl import layout
from medssl.config import FinetuneConfig, digest
from medssl.model.networks import Classifier, build_encoder
from medssl.train.checkpoint import load_weights
from medssl.train.cohorts import Cohorts, Split
from medssl.train.distributed import Ranks
from medssl.train.jobs import FinetuneItem, FinetuneJob
from medssl.train.scoring import represent


def item_seed(settings: FinetuneConfig, item: FinetuneItem) -> int:
    """Seed of an item's initial weights and batches: the same for every arm and every grid point."""
    return int(digest([settings.seed, item.draw, item.repeat])[:8], 16)


def initial_classifier(job: FinetuneJob, num_classes: int, seed: int) -> Classifier:
    """The network that an item starts from."""
    torch.manual_seed(seed)
    encoder = build_encoder(job.encoder, image_channels=job.channels)
    model = Classifier(encoder, num_classes=num_classes, fusion=job.task.fusion)
    if job.initial_dir is not None:
        load_weights(encoder, job.initial_dir / layout.ENCODER)
    return model


@dataclass(frozen=True)
class Frozen:
    """What an encoder that is not trained makes of the images, float32 on the CPU.

    Attributes:
        train_ND: Representations of all training images, in the order of their cohort.
        validation_ND: The same of validation.
    """

    train_ND: Tensor
    validation_ND: Tensor

    @classmethod
    def compute(cls, job: FinetuneJob, cohorts: Cohorts, ranks: Ranks, seed: int) -> Self:
        """Every image passes the encoder once, without augmentation; the ranks share the images."""
        encoder = initial_classifier(job, len(cohorts.classes), seed).encoder.to(ranks.device)
        encoder = encoder.to(memory_format=torch.channels_last)

        def of(split: Split) -> Tensor:
            num = len(split.images)
            padded = num + (-num % ranks.world_size)
            own_ND = represent(
                encoder,
                split.images,
                np.arange(ranks.rank, padded, ranks.world_size) % num,
                size_px=job.settings.image_size_px,
                precision=job.settings.precision,
                device=ranks.device,
            )
            shared_WND = ranks.gather(own_ND.to(ranks.device)).cpu().unflatten(0, (ranks.world_size, -1))
            all_ND: Tensor = shared_WND.transpose(0, 1).flatten(0, 1)[:num]
            return all_ND

        return cls(of(cohorts.train), of(cohorts.validation))


def frozen_encoders(job: FinetuneJob, cohorts: Cohorts, ranks: Ranks) -> Callable[[FinetuneItem], Frozen | None]:
    """What the encoder of an item makes of the images; None where it is trained.

    Imported or pretrained weights are the same for all items, random ones for those of one seed.
    """

    @lru_cache(maxsize=1)
    def computed(seed: int) -> Frozen:
        return Frozen.compute(job, cohorts, ranks, seed)

    def of(item: FinetuneItem) -> Frozen | None:
        if job.settings.trainable == "all":
            return None
        return computed(0 if job.initial_dir else item_seed(job.settings, item))

    return of
