"""The loader end to end, from stored JPEGs of 320 px to float batches of two SimCLR views of 224 px, by two workers.

    .venv/bin/python -m benchmarks.loader

Ours reads shards with two threads; lightly's SimCLRTransform runs in torch's DataLoader with two processes, over single
files of the same bytes. Memory is allocated as in training, for both. A figure is the time of an epoch, from asking for
its first batch to having its last as floats on the CPU, divided by its images. Ours is measured once more with all
images decoded before. One JSON line comes last.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import radiographs
from benchmarks.augment import STORED_PX, VIEW_PX, encoded, photo
from benchmarks.measure import alternate, ratio, report
from medssl.config import PretrainRun, ShardConfig
from medssl.data import shards
from medssl.shardset import Cohort, ShardSet
from medssl.train.distributed import Ranks
from medssl.train.launch import ALLOCATOR
from medssl.train.loader import Images
from medssl.train.pretrain import Pairs, next_views

BATCH, NUM_WORKERS = 64, 2
CPU = Ranks(0, 1, torch.device("cpu"))
OURS, KEPT, LIGHTLY = "ours", "ours, decoded before", "lightly and DataLoader"

Views = tuple[torch.Tensor, torch.Tensor]


class Files(Dataset[Views]):
    """Single files, opened and transformed in a worker."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = SimCLRTransform(input_size=VIEW_PX, normalize=None)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Views:
        with Image.open(self.paths[i]) as image:
            view_a, view_b = self.transform(image.convert("RGB"))
        return view_a, view_b


def write_files(folder: Path, num_images: int) -> list[Path]:
    """Generated photographs, each in a file; what a former run left there is used."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06d}.jpg" for i in range(num_images)]
    for i, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(encoded(photo(i, 3)))
    return paths


def open_shards(paths: list[Path], folder: Path) -> Cohort:
    """The same bytes in shards, every image of a patient of its own."""
    config = ShardConfig(image_size_px=STORED_PX, channels=3, num_parts=1)
    identifiers = [f"{i:032x}" for i in range(len(paths))]
    rows = [(identifier, identifier, path.name) for identifier, path in zip(identifiers, paths, strict=True)]
    folder.mkdir(exist_ok=True)
    entry = shards.write_part((0, rows), paths[0].parent, folder, config, 1, radiographs.as_stored)
    shards.write_summary([entry], folder, config)
    opened = ShardSet.open(folder)
    columns: dict[str, Any] = dict.fromkeys(("patient_id", "case_id", "image_id"), identifiers)
    positions = torch.tensor([opened.position(identifier) for identifier in identifiers]).numpy()
    return Cohort("train", pa.table(columns), positions, 0, opened)


def ours(images: Images, seeds: Callable[[], int]) -> float:
    """Microseconds an image of one epoch; the threads start within it."""
    run = PretrainRun(
        name="loader", method="simclr", encoder="none", num_steps=len(images) // BATCH, batch_size=BATCH,
        augmentation="simclr", augmentation_strength=1.0, rotation_deg=0.0, image_size_px=VIEW_PX, seed=seeds(),
    )  # fmt: skip
    pairs = Pairs.of(images, run)
    begin_s = time.perf_counter()
    with pairs.batches(0, CPU) as batches:
        for _ in range(run.num_steps):
            next_views(batches, CPU.device)
    return (time.perf_counter() - begin_s) / (run.num_steps * BATCH) * 1e6


def lightly(loader: DataLoader[Views]) -> float:
    """Microseconds an image of one epoch; the processes run already."""
    begin_s = time.perf_counter()
    num = sum(len(view_a) for view_a, _view_b in loader)
    return (time.perf_counter() - begin_s) / num * 1e6


def main() -> None:
    """Write files and shards, take turns, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks"), help="where generated sets are kept")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="256 images, 3 repeats")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        command = [sys.executable, "-m", "benchmarks.loader", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    num_images, repeats = (256, 3) if options.quick else (1024, options.repeats)
    os.environ["MEDSSL_LOADER_THREADS"] = str(NUM_WORKERS)
    torch.set_num_threads(1)
    paths = write_files(options.data / "photographs", num_images)
    cohort = open_shards(paths, options.data / f"photographs-{num_images}-shards")
    stored, kept = Images(cohort, max_bytes=0), Images(cohort)
    loader = DataLoader(
        Files(paths), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=NUM_WORKERS, persistent_workers=True
    )
    seeds = iter(range(10**6)).__next__
    subjects = {
        OURS: partial(ours, stored, seeds),
        KEPT: partial(ours, kept, seeds),
        LIGHTLY: partial(lightly, loader),
    }
    for measured in subjects.values():  # compiled, started and warm
        measured()
    figures = alternate(subjects, repeats=repeats)
    detail = {
        "num_images": num_images,
        "mean_bytes": sum(path.stat().st_size for path in paths) // num_images,
        "ratio_decoded_before": round(ratio(figures[KEPT], figures[LIGHTLY]), 2),
    }
    report(figures, name="loader", unit="us/image", ours=OURS, peer=LIGHTLY, detail=detail)


if __name__ == "__main__":
    main()
