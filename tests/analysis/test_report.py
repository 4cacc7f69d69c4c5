import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from medssl import schema
from medssl.analysis import arms as arm_table
from medssl.analysis import groups, population, report
from medssl.analysis.compare import compare
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.subgroups import analyze
from medssl.config import Study

FINDINGS = ["Atelectasis", "Cardiomegaly", "Edema"]
NEVER_POSITIVE = "Cardiomegaly"
SKILL = {"random": 0.3, "simclr": 0.9, "micle": 1.3}
FRACTIONS = [0.1, 1.0]
TITLE = "Demo <script>alert('x')</script> & more"
VOID = {"meta", "br", "use", "path"}


def make_study():
    return Study.model_validate(
        {
            "name": "demo",
            "data": {"name": "phantom", "key": "public", "generate": {"patients": 60}},
            "task": {"findings": FINDINGS},
            "splits": {"train": 0.6, "validation": 0.15, "test": 0.25},
            "shards": {"image_size_px": 64},
            "encoders": {"small": {"depth": 18, "width": 0.25}, "large": {"depth": 50}},
            "pretraining": [
                {"name": "first", "method": "simclr", "encoder": "small", "num_steps": 40, "batch_size": 128},
                {"name": "second", "method": "micle", "encoder": "small", "init": "first", "num_steps": 30},
            ],
            "arms": [
                {"name": "random", "encoder": "large", "method": "Random Initialization"},
                {"name": "simclr", "encoder": "small", "init": "first", "method": "SimCLR Phantom"},
                {"name": "micle", "encoder": "small", "init": "second", "method": "MICLe <b>Phantom</b>"},
            ],
            "finetune": {"num_steps": 100, "learning_rates": [0.03, 0.1], "label_fractions": FRACTIONS, "repeats": 3},
            "compare": {"pairs": [["simclr", "random"], ["micle", "simclr"]], "num_replicates": 120},
            "subgroups": {"by": ["sex", "age_band"], "num_replicates": 100, "min_patients": 12},
            "report": {"title": TITLE, "notes": ["Numbers of <i>phantoms</i>."]},
        }
    )


def make_predictions(*, never_positive=NEVER_POSITIVE, num_patients=60, draws=1):
    rng = np.random.default_rng(3)
    rows = []
    for split, patient, image in product(("validation", "test"), range(num_patients), range(2)):
        truth = {name: int(rng.random() < 0.4 and name != never_positive) for name in FINDINGS}
        noise = rng.normal(size=len(FINDINGS))
        about = {"sex": "female" if patient % 3 else "male", "age_years": 20.0 + patient % 50 if patient > 3 else None}
        for arm, fraction, draw, repeat in product(SKILL, FRACTIONS, range(draws), range(3)):
            for (name, y_true), shared in zip(truth.items(), noise, strict=True):
                score = shared + rng.normal() * 0.5 + SKILL[arm] * (0.5 + fraction) * y_true
                rows.append(
                    {
                        "study_id": "demo",
                        "dataset": "phantom",
                        "dataset_digest": "d",
                        "split": split,
                        "arm_id": arm,
                        "label_fraction": fraction,
                        "draw": draw,
                        "repeat": repeat,
                        "unit_id": f"{split}{patient}-{image}",
                        "class": name,
                        "unit_kind": "image",
                        "group_kind": "patient",
                        "patient_id": f"{split}-patient{patient}",
                        "y_true": y_true,
                        "y_score": float(1 / (1 + np.exp(-score))),
                        "is_selected": repeat == 1,
                        "checkpoint_digest": "c",
                        "skin_type": None,
                        "view_position": "PA",
                        "site": None,
                        **about,
                    }
                )
    return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS.columns)


def make_metrics(study, predictions):
    compared = study.compare
    rows = compare(
        predictions,
        pairs=compared.pairs,
        num_replicates=compared.num_replicates,
        alpha=compared.alpha,
        resampling_units=compared.resampling_units,
        seed=0,
    )
    groups = study.subgroups
    rows += analyze(
        predictions,
        by=groups.by,
        age_edges=groups.age_edges,
        skin_type_groups=groups.skin_type_groups,
        min_patients=groups.min_patients,
        num_replicates=groups.num_replicates,
        alpha=groups.alpha,
        seed=0,
    )
    return pa.Table.from_pylist(rows, schema=schema.METRICS.columns)


