import hashlib
import json
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from medssl import schema
from medssl.analysis.compare import compare
from medssl.analysis.multiplicity import holm
from medssl.analysis.runs import ROW_KEY

SETTINGS = {
    "pairs": [("MICLe", "Random")],
    "num_replicates": 60,
    "alpha": 0.05,
    "resampling_units": ["patient", "image"],
    "seed": 0,
}
COLUMNS = [*ROW_KEY, "estimate", "std", "ci_low", "ci_high", "p", "p_adjusted", "p_fdr"]
COLUMNS += ["delong_low", "delong_high", "delong_p", "family"]
COLUMNS += ["n_units", "n_patients", "n_replicates", "status", "reason"]


@dataclass(frozen=True)
class TestSet:
    """Truth of some images of some patients; scores are made by arm and repeat."""

    __test__ = False
    num_patients: int = 40
    classes: tuple[str, ...] = ("Edema", "Cardiomegaly")

    def rows(self, *, arm_id, repeat, separation, split="test", label_fraction=1.0, selected=0, dataset="phantom"):
        truth_rng = np.random.default_rng(11)
        noise = np.random.default_rng([repeat, int(separation * 10)])
        rows = []
        for patient, image in product(range(self.num_patients), range(3)):
            for name in self.classes:
                y_true = int(truth_rng.random() < 0.4)
                known = truth_rng.random() > 0.1
                row = {
                    "study_id": "s",
                    "dataset": dataset,
                    "dataset_digest": "d",
                    "split": split,
                    "arm_id": arm_id,
                }
                row |= {"label_fraction": label_fraction, "draw": 0, "repeat": repeat, "class": name}
                row |= {
                    "unit_id": f"i{patient}-{image}",
                    "unit_kind": "image",
                    "group_kind": "patient",
                    "patient_id": f"p{patient}",
                }
                row |= {
                    "y_true": y_true if known else None,
                    "y_score": float(noise.normal() + separation * y_true),
                }
                rows.append(row | {"is_selected": repeat == selected})
        return rows


ARMS = {"MICLe": 1.5, "SimCLR": 1.0, "Random": 0.4}


def prediction_rows(arms=ARMS, repeats=(0, 1, 2), splits=("validation", "test"), **options):
    test_set = options.pop("test_set", TestSet())
    return [
        row
        for (arm_id, separation), repeat, split in product(arms.items(), repeats, splits)
        for row in test_set.rows(arm_id=arm_id, repeat=repeat, separation=separation, split=split, **options)
    ]


def table(rows):
    types = {name: pa.Table.from_pylist(rows[:50]).schema.field(name).type for name in rows[0]}
    return pa.Table.from_pylist(rows, schema=pa.schema(types | {"y_true": pa.int8()}))


