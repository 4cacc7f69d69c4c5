"""What a training process is asked to do: written as JSON by a stage, read by every rank."""

from pathlib import Path

from medssl.config import EncoderConfig, FinetuneConfig, PredictConfig, PretrainRun, Section, TaskConfig


class SetInputs(Section):
    """Where a whole data set lies, for pretraining alone."""

    index_path: Path
    shards_dir: Path


class Inputs(SetInputs):
    """Where the study's own set lies, with its splits."""

    splits_path: Path


class PretrainJob(Section):
    """One pretraining run."""

    inputs: Inputs | SetInputs
    run: PretrainRun
    encoder: EncoderConfig
    channels: int
    task: TaskConfig | None = None  # what the probe scores; None: no probe
    initial_dir: Path | None  # checkpoint to start from; None: random weights
    work_dir: Path
    out_dir: Path


class FinetuneItem(Section):
    """One fine-tuning: what it trains on and with which settings."""

    label_fraction: float
    draw: int
    repeat: int  # -1: a run of the search, which no repeat shares its seed with
    learning_rate: float
    weight_decay: float

    @property
    def name(self) -> str:
        """Unique within an arm; names files."""
        return (
            f"fraction{self.label_fraction:g}-draw{self.draw}-repeat{self.repeat}"
            f"-lr{self.learning_rate:g}-wd{self.weight_decay:g}"
        )


class FinetuneJob(Section):
    """Fine-tunings of one arm, one after the other over the same decoded images."""

    inputs: Inputs
    arm: str
    items: tuple[FinetuneItem, ...]
    settings: FinetuneConfig
    task: TaskConfig
    encoder: EncoderConfig
    channels: int
    initial_dir: Path | None
    keeps_weights: bool = True  # false in a search, of which scores alone are used
    work_dir: Path
    out_dir: Path


class PredictItem(Section):
    """One fine-tuned model and how its predictions are marked."""

    arm_id: str
    label_fraction: float
    draw: int
    repeat: int
    is_selected: bool
    checkpoint_digest: str
    weights_path: Path


class ExternalSet(Section):
    """A whole data set on which finished models are evaluated."""

    name: str
    digest: str
    index_path: Path
    shards_dir: Path


class PredictJob(Section):
    """Predictions of several models on several splits."""

    inputs: Inputs
    study_id: str
    dataset: str
    dataset_digest: str
    external: tuple[ExternalSet, ...] = ()
    items: tuple[PredictItem, ...]
    classes: tuple[str, ...] = ()  # in the order of the models' outputs; (): those of the study's own set and splits
    settings: PredictConfig
    task: TaskConfig
    encoder: EncoderConfig
    channels: int
    image_size_px: int
    work_dir: Path
    out_dir: Path