def make_history():
    rows = []
    for run, step in product(("first", "second"), range(0, 40, 4)):
        for metric, value in (("loss", 5 - step / 20), ("contrastive_accuracy", step / 50), ("projection_std", 0.9)):
            rows.append({"run": run, "metric": metric, "step": step, "value": value})
    for arm, fraction, repeat, step in product(SKILL, FRACTIONS, range(3), range(25, 101, 25)):
        run = f"{arm} fraction{fraction:g}-draw0-repeat{repeat}-lr0.1-wd1e-05"
        value = 0.6 + step / 500 + repeat / 100
        rows.append({"run": run, "metric": "validation_mean_auc", "step": step, "value": value})
    return pa.Table.from_pylist(rows, schema=schema.HISTORY.columns)


def make_inputs(**changes):
    study = make_study()
    selection = [
        {
            "arm_id": arm,
            "label_fraction": 1.0,
            "draw": 0,
            "learning_rate": rate,
            "weight_decay": 0.0,
            "validation_score": 0.7 + rate if arm != "random" else None,
            "step": 75,
            "chosen": rate == 0.1,
            "reason": "best validation score" if rate == 0.1 else "validation score 0.0700 below the best",
        }
        for arm, rate in product(SKILL, (0.03, 0.1))
    ]
    models = [
        {
            "arm_id": arm,
            "label_fraction": fraction,
            "draw": 0,
            "repeat": repeat,
            "learning_rate": 0.1,
            "weight_decay": 0.0,
            "validation_score": 0.8,
            "step": 75,
            "num_train_images": int(200 * fraction),
            "num_train_patients": int(80 * fraction),
            "is_selected": repeat == 1,
            "checkpoint_digest": "ab" * 32,
        }
        for arm, fraction, repeat in product(SKILL, FRACTIONS, range(3))
    ]
    shares = {"overall": 0.41, "train": 0.42, "validation": 0.4, "test": 0.39}
    inputs = ReportInputs(
        study=study.dump(),
        index_summary={
            "rows": {"train.csv": 1200},
            "images": 1200,
            "cases": 900,
            "patients": 400,
            "frontal": 1000,
            "lateral": 200,
            "unknown_age": 3,
            "findings": {
                name: {"positive": 300, "negative": 700, "uncertain": 50, "blank": 150, "not assessed": 0}
                for name in FINDINGS
            },
        },
        splits_summary={
            "images": {"train": 720, "validation": 180, "test": 300, "official_valid": 0, "unused": 0},
            "patients": {"train": 240, "validation": 60, "test": 100, "official_valid": 0, "unused": 0},
            "requested_images": {"train": 720.0, "validation": 180.0, "test": 300.0},
            "patients_in_two_splits": 0,
            "label_fractions": [
                {"draw": 0, "label_fraction": n / 10, "patients": 24 * n, "images": 72 * n} for n in range(1, 11)
            ],
            "balance": {
                "shares": {
                    "share_female": shares,
                    "share_lateral": dict.fromkeys(shares),
                    **{f"share_positive {name}": shares for name in FINDINGS},
                },
                "mean_age_years": dict.fromkeys(shares, 60.25),
                "largest_deviation": {"of": "share_female", "split": "test", "absolute": 0.02},
            },
        },
        shards_summary={
            "num_images": 1197,
            "undecodable": [
                {"image_id": "00ff" * 8, "reason": "truncated"},
                {"image_id": "11ee" * 8, "reason": "truncated"},
                {"image_id": "22dd" * 8, "reason": "empty file"},
            ],
            "undecodable_by_reason": {"truncated": 2, "empty file": 1},
        },
        selection=selection,
        models=models,
        history=make_history(),
        arms=arm_table.table(study.arms, study.encoders, study.pretraining),
        metrics=make_metrics(study, make_predictions()),
        lineage={"index": "1" * 64, "splits": "2" * 64},
    )
    return replace(inputs, **changes)


@pytest.fixture(scope="module")
def inputs():
    return make_inputs()


