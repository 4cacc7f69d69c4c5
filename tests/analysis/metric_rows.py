"""Generated rows of metrics, without predictions behind them: of all arms that the paper's tables name."""

import csv
from itertools import product
from pathlib import Path

import pyarrow as pa

from medssl import schema

PUBLISHED_DIR = Path(schema.__file__).parent / "analysis" / "published"
CASE_METRICS = (
    ("top_k_accuracy", 1), ("top_k_accuracy", 3), ("mean_top_k_sensitivity", 1), ("mean_top_k_sensitivity", 3),
    ("mean_auc", None),
)  # fmt: skip
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def row(**changes):
    """One row of metrics, of a model on the test split."""
    nothing = dict.fromkeys(
        ("k", "arm_b", "std", "ci_low", "ci_high", "p", "p_adjusted", "p_fdr", "delong_low", "delong_high", "delong_p")
    )
    return nothing | {
        "dataset": "set",
        "split": "test",
        "metric": "mean_auc",
        "class": "",
        "subgroup": "all",
        "arm_a": "a",
        "label_fraction": 1.0,
        "draw": 0,
        "repeat": "mean",
        "resampling_unit": "",
        "estimate": 0.5,
        "family": "",
        "n_units": 100,
        "n_patients": 50,
        "n_replicates": 0,
        "status": "ok",
        "reason": "",
        **changes,
    }


def table(rows):
    return pa.Table.from_pylist(list(rows), schema=schema.METRICS.columns)


def arms_table(arms):
    """schema.ARMS of (arm_id, architecture, method) or (…, num_steps, batch_size, augmentation)."""
    rows = []
    for arm_id, architecture, method, *rest in arms:
        num_steps, batch_size, augmentation = rest or (0, None, None)
        about = {"num_steps": num_steps, "batch_size": batch_size, "augmentation": augmentation}
        named = {"arm_id": arm_id, "architecture": architecture, "method": method}
        rows.append({**named, **about, "display_name": f"{architecture}, {method}"})
    return pa.Table.from_pylist(rows, schema=schema.ARMS.columns)


def published(name):
    """Rows of a file of published values, read without the project's reader."""
    with (PUBLISHED_DIR / f"table_{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def named_arms(*names):
    """(arm_id, architecture, method, …) of every arm that published tables name."""
    found = {}
    for line in (line for name in names for line in published(name)):
        method = line["method"] + (" (full augmentation)" if line["augmentation"] == "full" else "")
        augmentation = "simclr" if line["augmentation"] == "full" else "micle_partial"
        is_micle = method.startswith("MICLe")
        key = (line["architecture"], method)
        found.setdefault(key, (f"arm{len(found)}", *key, 250_000 if is_micle else 0, 128, is_micle and augmentation))
    return [(*arm[:5], arm[5] or None) for arm in found.values()]


def of_models(arms, metrics, fractions, *, classes=("",), dataset="set", split="test", repeats=3):
    """Rows of each repeat, of their mean and of the selected model; values differ between arms, metrics and repeats."""
    rows = []
    for (a, arm), fraction, (m, (metric, k)), (c, name) in product(
        enumerate(arms), fractions, enumerate(metrics), enumerate(classes)
    ):
        same = {"dataset": dataset, "split": split, "arm_a": arm[0], "label_fraction": fraction, "metric": metric}
        same |= {"k": k, "class": name}
        values = [0.5 + a / 200 + fraction / 10 + m / 50 + c / 100 + repeat / 1000 for repeat in range(repeats)]
        rows += [row(**same, repeat=str(repeat), estimate=value) for repeat, value in enumerate(values)]
        rows.append(row(**same, repeat="mean", estimate=sum(values) / repeats, std=0.001, reason=f"{repeats} repeats"))
        ends = {"ci_low": values[1] - 0.02, "ci_high": values[1] + 0.02, "n_replicates": 100}
        rows.append(row(**same, repeat="selected", resampling_unit="patient", estimate=values[1], **ends))
    return rows


def derm_metrics(arms, fractions=(0.1, 0.5, 0.9, 1.0), **options):
    """Rows of a study of cases."""
    return of_models(arms, CASE_METRICS, fractions, **options)


def chexpert_metrics(arms, fractions=(0.1, 1.0), **options):
    """Rows of a study of radiographs."""
    return [
        *of_models(arms, [("mean_auc", None)], fractions, **options),
        *of_models(arms, [("auc", None)], fractions, classes=FINDINGS, **options),
    ]
