"""From CheXpert's table to an exact patient-disjoint split: ours against pandas.

    .venv/bin/python -m benchmarks.split --table CheXpert-v1.0-small/train.csv

Without --table, a generated one of the same shape is read. Ours is measured twice. "ours, split alone" does what pandas
does here: read the column of paths, group by patient, order the patients by seed, fill the three sets, with the
product's own reader, hash and packing. "ours, whole product" also reads and validates all 19 columns, replaces 475,000
names by keyed identifiers, draws label fractions and recounts the result for its proof. One JSON line comes last.
"""

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import alternate, ratio, report
from medssl.config import DataConfig, SplitConfig
from medssl.data import chexpert, packing, ranks, readers, splits
from medssl.data.cells import read as read_cells
from medssl.identifiers import PatientKey

TABLE = "train.csv"
SIZES = {"train": 167_429, "validation": 22_240, "test": 33_745}  # the paper's, of CheXpert's 223,414 images
NUM_PATIENTS = 64_540
LARGEST = 92  # images of a patient
PATIENT = r"patient\d+"  # in a path
ALONE, PRODUCT, PANDAS = "ours, split alone", "ours, whole product", "pandas"


def generate(path: Path, num_images: int) -> None:
    """A table of CheXpert's form in which a third of the patients have one image."""
    rng = np.random.default_rng(0)
    num_patients = NUM_PATIENTS * num_images // sum(SIZES.values())
    sizes = np.minimum(rng.geometric(num_patients / num_images, num_patients), LARGEST)
    patients = np.repeat(np.arange(num_patients), sizes)
    patients = np.concatenate([patients, np.arange(num_images)])[:num_images]  # what the cap left out
    patients.sort()
    labels = rng.choice(["", "1.0", "0.0", "-1.0"], (num_images, len(chexpert.FINDINGS)), p=[0.6, 0.2, 0.15, 0.05])
    view = np.arange(num_images) - np.searchsorted(patients, patients) + 1
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(chexpert.COLUMNS) + "\n")
        for patient, number, states in zip(patients.tolist(), view.tolist(), labels.tolist(), strict=True):
            name = f"CheXpert-v1.0-small/train/patient{patient:05d}/study1/view{number}_frontal.jpg"
            file.write(f"{name},Female,{20 + patient % 70},Frontal,AP,{','.join(states)}\n")


def split_alone(root: Path, config: SplitConfig) -> dict[str, int]:
    """Images of each split, by the product's reader of cells and paths, keyed hash and packing."""
    cells = read_cells(root, TABLE, setting="data.train_table", required=("Path",))
    (patient,) = chexpert.components(cells.columns["Path"], "patient")
    order = np.argsort(ranks.label_ranks(patient.dictionary.to_pylist(), seed=config.seed, draw=0), kind="stable")
    sizes = np.bincount(patient.indices)[order]
    groups = packing.pack(sizes, np.array([int(config.sizes[split]) for split in splits.FILL_ORDER]))
    assert groups is not None
    images = np.bincount(groups, weights=sizes, minlength=3)
    return {split: int(images[group]) for group, split in enumerate(splits.FILL_ORDER)}


def whole_product(root: Path, config: SplitConfig) -> dict[str, int]:
    """Images of each split, as ingest and assign_splits make it."""
    data = DataConfig(name="chexpert", root=str(root), key="public", train_table=TABLE, valid_table="")
    key = PatientKey.load("public", key_file=None, default_file=None, environment={})
    found = splits.assign(readers.read(root, data, key, with_files=False).index, config).summary["images"]
    return {split: found[split] for split in SIZES}


def by_pandas(root: Path, config: SplitConfig) -> dict[str, int]:
    """Images of each split: patients shuffled, filled greedily, and what is missing taken from single images."""
    frame = pd.read_csv(root / TABLE, usecols=["Path"])
    patient = frame["Path"].str.extract(f"({PATIENT})", expand=False)
    sizes = patient.value_counts(sort=False).sample(frac=1, random_state=config.seed)
    split_of = pd.Series("train", index=sizes.index)
    rest = sizes
    for split in ("test", "validation"):
        target = int(config.sizes[split])
        taken = rest[rest.cumsum() <= target]
        rest = rest.drop(taken.index)
        singles = rest[rest == 1][: target - int(taken.sum())]
        rest = rest.drop(singles.index)
        split_of[taken.index.union(singles.index)] = split
    images = patient.map(split_of).value_counts()
    return {split: int(images[split]) for split in SIZES}


def milliseconds(split: Callable[[Path, SplitConfig], dict[str, int]], root: Path, config: SplitConfig) -> float:
    """Time of one split, whose sizes must be exact."""
    begin = time.perf_counter()
    found = split(root, config)
    took = time.perf_counter() - begin
    wanted = {name: int(size) for name, size in config.sizes.items()}
    assert found == wanted, f"sizes are {json.dumps(found)}, expected {json.dumps(wanted)}"
    return took * 1e3


def main() -> None:
    """Split in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="CheXpert's train.csv, or .gz")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a generated table of a tenth, 3 repeats")
    options = parser.parse_args()
    repeats, part = (3, 10) if options.quick else (options.repeats, 1)
    sizes = {split: size // part for split, size in SIZES.items()}
    config = SplitConfig(**sizes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.table and not options.quick:
            data = options.table.read_bytes()
            (root / TABLE).write_bytes(gzip.decompress(data) if options.table.suffix == ".gz" else data)
        else:
            generate(root / TABLE, sum(sizes.values()))
        methods = {ALONE: split_alone, PRODUCT: whole_product, PANDAS: by_pandas}
        figures = alternate(
            {name: partial(milliseconds, method, root, config) for name, method in methods.items()}, repeats=repeats
        )
    detail = {
        "num_images": sum(sizes.values()),
        "table": "generated" if options.quick or not options.table else "given",
        "ratio_whole_product": round(ratio(figures[PRODUCT], figures[PANDAS]), 3),
    }
    report(figures, name="split", unit="ms", ours=ALONE, peer=PANDAS, detail=detail)


if __name__ == "__main__":
    main()
