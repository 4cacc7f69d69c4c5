"""What a study would cost, from its settings alone: multiplications, GPU hours, bytes.

Nothing is measured here and no data is read. What settings do not say, the number of images, is given by the caller or
stays uncounted and is named. A training step is three forward passes, since the gradients towards weights and towards
activations each take as much as the pass itself. Not counted: norms and activations (about 1 %), losses, optimisers,
augmentation, the probes of pretraining (less than 3 % of it), retries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from medssl.architecture import Size, classifier_head_size, encoder_size, projection_head_size, representation_dim
from medssl.config import RANDOM_INITIALIZATION, ArmConfig, EncoderConfig, FinetuneConfig, Precision, PretrainRun, Study
from medssl.stages.train import grid, repeats

FLOPS_PER_MULTIPLY_ADD = 2
PASSES_OF_A_STEP = 3  # in forward passes
# Of an A100 by its data sheet, without sparsity: bfloat16, and TF32, in which torch computes float32 convolutions.
PEAK_TFLOPS: Mapping[Precision, float] = MappingProxyType({"bf16": 312.0, "float32": 156.0})
# Of the peak: published figures of training a ResNet-50 are 18 to 22 %, since memory limits it.
UTILIZATION = 0.2
# Of predictions.parquet: scores do not compress, the rest does; 10 to 16 in tables of 5 and 27 classes.
PREDICTION_ROW_BYTES = 13
UNLABELLED = "unlabelled"  # stands for all of data.unlabelled where a number of images is given


@dataclass(frozen=True)
class Assumptions:
    """What the settings of a study do not say.

    Attributes:
        peak_tflops: Of one GPU, in 10^12 FLOP/s, by precision.
        utilization: Share of it that training reaches, in (0, 1].
        images: Number of images by name of the data set, UNLABELLED for those of the study's own without labels.
        images_per_case: Of a study of conditions; None: as many as a step may see of a case, an upper bound.
    """

    peak_tflops: Mapping[Precision, float] = field(default_factory=lambda: PEAK_TFLOPS)
    utilization: float = UTILIZATION
    images: Mapping[str, int] = field(default_factory=dict)
    images_per_case: float | None = None

    def hours(self, flops: float, precision: Precision) -> float:
        """GPU hours of `flops`."""
        return flops / (self.peak_tflops[precision] * 1e12 * self.utilization) / 3600


@dataclass(frozen=True)
class Work:
    """What all tasks of a stage do together.

    Attributes:
        stage: Its name.
        num_tasks: Tasks, an arm or a pretraining run each.
        num_runs: Networks trained, or models that predict.
        num_steps: Optimiser steps of all of them.
        flops: Floating-point operations.
        gpu_hours: By the assumptions.
    """

    stage: str
    num_tasks: int
    num_runs: int
    num_steps: int
    flops: float
    gpu_hours: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a study.

    Attributes:
        work: A row a stage that computes on images, in pipeline order.
        num_bytes: By what is kept in the store; shards before compression, so at most.
        uncounted: Data sets whose number of images is not known: evaluation on them and their shards are missing.
        images_per_unit: Images of one training example; above 1, of a case.
    """

    work: tuple[Work, ...]
    num_bytes: Mapping[str, float]
    uncounted: tuple[str, ...]
    images_per_unit: float

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(one.gpu_hours for one in self.work)


def estimate(study: Study, assumptions: Assumptions) -> Estimate:
    """What a study costs from the beginning, with nothing reused; pure."""
    images = _Images.of(study, assumptions.images)
    work = (
        _pretraining(study, assumptions),
        _finetuning(study, assumptions, images, "search_hyperparameters"),
        _finetuning(study, assumptions, images, "finetune"),
        _prediction(study, assumptions, images),
    )
    uncounted = tuple(name for name in _sets(study) if name not in images.of_set)
    return Estimate(work, _bytes(study, images), uncounted, _images_per_unit(study, assumptions))


def num_models(study: Study, arm: ArmConfig) -> int:
    """Fine-tuned models that are kept of an arm: label fractions, draws and repeats."""
    settings = study.finetune.of(arm)
    chosen = {"label_fraction": max(settings.label_fractions), "learning_rate": 0.0, "weight_decay": 0.0}
    return len(repeats(settings, [chosen], draws=study.splits.draws))


@dataclass(frozen=True)
class _Images:
    """Numbers of images as far as they are known, of data sets and of the splits of the study's own."""

    of_set: Mapping[str, int]
    of_split: Mapping[str, float]

    @classmethod
    def of(cls, study: Study, given: Mapping[str, int]) -> "_Images":
        """Those given, and those that exact sizes of the splits tell."""
        name, sizes = study.data.name, study.splits.sizes
        if study.splits.exact:
            return cls({name: round(sum(sizes.values())), **given}, sizes)
        return cls(given, {split: share * given[name] for split, share in sizes.items()} if name in given else {})

    def evaluated(self, study: Study) -> float:
        """Images that every model predicts."""
        own = sum(self.of_split.get(split, 0.0) for split in study.predict.splits)
        return own + sum(self.of_set.get(one.name, 0) for one in study.external)