def find(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def aucs(rows):
    return [row for row in rows if row["metric"] in ("auc", "mean_auc")]


@pytest.fixture(scope="module")
def predictions():
    return prediction_rows()


@pytest.fixture(scope="module")
def metrics(predictions):
    return compare(table(predictions), **SETTINGS)


def test_every_row_has_the_columns_of_the_metrics_table_and_a_key_of_its_own(metrics):
    assert all(list(row) == COLUMNS for row in metrics)
    assert len({tuple(row[name] for name in ROW_KEY) for row in metrics}) == len(metrics)


def test_rows_fit_the_declared_metrics_table(metrics):
    made = pa.Table.from_pylist(metrics, schema=schema.METRICS.columns)
    assert schema.check(made, schema.METRICS, "metrics.parquet").to_pylist() == metrics


def test_nothing_is_nan_and_everything_undefined_says_why(metrics):
    json.dumps(metrics, allow_nan=False)
    assert all(row["estimate"] is not None or (row["status"] != "ok" and row["reason"]) for row in metrics)


def test_point_rows_equal_scikit_learn(predictions, metrics):
    for arm_id, split, repeat in product(ARMS, ("validation", "test"), (0, 2)):
        of_class = []
        for name in ("Cardiomegaly", "Edema"):
            rows = find(predictions, arm_id=arm_id, split=split, repeat=repeat, **{"class": name})
            known = [row for row in rows if row["y_true"] is not None]
            of_class.append(roc_auc_score([r["y_true"] for r in known], [r["y_score"] for r in known]))
            at = {"arm_a": arm_id, "split": split, "repeat": str(repeat)}
            (row,) = find(metrics, metric="auc", **at, **{"class": name})
            assert row["estimate"] == pytest.approx(of_class[-1], abs=1e-12)
            assert (row["n_units"], row["n_patients"]) == (len(known), len({r["patient_id"] for r in known}))
        (row,) = find(metrics, metric="mean_auc", **at)
        assert row["estimate"] == pytest.approx(np.mean(of_class), abs=1e-12)


def test_mean_rows_average_the_repeats_with_their_standard_deviation(metrics):
    values = [find(metrics, metric="mean_auc", arm_a="SimCLR", split="test", repeat=r)[0]["estimate"] for r in "012"]
    (row,) = find(metrics, metric="mean_auc", arm_a="SimCLR", split="test", repeat="mean")
    assert row["estimate"] == pytest.approx(sum(values) / 3)
    assert row["std"] == pytest.approx((sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5)


def test_one_repeat_has_no_standard_deviation():
    metrics = compare(table(prediction_rows(repeats=(0,))), **SETTINGS)
    (row,) = find(metrics, metric="mean_auc", arm_a="SimCLR", split="test", repeat="mean")
    assert row["std"] is None
    assert "no standard deviation" in row["reason"]


def test_selected_rows_repeat_the_selected_run_with_an_interval_on_test_splits_only(metrics):
    selected = aucs(find(metrics, repeat="selected", arm_b=None))
    assert {row["split"] for row in selected} == {"test"}
    assert {row["resampling_unit"] for row in selected} == {"patient", "image"}
    for row in selected:
        key = {name: row[name] for name in ("metric", "class", "arm_a", "split")}
        assert row["estimate"] == find(metrics, repeat="0", **key)[0]["estimate"]
        assert row["ci_low"] < row["estimate"] < row["ci_high"]
        assert row["n_replicates"] == 60


def test_differences_are_those_of_the_selected_rows(metrics):
    differences = aucs(find(metrics, arm_b="Random"))
    assert len(differences) == 2 * 3
    for row in differences:
        key = {name: row[name] for name in ("metric", "class", "repeat", "resampling_unit")}
        a, b = (find(metrics, arm_a=arm, arm_b=None, **key)[0]["estimate"] for arm in ("MICLe", "Random"))
        assert row["estimate"] == a - b
        assert row["ci_low"] > 0
        assert row["p"] == 2 / 61


def test_swapping_a_pair_mirrors_the_difference(predictions, metrics):
    swapped = compare(table(predictions), **SETTINGS | {"pairs": [("Random", "MICLe")]})
    for row in aucs(find(metrics, arm_b="Random")):
        key = {name: row[name] for name in ("metric", "class", "resampling_unit")}
        (mirror,) = find(swapped, arm_b="MICLe", **key)
        mirrored = [-mirror["estimate"], -mirror["ci_high"], -mirror["ci_low"], mirror["p"]]
        assert [row["estimate"], row["ci_low"], row["ci_high"], row["p"]] == pytest.approx(mirrored)


def test_two_arms_with_the_same_scores_differ_by_zero_with_p_one():
    metrics = compare(table(prediction_rows(arms={"MICLe": 1.0, "Random": 1.0})), **SETTINGS)
    for row in aucs(find(metrics, arm_b="Random")):
        assert (row["estimate"], row["ci_low"], row["ci_high"], row["p"]) == (0, 0, 0, 1)


def test_the_order_and_the_chunks_of_the_rows_change_nothing(predictions, metrics):
    order = np.random.default_rng(0).permutation(len(predictions))
    mixed = table([predictions[i] for i in order])
    chunked = pa.concat_tables([mixed.slice(0, 300), mixed.slice(300)])
    assert json.dumps(compare(chunked, **SETTINGS)) == json.dumps(metrics)


def test_holm_adjusts_the_mean_auc_differences_of_one_family(predictions):
    pairs = [("MICLe", "Random"), ("MICLe", "SimCLR"), ("SimCLR", "Random")]
    metrics = compare(table(predictions), **SETTINGS | {"pairs": pairs})
    for unit in ("patient", "image"):
        family = [row for row in find(metrics, metric="mean_auc", resampling_unit=unit) if row["arm_b"]]
        assert [row["p_adjusted"] for row in family] == holm([row["p"] for row in family])
        assert {row["family"] for row in family} == {"all pairs at this label fraction"}
    assert all(row["p_adjusted"] is None for row in find(metrics, metric="auc"))


def test_aucs_of_images_stay_what_they_were_before_cases_and_other_metrics_were_known(metrics):
    numbers = ("estimate", "std", "ci_low", "ci_high")
    kept = [*ROW_KEY, *numbers, "n_units", "n_patients", "n_replicates", "status", "reason"]
    rows = [{name: row[name] for name in kept} for row in metrics if row["metric"] in ("auc", "mean_auc")]
    rounded = [row | {name: None if row[name] is None else f"{row[name]:.9f}" for name in numbers} for row in rows]
    digest = hashlib.sha256(json.dumps(rounded).encode()).hexdigest()
    assert (len(rounded), digest) == (96, "fe96c9cc8db0654c84eaaf4721c305b1d31f82d03cc7638dbfa4ffcea8f9944a")


def test_label_fractions_are_compared_apart():
    rows = [row for f in (0.1, 1.0) for row in prediction_rows(label_fraction=f, splits=("test",), repeats=(0,))]
    metrics = compare(table(rows), **SETTINGS)
    assert [row["label_fraction"] for row in find(metrics, arm_b="Random", metric="mean_auc")] == [
        0.1,
        0.1,
        1.0,
        1.0,
    ]
    alone = compare(table([row for row in rows if row["label_fraction"] == 0.1]), **SETTINGS)
    assert find(metrics, label_fraction=0.1) == alone


def test_an_external_set_gets_its_own_intervals_and_differences():
    rows = prediction_rows(repeats=(0,)) + prediction_rows(repeats=(0,), splits=("external",), dataset="other")
    metrics = compare(table(rows), **SETTINGS)
    differences = find(metrics, arm_b="Random", metric="mean_auc")
    assert {(row["dataset"], row["split"]) for row in differences} == {
        ("phantom", "test"),
        ("other", "external"),
    }


def test_a_finding_without_negatives_is_not_evaluable_and_leaves_the_mean_partial(predictions):
    rows = [row | {"y_true": 1} if row["class"] == "Edema" else row for row in predictions]
    metrics = compare(table(rows), **SETTINGS)
    for row in find(metrics, metric="auc", **{"class": "Edema"}):
        undefined = [row[name] for name in ("estimate", "std", "ci_low", "ci_high", "p")]
        assert (row["status"], row["reason"], undefined) == ("not_evaluable", "no negatives", [None] * 5)
        assert row["n_replicates"] == 0
    for row in find(metrics, metric="mean_auc", repeat="selected"):
        assert row["status"] == "partial"
        assert "Edema (no negatives)" in row["reason"]
        key = {name: row[name] for name in ("arm_a", "arm_b", "resampling_unit", "repeat")}
        (alone,) = find(metrics, metric="auc", **key, **{"class": "Cardiomegaly"})
        numbers = ("estimate", "ci_low", "ci_high", "p", "n_replicates")
        assert [row[name] for name in numbers] == [alone[name] for name in numbers]


def test_a_rare_finding_has_an_estimate_but_no_interval(predictions):
    rows = [row | {"y_true": int(row["unit_id"] == "i0-0")} if row["class"] == "Edema" else row for row in predictions]
    for row in aucs(find(compare(table(rows), **SETTINGS), repeat="selected")):
        withheld = row["class"] != "Cardiomegaly"
        assert row["status"] == ("interval_withheld" if withheld else "ok")
        assert row["estimate"] is not None
        assert (row["ci_low"] is None) == withheld
        assert ("replicates lack a class" in row["reason"]) == withheld


def test_a_pair_with_an_absent_arm_gives_a_row_that_says_so(predictions):
    metrics = compare(table(predictions), **SETTINGS | {"pairs": [("MICLe", "BiT")]})
    (row,) = find(metrics, arm_b="BiT")
    assert (row["status"], row["reason"], row["split"]) == (
        "not_evaluable",
        "no predictions of 'BiT'",
        "test",
    )
    assert (row["estimate"], row["p"]) == (None, None)


def test_progress_counts_every_step(predictions):
    steps = []
    compare(table(predictions), **SETTINGS, progress=lambda done, total, detail: steps.append((done, total)))
    assert steps == [(i, 20) for i in range(1, 21)]  # 3 arms x 3 repeats x 2 splits, and 2 resampling units


def without(rows, **values):
    return [row for row in rows if not find([row], **values)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: without(rows, arm_id="Random", unit_id="i3-1"), "120 and 119 units, 119 in common"),
        (
            lambda rows: without(rows, arm_id="MICLe", unit_id="i3-1", repeat=1, **{"class": "Edema"}),
            "239 rows for 120",
        ),
        (lambda rows: [*rows, rows[0], rows[1]], "2 rows repeat"),
        (
            lambda rows: [*rows[:-1], rows[-1] | {"y_true": 1 - (rows[-1]["y_true"] or 0)}],
            "differ in 1 truths",
        ),
        (lambda rows: [rows[0] | {"y_score": float("nan")}, *rows[1:]], "1 scores are not finite"),
        (lambda rows: [rows[0] | {"y_true": 2}, *rows[1:]], "1 truths are not 0, 1 or null"),
        (lambda rows: [rows[0] | {"patient_id": None}, *rows[1:]], "'patient_id': 1"),
        (lambda rows: [rows[0] | {"patient_id": "p9"}, *rows[1:]], "one patient a unit"),
        (lambda rows: [rows[0] | {"dataset_digest": "e"}, *rows[1:]], "several values of dataset_digest"),
        (
            lambda rows: [row | {"is_selected": True} for row in rows],
            "expected one selected repeat of each arm",
        ),
        (
            lambda rows: [{k: v for k, v in row.items() if k != "unit_kind"} for row in rows],
            "'unit_kind'.* missing",
        ),
    ],
)
def test_bad_predictions_are_refused_with_counts(predictions, change, message):
    with pytest.raises(ValueError, match=message):
        compare(table(change(predictions)), **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resampling_units": ["case"]}, "kind 'image'"),
        ({"resampling_units": ["image", "image"]}, "name each once"),
        ({"pairs": [("MICLe", "Random")] * 2}, "2 given, 1 different"),
    ],
)
def test_bad_settings_are_refused(predictions, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(table(predictions), **SETTINGS | settings)


def test_no_predictions_give_no_rows(predictions):
    assert compare(table(predictions).slice(0, 0), **SETTINGS) == []
