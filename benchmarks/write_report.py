"""Writing the report of a large study: 20 arms at 10 label fractions of 10 repeats, 33,745 images of 5 findings.

    .venv/bin/python -m benchmarks.write_report

Metrics are those that `compare` and `analyze_subgroups` make of two arms on few images, copied to all arms and label
fractions: their number does not depend on that of the images. "report" is `write_report` from the tables in memory to
all files; "curves" is what `medssl write-report --predictions` does before: reading the predictions of all images by
the 20 selected models that reliability curves are shown of, and binning them. Figures are processor time, which is what
a quiet machine takes; wall-clock time is among the details. There is no peer. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import alternate, show
from medssl import schema
from medssl.analysis import compare, report
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.runs import read_runs
from medssl.analysis.subgroups import analyze
from medssl.config import SubgroupConfig

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
NUM_IMAGES, NUM_PAIRS, NUM_FRACTIONS, NUM_REPEATS = 33_745, 10, 10, 10
IMAGES_A_PATIENT = 3
LIMIT_S = 60
PAIR = ("better", "worse")
ARCHITECTURES = ("ResNet-50 (1x)", "ResNet-50 (4x)", "ResNet-152 (2x)")


def predictions(num_images: int, arms: Mapping[str, float], *, repeats: int, splits: tuple[str, ...]) -> pa.Table:
    """Scores of each arm by its skill, at one label fraction."""
    rng = np.random.default_rng(0)
    num_rows = num_images * len(FINDINGS)
    image = np.repeat(np.arange(num_images), len(FINDINGS))
    patient = image // IMAGES_A_PATIENT
    y_true = (rng.random(num_rows) < 0.3).astype(np.int8)
    parts = []
    for split, (arm, skill), repeat in product(splits, arms.items(), range(repeats)):
        score = 1 / (1 + np.exp(-rng.normal(skill * y_true)))
        same: dict[str, Any] = {
            "study_id": "large", "dataset": "chexpert", "dataset_digest": "d", "split": split, "arm_id": arm,
            "label_fraction": 1.0, "draw": 0, "repeat": repeat, "unit_kind": "image", "group_kind": "patient",
            "is_selected": repeat == 0, "checkpoint_digest": "c", "skin_type": None, "view_position": "PA",
            "site": None,
        }  # fmt: skip
        columns: dict[str, Any] = {
            "unit_id": [f"{split}-i{i}" for i in image],
            "class": np.tile(FINDINGS, num_images),
            "patient_id": [f"{split}-p{p}" for p in patient],
            "y_true": y_true,
            "y_score": score,
            "sex": np.where(patient % 2, "male", "female"),
            "age_years": 20.0 + patient % 70,
        }
        fields = schema.PREDICTIONS.columns
        columns |= {
            name: pa.repeat(pa.scalar(value, fields.field(name).type), num_rows) for name, value in same.items()
        }
        arrays = [pa.array(columns[field.name], field.type) for field in fields]
        parts.append(pa.Table.from_arrays(arrays, schema=fields))
    return pa.concat_tables(parts)


def metrics(num_fractions: int, num_pairs: int) -> tuple[pa.Table, pa.Table]:
    """schema.METRICS and schema.CALIBRATION of a large study, copied from those of one pair of arms."""
    few = predictions(240, {PAIR[0]: 1.5, PAIR[1]: 1.0}, repeats=NUM_REPEATS, splits=("validation", "test"))
    config = SubgroupConfig(by=["sex", "age_band"], num_replicates=100)
    rows = compare.compare(
        few, pairs=[PAIR], num_replicates=100, alpha=0.05, resampling_units=["patient", "image"], seed=0
    )
    rows += analyze(
        few,
        by=config.by,
        age_edges=config.age_edges,
        skin_type_groups=config.skin_type_groups,
        min_patients=config.min_patients,
        num_replicates=config.num_replicates,
        alpha=config.alpha,
        seed=config.seed,
        attribute_pairs=[("sex", "age_band")],
        arm_pairs=[PAIR],
    )
    curves = compare.reliability_curves(read_runs(few))
    copies = list(product(range(num_pairs), ((f + 1) / num_fractions for f in range(num_fractions))))
    made = [
        pa.Table.from_pylist([copied(row, *copy) for copy in copies for row in few_rows], schema=kind.columns)
        for few_rows, kind in ((rows, schema.METRICS), (curves, schema.CALIBRATION))
    ]
    return made[0], made[1]


def copied(row: Mapping[str, Any], pair: int, fraction: float) -> dict[str, Any]:
    """A row of another pair of arms at another label fraction."""
    named = {side: f"{row[side]}{pair}" for side in ("arm_a", "arm_b", "arm_id") if row.get(side)}
    return {**row, **named, "label_fraction": fraction}


def arms(num_pairs: int) -> pa.Table:
    """What each arm is: methods of three architectures, which are panels of figures."""
    rows = []
    for number, name in product(range(num_pairs), PAIR):
        architecture, method = ARCHITECTURES[number % len(ARCHITECTURES)], f"Method {name} {number}"
        named = {"architecture": architecture, "method": method, "display_name": f"{architecture}, {method}"}
        rows.append(
            {"arm_id": f"{name}{number}", "num_steps": 1000, "batch_size": 64, "augmentation": "simclr"} | named
        )
    return pa.Table.from_pylist(rows, schema=schema.ARMS.columns)


def history(num_fractions: int, num_pairs: int) -> pa.Table:
    """Curves of every fine-tuning and of a pretraining run a pair."""

    def rows() -> Iterator[dict[str, Any]]:
        for pair, step in product(range(num_pairs), range(0, 1000, 10)):
            yield {"run": f"pretraining{pair}", "metric": "loss", "step": step, "value": 5 - step / 500}
        tenths = ((f + 1) / num_fractions for f in range(num_fractions))
        models = product(PAIR, range(num_pairs), tenths, range(NUM_REPEATS), range(100, 1001, 100))
        for name, pair, fraction, repeat, step in models:
            run = f"{name}{pair} fraction{fraction:g}-draw0-repeat{repeat}-lr0.1-wd0"
            yield {"run": run, "metric": "validation_mean_auc", "step": step, "value": 0.6 + step / 5000}

    return pa.Table.from_pylist(list(rows()), schema=schema.HISTORY.columns)


def processor_seconds(call: Callable[[], object], walls: list[float]) -> float:
    """Processor time of a call, of all its threads; its wall-clock time is appended to `walls`."""
    wall, begin = time.perf_counter(), time.process_time()
    call()
    walls.append(time.perf_counter() - wall)
    return time.process_time() - begin


def main() -> None:
    """Time both parts; print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, 4 arms, 3 label fractions, once")
    options = parser.parse_args()
    num_images, num_pairs, num_fractions, repeats = (
        (NUM_IMAGES // 10, 2, 3, 1) if options.quick else (NUM_IMAGES, NUM_PAIRS, NUM_FRACTIONS, options.repeats)
    )
    rows, curves = metrics(num_fractions, num_pairs)
    made = ReportInputs(
        metrics=rows, arms=arms(num_pairs), calibration=curves, history=history(num_fractions, num_pairs)
    )
    skills = {f"arm{number}": number / 10 for number in range(2 * num_pairs)}
    scores = predictions(num_images, skills, repeats=1, splits=("test",))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.parquet"
        schema.write(scores, schema.PREDICTIONS, file)
        del scores

        def binned() -> object:
            return compare.reliability_curves(read_runs(schema.read(file, schema.PREDICTIONS)))

        subjects: dict[str, Callable[[], object]] = {
            "report": partial(report.write, made, Path(folder)),
            "curves": binned,
        }
        walls: dict[str, list[float]] = {name: [] for name in subjects}
        timed = {name: partial(processor_seconds, call, walls[name]) for name, call in subjects.items()}
        figures = alternate(timed, repeats=repeats)
        page_mb = (Path(folder) / "index.html").stat().st_size / 1e6
    show(figures, "s")
    total = sum(statistics.median(values) for values in figures.values())
    print(f"{rows.num_rows:,} rows of metrics; page of {page_mb:.1f} MB; {total:.1f} s of at most {LIMIT_S}")
    record = {"name": "write_report", "unit": "s", "ours": round(total, 2), "limit": LIMIT_S, "repeats": repeats}
    detail = {"num_metrics_rows": rows.num_rows, "page_mb": round(page_mb, 1)}
    detail |= {name: round(statistics.median(values), 2) for name, values in figures.items()}
    detail |= {f"{name}_wall": round(statistics.median(values), 2) for name, values in walls.items()}
    print(json.dumps(record | {"detail": detail}))


if __name__ == "__main__":
    main()
