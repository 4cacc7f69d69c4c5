import json
from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from medssl import schema
from medssl.analysis.bootstrap import paired_bootstrap
from medssl.analysis.partitions import age_bands
from medssl.analysis.runs import ROW_KEY
from medssl.analysis.subgroups import analyze
from medssl.metrics import auc

SETTINGS = {
    "by": ["sex", "age_band", "view_position"],
    "age_edges": [40, 60],
    "skin_type_groups": {"light": ["1", "2"], "dark": ["5", "6"]},
    "min_patients": 5,
    "num_replicates": 80,
    "alpha": 0.05,
    "seed": 0,
}
FINDINGS = ("Cardiomegaly", "Edema")
ARMS = {"MICLe": 1.5, "Random": 0.4}
SEXES = (*["Female"] * 25, *["Male"] * 20, *[None] * 2, *["Unknown"] * 2)


def prediction_rows():
    """49 patients, 4 of them of unknown sex, with two images each, one a view; two repeats an arm."""
    rows = []
    for (arm_id, separation), repeat in product(ARMS.items(), (0, 1)):
        noise, truth_rng = np.random.default_rng([repeat, int(10 * separation)]), np.random.default_rng(3)
        for (patient, sex), view, finding in product(enumerate(SEXES), ("AP", "PA"), FINDINGS):
            y_true = int(truth_rng.random() < 0.5)
            row = {
                "study_id": "s",
                "dataset": "phantom",
                "dataset_digest": "d",
                "split": "test",
                "arm_id": arm_id,
            }
            row |= {
                "label_fraction": 1.0,
                "draw": 0,
                "repeat": repeat,
                "class": finding,
                "unit_kind": "image",
                "group_kind": "patient",
            }
            row |= {"unit_id": f"i{patient:02}-{view}", "patient_id": f"p{patient:02}", "y_true": y_true}
            row |= {
                "y_score": float(noise.normal() + separation * y_true),
                "is_selected": repeat == 1,
                "sex": sex,
            }
            row |= {"age_years": None if patient == 7 else 20 + patient, "skin_type": None, "site": "a"}
            rows.append(row | {"view_position": view})
    return rows


