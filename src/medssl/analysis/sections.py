"""The sections of the report about what came out: results, the paper beside them, comparisons, subgroups, shift."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from medssl import labels
from medssl.analysis import (
    comparisons,
    conditions,
    external,
    groups,
    inventory,
    outcomes,
    paper,
    paper_figures,
    reliability,
    series,
)
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.page import Details, Heading, Note, Part, Section
from medssl.analysis.results import Evaluation, Results
from medssl.analysis.tables import Table
from medssl.config import ArmConfig, SubgroupConfig, TaskConfig, arm_groups
from medssl.metrics import TOP_K, Metric

LONG = 24  # rows beyond which a table is folded
METRICS_FILE = "tables/metrics.csv"
Json = Mapping[str, Any]


def outcomes_of(inputs: ReportInputs, results: Results) -> list[Section]:
    """What was asked and what came out, in the order of the page."""
    config = inputs.study["subgroups"] if inputs.study else SubgroupConfig().dump()
    variants = arm_groups([ArmConfig.model_validate(arm) for arm in inputs.study["arms"]]) if inputs.study else {}
    skin_order = conditions.skin_type_order(config)
    return [
        *([_asked(inputs.study, results)] if inputs.study else []),
        _results(results),
        paper.section(results, inputs.arms, variants, skin_order, long=LONG),
        _label_efficiency(results, inputs.arms),
        _significance(results),
        _subgroups(results, config, inputs.study is not None),
        *_shift(results),
        *_calibration(inputs, results),
    ]


def _asked(study: Json, results: Results) -> Section:
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
            parts += conditions.results_of(results, where, long=LONG)
            continue
        many = len(outcomes.reported(results, where, results.labels)) > LONG
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
    parts: list[Part] = []
    for where in results.evaluations:
        # Arms that differ in steps alone have a figure of their own.
        plain = paper_figures.longer_training(results, where, arms) is None or where.split != "test"
        longer = set() if plain else {a for s in paper_figures.step_series(results, arms).values() for a in s.values()}
        drawn = [series.label_efficiency(results, where, arms, [results.primary], left_out=longer)]
        if results.unit_kind == "case":
            others = [Metric("top_k_accuracy", TOP_K[-1], ""), Metric("mean_auc", None, "auc")]
            name = "label-efficiency-further"
            drawn.append(series.label_efficiency(results, where, arms, others, name=name, left_out=longer))
        parts += [figure for figure in drawn if figure]
        saved = comparisons.labels_saved(results, where)
        parts += [saved] if saved.rows else []
    nothing = (f"No {results.primary_words} was evaluable.",)
    return Section("label-efficiency", "Label efficiency", tuple(parts) or nothing)


def _significance(results: Results) -> Section:
    parts: list[Part] = []
    for where in results.evaluations:
        whole = comparisons.differences(results, where)
        if not whole.rows:
            continue
        if figure := series.forest(results, where):
            parts.append(figure)
        further, summary = _further_metrics(results)
        place = results.place(where)
        parts += [
            folded_if_long(whole, f"Every difference in {results.primary_words} ({place})"),
            Details(f"{summary} ({place})", (comparisons.secondary_differences(results, where, further),)),
        ]
        checked = comparisons.delong(results, where)
        if checked.rows:
            parts.append(Details(f"Cross-check by DeLong's method ({place})", (checked,)))
    if not parts:
        return Section("significance", "Significance", ("No pair of arms was compared.",))
    return Section("significance", "Significance", (_how_compared(results), *parts))


def _how_compared(results: Results) -> str:
    """What decides, in the words of the families that p values were adjusted in."""
    declared = dict.fromkeys(name for where in results.evaluations for name in comparisons.families(results, where))
    family = "for all pairs at that label fraction"
    if declared:
        listed = ", ".join(f"“{name}”" for name in declared)
        family = f"for the differences of its family ({listed}; a difference in none is not adjusted)"
    return (
        f"Each pair is compared through its selected models on the same resamples of the test {results.unit_kind}s. "
        f"A difference counts as shown when its {results.level} interval excludes 0 and the p value, adjusted by "
        f"Holm's method {family}, is at most {results.alpha:g}. Beside it stands the value that bounds the expected "
        "share of wrong rejections instead (FDR, by Benjamini and Hochberg)."
    )


def _further_metrics(results: Results) -> tuple[Sequence[Metric], str]:
    """What is compared beside the primary metric, and the heading of its table."""
    if results.unit_kind == "case":
        return conditions.SECONDARY, "Differences in other metrics"
    return [Metric("auc", None, "")], "Differences per finding"


def _subgroups(results: Results, config: Json, is_asked: bool) -> Section:
    parts: list[Part] = []
    for where in results.evaluations:
        found = groups.attributes(results, where)
        listed = config["by"] if is_asked else found
        for attribute in (attribute for attribute in listed if attribute in found and " & " not in attribute):
            parts += _by_attribute(results, where, attribute, config)
        parts += _gaps(results, where)
        crossed = [groups.subgroups(results, where, name, results.largest) for name in found if " & " in name]
        if crossed:
            pairs = groups.gaps(results, where, results.largest, pairs=True)
            words = f"By two attributes at once ({results.place(where)})"
            parts.append(Details(words, (*([pairs] if pairs.rows else []), *crossed)))
    several = results.unit_kind == "case"
    comparable = "" if several else " It compares only groups in which the same findings are evaluable."
    every = "Every metric" if several else "AUC per finding"
    intro = (
        "A gap is freed of the upward bias of a largest difference; p is that of a gap as large as the observed one "
        f"among groups drawn by lot.{comparable} {every} and group: {METRICS_FILE}."
    )
    return Section("subgroups", "Subgroups", (intro, *parts) if parts else ("No subgroup was evaluated.",))


def _by_attribute(results: Results, where: Evaluation, attribute: str, config: Json) -> list[Part]:
    order = conditions.skin_type_order(config) if attribute == "skin_type_group" else ()
    words = groups.in_words(attribute)
    place = f" ({results.place(where)})" if len(results.evaluations) > 1 else ""
    parts: list[Part] = [Heading(f"By {words}{place}")]
    if attribute == "skin_type_group":
        parts.append(conditions.skin_type_map(config))
    parts.append(groups.subgroups(results, where, attribute, results.largest, order=order))
    if results.unit_kind == "case":
        top_k = conditions.SECONDARY[0]
        table = groups.subgroups(results, where, attribute, results.largest, metric=top_k, order=order)
        parts.append(Details(f"By {words}, top-{top_k.k} accuracy", (table,)))
    others = [
        groups.subgroups(results, where, attribute, label_set, order=order)
        for label_set in reversed(results.labels)
        if label_set != results.largest
    ]
    return [*parts, Details(f"By {words}, other label fractions", tuple(others))] if others else parts


def _gaps(results: Results, where: Evaluation) -> list[Part]:
    table = groups.gaps(results, where, results.largest, pairs=False)
    if not table.rows:
        return []
    place = f" ({results.place(where)})" if len(results.evaluations) > 1 else ""
    parts: list[Part] = [Heading(f"Gaps between groups{place}")]
    if figure := series.gaps(results, where):
        parts.append(figure)
    parts.append(folded_if_long(table, "Every gap"))
    between = groups.gap_differences(results, where, results.largest)
    return [*parts, Details("Gaps of two arms compared", (between,))] if between.rows else parts


def _shift(results: Results) -> list[Section]:
    parts: list[Part] = []
    for where in external.external_sets(results):
        further = conditions.SECONDARY if results.unit_kind == "case" else ()
        main = external.drops(results, where, results.largest, results.primary)
        others = [external.drops(results, where, results.largest, metric) for metric in further]
        between = external.drop_differences(results, where, results.largest)
        folded = tuple(table for table in (*others, between) if table.rows)
        parts += [main] if main.rows else []
        parts += [Details(f"Other metrics, and arms compared ({where.dataset})", folded)] if folded else []
    return [Section("shift", "Distribution shift", tuple(parts))] if parts else []


def _calibration(inputs: ReportInputs, results: Results) -> list[Section]:
    parts: list[Part] = []
    for where in results.evaluations:
        table = reliability.errors(results, where)
        parts += [table] if table.rows else []
        if inputs.calibration is not None:
            parts += reliability.curves(results, where, inputs.arms, inputs.calibration)
    return [Section("calibration", "Calibration", tuple(parts))] if parts else []


def folded_if_long(table: Table, summary: str) -> Part:
    """The table, folded where it is long."""
    return Details(summary, (table,)) if len(table.rows) > LONG else table
