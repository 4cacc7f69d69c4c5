"""What the report shows of cases with one of many conditions only: the paper's five metrics, conditions, skin types."""

from collections.abc import Mapping, Sequence
from typing import Any

from medssl.analysis import outcomes, tables
from medssl.analysis.outcomes import reported
from medssl.analysis.page import Details, Part
from medssl.analysis.results import (
    COMPARE,
    Evaluation,
    Labels,
    Results,
    sentence,
    slug,
    with_interval,
    with_spread,
    words,
)
from medssl.analysis.tables import Column, Table
from medssl.metrics import OTHER, PRIMARY, TOP_K, Metric

# Beside the primary one, in the order of the columns of the paper's Tables B.3 and B.4.
SECONDARY = (
    *(Metric("top_k_accuracy", k, "") for k in TOP_K[1:]),
    *(Metric("mean_top_k_sensitivity", k, "top_k_sensitivity") for k in TOP_K),
    Metric("mean_auc", None, "auc"),
)
COUNTED = (
    f'A prediction counts when it names any condition of its case. "{OTHER}" is a prediction as any, right for cases '
    "of conditions that are not told apart."
)
MEANS = (
    f'Mean sensitivities and the mean AUC average the named conditions, without "{OTHER}"; an AUC is that of one class '
    "against all others."
)


def results_of(results: Results, where: Evaluation, *, long: int) -> list[Part]:
    """Results on one split; label fractions but the largest are folded where a table would pass `long` rows."""
    many = len(reported(results, where, results.labels)) > long
    first = [results.largest] if many else results.labels
    folded = [all_metrics(results, where, results.labels, "metrics-selected", selected=True)]
    if many:
        folded[:0] = [
            outcomes.overview(results, where, results.labels, "results-all"),
            all_metrics(results, where, results.labels, "metrics-all", selected=False),
        ]
    each = [per_condition(results, where, results.largest, metric) for metric in SECONDARY if metric.part]
    place = results.place(where)
    return [
        outcomes.overview(results, where, first, "results"),
        all_metrics(results, where, first, "metrics", selected=False),
        Details(f"{'All label fractions' if many else 'Selected models'} ({place})", tuple(folded)),
        Details(f"Each condition ({place})", tuple(each)),
    ]


def all_metrics(
    results: Results, where: Evaluation, label_sets: Sequence[Labels], name: str, *, selected: bool
) -> Table:
    """The paper's five metrics of every arm at some label fractions: mean over repeats, or of the selected model."""
    metrics = (PRIMARY["case"], *SECONDARY)
    rows = []
    for arm, labels in reported(results, where, label_sets):
        keys: list[dict[str, Any]] = [{"metric": metric.name, "k": metric.k} for metric in metrics]
        if selected:
            cells = [with_interval(results.selected(where, arm, labels, **key)) for key in keys]
        else:
            cells = [with_spread(results.row(where, arm, labels, repeat="mean", **key)) for key in keys]
        rows.append((results.arms[arm], results.name(labels), *cells))
    what = f"selected model [{results.level} interval]" if selected else "mean ± standard deviation over repeats"
    caption = f"The paper's metrics on {results.place(where)}: {what}. {MEANS}"
    columns = [tables.text("Arm"), Column("Labels")]
    columns += [Column(sentence(words(metric.name, metric.k))) for metric in metrics]
    return tables.build(f"{name}-{slug(where)}", caption, columns, rows, grouped=len(label_sets) > 1, task=COMPARE)


def per_condition(results: Results, where: Evaluation, labels: Labels, metric: Metric) -> Table:
    """A metric of each condition, beside how many cases have it: mean over the repeats of each arm.

    Args:
        results: The metrics.
        where: Data set and split.
        labels: Label fraction and draw.
        metric: A mean over conditions; shown is what it averages.
    """
    arms = [arm for arm in results.arms if results.num_repeats(where, arm, labels)]
    rows = []
    for condition in results.findings:
        keys: dict[str, Any] = {"repeat": "mean", "class": condition}
        found = [results.row(where, arm, labels, metric=metric.part, k=metric.k, **keys) for arm in arms]
        with_it = results.row(where, arms[0], labels, metric="top_k_sensitivity", k=1, **keys)
        rows.append((condition, with_it["n_units"] if with_it else 0, *map(with_spread, found)))
    what = sentence(words(metric.part, metric.k))
    caption = (
        f"{what} per condition on {results.place(where)}, mean ± standard deviation over repeats, arms trained with "
        f"{results.name(labels)} of the labels. A case with several conditions counts in each."
    )
    name = f"conditions-{metric.log_name.removeprefix('mean_').replace('_', '-')}-{slug(where)}"
    columns = [tables.text("Condition"), Column("Cases with it"), *(Column(results.arms[arm]) for arm in arms)]
    return tables.build(name, caption, columns, rows, task=COMPARE)


def skin_type_order(config: Mapping[str, Any]) -> list[str]:
    """The groups of skin types from the lightest to the darkest, whatever order the study file kept.

    Args:
        config: The study's section `subgroups` as JSON values.
    """
    groups: Mapping[str, Sequence[str]] = config["skin_type_groups"]
    return sorted(groups, key=lambda group: min(groups[group]))


def skin_type_map(config: Mapping[str, Any]) -> str:
    """The map from Fitzpatrick types to groups, in words."""
    groups: Mapping[str, Sequence[str]] = config["skin_type_groups"]
    listed = "; ".join(f"{group}: {', '.join(groups[group])}" for group in skin_type_order(config))
    return (
        f"Fitzpatrick types of each group: {listed}. The paper names white, beige, brown and dark brown and prints no "
        "map, so this one is inferred."
    )
