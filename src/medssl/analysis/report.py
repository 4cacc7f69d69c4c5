"""The report of a study: one HTML page, with its figures and tables as files beside it.

Sections stand in the order in which a reader judges a study: what was asked, what came out, how sure that is, for
whom it holds, how training went, what the data were, what was left out, and what it was all made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from medssl import labels, layout
from medssl.analysis import conditions, inventory, outcomes, page, population, series, tables
from medssl.analysis import results as readings
from medssl.analysis.page import Details, Facts, Figure, Heading, Note, Part, Section
from medssl.analysis.results import DECIMALS, Evaluation, Results, sentence
from medssl.analysis.tables import Table, percent
from medssl.config import TaskConfig
from medssl.metrics import Metric

FIGURES_DIR, TABLES_DIR = "figures", "tables"
ALL_METRICS = "metrics.csv"
_LONG = 24  # rows beyond which a table is folded


@dataclass(frozen=True)
class ReportInputs:
    """Everything the report shows; no row of a patient among it.

    Attributes:
        study: The study as JSON values.
        index_summary: Counts of ingest.
        splits_summary: Counts of assign_splits.
        shards_summary: Content of `shards.json`.
        selection: Every point of the hyper-parameter search: arm_id, label_fraction, learning_rate, weight_decay,
            validation_score (None where not evaluable), step, chosen, reason.
        models: Every fine-tuned model: arm_id, label_fraction, draw, repeat, learning_rate, weight_decay,
            validation_score, num_train_images, num_train_patients, is_selected, checkpoint_digest.
        history: schema.HISTORY of pretraining and fine-tuning.
        arms: schema.ARMS.
        metrics: schema.METRICS of compare and of subgroups together.
        lineage: Digest of each artifact behind the report, by role.
    """

    study: Mapping[str, Any]
    index_summary: Mapping[str, Any]
    splits_summary: Mapping[str, Any]
    shards_summary: Mapping[str, Any]
    selection: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    history: pa.Table
    arms: pa.Table
    metrics: pa.Table
    lineage: Mapping[str, str]


def write(inputs: ReportInputs, out_dir: Path) -> None:
    """Write `index.html`, `figures/*.svg` and `tables/*.csv` below `out_dir`; equal inputs give equal bytes."""
    results = readings.read(inputs.metrics, inputs.arms, study=inputs.study)
    sections = [
        _asked(inputs.study, results),
        _results(results),
        _label_efficiency(results, inputs.arms),
        _significance(results),
        _subgroups(results, inputs.study["subgroups"]),
        _training(inputs, results),
        _data(inputs, results),
        _rejected(inputs, results),
        _lineage(inputs, results),
    ]
    title = inputs.study["report"]["title"]
    html = page.render(title, _lead(inputs, results), sections)
    for folder in (out_dir / FIGURES_DIR, out_dir / TABLES_DIR):
        folder.mkdir(parents=True, exist_ok=True)
    for part in page.leaves(part for section in sections for part in section.parts):
        if isinstance(part, Table):
            (out_dir / TABLES_DIR / f"{part.name}.csv").write_bytes(tables.to_csv(part).encode())
        elif isinstance(part, Figure):
            (out_dir / FIGURES_DIR / f"{part.name}.svg").write_text(part.svg, encoding="utf-8")
    pyarrow.csv.write_csv(_without_formulas(inputs.metrics), out_dir / TABLES_DIR / ALL_METRICS)
    (out_dir / layout.REPORT).write_text(html, encoding="utf-8")


def _without_formulas(rows: pa.Table) -> pa.Table:
    """The table with its words as `tables.no_formula` leaves them."""
    for position, column in enumerate(rows.schema):
        if column.type == pa.string():
            cells = [cell and tables.no_formula(cell) for cell in rows[column.name].to_pylist()]
            rows = rows.set_column(position, column, pa.array(cells, pa.string()))
    return rows


def headline(metrics: pa.Table, arms: pa.Table) -> str:
    """Primary test metric of each arm (rows) and label fraction (columns) as text for a terminal.

    A cell is the mean over all runs and its standard deviation (n - 1), without it for a single run; "n/e" where it is
    not evaluable.
    """
    results = readings.read(metrics, arms)
    fractions = sorted({label_set.fraction for label_set in results.labels})
    blocks = []
    for where in results.evaluations:
        rows = [
            [name, *(_terminal_cell(results.spread(where, arm, fraction)) for fraction in fractions)]
            for arm, name in results.arms.items()
        ]
        rows.insert(
            0, [f"{results.primary_words} on {results.place(where)}, by share of labels", *map(percent, fractions)]
        )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _terminal_cell(spread: readings.Spread | None) -> str:
    if spread is None:
        return "n/e"
    return f"{spread.mean:.{DECIMALS}f}" + ("" if spread.std is None else f" ± {spread.std:.{DECIMALS}f}")


def _lead(inputs: ReportInputs, results: Results) -> list[Part]:
    leaked = inputs.splits_summary.get("patients_in_two_splits")
    counts = [
        ("Images", inputs.index_summary.get("images")),
        ("Cases", inputs.index_summary.get("cases") if results.unit_kind == "case" else None),
        ("Patients", inputs.index_summary.get("patients")),
        ("Arms", len(results.arms)),
        ("Fine-tuned models", len(inputs.models)),
        ("Patients in two splits", leaked),
    ]
    notes: list[Part] = [Note(note) for note in inputs.study["report"]["notes"]]
    return [*notes, Facts(tuple((what, f"{count:,}") for what, count in counts if count is not None))]


def _asked(study: Mapping[str, Any], results: Results) -> Section:
    counted = [conditions.COUNTED] if results.unit_kind == "case" else []
    truth = " ".join([labels.describe(TaskConfig.model_validate(study["task"])), *counted])
    words = {"class_word": results.class_word, "unit_kind": results.unit_kind}
    parts: list[Part] = [truth, inventory.settings(study, results.findings, **words)]
    if study["pretraining"]:
        parts.append(inventory.pretraining(study))
    if study["not_run"]:
        parts.append(inventory.not_run(study))
    return Section("asked", "What was asked", tuple(parts))


def _results(results: Results) -> Section:
    drawn = " and ".join(dict.fromkeys(f"{results.resampled(where)}s" for where in results.evaluations))
    parts: list[Part] = [
        "The mean and its standard deviation (SD) are over repeated fine-tuning. The selected model is the repeat with "
        "the best validation score; its interval is a percentile bootstrap over "
        f"{drawn}. Validation scores chose hyper-parameters and models, so they flatter and have "
        "no interval."
    ]
    for where in results.evaluations:
        if results.group_kind(where) != "patient":
            parts.append(Note(_no_patient(results, where)))
        if results.unit_kind == "case":
            parts += conditions.results_of(results, where, long=_LONG)
            continue
        many = len(outcomes.reported(results, where, results.labels)) > _LONG
        first = [results.largest] if many else results.labels
        parts += [
            outcomes.overview(results, where, first, "results"),
            outcomes.per_finding(results, where, first, "findings", selected=False),
        ]
        folded = [outcomes.per_finding(results, where, results.labels, "findings-selected", selected=True)]
        if many:
            folded[:0] = [
                outcomes.overview(results, where, results.labels, "results-all"),
                outcomes.per_finding(results, where, results.labels, "findings-all", selected=False),
            ]
        summary = "All label fractions" if many else "Selected models per finding"
        parts.append(Details(f"{summary} ({results.place(where)})", tuple(folded)))
    return Section("results", "Results", tuple(parts))


def _no_patient(results: Results, where: Evaluation) -> str:
    """What it means that the set's patients stand for something finer."""
    kind = results.group_kind(where)
    return (
        f"The data set {where.dataset} names no patient: each {kind} stands for one, and {kind}s were split "
        f"and resampled. {kind.capitalize()}s of the same patient may lie in several splits, which flatters scores, "
        "and are drawn as if independent, so intervals may be too narrow."
    )