@pytest.fixture(scope="module")
def out_dir(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(inputs, folder)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, texts outside <style>, and the rows of each table; refuses crossed tags."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.tables, self._open = [], [], {}, []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables[attributes["id"].removeprefix("table-")] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in VOID or self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text.append(data)
        # A footnote's mark is no part of the value.
        if {"td", "th"} & set(self._open) and "sup" not in self._open:
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def html(out_dir):
    return (out_dir / "index.html").read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def by_heading(rows):
    """Rows below each heading of a grouped table: heading, first cell -> the other cells."""
    found, heading = {}, None
    for row in rows[1:]:
        if len(row) == 1:
            heading = row[0]
        else:
            found.setdefault((heading, row[0]), []).append(row[1:])
    return found


def find(metrics, **values):
    base = {"split": "test", "subgroup": "all", "arm_b": None}
    rows = [r for r in metrics.to_pylist() if all(r[k] == v for k, v in (base | values).items())]
    assert rows
    return rows


def names(inputs):
    return {row["arm_id"]: row["display_name"] for row in inputs.arms.to_pylist()}


def test_equal_inputs_give_equal_bytes(inputs, out_dir, tmp_path):
    report.write(replace(inputs, arms=inputs.arms.slice(0)), tmp_path)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) > 15
    assert [(tmp_path / f).read_bytes() for f in files] == [(out_dir / f).read_bytes() for f in files]


def test_words_of_the_study_are_escaped_everywhere(html, out_dir):
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in html
    assert "<b>Phantom" not in html
    assert "<i>phantoms" not in html
    assert all("<b>Phantom" not in svg.read_text() for svg in out_dir.glob("figures/*.svg"))


def test_the_page_needs_nothing_but_itself(page, html):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "url(" not in re.sub(r"url\(#", "", html)
    assert "@import" not in html


def test_every_anchor_and_label_leads_to_exactly_one_element(page):
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        targets = attributes.get("aria-labelledby", "").split()
        targets += [v[1:] for k, v in attributes.items() if k in ("href", "xlink:href") and tag in ("a", "use")]
        assert set(targets) <= set(ids)


def test_header_cells_have_a_scope_and_figures_and_tables_a_name(page):
    tags = [tag for tag, _ in page.tags]
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert tags.count("caption") == tags.count("table") > 10
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [figure["aria-labelledby"].removesuffix("-desc").rpartition(" ")[2] for figure in figures] == [
        *("findings-by-labels-1-phantom-test", "findings-by-labels-2-phantom-test"),
        *("label-efficiency-phantom-test", "differences-phantom-test", "gaps-phantom-test"),
        *("pretraining", "finetuning", "balance"),
    ]
    assert all(figure["role"] == "img" and figure["aria-labelledby"] for figure in figures)
    assert tags.count("desc") == len(figures)


def test_the_results_table_shows_the_numbers_of_the_metrics(inputs, page):
    shown = by_heading(page.tables["results-phantom-test"])
    assert len(shown) == len(SKILL) * len(FRACTIONS)
    for arm, fraction in product(SKILL, FRACTIONS):
        common = {"arm_a": arm, "label_fraction": fraction, "metric": "mean_auc"}
        (mean,) = find(inputs.metrics, repeat="mean", **common)
        (validation,) = find(inputs.metrics, repeat="mean", **common, split="validation")
        (chosen,) = find(inputs.metrics, repeat="selected", resampling_unit="patient", **common)
        assert shown[names(inputs)[arm], f"{100 * fraction:.0f} %"] == [
            [
                "3",
                f"{mean['estimate']:.3f} ± {mean['std']:.3f}",
                f"{chosen['estimate']:.3f} [{chosen['ci_low']:.3f}, {chosen['ci_high']:.3f}]",
                f"{validation['estimate']:.3f} ± {validation['std']:.3f}",
            ]
        ]


def test_a_finding_that_is_not_evaluable_says_why_and_never_shows_a_missing_number(page, html):
    column = page.tables["findings-phantom-test"][0].index(NEVER_POSITIVE)
    cells = [row[column] for row in page.tables["findings-phantom-test"][1:] if len(row) > 1]
    assert set(cells) == {"not evaluable"}
    table = html[html.index('id="table-findings-phantom-test"') :]
    footnotes = table[table.index('<ul class="footnotes">') : table.index("</ul>")]
    assert "no positives" in footnotes
    assert not re.search(r"\b(nan|None|null|inf)\b", " ".join(page.text), re.IGNORECASE)