def table(rows):
    types = {"age_years": pa.float32(), "sex": pa.string(), "skin_type": pa.string(), "y_true": pa.int8()}
    fields = {name: types.get(name) or pa.array([rows[0][name]]).type for name in rows[0]}
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def find(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


@pytest.fixture(scope="module")
def predictions():
    return prediction_rows()


@pytest.fixture(scope="module")
def metrics(predictions):
    return analyze(table(predictions), **SETTINGS)


def arrays(rows):
    """Truth and scores as units by findings, and patients, with units by name."""
    units = sorted({row["unit_id"] for row in rows})
    cell = {(row["unit_id"], row["class"]): row for row in rows}
    y_true, y_score = (
        np.array([[cell[unit, finding][name] for finding in FINDINGS] for unit in units], dtype=float)
        for name in ("y_true", "y_score")
    )
    return y_true, y_score, np.array([int(unit[1:3]) for unit in units])


def test_a_group_has_the_metrics_of_its_units_on_resamples_of_all_patients(predictions, metrics):
    y_true, y_score, patients = arrays(find(predictions, arm_id="MICLe", repeat=1))
    in_group = np.array([SEXES[patient] == "Female" for patient in patients])
    of_group = np.where(in_group[:, None], y_true, np.nan)
    replicates = paired_bootstrap(of_group, y_score[None], patients, num_replicates=80, seed=0)
    at = {"arm_a": "MICLe", "subgroup": "sex=Female"}
    for c, interval in enumerate(replicates.intervals(0, alpha=0.05)[:2]):
        (row,) = find(metrics, metric="auc", **at, **{"class": FINDINGS[c]})
        assert row["estimate"] == pytest.approx(auc(y_true[in_group, c], y_score[in_group, c]), abs=1e-12)
        assert (row["ci_low"], row["ci_high"]) == (interval.ci_low, interval.ci_high)
    (mean,) = find(metrics, metric="mean_auc", **at)
    assert (mean["n_units"], mean["n_patients"], mean["resampling_unit"]) == (50, 25, "patient")
    assert (mean["status"], mean["n_replicates"], mean["repeat"]) == ("ok", 80, "selected")


def test_groups_split_the_units_and_unknown_is_a_group_of_its_own(metrics):
    groups = find(metrics, metric="mean_auc", arm_a="Random")
    counts = {row["subgroup"]: (row["n_units"], row["n_patients"]) for row in groups}
    assert counts == {
        "sex=Female": (50, 25),
        "sex=Male": (40, 20),
        "sex=unknown": (8, 4),
        "age_band=<40": (38, 19),
        "age_band=40-60": (40, 20),
        "age_band=60+": (18, 9),
        "age_band=unknown": (2, 1),
        "view_position=AP": (49, 49),
        "view_position=PA": (49, 49),
    }


def test_rows_fit_the_declared_metrics_table(metrics):
    made = pa.Table.from_pylist(metrics, schema=schema.METRICS.columns)
    assert schema.check(made, schema.METRICS, "metrics.parquet").to_pylist() == metrics


def test_small_groups_are_named_but_not_assessed(metrics):
    for row in find(metrics, subgroup="sex=unknown"):
        assert (row["status"], row["estimate"], row["ci_low"]) == ("too_small", None, None)
        assert row["reason"] == "4 patients, at least 5 are needed"


def test_the_raw_gap_is_largest_minus_smallest_among_the_assessed_groups_and_the_corrected_one_smaller(metrics):
    for arm_id, attribute in product(ARMS, SETTINGS["by"]):
        groups = [row for row in find(metrics, metric="mean_auc", arm_a=arm_id) if row["status"] == "ok"]
        means = [row["estimate"] for row in groups if row["subgroup"].startswith(f"{attribute}=")]
        (raw,) = find(metrics, metric="mean_auc_gap_raw", arm_a=arm_id, subgroup=attribute)
        (gap,) = find(metrics, metric="mean_auc_gap", arm_a=arm_id, subgroup=attribute)
        assert raw["estimate"] == max(means) - min(means)
        assert (raw["resampling_unit"], raw["ci_low"], gap["resampling_unit"]) == ("", None, "patient")
        assert 0 <= gap["ci_low"] <= gap["estimate"] <= raw["estimate"] + 1e-12 < gap["ci_high"]
        assert 1 / 81 <= gap["p"] <= 1
        # Among the oldest, too many resamples lack a finding.
        left_out = {"sex": "sex=unknown", "age_band": "age_band=60+, age_band=unknown"}.get(attribute)
        for row in (raw, gap):
            assert row["status"] == ("partial" if left_out else "ok")
            assert row["reason"].startswith(f"largest {attribute}=")
            assert (f"; left out: {left_out}" in row["reason"]) == bool(left_out)
    assert (find(metrics, metric="mean_auc_gap", subgroup="sex")[0]["n_patients"]) == 45
    assert (find(metrics, metric="mean_auc_gap", subgroup="view_position")[0]["n_patients"]) == 49


def test_a_group_without_negatives_is_not_evaluable_and_stays_out_of_the_gap(predictions):
    chosen = {"sex": "Male", "class": "Edema"}
    rows = [row | {"y_true": 1} if find([row], **chosen) else row for row in predictions]
    metrics = analyze(table(rows), **SETTINGS)
    for row in find(metrics, subgroup="sex=Male", metric="auc", **{"class": "Edema"}):
        assert (row["status"], row["estimate"], row["reason"]) == ("not_evaluable", None, "no negatives")
    assert {row["status"] for row in find(metrics, subgroup="sex=Male", metric="mean_auc")} == {"partial"}
    for gap in find(metrics, metric="mean_auc_gap", subgroup="sex"):
        assert (gap["status"], gap["estimate"]) == ("not_evaluable", None)
        assert gap["reason"] == "1 comparable groups, 2 are needed; left out: sex=Male, sex=unknown"


def test_a_finding_that_no_group_can_assess_does_not_hide_the_gap(predictions):
    rows = [row | {"y_true": None} if row["class"] == "Edema" else row for row in predictions]
    (gap,) = find(analyze(table(rows), **SETTINGS), metric="mean_auc_gap", subgroup="view_position", arm_a="MICLe")
    assert gap["status"] == "ok"


def test_pairs_of_attributes_cross_their_groups_and_have_gaps_of_their_own(predictions):
    pairs = [("sex", "view_position")]
    metrics = analyze(table(predictions), **SETTINGS, attribute_pairs=pairs, arm_pairs=[("MICLe", "Random")])
    means = find(metrics, metric="mean_auc", arm_a="MICLe")
    crossed = {row["subgroup"]: row["n_units"] for row in means if " & " in row["subgroup"]}
    assert crossed == {
        f"sex={sex} & view_position={view}": n
        for sex, n in (("Female", 25), ("Male", 20), ("unknown", 4))
        for view in ("AP", "PA")
    }
    chosen = find(predictions, arm_id="MICLe", repeat=1, sex="Male", view_position="PA")
    y_true, y_score, _ = arrays(chosen)
    (row,) = find(means, subgroup="sex=Male & view_position=PA")
    expected = np.mean([auc(y_true[:, c], y_score[:, c]) for c in range(len(FINDINGS))])
    assert row["estimate"] == pytest.approx(expected, abs=1e-12)
    (gap,) = find(metrics, metric="mean_auc_gap", arm_a="MICLe", subgroup="sex & view_position")
    assert (gap["n_units"], gap["n_patients"]) == (90, 45)
    # Nothing else depends on the pairs.
    alone = analyze(table(predictions), **SETTINGS, arm_pairs=[("MICLe", "Random")])
    assert [row for row in metrics if " & " not in row["subgroup"]] == alone


def test_a_difference_of_gaps_turns_its_sign_with_the_arms_and_is_none_between_equal_ones(predictions):
    settings = SETTINGS | {"by": ["sex"]}
    twins = [row | {"arm_id": "twin"} for row in find(predictions, arm_id="MICLe")]
    pairs = [("MICLe", "Random"), ("Random", "MICLe"), ("MICLe", "twin"), ("MICLe", "absent")]
    metrics = analyze(table(predictions + twins), **settings, arm_pairs=pairs)
    found = find(metrics, metric="mean_auc_gap_difference", subgroup="sex")
    rows = {(row["arm_a"], row["arm_b"]): row for row in found}
    assert set(rows) == set(pairs[:3])
    one, other, same = (rows[pair] for pair in pairs[:3])
    assert (one["estimate"], one["ci_low"]) == pytest.approx((-other["estimate"], -other["ci_high"]), abs=1e-12)
    assert one["p"] == other["p"] <= 1
    assert (same["estimate"], same["ci_low"], same["ci_high"], same["p"]) == (0, 0, 0, 1)


def test_a_group_of_arms_is_compared_by_the_arm_that_validation_chose(predictions):
    # On validation Random is made the better one.
    other = {"MICLe": "Random", "Random": "MICLe"}
    validation = [row | {"split": "validation", "arm_id": other[row["arm_id"]]} for row in predictions]
    external = [row | {"split": "external", "dataset": "elsewhere"} for row in predictions]
    pairs = [("all of them", "MICLe"), ("Random", "MICLe")]
    groups = {"all of them": ["MICLe", "Random"]}
    settings = SETTINGS | {"by": ["sex"], "arm_pairs": pairs, "arm_groups": groups}
    metrics = analyze(table(predictions + validation + external), **settings)
    for metric in ("mean_auc_gap_difference", "mean_auc_drop"):
        found = [row for row in find(metrics, metric=metric, arm_b="MICLe") if row["subgroup"] in ("all", "sex")]
        assert {row["arm_a"] for row in found} == {"all of them", "Random"}
        assert len({(row["dataset"], row["estimate"], row["ci_low"], row["p"]) for row in found}) == len(found) / 2


def test_a_pair_with_an_attribute_that_is_the_same_for_all_says_so(predictions):
    settings = SETTINGS | {"by": ["sex", "site"]}
    metrics = analyze(table(predictions), **settings, attribute_pairs=[("sex", "site")])
    rows = [row for row in metrics if "&" in row["subgroup"]]
    assert {(row["metric"], row["subgroup"], row["status"]) for row in rows} == {
        ("mean_auc_gap", "sex & site", "not_evaluable")
    }
    assert {row["reason"] for row in rows} == {"the groups are those of sex"}


def test_a_group_that_often_lacks_a_class_stays_out_of_the_gap(predictions):
    # Of one patient with the finding among 20, a third of the resamples have none.
    first = next(i for i, sex in enumerate(SEXES) if sex == "Male")
    rows = [
        row | {"y_true": int(row["patient_id"] == f"p{first:02}")}
        if find([row], **{"class": "Edema", "sex": "Male"})
        else row
        for row in predictions
    ]
    metrics = analyze(table(rows), **SETTINGS)
    (gap,) = find(metrics, metric="mean_auc_gap", subgroup="sex", arm_a="MICLe")
    assert gap["reason"] == "1 comparable groups, 2 are needed; left out: sex=Male, sex=unknown"


def test_a_group_of_fewer_than_ten_patients_has_estimates_without_intervals_and_stays_out_of_the_gap(predictions):
    kept = {f"p{patient:02}" for patient in range(32)}  # 25 and 7 patients
    metrics = analyze(table([row for row in predictions if row["patient_id"] in kept]), **SETTINGS)
    for row in find(metrics, subgroup="sex=Male", metric="mean_auc"):
        assert (row["status"], row["ci_low"], row["n_patients"]) == ("interval_withheld", None, 7)
        assert row["estimate"] is not None
        assert row["reason"] == "7 patients count, an interval takes at least 10"
    for gap in find(metrics, metric="mean_auc_gap", subgroup="sex"):
        assert (gap["status"], gap["p"]) == ("not_evaluable", None)
        assert gap["reason"] == "1 comparable groups, 2 are needed; left out: sex=Male"


def test_an_attribute_known_of_nobody_is_one_unknown_group(predictions):
    metrics = analyze(table(predictions), **SETTINGS | {"by": ["skin_type"]})
    assert {row["subgroup"] for row in metrics} == {"skin_type=unknown", "skin_type"}
    assert {row["status"] for row in find(metrics, subgroup="skin_type")} == {"not_evaluable"}


def test_rows_are_sorted_unique_by_key_free_of_nan_and_independent_of_the_input_order(predictions, metrics):
    keys = [tuple("" if row[name] is None else str(row[name]) for name in ROW_KEY) for row in metrics]
    assert keys == sorted(set(keys))
    order = np.random.default_rng(0).permutation(len(predictions))
    mixed = analyze(table([predictions[i] for i in order]), **SETTINGS)
    assert json.dumps(mixed, allow_nan=False) == json.dumps(metrics, allow_nan=False)


def test_age_bands_exclude_their_upper_edge():
    ages = np.array([0, 39.9, 40, 59, 60, 101, np.nan])
    expected = ["<40", "<40", "40-60", "40-60", "60+", "60+", "unknown"]
    assert age_bands(ages, age_edges=[40, 60]).tolist() == expected
    assert age_bands(ages, age_edges=[100]).tolist() == [*["<100"] * 5, "100+", "unknown"]


def test_progress_counts_every_attribute(predictions):
    steps = []
    analyze(
        table(predictions),
        **SETTINGS,
        progress=lambda done, total, detail: steps.append((done, total, detail)),
    )
    assert steps == [
        (1, 3, "grouped by sex"),
        (2, 3, "grouped by age_band"),
        (3, 3, "grouped by view_position"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": ["sex", "income"]}, "'income'"),
        ({"by": ["sex", "sex"]}, "distinct"),
        ({"attribute_pairs": [("sex", "site")]}, "distinct pairs of"),
        ({"attribute_pairs": [("sex", "view_position"), ("view_position", "sex")]}, "distinct pairs of"),
        ({"age_edges": [60, 40]}, "increasing"),
        ({"age_edges": []}, "one or more"),
    ],
)
def test_bad_settings_are_refused(predictions, settings, message):
    with pytest.raises(ValueError, match=message):
        analyze(table(predictions), **SETTINGS | settings)


def test_a_missing_column_is_named(predictions):
    with pytest.raises(ValueError, match=r"'sex'.* missing"):
        analyze(table(predictions).drop_columns(["sex"]), **SETTINGS)
