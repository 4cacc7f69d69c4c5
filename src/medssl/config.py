"""The study file: one frozen pydantic section per stage, read and checked in one place.

A component receives only its own section, so that editing `finetune:` leaves pretraining cached. KFP hands integers
inside dictionaries on as floats; pydantic's lax mode accepts 8.0 for an integer and rejects 8.5.
"""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Hashable, Mapping, Sequence, Set
from difflib import get_close_matches
from itertools import combinations, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medssl import pretraining_grid
from medssl.exit_codes import BadInputError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, le=2**53)]  # KFP carries it as a double, which is exact to here
# Of the networks' forward pass and, with bf16, of the products within the contrastive loss, whose sums are float32.
# Weights, their updates and batch norm's statistics are float32 in both.
Precision = Literal["float32", "bf16"]
# Of a case's images: the mean of their representations, or of their probabilities.
Fusion = Literal["representation", "probability"]
# With a smaller image a network's last stride acts on one pixel, for which the CPU library of torch 2.14 (oneDNN 3.12)
# leaves part of a bf16 convolution's weight gradient unwritten: whatever was in memory.
MIN_BF16_SIZE_PX = 17

CHEXPERT_FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# The paper's 26 (supplement; spec 2.1).
PAPER_CONDITIONS = (
    "Acne", "Actinic keratosis", "Allergic contact dermatitis", "Alopecia areata", "Androgenetic alopecia",
    "Basal cell carcinoma", "Cyst", "Eczema", "Folliculitis", "Hidradenitis", "Lentigo", "Melanocytic nevus",
    "Melanoma", "Post inflammatory hyperpigmentation", "Psoriasis", "SCC/SCCIS", "Seborrheic keratosis",
    "Scar condition", "Seborrheic dermatitis", "Skin tag", "Stasis dermatitis", "Tinea", "Tinea versicolor",
    "Urticaria", "Verruca vulgaris", "Vitiligo",
)  # fmt: skip
RANDOM_INITIALIZATION = "random"
# A ValueError: an impossible date or number; a RecursionError: nested a thousand deep.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
_MAX_STUDY_BYTES = 2**20
AGE_EDGES_YEARS = (40.0, 60.0, 80.0)  # of the age bands that are balanced and analysed
# Images by split. The paper prints 67,429 for training; with a dropped leading digit the three sum to all 223,414
# images of CheXpert's training table and are its 75/10/15 split (spec 2.4).
PAPER_SIZES: Mapping[str, int] = MappingProxyType({"train": 167_429, "validation": 22_240, "test": 33_745})
PAPER_LITERAL_TRAIN = 67_429
MAX_PIXELS = 100_000_000  # of one image, and the bytes of its file
MAX_BYTES = 256 * 1024 * 1024
MAX_TABLE_BYTES = 2**31 - 1  # of a label table, decompressed; one Arrow array of text holds no more
MAX_PRETRAINING_LEVELS = 3  # SimCLR on natural images, SimCLR on the domain, MICLe (spec 1.1)
MAX_REPLICATES = 100_000  # of a bootstrap
SPECIFICITY = 0.9  # at which sensitivities are reported
MAX_LOOP_ITEMS = 50  # tasks in one fan-out; KFP's loop status gets slow beyond


def _has_repeats(values: Sequence[Hashable]) -> bool:
    return len(set(values)) != len(values)


def _as_named(values: Sequence[float]) -> list[float]:
    """The numbers to the 6 digits with which they stand in the names of folders and groups."""
    return [float(f"{value:g}") for value in values]


class ConfigError(BadInputError, ValueError):
    """The study file or a section of it is wrong; the message names the key, what was found and the remedy."""


class Section(BaseModel):
    """Base of every section: immutable, and neither an unknown key nor a number that is not finite passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def dump(self) -> dict[str, Any]:
        """The section as plain JSON types, as it travels in a pipeline parameter, which cannot be null."""
        return self.model_dump(mode="json", exclude_none=True)


S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML's plain types, without merge keys: those of nine lines that merge the one before nine times fill memory.

    A key that is given twice is refused, of which YAML's loader would silently take the last.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.YAMLError(f"given twice: {', '.join(twice)}; keep one of each")
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys (<<) are not supported; write the keys out")
        super().flatten_mapping(node)


class GenerateConfig(Section):
    """The generated data set of a demo study, in place of a folder of one's own."""

    task: Literal["cxr", "derm"] = "cxr"  # radiographs in CheXpert's layout, or photographs as a table of cases
    patients: int = Field(400, ge=20)
    seed: Seed = 0
    image_size_px: int = Field(128, ge=32, le=1024)


# Each kind of data set with the usual name of its label table; "" where it needs none.
USUAL_TABLES: Mapping[str, str] = MappingProxyType(
    {
        "chexpert": "train.csv",
        "nih": "Data_Entry_2017_v2020.csv",
        "padchest": "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        "cases": "cases.csv",
        "pad_ufes": "metadata.csv",
        "ham10000": "HAM10000_metadata.csv",
        "images": "",
    }
)


NAMES_OF_FILES = ("train_table", "valid_table", "columns", "unlabelled")  # keys of DataConfig