def test_differences_show_the_numbers_of_the_metrics_and_a_verdict(inputs, page):
    shown = by_heading(page.tables["differences-mean-phantom-test"])
    rows = [r for r in inputs.metrics.to_pylist() if r["arm_b"] and r["metric"] == "mean_auc"]
    assert len(rows) == sum(map(len, shown.values())) == 8
    minus = str.maketrans("-", "−")
    for row in rows:
        heading = f"{names(inputs)[row['arm_a']]} minus {names(inputs)[row['arm_b']]}"
        lines = {line[0]: line[1:] for line in shown[heading, f"{100 * row['label_fraction']:.0f} %"]}
        line = lines[row["resampling_unit"]]
        ends = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        assert line[0] == f"{row['estimate']:.3f} {ends}".translate(minus)
        assert line[1:5] == [f"{row['p']:.3f}", f"{row['p_adjusted']:.3f}", f"{row['p_fdr']:.3f}", "120"]
        assert (line[5] == "interval includes 0") == (row["ci_low"] <= 0 <= row["ci_high"])


def test_subgroups_show_counts_and_say_which_are_too_small(inputs, page):
    shown = {row[0]: row[1:] for row in page.tables["subgroups-phantom-test-age-band-1-0"][1:]}
    assert list(shown) == ["<40", "40-60", "60-80", "unknown", "Gap (largest − smallest)"]
    for group, line in shown.items():
        if group.startswith("Gap"):
            continue
        for arm, cell in zip(SKILL, line[2:], strict=True):
            keys = {"arm_a": arm, "label_fraction": 1.0, "metric": "mean_auc"}
            (row,) = find(inputs.metrics, subgroup=f"age_band={group}", **keys)
            assert line[:2] == [str(row["n_units"]), str(row["n_patients"])]
            expected = "too few patients" if row["status"] == "too_small" else f"{row['estimate']:.3f} ["
            assert cell.startswith(expected)
    assert set(shown["unknown"][2:]) == {"too few patients"}
    assert any("age band=unknown" in row for row in page.tables["not-evaluable"])


def test_label_fractions_of_the_study_stand_among_the_tenths(inputs):
    models = [*inputs.models, inputs.models[0] | {"label_fraction": 0.25, "num_train_patients": 61}]
    rows = [[cell.text for cell in row[1:]] for row in population.label_fractions(inputs.splits_summary, models).rows]
    used = inputs.models[0]["num_train_patients"], inputs.models[0]["num_train_images"]
    assert rows[0] == ["10 %", "24", "72", *map(str, used)]
    assert rows[1:4] == [
        ["20 %", "48", "144", "–", "–"],
        ["25 %", "–", "–", "61", str(used[1])],
        ["30 %", "72", "216", "–", "–"],
    ]


def test_requested_images_are_whole_and_left_out_age_bands_stand_by_age(inputs):
    summary = inputs.splits_summary | {"requested_images": {"train": 1718.5}}
    assert population.splits(summary).rows[0][1].text == "1,718"
    row = {"estimate": None, "status": "not_evaluable", "reason": "left out: age_band=40-60, age_band=<40"}
    assert groups._gap(row, "age_band").note == "left out: <40, 40-60"


def test_refused_images_are_listed_by_reason_with_their_pseudonyms(page):
    assert page.tables["undecodable-by-reason"][1:] == [["empty file", "1"], ["truncated", "2"]]
    assert page.tables["undecodable"][1:] == [
        ["00ff" * 8, "truncated"],
        ["11ee" * 8, "truncated"],
        ["22dd" * 8, "empty file"],
    ]


def test_no_patient_is_named_anywhere(out_dir):
    for file in out_dir.rglob("*.*"):
        assert b"patient1" not in file.read_bytes()


def test_tables_on_disk_say_what_the_page_says(out_dir, page):
    with (out_dir / "tables" / "splits.csv").open() as file:
        on_disk = list(csv.reader(file))
    assert [row[:-1] for row in on_disk] == page.tables["splits"]
    on_disk_names = {path.stem for path in (out_dir / "tables").glob("*.csv")}
    assert on_disk_names == set(page.tables) | {"metrics"}