def _label_efficiency(results: Results, arms: pa.Table) -> Section:
    drawn = (series.label_efficiency(results, where, arms) for where in results.evaluations)
    parts = tuple(figure for figure in drawn if figure)
    return Section("label-efficiency", "Label efficiency", parts or (f"No {results.primary_words} was evaluable.",))


def _significance(results: Results) -> Section:
    parts: list[Part] = []
    for where in results.evaluations:
        whole = outcomes.differences(results, where)
        if not whole.rows:
            continue
        if figure := series.forest(results, where):
            parts.append(figure)
        further, summary = _further_metrics(results)
        parts += [
            _folded_if_long(whole, f"Every difference in {results.primary_words} ({results.place(where)})"),
            Details(f"{summary} ({results.place(where)})", (outcomes.secondary_differences(results, where, further),)),
        ]
    if not parts:
        return Section("significance", "Significance", ("The study compares no pair of arms.",))
    intro = (
        f"Each pair is compared through its selected models on the same resamples of the test {results.unit_kind}s. "
        f"A difference counts as shown when its {results.level} interval excludes 0 and the p value, adjusted by "
        f"Holm's method for all pairs at that label fraction, is at most {results.alpha:g}."
    )
    return Section("significance", "Significance", (intro, *parts))


def _further_metrics(results: Results) -> tuple[Sequence[Metric], str]:
    """What is compared beside the primary metric, without adjustment, and the heading of its table."""
    if results.unit_kind == "case":
        return conditions.SECONDARY, "Differences in other metrics"
    return [Metric("auc", None, "")], "Differences per finding"


