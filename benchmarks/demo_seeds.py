"""The demo study over several seeds: test AUC by arm and label fraction, and the paired difference between arms.

    .venv/bin/python benchmarks/demo_seeds.py --seeds 0-9 --out runs/seeds --jobs 2

Each seed draws another data set, split, pretraining and fine-tuning. Seeds 100-109 are for tuning, by validation AUC
alone; seeds 0-9 are for reporting. Runs that are finished come from cache. One JSON line comes last.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import scipy.stats

PROJECT = Path(__file__).parents[1]
STUDY = PROJECT / "pipelines" / "studies" / "demo.yaml"
SEEDED = ("data.generate.seed", "splits.seed", "pretraining.0.seed", "pretraining.1.seed", "finetune.seed")

Cell = tuple[str, float]  # arm, label fraction


def run_seed(seed: int, out_dir: Path, *, jobs: int) -> None:
    """Run the demo study with one seed, alone on its share of the cores."""
    overrides = [f"{key}={seed}" for key in SEEDED]
    if jobs > 1:
        overrides += ["resources.parallel_tasks=1", "resources.threads_per_process=1"]
    command = [sys.executable, "-m", "pipelines", "run", str(STUDY), "--out", str(out_dir)]
    command += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(command, cwd=PROJECT, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"seed {seed} ended with exit code {done.returncode}: {done.stderr[-500:]}")
    print(f"seed {seed}: {done.stdout.splitlines()[-1]}", flush=True)


def mean_auc(out_dir: Path, split: str) -> dict[Cell, float]:
    """Mean AUC over the repeats of each arm and label fraction."""
    rows = pq.read_table(out_dir / "metrics.parquet").to_pylist()
    return {
        (row["arm_a"], row["label_fraction"]): row["estimate"]
        for row in rows
        if (row["split"], row["metric"], row["repeat"], row["subgroup"]) == (split, "mean_auc", "mean", "all")
        and row["arm_b"] is None
        and row["estimate"] is not None
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def main() -> None:
    """Run, print a table, print a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="first-last")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each then on one core")
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="validation for tuning")
    parser.add_argument("--quick", action="store_true", help="two seeds only")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = list(range(first, last + 1))[: 2 if options.quick else None]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: run_seed(seed, options.out / str(seed), jobs=options.jobs), seeds))
    found = {seed: mean_auc(options.out / str(seed), options.split) for seed in seeds}
    cells = sorted(set.intersection(*(set(table) for table in found.values())))
    print(f"\nmean AUC on {options.split} by seed")
    print("seed  " + "  ".join(f"{arm}@{fraction:g}".rjust(12) for arm, fraction in cells))
    for seed, table in found.items():
        print(f"{seed:4d}  " + "  ".join(f"{table[cell]:12.3f}" for cell in cells))
    smallest = min(fraction for _, fraction in cells)
    differences = {}
    for fraction in sorted({fraction for _, fraction in cells}):
        for a, b in (("micle", "random"), ("simclr", "random"), ("micle", "simclr")):
            mean, low, high = interval([table[a, fraction] - table[b, fraction] for table in found.values()])
            differences[f"{a}-{b}@{fraction:g}"] = [round(x, 4) for x in (mean, low, high)]
            print(f"{a} minus {b} at {fraction:.0%} of labels: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    means = {f"{arm}@{fr:g}": round(statistics.fmean(t[arm, fr] for t in found.values()), 4) for arm, fr in cells}
    line = {"name": "demo_seeds", "unit": f"mean AUC on {options.split}", "seeds": seeds, "means": means}
    print(json.dumps(line | {"smallest_fraction": smallest, "differences": differences}))


if __name__ == "__main__":
    main()
