"""End-to-end fine-tuning of ResNet-50 from stored JPEGs: ours against a plain torchvision recipe in float32.

    .venv/bin/python -m benchmarks.finetune
    .venv/bin/python -m benchmarks.finetune --device cuda --batch-size 256 --num-images 4096 --workers 16

Both train the same network with five findings, SGD with Nesterov momentum and binary cross-entropy, on the same
photographs of 320 px with rotation, crop, flip, brightness and contrast. The recipe is torchvision's ResNet-50 and
transforms on Pillow's images in torch's DataLoader; ours is the product's own loop in bf16, from shards. A figure is
the time of an epoch, from asking for its first batch to having its last step done, divided by its images. Ours is also
measured in float32, to tell what the number format gives, and with all images decoded before. One JSON line comes last.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet50

from benchmarks.loader import write_files
from benchmarks.measure import alternate, ratio, report
from medssl import schema
from medssl.config import EncoderConfig, FinetuneConfig, Precision, ShardConfig, TaskConfig
from medssl.data import shards
from medssl.train.cohorts import Cohorts
from medssl.train.distributed import Ranks
from medssl.train.finetune import Finetuning
from medssl.train.jobs import FinetuneItem, FinetuneJob, Inputs
from medssl.train.launch import ALLOCATOR
from medssl.train.loader import Images
from medssl.train.resources import LOADER_THREADS_VARIABLE

STORED_PX = 320
FINDINGS = TaskConfig().findings
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 0.01, 1e-4, 0.9
ROTATION_DEG, CROP_AREA_MIN, JITTER = 20.0, 0.08, 0.2
OURS, KEPT, FLOAT32 = "ours, bf16", "ours, bf16, decoded before", "ours, float32"
TORCHVISION = "torchvision, float32"


def prepare(paths: list[Path], folder: Path) -> Inputs:
    """Index, splits and shards of the files, each a patient of its own; the last 8 are for validation."""
    names = [f"{i:032x}" for i in range(len(paths))]
    nulls = {field.name: pa.nulls(len(names), field.type) for field in schema.INDEX.columns if field.nullable}
    truth: dict[str, Any] = {f"label:{name}": labels_of(len(names))[:, k] for k, name in enumerate(FINDINGS)}
    own: dict[str, Any] = dict.fromkeys(("patient_id", "case_id", "image_id"), names)
    index = pa.table({**own, "source_split": ["train"] * len(names), **nulls, **truth})
    inputs = Inputs(
        index_path=folder / "index.parquet", splits_path=folder / "splits.parquet", shards_dir=folder / "shards"
    )
    schema.write(index, schema.INDEX, inputs.index_path)
    sources = pa.table({"image_id": names, "file": [path.name for path in paths]})
    schema.write(sources, schema.SOURCES, folder / "sources.parquet")
    split = ["train"] * (len(names) - 8) + ["validation"] * 8
    splits = pa.table({"patient_id": names, "split": split, "label_ranks": [[0.0]] * len(names)})
    schema.write(splits, schema.SPLIT_TABLE, inputs.splits_path)
    inputs.shards_dir.mkdir()
    config = ShardConfig(image_size_px=STORED_PX, channels=3, encoding="jpeg", jpeg_quality=85, num_parts=1)
    shards.write(inputs.index_path, folder / "sources.parquet", paths[0].parent, inputs.shards_dir, config)
    return inputs


def labels_of(num: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """A truth for each image and finding, shape (num, 5)."""
    return np.random.default_rng(0).integers(0, 2, (num, len(FINDINGS)), dtype=np.int8)


class Ours:
    """The product's fine-tuning of one grid point, an epoch at a time."""

    def __init__(
        self, inputs: Inputs, folder: Path, options: argparse.Namespace, *, precision: Precision, is_kept: bool
    ) -> None:
        settings = FinetuneConfig(
            num_steps=10**6, batch_size=options.batch_size, learning_rates=(LEARNING_RATE,), label_fractions=(1.0,),
            momentum=MOMENTUM, image_size_px=options.image_size_px, precision=precision, rotation_deg=ROTATION_DEG,
            crop_area_min=CROP_AREA_MIN, brightness=JITTER, contrast=JITTER,
        )  # fmt: skip
        item = FinetuneItem(
            label_fraction=1.0, draw=0, repeat=0, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        job = FinetuneJob(
            inputs=inputs, arm="benchmark", items=(item,), settings=settings, task=TaskConfig(),
            encoder=EncoderConfig(depth=50, pool_padding="symmetric"), channels=3, initial_dir=None,
            work_dir=folder, out_dir=folder,
        )  # fmt: skip
        cohorts = Cohorts.read(job)
        if not is_kept:
            images = Images(cohorts.train.images.cohort, max_bytes=0)
            cohorts = replace(cohorts, train=replace(cohorts.train, images=images))
        self.tuning = Finetuning(job, item, cohorts, Ranks(0, 1, torch.device(options.device)), folder)
        self.num_steps = options.num_images // options.batch_size

    def epoch(self) -> None:
        """Train on as many images as there are."""
        with self.tuning.inputs() as (inputs, _speed):
            for _ in range(self.num_steps):
                loss = self.tuning.train_step(next(inputs))
        loss.item()


class Files(Dataset[tuple[Tensor, Tensor]]):
    """Single files, opened and transformed in a worker."""

    def __init__(self, paths: list[Path], size_px: int) -> None:
        self.paths, self.truth_NK = paths, torch.from_numpy(labels_of(len(paths))).float()
        bicubic = transforms.InterpolationMode.BICUBIC
        self.transform = transforms.Compose(
            [
                transforms.RandomRotation(ROTATION_DEG, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.RandomResizedCrop(size_px, scale=(CROP_AREA_MIN, 1.0), interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(brightness=JITTER, contrast=JITTER),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB")), self.truth_NK[i]


class Torchvision:
    """The recipe that torchvision's documentation leads to."""

    def __init__(self, paths: list[Path], options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.model = resnet50(num_classes=len(FINDINGS)).to(self.device).train()
        self.criterion = nn.BCEWithLogitsLoss()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.loader = DataLoader(
            Files(paths, options.image_size_px),
            batch_size=options.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self) -> None:
        """Train on every image once; the worker processes run already."""
        for images, truth_NK in self.loader:
            logits_NK = self.model(images.to(self.device, non_blocking=True))
            loss: Tensor = self.criterion(logits_NK, truth_NK.to(self.device, non_blocking=True))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        loss.item()


def milliseconds(epoch: Callable[[], None], num_images: int) -> float:
    """Time of an epoch by its images."""
    begin_s = time.perf_counter()
    epoch()
    return (time.perf_counter() - begin_s) / num_images * 1e3


def main() -> None:
    """Write files and shards, take turns, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks"), help="where generated files are kept")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--workers", type=int, default=1, help="threads of ours, processes of torchvision's")
    parser.add_argument("--num-images", type=int, default=32, help="of an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size-px", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="16 images of 96 px, batches of 8, 3 repeats")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.finetune", *sys.argv[1:]], os.environ | ALLOCATOR)
    if options.quick:
        options.num_images, options.batch_size, options.image_size_px, options.repeats = 16, 8, 96, 3
    options.num_images -= options.num_images % options.batch_size
    os.environ[LOADER_THREADS_VARIABLE] = str(options.workers)
    torch.set_num_threads(options.threads)
    paths = write_files(options.data / "photographs", options.num_images + 8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = prepare(paths, folder)
        ours = {
            OURS: Ours(inputs, folder, options, precision="bf16", is_kept=False),
            KEPT: Ours(inputs, folder, options, precision="bf16", is_kept=True),
            FLOAT32: Ours(inputs, folder, options, precision="float32", is_kept=False),
        }
        epochs = {subject: one.epoch for subject, one in ours.items()}
        epochs[TORCHVISION] = Torchvision(paths[: options.num_images], options).epoch
        for epoch in epochs.values():  # compiled, started and warm
            epoch()
        measured = {subject: partial(milliseconds, epoch, options.num_images) for subject, epoch in epochs.items()}
        figures = alternate(measured, repeats=options.repeats)
    detail = {
        **{name: getattr(options, name) for name in ("device", "batch_size", "image_size_px", "num_images")},
        **{name: getattr(options, name) for name in ("threads", "workers")},
        "images_per_s": {subject: round(1e3 / statistics.median(values), 2) for subject, values in figures.items()},
        "ratio_decoded_before": round(ratio(figures[KEPT], figures[TORCHVISION]), 2),
        "ratio_float32": round(ratio(figures[FLOAT32], figures[TORCHVISION]), 2),
    }
    report(figures, name="finetune", unit="ms/image", ours=OURS, peer=TORCHVISION, detail=detail)


if __name__ == "__main__":
    main()