def _subgroups(results: Results, config: Mapping[str, Any]) -> Section:
    parts: list[Part] = []
    for where in results.evaluations:
        found = outcomes.attributes(results, where)
        for attribute in (attribute for attribute in config["by"] if attribute in found):
            order = conditions.skin_type_order(config) if attribute == "skin_type_group" else ()
            others = [
                outcomes.subgroups(results, where, attribute, label_set, order=order)
                for label_set in reversed(results.labels)
                if label_set != results.largest
            ]
            words = attribute.replace("_", " ")
            parts.append(
                Heading(f"By {words}" + (f" ({results.place(where)})" if len(results.evaluations) > 1 else ""))
            )
            if attribute == "skin_type_group":
                parts.append(conditions.skin_type_map(config))
            parts.append(outcomes.subgroups(results, where, attribute, results.largest, order=order))
            if results.unit_kind == "case":
                top_k, largest = conditions.SECONDARY[0], results.largest
                table = outcomes.subgroups(results, where, attribute, largest, metric=top_k, order=order)
                parts.append(Details(f"By {words}, top-{top_k.k} accuracy", (table,)))
            if others:
                parts.append(Details(f"By {words}, other label fractions", tuple(others)))
    several = results.unit_kind == "case"
    comparable = "" if several else " It compares only groups in which the same findings are evaluable."
    every = "Every metric" if several else "AUC per finding"
    intro = (
        "A gap is freed of the upward bias of a largest difference; p is that of a gap as large as the observed one "
        f"among groups drawn by lot.{comparable} {every} and group: {TABLES_DIR}/{ALL_METRICS}."
    )
    return Section("subgroups", "Subgroups", (intro, *parts) if parts else ("The study asks for no subgroups.",))


def _training(inputs: ReportInputs, results: Results) -> Section:
    runs = [run["name"] for run in inputs.study["pretraining"]]
    drawn = (series.pretraining(inputs.history, runs), series.finetuning(inputs.history, results, inputs.arms))
    parts = tuple(figure for figure in drawn if figure)
    return Section("training", "Training curves", parts or ("No training curves were recorded.",))


def _data(inputs: ReportInputs, results: Results) -> Section:
    findings = results.findings
    leaked = inputs.splits_summary.get("patients_in_two_splits")
    parts: list[Part] = []
    if leaked is not None:
        parts.append(f"Patients in two splits: {leaked}, counted from the finished table of splits.")
    made = [
        population.splits(inputs.splits_summary),
        population.source(inputs.index_summary),
        population.label_states(inputs.index_summary, findings),
        population.label_fractions(inputs.splits_summary, inputs.models),
        population.balance(inputs.splits_summary, findings),
    ]
    parts += [table for table in made if table.rows]
    if deviation := population.largest_deviation(inputs.splits_summary):
        parts.append(deviation)
    return Section("data", "Data and splits", tuple(parts))


def _rejected(inputs: ReportInputs, results: Results) -> Section:
    by_reason, images = inventory.undecodable(inputs.shards_summary)
    usable = inputs.shards_summary.get("num_images")
    parts: list[Part] = [Heading("Images")]
    if images.rows:
        parts += [by_reason, Details(f"Each of them ({len(images.rows):,})", (images,))]
    parts.append(
        ("No image was refused" if not images.rows else f"Images refused: {len(images.rows):,}")
        + (f"; {usable:,} are in use." if usable is not None else ".")
    )
    points = inventory.selection(inputs.selection, results.arms, **_score(results))
    num_refused = sum(not row["chosen"] for row in inputs.selection)
    parts += [
        Heading("Hyper-parameters"),
        f"{num_refused} of {len(points.rows)} points of the search were not chosen.",
        Details("Every point of the search", (points,)),
        Heading("Values and intervals"),
    ]
    missing = outcomes.not_evaluated(results)
    parts.append(
        _folded_if_long(missing, f"{len(missing.rows)} kinds of values that could not be had")
        if missing.rows
        else "Every metric was evaluable, and no interval was withheld."
    )
    return Section("rejected", "What was rejected and why", tuple(parts))


def _score(results: Results) -> dict[str, str]:
    """What the validation score is, and why there may be none."""
    absent = (
        "no case with a known truth" if results.unit_kind == "case" else "no finding has both positives and negatives"
    )
    return {"score": sentence(results.primary_words), "absent": absent}


def _folded_if_long(table: Table, summary: str) -> Part:
    return Details(summary, (table,)) if len(table.rows) > _LONG else table


def _lineage(inputs: ReportInputs, results: Results) -> Section:
    models = inventory.models(inputs.models, results.arms, **_score(results))
    folded = Details(f"The {len(models.rows)} fine-tuned models", (models,))
    return Section("lineage", "Lineage", (inventory.lineage(inputs.lineage), folded))