def _sets(study: Study) -> list[str]:
    """Names of all that is written into shards."""
    sets = [study.data, *study.external, *study.pretraining_data]
    return [one.name for one in sets] + ([UNLABELLED] if study.data.unlabelled else [])


def _images_per_unit(study: Study, assumptions: Assumptions) -> float:
    if study.task.kind == "findings":
        return 1.0
    return assumptions.images_per_case or float(study.task.max_images_per_case)


def _encoder(study: Study, name: str, image_size_px: int) -> tuple[EncoderConfig, Size]:
    config = study.encoders[name]
    return config, encoder_size(config, image_channels=study.shards.channels, image_size_px=image_size_px)


def _pretrained(study: Study, run: PretrainRun) -> Size:
    """An encoder with its projection head."""
    config, size = _encoder(study, run.encoder, run.image_size_px)
    return size + projection_head_size(representation_dim(config))


def _classifier(study: Study, arm: ArmConfig) -> Size:
    """An encoder with its linear layer."""
    config, size = _encoder(study, arm.encoder, study.finetune.image_size_px)
    return size + classifier_head_size(representation_dim(config), _num_classes(study))


def _num_classes(study: Study) -> int:
    if study.task.kind == "findings":
        return len(study.task.findings)
    return (len(study.task.conditions) or study.task.num_conditions) + 1  # and "Other"


def _pretraining(study: Study, assumptions: Assumptions) -> Work:
    flops, hours = 0.0, 0.0
    for run in study.pretraining:
        num_views = 2 * run.batch_size * run.num_steps
        # Micro batches are projected once more, before the loss of the whole batch is known.
        is_split = 0 < run.micro_batch_size < run.batch_size
        own = _flops(_pretrained(study, run), num_views * (PASSES_OF_A_STEP + is_split))
        flops, hours = flops + own, hours + assumptions.hours(own, run.precision)
    num_runs = len(study.pretraining)
    return Work("pretrain", num_runs, num_runs, sum(run.num_steps for run in study.pretraining), flops, hours)


def _finetuning(study: Study, assumptions: Assumptions, images: _Images, stage: str) -> Work:
    """The search, or the repeats of what it chose."""
    settings = study.finetune
    validation = images.of_split.get("validation", 0.0)
    per_run = settings.num_steps * settings.batch_size * _images_per_unit(study, assumptions) * PASSES_OF_A_STEP
    per_run += _num_evaluations(settings) * validation
    num_runs, flops = 0, 0.0
    for arm in study.arms:
        is_search = stage == "search_hyperparameters"
        own = len(grid(settings, arm)) if is_search else num_models(study, arm)
        num_passes = own * per_run
        if settings.trainable == "head":  # each image passes once through an encoder; what the heads do is not counted
            num_encoders = own if arm.init == RANDOM_INITIALIZATION and not is_search else 1
            num_passes = num_encoders * (images.of_split.get("train", 0.0) + validation)
        num_runs, flops = num_runs + own, flops + _flops(_classifier(study, arm), num_passes)
    hours = assumptions.hours(flops, settings.precision)
    return Work(stage, len(study.arms), num_runs, num_runs * settings.num_steps, flops, hours)


def _num_evaluations(settings: FinetuneConfig) -> int:
    """Passes over the validation images in one fine-tuning."""
    return -(-settings.num_steps // settings.evaluate_every_steps)


def _prediction(study: Study, assumptions: Assumptions, images: _Images) -> Work:
    per_model = images.evaluated(study)
    models = {arm.name: num_models(study, arm) for arm in study.arms}
    flops = sum(models[arm.name] * _flops(_classifier(study, arm), per_model) for arm in study.arms)
    hours = assumptions.hours(flops, study.predict.precision)
    return Work("predict", len(study.arms), sum(models.values()), 0, flops, hours)


def _flops(size: Size, num_passes: float) -> float:
    return FLOPS_PER_MULTIPLY_ADD * size.multiply_adds * num_passes


def _bytes(study: Study, images: _Images) -> Mapping[str, float]:
    """What the store keeps; units of predictions are counted as images, of which cases have one or more."""
    per_image = study.shards.channels * study.shards.image_size_px**2
    models = {arm.name: num_models(study, arm) for arm in study.arms}
    rows = sum(models.values()) * images.evaluated(study) * _num_classes(study)
    return {
        "shards": float(per_image * sum(images.of_set.get(name, 0) for name in _sets(study))),
        "checkpoints": float(sum(_pretrained(study, run).num_bytes for run in study.pretraining)),
        "models": float(sum(models[arm.name] * _classifier(study, arm).num_bytes for arm in study.arms)),
        "predictions": PREDICTION_ROW_BYTES * rows,
    }