def test_the_headline_is_the_mean_over_repeats_of_each_arm(inputs):
    lines = report.headline(inputs.metrics, inputs.arms).splitlines()
    assert lines[0].split()[-4:] == ["10", "%", "100", "%"]
    assert len({len(line) for line in lines}) == 1
    for line, (arm, name) in zip(lines[1:], names(inputs).items(), strict=True):
        assert line.startswith(name)
        expected = []
        for fraction in FRACTIONS:
            (row,) = find(inputs.metrics, arm_a=arm, label_fraction=fraction, metric="mean_auc", repeat="mean")
            expected.append(f"{row['estimate']:.3f} ± {row['std']:.3f}")
        assert re.findall(r"0\.\d{3} ± 0\.\d{3}", line) == expected


def test_the_headline_says_n_e_where_no_finding_is_evaluable(inputs):
    rows = [dict(row, estimate=None, std=None, status="not_evaluable") for row in inputs.metrics.to_pylist()]
    text = report.headline(pa.Table.from_pylist(rows, schema=inputs.metrics.schema), inputs.arms)
    assert re.findall(r"\S+$", text, re.MULTILINE) == ["%", "n/e", "n/e", "n/e"]


def test_a_study_with_several_draws_keeps_them_apart_in_tables_and_pools_them_in_the_headline(inputs, tmp_path):
    metrics = make_metrics(make_study(), make_predictions(num_patients=15, draws=2))
    report.write(replace(inputs, metrics=metrics), tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    labels = [label for _, label in by_heading(page.tables["results-phantom-test"])]
    assert labels[:4] == ["10 %, draw 0", "10 %, draw 1", "100 %, draw 0", "100 %, draw 1"]
    values = [
        row["estimate"]
        for row in find(metrics, arm_a="micle", label_fraction=1.0, metric="mean_auc")
        if row["repeat"] in "012"
    ]
    assert len(values) == 6
    last = report.headline(metrics, inputs.arms).splitlines()[-1]
    assert last.endswith(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")


def test_summaries_that_lack_everything_and_a_study_without_pairs_still_make_a_page(inputs, tmp_path):
    study = json.loads(json.dumps(inputs.study))
    study["compare"]["pairs"], study["pretraining"] = [], []
    rows = [row for row in inputs.metrics.to_pylist() if not row["arm_b"] and row["subgroup"] == "all"]
    metrics = pa.Table.from_pylist(rows, schema=inputs.metrics.schema)
    nothing = {"index_summary": {}, "splits_summary": {}, "shards_summary": {}, "selection": [], "models": []}
    bare = replace(inputs, study=study, metrics=metrics, history=inputs.history.slice(0, 0), **nothing)
    report.write(bare, tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    assert {"No pair of arms was compared.", "No subgroup was evaluated."} <= set(page.text)
    assert all(len(rows) > 1 for name, rows in page.tables.items() if name not in ("selection", "models"))


def test_arms_count_all_pretraining_on_the_way(inputs):
    rows = {row["arm_id"]: row for row in inputs.arms.to_pylist()}
    assert [rows[arm]["num_steps"] for arm in SKILL] == [0, 40, 70]
    assert [rows[arm]["batch_size"] for arm in SKILL] == [None, 128, 512]
    assert rows["random"]["display_name"] == "ResNet-50 (1x), Random Initialization"
    assert rows["micle"]["architecture"] == "ResNet-18 (0.25x)"
    schema.check(inputs.arms, schema.ARMS, "arms")


def test_an_arm_that_starts_from_an_unknown_run_is_refused():
    study = make_study()
    with pytest.raises(ValueError, match="'second' is unknown"):
        arm_table.table(study.arms, study.encoders, study.pretraining[:1])


def test_no_class_or_subgroup_becomes_a_formula_in_the_table_of_all_metrics(inputs, tmp_path):
    formula = "=HYPERLINK(1)"
    classes = [formula if name == "Edema" else name for name in inputs.metrics["class"].to_pylist()]
    position = inputs.metrics.column_names.index("class")
    metrics = inputs.metrics.set_column(position, inputs.metrics.schema.field("class"), pa.array(classes, pa.string()))
    report.write(replace(inputs, metrics=metrics), tmp_path)
    found = pa.csv.read_csv(tmp_path / "tables" / report.ALL_METRICS)
    assert set(found["class"].to_pylist()) == {*classes} - {formula} | {f"'{formula}"}
    assert found["estimate"].to_pylist() == pytest.approx(metrics["estimate"].to_pylist(), nan_ok=True)
    assert f">{formula}<" in (tmp_path / "index.html").read_text()