class UnlabelledConfig(Section):
    """Images without labels below the data set's folder: a folder of them, or a table that lists them."""

    folder: str = Field(min_length=1)  # below data.root
    # "": that of the data set, whose patients it shares
    name: str = Field("", pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")
    train_table: str = ""  # below the folder; "": every image file counts
    columns: dict[str, str] = {}
    group: Literal["file", "folder"] = "file"


class DataConfig(Section):
    """Where the raw data set lies, how it is laid out and how its identifiers are made."""

    dataset: Literal["chexpert", "nih", "padchest", "cases", "pad_ufes", "ham10000", "images"] = "chexpert"
    name: Name  # enters every identifier: two data sets never share a patient_id
    root: str | None = None
    key: Literal["public", "private"] = "private"
    train_table: str = ""  # the table of labels; by default the one that USUAL_TABLES names
    valid_table: str = ""  # CheXpert's official validation, by default valid.csv; null or "": the set has none
    # Radiographs: which projections are read at all.
    views: Literal["both", "frontal", "lateral"] = "both"
    # Tables of cases or images: the set's own header for image, patient, case, condition, skin_type, sex, age, site.
    columns: dict[str, str] = {}
    # The set's own names of conditions, with the study's; a name that is not listed stays as it is.
    condition_names: dict[str, str] = {}
    # Folders of images without a table: is each file a patient of its own, or each first folder.
    group: Literal["file", "folder"] = "file"
    # Whether the same picture under two patients is looked for at ingest, which decodes every image once.
    find_duplicates: bool = True
    # For pretraining alone. Images of patients who are in validation or test are kept out of it.
    unlabelled: tuple[UnlabelledConfig, ...] = ()
    generate: GenerateConfig | None = None
    # What the fingerprint reads of an image file: size and modification time, or (slower) its bytes.
    fingerprint_files: Literal["stat", "content"] = "stat"

    @model_validator(mode="before")
    @classmethod
    def _name_the_tables(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        dataset = str(values.get("dataset", "chexpert"))
        usual = {
            "train_table": USUAL_TABLES.get(dataset, ""),
            "valid_table": "valid.csv" if dataset == "chexpert" else "",
        }
        named = {key: values.get(key, table) for key, table in usual.items()}
        # KFP carries no null inside a parameter.
        return values | {key: "" if table is None else table for key, table in named.items()}

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.root is None and self.generate is None:
            raise ValueError("data.root is not set; give the folder of the data set: --set data.root=/path/to/folder")
        if self.root is not None and self.generate is not None:
            raise ValueError(
                "data.root and data.generate exclude each other; for your own data use another study file, or "
                "--set data.generate=null --set data.key=private"
            )
        return self

    @property
    def tables(self) -> list[str]:
        """Names of the label tables."""
        pools = [f"{pool.folder}/{pool.train_table}" for pool in self.unlabelled if pool.train_table]
        return [*(table for table in (self.train_table, self.valid_table) if table), *pools]


class TaskConfig(Section):
    """What the classifier predicts: independent findings of an image, or one condition of many for a case."""

    kind: Literal["findings", "conditions"] = "findings"
    findings: tuple[str, ...] = CHEXPERT_FINDINGS
    # u_mixed: 1 for Atelectasis and Edema, 0 for the other three, as the code of Neyshabur et al. 2020 (spec 2.3).
    uncertain: Literal["u_mixed", "u_ones", "u_zeros", "u_ignore"] = "u_mixed"
    blank: Literal["negative", "ignore"] = "negative"
    # Conditions that are told apart, where the training split has enough cases of them; all others are "Other"
    # (spec 2.1). Without any: the paper's 26 where the set names them all, else the most frequent ones.
    conditions: tuple[str, ...] = ()
    num_conditions: Positive = 26
    min_train_cases: Positive = 100
    max_images_per_case: Positive = 6  # that a training step sees; evaluation takes all
    # How the images of a case become one prediction, in training as in evaluation. The paper does not say; by default
    # the mean of the pooled representations (spec 2.1).
    fusion: Fusion = "representation"

    @property
    def selection_metric(self) -> str:
        """The validation metric that chooses settings, steps and repeats (spec 1.8)."""
        return "top_1_accuracy" if self.kind == "conditions" else "mean_auc"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.findings or _has_repeats(self.findings):
            raise ValueError(f"task.findings must be a list of distinct names, found {list(self.findings)}")
        if _has_repeats(self.conditions):
            raise ValueError(f"task.conditions must be distinct names, found {list(self.conditions)}")
        if self.kind == "findings" and self.fusion != "representation":
            raise ValueError(f"task.fusion {self.fusion} is for conditions; findings are those of one image")
        return self


class SplitConfig(Section):
    """Sizes of the splits: exact numbers of images (whole, one at least above 1) or fractions of them (sum 1)."""

    # paper: 167,429 / 22,240 / 33,745 images. paper_literal: the same validation and test images, and of the same
    # training images the 67,429 that the paper prints; the rest is unused. Without sizes, paper is the default.
    mode: Literal["sizes", "paper", "paper_literal"] = "sizes"
    train: float = Field(0, ge=0)
    validation: float = Field(0, ge=0)
    test: float = Field(0, ge=0)
    # What stays whole. Only patients keep a patient out of two splits; the paper's words allow images.
    group_by: Literal["patient", "study", "image"] = "patient"
    seed: Seed = 0
    # How many seeds, from `seed` on, are tried for the split whose largest deviation from the whole is smallest.
    balance_seeds: int = Field(1, ge=1, le=1000)
    draws: int = Field(1, ge=1, le=100)  # independent orders of the patients, from which label fractions are cut
    # condition: each label fraction holds its share of the training patients of every condition, one patient more or
    # less. The default is none for findings and condition for conditions (spec 3.3).
    stratify: Literal["none", "condition"] = "none"
    # Digest of an earlier splits artifact of this store, whose patients keep split and ranks; "": start anew.
    extend: str = Field("", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="before")
    @classmethod
    def _paper_by_default(cls, values: Any) -> Any:
        is_bare = isinstance(values, dict) and not {"mode", "train", "validation", "test"} & values.keys()
        return {**values, "mode": "paper"} if is_bare else values

    @property
    def sizes(self) -> dict[str, float]:
        """Requested size by split name."""
        if self.mode != "sizes":
            literal = {"train": PAPER_LITERAL_TRAIN} if self.mode == "paper_literal" else {}
            return {split: float(size) for split, size in {**PAPER_SIZES, **literal}.items()}
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def exact(self) -> bool:
        """Whether the sizes are numbers of images rather than fractions."""
        sizes = self.sizes.values()
        return all(size >= 1 and size.is_integer() for size in sizes) and any(size > 1 for size in sizes)

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        sizes = [self.train, self.validation, self.test]
        if self.mode != "sizes":
            if any(sizes):
                raise ValueError(f"splits: mode {self.mode} has sizes of its own; leave out train, validation and test")
            return self
        if not all(sizes):
            raise ValueError(f"splits: train, validation and test must each be above 0, found {sizes}")
        if self.exact:
            return self
        if all(size >= 1 for size in sizes) and any(size > 1 for size in sizes):
            raise ValueError(f"splits: sizes above 1 are numbers of images and must be whole, found {sizes}")
        if any(size > 1 for size in sizes):
            raise ValueError(f"splits: give three fractions or three numbers of images, found a mixture: {sizes}")
        if not math.isclose(sum(sizes), 1.0, abs_tol=1e-6):
            raise ValueError(f"splits: fractions must sum to 1, found {sizes} = {sum(sizes):g}")
        return self


class ShardConfig(Section):
    """How images are decoded, resized and stored."""

    image_size_px: int = Field(ge=16, le=2048)
    # squash: both sides to image_size_px; pad: longer side, centred on black; so every stored image is square.
    resize: Literal["squash", "pad"] = "squash"
    channels: Literal[1, 3] = 1
    encoding: Literal["png", "jpeg"] = "png"
    jpeg_quality: int = Field(95, ge=50, le=100)
    num_parts: int = Field(16, ge=1, le=65536)
    max_undecodable_share: float = Field(0.01, ge=0, le=1)
    max_pixels: Positive = MAX_PIXELS  # an image that claims more is not decoded
    max_bytes: Positive = MAX_BYTES

    @model_validator(mode="after")
    def _parts_are_a_power_of_two(self) -> Self:
        if self.num_parts & (self.num_parts - 1):
            raise ValueError(f"shards.num_parts must be a power of two, found {self.num_parts}")
        return self


class EncoderConfig(Section):
    """A SimCLR-style ResNet (spec 1.2), or BiT's (Kolesnikov et al. 2020), and the input that its weights expect.

    All but family, depth and width is for imported weights: `medssl import-weights` prints what they need.
    """

    family: Literal["resnet", "bit"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    width: float = Field(1.0, ge=1 / 64, le=8)  # the stem has 64 filters: below, none is left
    pool_padding: Literal["same", "symmetric"] = "same"  # TensorFlow's or torchvision's max-pool
    has_first_projection: bool = True  # false: torchvision's ResNet-18 and 34
    # Channels that the weights take; 0: as many as the images. Grey images are repeated for weights of three.
    input_channels: Literal[0, 1, 3] = 0
    # Of each channel of an image in [0, 1]; empty: [0, 1] as SimCLR, [-1, 1] as BiT.
    input_mean: tuple[float, ...] = ()
    input_std: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.family == "bit":
            if self.depth < 50 or self.width not in (1, 2, 3, 4):
                raise ValueError(
                    "a BiT encoder has depth 50, 101 or 152 and width 1, 2, 3 or 4, "
                    f"found {self.depth} and {self.width:g}"
                )
            if self.pool_padding != "same" or not self.has_first_projection:
                raise ValueError("pool_padding and has_first_projection are of the family resnet; leave them out")
        elif self.depth >= 50 and not self.has_first_projection:
            raise ValueError("has_first_projection: only depths 18 and 34 exist without it")
        if len(self.input_mean) != len(self.input_std) or len(self.input_mean) not in (0, 1, self.input_channels):
            found = f"{list(self.input_mean)} and {list(self.input_std)} with input_channels {self.input_channels}"
            raise ValueError(f"input_mean and input_std need one number for all or one a channel, found {found}")
        return self

    @property
    def display_name(self) -> str:
        """The name as the paper's tables print it; they call BiT's network alike and name BiT in the method."""
        return f"ResNet-{self.depth} ({self.width:g}x)"


class WeightsConfig(Section):
    """Weights that were trained elsewhere and brought into the store by `medssl import-weights`."""

    name: Name
    encoder: Name
    # Digest that import-weights prints; "": not at hand, so that what starts from them is not run.
    checkpoint: str = Field("", pattern=r"^([0-9a-f]{64})?$")


class PretrainRun(Section):
    """One pretraining run without labels (spec 1.3-1.7)."""

    name: Name
    method: Literal["simclr", "micle"]
    encoder: Name
    init: Name = RANDOM_INITIALIZATION  # or the name of another run, or of imported weights
    # The set of `pretraining_data` whose images it sees; "": the study's own training split and unlabelled images.
    dataset: str = Field("", pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")
    # Whether it sees, beside the training split, the study's images without labels.
    unlabelled: bool = True
    num_steps: Positive
    batch_size: int = Field(512, ge=2)
    learning_rate: float = Field(0.3, gt=0)  # the flag of SimCLR's code, scaled by batch_size
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(0, ge=0)
    temperature: float = Field(0.1, gt=0)
    loss_reduction: Literal["paper", "code"] = "code"
    augmentation: Literal["simclr", "chexpert_pretrain", "micle_partial"] = "chexpert_pretrain"
    # Each null: as the augmentation has it. Above 1.25, contrast and saturation would change sign.
    augmentation_strength: float | None = Field(None, ge=0, le=1.25)
    crop_area_min: float | None = Field(None, gt=0, le=1)
    rotation_deg: float | None = Field(None, ge=0, le=180)
    flip_probability: float | None = Field(None, ge=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    # Which two images make a MICLe pair: of one case, or of one patient (two studies).
    pair_within: Literal["case", "patient"] = "case"
    image_size_px: int = Field(224, ge=16)
    precision: Precision = "float32"
    # torch.compile: pays on GPUs alone (a step on CPUs gets slower, and each start waits for a compiler) and rounds
    # differently, so it is one of the run's settings.
    compile: bool = False
    # Pairs that all processes together put through the network at a time; 0: the whole batch. The loss has the
    # negatives of the whole batch whatever this is; a forward pass more saves memory. Batch norm sees a micro batch.
    micro_batch_size: int = Field(0, ge=0)
    checkpoint_every_steps: Positive = 500
    # Scores the frozen representation on validation labels while it trains, for those who watch: no weight and no
    # file of the result depends on it.
    probe: bool = True
    probe_every_steps: int = Field(0, ge=0)  # 0: as often as costs less than 3 % of the training
    # When the representation collapses or the loss stays at chance: say so and mark the checkpoint, or end the run.
    on_collapse: Literal["warn", "stop"] = "warn"
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.init == self.name:
            raise ValueError(f"pretraining: {self.name} cannot start from itself")
        if self.warmup_steps >= self.num_steps:
            raise ValueError(
                f"pretraining: {self.name}: warmup_steps {self.warmup_steps} must be below {self.num_steps}"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"pretraining: {self.name}: batch_size {self.batch_size} must be a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        _check_precision(f"pretraining: {self.name}", self.precision, self.image_size_px)
        return self

    def check_processes(self, processes: int) -> None:
        """Refuse a number of processes that cannot share the batches equally.

        Raises:
            ConfigError: A batch or a micro batch is no multiple of it.
        """
        for key in ("batch_size", "micro_batch_size"):
            if (size := getattr(self, key)) % processes:
                raise ConfigError(f"pretraining: {self.name}: {key} {size} must be a multiple of {processes} processes")

    def that_counts(self) -> dict[str, Any]:
        """The settings on which the result depends: not those of watching and of saving the state."""
        watching = ("probe", "probe_every_steps", "on_collapse", "checkpoint_every_steps")
        return {key: value for key, value in self.dump().items() if key not in watching}


class ArmConfig(Section):
    """One row of a results table: an architecture and the way its weights begin."""

    name: Name
    encoder: Name
    init: Name = RANDOM_INITIALIZATION
    method: str  # as the paper prints it: "Random Initialization", "SimCLR CheXpert", "MICLe ImageNet->Derm"
    # Arms of one group are variants of one method, such as the points of a pretraining grid: validation chooses which
    # of them stands for it in comparisons. "": the arm stands for itself.
    group: Name | Literal[""] = ""
    label_fractions: tuple[Fraction, ...] = ()  # those of finetune.label_fractions at which it is trained; (): all

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if _has_repeats(_as_named(self.label_fractions)):
            raise ValueError(f"arms: {self.name}: label_fractions must differ, found {list(self.label_fractions)}")
        return self


class FinetuneConfig(Section):
    """Fine-tuning: a grid search, then repeats of what it chose (spec 1.8)."""

    # all: end to end, as in the paper. head: a linear probe, the cheap option: the encoder stays as it was pretrained,
    # in evaluation mode, and each image passes it once, without augmentation.
    trainable: Literal["all", "head"] = "all"
    num_steps: Positive
    batch_size: int = Field(256, ge=2)
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...]
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    momentum: float = Field(0.9, ge=0, lt=1)
    label_fractions: tuple[Fraction, ...]
    # per_fraction: the grid is searched at each label fraction; full: at the largest one, and reused (spec 3.3).
    search: Literal["full", "per_fraction"] = "full"
    repeats: int = Field(5, ge=1, le=100)
    evaluate_every_steps: Positive = 500
    crop_area_min: float = Field(0.08, gt=0, le=1)
    rotation_deg: float = Field(20.0, ge=0, le=180)
    flip_probability: float = Field(0.5, ge=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    # Brightness is added, then contrast stretched (supplement A.2), unless saturation or hue change too: then all four
    # are factors, in random order, as SimCLR's.
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    saturation: float = Field(0, ge=0, le=1)
    hue: float = Field(0, ge=0, le=0.5)
    blur_probability: float = Field(0, ge=0, le=1)
    image_size_px: int = Field(224, ge=16)
    precision: Precision = "float32"
    checkpoint_every_steps: Positive = 1000
    seed: Seed = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for key in ("learning_rates", "weight_decays", "label_fractions"):
            values = list(getattr(self, key))
            if not values or _has_repeats(_as_named(values)):
                raise ValueError(
                    f"finetune.{key} must be a list of numbers that differ in their first 6 digits, found {values}"
                )
        _check_precision("finetune", self.precision, self.image_size_px)
        return self

    def that_train(self) -> dict[str, Any]:
        """The settings on which one training depends: not those that list the trainings or say when they save."""
        listing = ("learning_rates", "weight_decays", "label_fractions", "search", "repeats", "checkpoint_every_steps")
        return {key: value for key, value in self.dump().items() if key not in listing}

    def of(self, arm: ArmConfig) -> Self:
        """The settings of one arm, which may be trained at some of the label fractions only."""
        return self.model_copy(update={"label_fractions": arm.label_fractions}) if arm.label_fractions else self

    def searched(self, arm: ArmConfig) -> tuple[float, ...]:
        """Label fractions at which the grid is searched for one arm: one for all of them, or its own."""
        return (max(self.label_fractions),) if self.search == "full" else self.of(arm).label_fractions


class PredictConfig(Section):
    """What the fine-tuned models predict."""

    # [validation] leaves the test split alone: for studies that choose settings for another.
    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    batch_size: Positive = 256
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _something_is_predicted(self) -> Self:
        if not self.splits or _has_repeats(self.splits):
            raise ValueError(f"predict.splits must name validation, test or both once, found {list(self.splits)}")
        return self


class FamilyConfig(Section):
    """Differences that are tested together; an empty list means all that there are."""

    name: str = Field(min_length=1)
    pairs: tuple[tuple[str, str], ...] = ()  # in either order
    label_fractions: tuple[Fraction, ...] = ()
    metrics: tuple[str, ...] = ()  # with their k: mean_auc, top_3_accuracy
    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def overlaps(self, other: "FamilyConfig") -> bool:
        """Whether a difference can belong to both."""
        return all(not a or not b or a & b for a, b in zip(self._keys, other._keys, strict=True))

    @property
    def _keys(self) -> tuple[Set[Hashable], ...]:
        pairs = {frozenset(pair) for pair in self.pairs}
        return pairs, set(self.label_fractions), set(self.metrics), set(self.datasets), set(self.splits)


class CompareConfig(Section):
    """Evaluation, and differences by paired bootstrap (spec 3.7). An arm stands for itself, a group for its best arm.

    More replicates than `num_replicates` are drawn where as many comparisons as a family has could else never be
    significant.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    num_replicates: int = Field(1000, ge=100, le=MAX_REPLICATES)
    max_replicates: int = Field(MAX_REPLICATES, ge=100, le=MAX_REPLICATES)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    resampling_units: tuple[Literal["patient", "image", "case"], ...] = ("patient", "image")
    # What p values are adjusted for; () for the pairs of each data set, split, label fraction and draw in the primary
    # metric.
    families: tuple[FamilyConfig, ...] = ()
    # [arm, baseline]: at which label fraction the arm is as good as the baseline with all labels.
    label_efficiency: tuple[tuple[str, str], ...] = ()
    specificity: float = Field(SPECIFICITY, gt=0, lt=1)  # at which sensitivities are reported
    seed: Seed = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if alone := [pair for pair in self.pairs if pair[0] == pair[1]]:
            raise ValueError(f"compare.pairs: {list(alone[0])} compares an arm with itself; name two arms")
        if _has_repeats([frozenset(pair) for pair in self.pairs]):  # [b, a] is [a, b] with the other sign
            pairs = [list(pair) for pair in self.pairs]
            raise ValueError(f"compare.pairs: two arms may be compared once, in either order, found {pairs}")
        listed = [list(pair) for pair in self.label_efficiency]
        if _has_repeats(self.label_efficiency) or any(arm == baseline for arm, baseline in listed):
            raise ValueError(f"compare.label_efficiency: name [arm, baseline], two arms, each once, found {listed}")
        if self.max_replicates < self.num_replicates:
            raise ValueError(
                f"compare.max_replicates must be num_replicates ({self.num_replicates}) or more, "
                f"found {self.max_replicates}"
            )
        if not self.resampling_units or _has_repeats(self.resampling_units):
            found = list(self.resampling_units)
            raise ValueError(f'compare.resampling_units must be "patient", "image" (or "case") or both, found {found}')
        return self

    @model_validator(mode="after")
    def _families_are_disjoint(self) -> Self:
        if _has_repeats(names := [family.name for family in self.families]):
            raise ValueError(f"compare.families: names must be distinct, found {names}")
        for one, other in combinations(self.families, 2):
            if one.overlaps(other):
                raise ValueError(
                    f'compare.families: a difference could belong to "{one.name}" and to "{other.name}"; '
                    "name pairs, label_fractions, metrics, datasets or splits so that it belongs to one"
                )
        return self


Attribute = Literal["sex", "age_band", "view_position", "skin_type", "skin_type_group", "site"]


class SubgroupConfig(Section):
    """Which subgroups are analysed (spec 3.5)."""

    by: tuple[Attribute, ...] = ("sex", "age_band", "view_position")
    # Also by two attributes at once: lists of two of `by`, or all that say something new.
    pairs: Literal["all"] | tuple[tuple[Attribute, Attribute], ...] = "all"
    age_edges: tuple[Annotated[float, Field(ge=0)], ...] = AGE_EDGES_YEARS
    # Fitzpatrick types of each group of "skin_type_group". The paper names these four groups (supplement B.1.6) and
    # prints no map: it is inferred.
    skin_type_groups: dict[str, tuple[str, ...]] = {
        "white": ("1", "2"),
        "beige": ("3",),
        "brown": ("4",),
        "dark brown": ("5", "6"),
    }
    min_patients: Positive = 20
    num_replicates: int = Field(1000, ge=100, le=100_000)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    seed: Seed = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if _has_repeats(self.by):
            raise ValueError(f"subgroups.by must name each attribute once, found {list(self.by)}")
        pairs = [list(pair) for pair in self.attribute_pairs]
        if _has_repeats(list(map(frozenset, pairs))) or not all(self._crosses(*pair) for pair in pairs):
            raise ValueError(
                f'subgroups.pairs must be "all" or list pairs, each once in either order, of two of {list(self.by)} '
                f"that do not come from one column, found {pairs}"
            )
        edges = _as_named(self.age_edges)
        if not edges or any(low >= high for low, high in pairwise(edges)):
            raise ValueError(f"subgroups.age_edges must be increasing ages in years, found {list(self.age_edges)}")
        types = [skin_type for group in self.skin_type_groups.values() for skin_type in group]
        if _has_repeats(types) or not all(self.skin_type_groups.values()):
            found = {name: list(group) for name, group in self.skin_type_groups.items()}
            raise ValueError(f"subgroups.skin_type_groups must name each skin type once, one or more a group: {found}")
        return self

    @property
    def attribute_pairs(self) -> tuple[tuple[Attribute, Attribute], ...]:
        """Attributes that are crossed, two by two."""
        if self.pairs == "all":
            return tuple(pair for pair in combinations(self.by, 2) if self._crosses(*pair))
        return self.pairs

    def _crosses(self, a: Attribute, b: Attribute) -> bool:
        """Whether groups by both are other ones than by either; a group of skin types holds all of each type."""
        return {a, b} <= set(self.by) and a != b and {a, b} != {"skin_type", "skin_type_group"}


class PromoteConfig(Section):
    """When a model of the study becomes champion. Replicates, level and seed are those of `compare`.

    The candidate is the repeat that validation chose of `arm`, at its largest label fraction.
    """

    enabled: bool = False
    model: Name | Literal[""] = ""  # in MLflow's registry; "": named like the study
    arm: Name | Literal[""] = ""
    # By how much of the primary metric it may be worse in a subgroup, and by how much its calibration error may be
    # larger than the champion's: the interval of the difference must stay within.
    margin: float = Field(0.05, ge=0, lt=1)
    ece_margin: float = Field(0.02, ge=0, lt=1)
    crossed: bool = False  # also groups by two attributes at once, which are small
    min_patients: int = Field(0, ge=0)  # of a subgroup; 0: as subgroups.min_patients
    approve_small_groups: bool = False  # groups that cannot be assessed need no person's approval
    auto_first: bool = False  # the first model becomes champion without a person's approval
    max_test_uses: Positive = 20  # of one test set, beyond which each promotion warns


class ReportConfig(Section):
    """Words of the report that the study chooses."""

    title: str
    notes: tuple[str, ...] = ()  # printed under the title; what a reader must know before the numbers


class ResourcesConfig(Section):
    """How much of the machine a task uses; never part of a result's identity."""

    processes: Positive = 1  # torchrun processes of one training task
    threads_per_process: int = Field(0, ge=0)  # 0: the cores, divided among what runs at the same time
    # Of each process: threads that prepare its batches, 0: one on a CPU, beside a GPU its share of the cores; memory
    # for decoded images, 0: its share of a quarter of the memory. More images than fit are decoded at each use.
    loader_threads: int = Field(0, ge=0)
    cache_mib: int = Field(0, ge=0)
    # Fine-tuning tasks at a time on one machine, at most 2 (kfp.local's cap); 0: as many as its cores and memory allow.
    parallel_tasks: int = Field(1, ge=0, le=2)
    beam_options: tuple[str, ...] = ()  # as Beam's command line takes them; without a --runner, all in one process


# Where cases have one of many conditions: they are what is resampled, label fractions keep the shares of conditions,
# and photographs change in colour and sharpness too. The paper names these changes for both tasks without a range
# (spec 1.7): those of brightness and contrast (A.2) are a quarter of SimCLR's, so are the others; blur is SimCLR's.
DEFAULTS_OF_CONDITIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "compare": {"resampling_units": ["patient", "case"]},
        "splits": {"stratify": "condition"},
        "finetune": {"saturation": 0.2, "hue": 0.05, "blur_probability": 0.5},
    }
)


class Study(Section):
    """A whole study file."""

    name: Name
    data: DataConfig
    task: TaskConfig = TaskConfig()
    splits: SplitConfig = SplitConfig(mode="paper")
    shards: ShardConfig
    encoders: dict[Name, EncoderConfig]
    weights: tuple[WeightsConfig, ...] = ()
    pretraining_data: tuple[DataConfig, ...] = ()  # other sets to pretrain on, such as natural images; all of each
    pretraining: tuple[PretrainRun, ...] = ()
    arms: tuple[ArmConfig, ...]
    # Arms that were left out because weights or data they need are absent, with the reason; not for study files.
    not_run: dict[Name, str] = {}
    finetune: FinetuneConfig
    predict: PredictConfig = PredictConfig()
    external: tuple[DataConfig, ...] = ()  # data sets on which the finished models are evaluated unchanged
    compare: CompareConfig = CompareConfig()
    subgroups: SubgroupConfig = SubgroupConfig()
    promote: PromoteConfig = PromoteConfig()
    report: ReportConfig
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="before")
    @classmethod
    def _expand_grids(cls, values: Any) -> Any:
        return pretraining_grid.expand(values) if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _default_to_conditions(cls, values: Any) -> Any:
        """In a study of conditions other defaults hold: `DEFAULTS_OF_CONDITIONS`."""
        if not isinstance(values, dict):
            return values
        task = values.get("task")
        if not isinstance(task, dict) or task.get("kind") != "conditions":
            return values
        sections = {
            key: values.get(key) or {}
            for key in DEFAULTS_OF_CONDITIONS
            if key in values or not cls.model_fields[key].is_required()
        }
        given = {key: section for key, section in sections.items() if isinstance(section, dict)}
        return values | {key: {**DEFAULTS_OF_CONDITIONS[key], **section} for key, section in given.items()}

    @model_validator(mode="after")
    def _references_resolve(self) -> Self:
        runs = _unique(
            "pretraining and weights", [*(run.name for run in self.pretraining), *(one.name for one in self.weights)]
        )
        arms = _unique("arms", [arm.name for arm in self.arms])
        encoder_of: dict[str, str] = {one.name: one.encoder for one in self.weights}
        encoder_of |= {run.name: run.encoder for run in self.pretraining}
        if not arms:
            raise ValueError("arms: at least one arm is needed")
        if RANDOM_INITIALIZATION in runs:
            raise ValueError(
                f'pretraining and weights: the name "{RANDOM_INITIALIZATION}" stands for random weights; choose another'
            )
        listed = [
            *(("weights", one.name, one.encoder, RANDOM_INITIALIZATION) for one in self.weights),
            *(("pretraining", run.name, run.encoder, run.init) for run in self.pretraining),
            *(("arms", arm.name, arm.encoder, arm.init) for arm in self.arms),
        ]
        for kind, name, encoder, init in listed:
            if encoder not in self.encoders:
                raise ValueError(f"{kind}: {name}: encoder {encoder} is not among {sorted(self.encoders)}")
            if init != RANDOM_INITIALIZATION and init not in runs:
                others = sorted(runs - {name}) if kind == "pretraining" else sorted(runs)
                raise ValueError(f"{kind}: {name}: init {init} is neither random nor among {others}")
            if init in runs and encoder_of[init] != encoder:
                raise ValueError(f"{kind}: {name} and its init {init} have different encoders")
        self._check_pretraining()
        for arm in self.arms:
            if foreign := sorted(set(arm.label_fractions) - set(self.finetune.label_fractions)):
                raise ValueError(f"arms: {arm.name}: label_fractions {foreign} are not in finetune.label_fractions")
            if arm.group in arms:
                raise ValueError(f"arms: {arm.name}: group {arm.group} is the name of an arm; choose another")
        for key, further in (("external", self.external), ("pretraining_data", self.pretraining_data)):
            for one in further:
                if one.root is None or one.generate is not None or one.unlabelled:
                    raise ValueError(
                        f"{key}: {one.name}: such a data set has a root, and neither generate nor unlabelled"
                    )
        sets = (self.data, *self.external, *self.pretraining_data)
        if _has_repeats([os.path.normpath(one.root) for one in sets if one.root]):
            raise ValueError(
                "data, external, pretraining_data: two of them have the same root; a set that pretraining or "
                "evaluation sees as a whole must be another one, or its patients leak"
            )
        _unique("names of data sets", [one.name for one in sets])
        if self.task.kind == "conditions" and self.splits.group_by == "image":
            raise ValueError("splits.group_by: a study of conditions keeps a case whole; choose patient or study")
        own = "case" if self.task.kind == "conditions" else "image"
        if strange := sorted(set(self.compare.resampling_units) - {"patient", own}):
            raise ValueError(
                f"compare.resampling_units: {strange} do not exist in a study of {self.task.kind}; "
                f"possible: patient, {own}"
            )
        self._check_comparisons()
        if self.promote.enabled and self.promote.arm not in arms:
            raise ValueError(
                f'promote.arm: name the arm whose model is the candidate, found "{self.promote.arm}"; '
                f"possible: {', '.join(sorted(arms))}"
            )
        if self.promote.enabled and "test" not in self.predict.splits:
            raise ValueError("promote.enabled: a champion is judged on the test split; predict.splits must name it")
        for level, count in (("pretraining", len(runs)), ("arms", len(arms)), ("external", len(self.external))):
            if count > MAX_LOOP_ITEMS:
                raise ValueError(f"{level}: {count} items; one study fans out to at most {MAX_LOOP_ITEMS}")
        return self

    def _check_comparisons(self) -> None:
        """What is compared exists, and families hold pairs that are compared."""
        compare = self.compare
        for key, pairs in (("pairs", compare.pairs), ("label_efficiency", compare.label_efficiency)):
            if unknown := sorted({name for pair in pairs for name in pair} - self.comparable):
                raise ValueError(f"compare.{key}: {unknown} are not among the arms {sorted(self.comparable)}")
        compared = {frozenset(pair) for pair in compare.pairs}
        sets = {one.name for one in (self.data, *self.external)}
        for family in compare.families:
            foreign: list[object] = [list(pair) for pair in family.pairs if frozenset(pair) not in compared]
            foreign += sorted(set(family.label_fractions) - set(self.finetune.label_fractions))
            foreign += sorted(set(family.datasets) - sets) + sorted(set(family.splits) - {"test", "external"})
            if foreign:
                raise ValueError(
                    f'compare.families: "{family.name}" names {foreign}; expected pairs of compare.pairs, label '
                    f"fractions of finetune.label_fractions, data sets of {sorted(sets)}, splits test and external"
                )

    def _check_pretraining(self) -> None:
        """Runs start from what exists before them, see a set that is there, and MICLe comes last (spec 1.1)."""
        sets = {one.name for one in self.pretraining_data}
        method_of = {run.name: run.method for run in self.pretraining}
        for run in self.pretraining:
            if run.dataset and run.dataset not in sets:
                raise ValueError(
                    f"pretraining: {run.name}: dataset {run.dataset} is not among pretraining_data {sorted(sets)}"
                )
            if method_of.get(run.init) == "micle":
                raise ValueError(
                    f"pretraining: {run.name}: a run starts from random or imported weights or a SimCLR run; "
                    f"{run.init} is a MICLe run"
                )
        if idle := sorted(sets - {run.dataset for run in self.pretraining}):
            raise ValueError(f"pretraining_data: no run has {idle} as its dataset; remove them or name them in a run")
        num_levels = len(self.levels)
        if num_levels > MAX_PRETRAINING_LEVELS:
            raise ValueError(
                f"pretraining: {num_levels} runs start one from another; at most {MAX_PRETRAINING_LEVELS} can"
            )

    @property
    def comparable(self) -> set[str]:
        """Names that a comparison may give: those of arms, and of groups of arms."""
        return {name for arm in self.arms for name in (arm.name, arm.group) if name}

    @property
    def levels(self) -> tuple[tuple[PretrainRun, ...], ...]:
        """The pretraining runs, those of a level after all that they start from.

        Raises:
            ValueError: Runs start from one another in a circle.
        """
        done: set[str] = {RANDOM_INITIALIZATION, *(one.name for one in self.weights)}
        left, levels = self.pretraining, []
        while left:
            level = tuple(run for run in left if run.init in done)
            if not level:
                raise ValueError(f"pretraining: {sorted(run.name for run in left)} start from one another in a circle")
            levels.append(level)
            done |= {run.name for run in level}
            left = tuple(run for run in left if run.name not in done)
        return tuple(levels)

    @property
    def digest(self) -> str:
        """SHA-256 of the study's settings.

        Neither resources nor wording nor the folder of the data set counts: no result depends on them.
        """
        return digest(self.without_roots(exclude=("resources", "report")))

    def without_roots(self, *, exclude: Sequence[str] = ()) -> dict[str, Any]:
        """The study as plain JSON types, but the folders of the data sets and the sections named."""
        settings = {key: value for key, value in self.dump().items() if key not in exclude}
        for data in (settings["data"], *settings["external"], *settings["pretraining_data"]):
            data.pop("root", None)
        return settings

    def for_records(self) -> dict[str, Any]:
        """The settings that MLflow may show: without names of folders, files and columns, which can name a person."""
        settings = self.without_roots(exclude=("resources", "report"))
        for data in (settings["data"], *settings["external"], *settings["pretraining_data"]):
            for key in NAMES_OF_FILES:
                data.pop(key, None)
        return settings


def _check_precision(what: str, precision: Precision, image_size_px: int) -> None:
    if precision == "bf16" and image_size_px < MIN_BF16_SIZE_PX:
        raise ValueError(
            f"{what}: precision bf16 needs an image_size_px of {MIN_BF16_SIZE_PX} or more, found {image_size_px}"
        )


def arm_groups(arms: Sequence[ArmConfig]) -> dict[str, list[str]]:
    """The names of the arms of each group of variants, in the order of the study."""
    groups: dict[str, list[str]] = {}
    for arm in arms:
        if arm.group:
            groups.setdefault(arm.group, []).append(arm.name)
    return groups


def _unique(what: str, names: Sequence[str]) -> set[str]:
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what}: names must be distinct, found twice: {doubled}")
    return set(names)


def digest(value: Any) -> str:
    """SHA-256 in hex of any JSON value, independent of key order and of 8 or 8.0."""

    def canonical(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): canonical(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [canonical(entry) for entry in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file of moderate size.

    Args:
        path: The file.
        what: It is, in error messages: "study file".

    Raises:
        ConfigError: The file is absent, too large, or no YAML.
    """
    try:
        # Asked before opening: to open a named pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_STUDY_BYTES:
            raise OSError(errno.EINVAL, "it is no regular file of at most 1 MiB")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{what} {path.name} not found; see pipelines/studies/") from None
    except OSError as error:  # its own text holds the path
        raise ConfigError(f"{what} {path.name} cannot be read: {error.strerror}; give a YAML file") from None
    except _NO_YAML as error:
        raise ConfigError(f"{what} {path.name} cannot be read as YAML: {_one_line(str(error))}") from None


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file.

    Args:
        path: A YAML file.
        overrides: "section.key=value" each, value in YAML; "pretraining.0.seed=3" reaches into lists, and so does
            the name of a thing in place of its number: "pretraining.simclr.seed=3".

    Raises:
        ConfigError: The file is absent, no YAML, or does not describe a study. One line a problem.
    """
    raw = read_yaml(path, "study file")
    if raw is None:
        raise ConfigError(f"study file {path.name} is empty; see pipelines/studies/")
    if not isinstance(raw, dict):
        raise ConfigError(f"study file {path.name}: expected sections with keys, found {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    if raw.get("not_run"):
        raise ConfigError(f'{path.name}: "not_run" is found out when a study is run; remove it')
    return validate(Study, raw, path.name)


def validate(kind: type[S], raw: object, where: str) -> S:
    """Check `raw` as a section of `kind`, with errors a user can act on.

    Raises:
        ConfigError: Names every wrong key, what was found there and what is possible.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain_all(kind, error.errors()))) from None


def _explain_all(kind: type[BaseModel], problems: Sequence[Any]) -> list[str]:
    """One sentence a problem: misspelt keys first, and a required key that one of them means is not called missing."""
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    meant = {(*problem["loc"][:-1], _meant(kind, problem["loc"])) for problem in unknown}
    others = [p for p in problems if p not in unknown and not (p["type"] == "missing" and p["loc"] in meant)]
    return [_explain(kind, problem) for problem in [*unknown, *others]]


def _meant(kind: type[BaseModel], location: Sequence[str | int]) -> str:
    """The key that an unknown one at `location` is most like, or ""."""
    *section, key = location
    return next(iter(get_close_matches(str(key), _keys_at(kind, section), 1)), "")


def _explain(kind: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        possible = ", ".join(sorted(_keys_at(kind, problem["loc"][:-1])))
        meant = _meant(kind, problem["loc"])
        question = f' (did you mean "{meant}"?)' if meant else ""
        return f'unknown key "{key}"{question}; possible here: {possible}'
    if problem["type"] == "missing":
        return f'key "{key}" is missing'
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")  # YAML has no tuples
    found = "" if isinstance(problem["input"], dict | list) else f", found {problem['input']!r}"
    return f'"{key}": {message}{found}' if key else message


def _keys_at(kind: Any, location: Sequence[str | int]) -> list[str]:
    """Field names of the section that lies at `location` below `kind`."""
    for part in location:
        if isinstance(part, int) or not hasattr(kind, "model_fields") or part not in kind.model_fields:
            continue
        annotation = kind.model_fields[part].annotation
        kind = next((t for t in _inner_types(annotation) if hasattr(t, "model_fields")), kind)
    return list(getattr(kind, "model_fields", []))


def _inner_types(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(inner for argument in arguments for inner in _inner_types(argument))]


def _apply_override(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f'--set {override}: expected section.key=value, for example "splits.seed=3"')
    *parents, last = path.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, override)
    try:
        value = yaml.load(text, _Loader)
    except _NO_YAML:
        raise ConfigError(
            f"--set {override}: the value cannot be read as YAML; close brackets and quotation marks"
        ) from None
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--set {override}: {path} does not name a key of the study")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, override)]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override}: {part} does not name a section of the study")
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    return child


def _position(items: Sequence[Any], part: str, override: str) -> int:
    """Where in a list of the study `part` points: at the thing with that name, or by number."""
    names = [str(item.get("name")) for item in items if isinstance(item, dict)]
    if names.count(part) == 1 and len(names) == len(items):
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    possible = [*(names if len(names) == len(items) else ()), *map(str, range(len(items)))]
    raise ConfigError(
        f"--set {override}: {part} does not name an item of this list; possible here: {', '.join(possible) or 'none'}"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
