"""The sections of the report about how its numbers were made: training, data, what was rejected, and lineage."""

from collections.abc import Iterable, Sequence

from medssl.analysis import inventory, outcomes, page, population, series
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.page import Details, Facts, Heading, Note, Part, Section
from medssl.analysis.results import Results, sentence
from medssl.analysis.sections import folded_if_long


def lead(inputs: ReportInputs, results: Results) -> list[Part]:
    """What stands under the title."""
    leaked = inputs.splits_summary.get("patients_in_two_splits")
    counts = [
        ("Images", inputs.index_summary.get("images"), "ingest"),
        ("Cases", inputs.index_summary.get("cases") if results.unit_kind == "case" else None, "ingest"),
        ("Patients", inputs.index_summary.get("patients"), "ingest"),
        ("Arms", len(results.arms), ""),
        ("Fine-tuned models", len(inputs.models) or None, ""),
        ("Patients in two splits", leaked, "assign_splits"),
    ]
    notes: list[Part] = [Note(note) for note in inputs.study["report"]["notes"]] if inputs.study else []
    return [*notes, Facts(tuple((what, f"{count:,}", task) for what, count, task in counts if count is not None))]


def sections_of(inputs: ReportInputs, results: Results) -> list[Section]:
    """The sections but lineage, in the order of the page; only those that something is known of."""
    made = [_training(inputs, results)]
    if inputs.splits_summary or inputs.index_summary:
        made.append(_data(inputs, results))
    return [*made, _rejected(inputs, results)]


def _training(inputs: ReportInputs, results: Results) -> Section:
    history = inputs.history
    if history is None or not history.num_rows:
        return Section("training", "Training curves", ("No training curves were recorded.",))
    found = dict.fromkeys(
        run for run in map(str, history["run"].unique().to_pylist()) if not series.FINETUNING_RUN.match(run)
    )
    runs = [run["name"] for run in inputs.study["pretraining"]] if inputs.study else list(found)
    drawn = (series.pretraining(history, runs), series.finetuning(history, results, inputs.arms))
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
    if figure := series.balance(inputs.splits_summary, findings):
        parts.append(figure)
    if deviation := population.largest_deviation(inputs.splits_summary):
        parts.append(deviation)
    return Section("data", "Data and splits", tuple(parts))


def _rejected(inputs: ReportInputs, results: Results) -> Section:
    parts: list[Part] = []
    if inputs.shards_summary:
        parts += _refused_images(inputs)
    if inputs.selection:
        parts += _refused_settings(inputs, results)
    parts.append(Heading("Values and intervals"))
    missing = outcomes.not_evaluated(results)
    parts.append(
        folded_if_long(missing, f"{len(missing.rows)} kinds of values that could not be had")
        if missing.rows
        else "Every metric was evaluable, and no interval was withheld."
    )
    return Section("rejected", "What was rejected and why", tuple(parts))


def _refused_images(inputs: ReportInputs) -> list[Part]:
    by_reason, images = inventory.undecodable(inputs.shards_summary)
    usable = inputs.shards_summary.get("num_images")
    parts: list[Part] = [Heading("Images")]
    if images.rows:
        parts += [by_reason, Details(f"Each of them ({len(images.rows):,})", (images,))]
    refused = "No image was refused" if not images.rows else f"Images refused: {len(images.rows):,}"
    return [*parts, refused + (f"; {usable:,} are in use." if usable is not None else ".")]


def _refused_settings(inputs: ReportInputs, results: Results) -> list[Part]:
    points = inventory.selection(inputs.selection, results.arms, **_score(results))
    num_refused = sum(not row["chosen"] for row in inputs.selection)
    words = f"{num_refused} of {len(points.rows)} points of the search were not chosen."
    return [Heading("Hyper-parameters"), words, Details("Every point of the search", (points,))]


def _score(results: Results) -> dict[str, str]:
    """What the validation score is, and why there may be none."""
    absent = (
        "no case with a known truth" if results.unit_kind == "case" else "no finding has both positives and negatives"
    )
    return {"score": sentence(results.primary_words), "absent": absent}


def lineage(inputs: ReportInputs, results: Results, top: Iterable[Part], made: Sequence[Section]) -> Section:
    """Where every number comes from; comes last, since it has a row for each task that the others name.

    Args:
        inputs: Of the report.
        results: The metrics.
        top: What stands under the title.
        made: All other sections.
    """
    parts: list[Part] = []
    folded: list[Part] = []
    if inputs.models:
        models = inventory.models(inputs.models, results.arms, **_score(results))
        folded.append(Details(f"The {len(models.rows)} fine-tuned models", (models,)))
    if inputs.lineage:
        parts.append(inventory.lineage(inputs.lineage))
    named = page.tasks_of([*top, *(part for section in made for part in section.parts), *folded])
    return Section("lineage", "Lineage", (inventory.tasks(inputs.study, named), *parts, *folded))
