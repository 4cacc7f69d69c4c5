"""The report's table of distribution shift: what the unchanged models lose on an external set."""

from typing import Any

from medssl.analysis import tables
from medssl.analysis.results import (
    SUBGROUPS,
    Evaluation,
    Labels,
    Results,
    p_value,
    sentence,
    slug,
    with_interval,
    words,
)
from medssl.analysis.tables import Column, Table
from medssl.metrics import Metric
from medssl.schema import EXTERNAL


def external_sets(results: Results) -> list[Evaluation]:
    """The external sets on which models were evaluated."""
    return [where for where in results.evaluations if where.split == EXTERNAL]


def test_split(results: Results) -> Evaluation | None:
    """The study's own test split."""
    return next((where for where in results.evaluations if where.split == "test"), None)


def drops(results: Results, where: Evaluation, labels: Labels, metric: Metric) -> Table:
    """A metric on the test split, on an external set, and how much lower it is there, of each selected model."""
    own = test_split(results)
    keys: dict[str, Any] = {"metric": metric.name, "k": metric.k}
    rows = []
    for arm, name in results.arms.items():
        drop = results.selected(where, arm, labels, metric=f"{metric.name}_drop", k=metric.k)
        if drop is not None and own is not None:
            inside = with_interval(results.selected(own, arm, labels, **keys))
            outside = with_interval(results.selected(where, arm, labels, **keys))
            rows.append((name, inside, outside, with_interval(drop), p_value(drop["p"])))
    columns = [tables.text("Arm"), Column("On test"), Column(f"On {where.dataset}"), Column("Drop"), Column("p")]
    caption = (
        f"{sentence(words(metric.name, metric.k))} of unchanged models [{results.level} interval], "
        f"{results.name(labels)} of labels. The drop covers the {results.class_word}s that both sets define; its p is "
        "not adjusted."
    )
    name = f"shift-{metric.log_name.replace('_', '-')}-{slug(where)}"
    return tables.build(name, caption, columns, rows, task=SUBGROUPS)


def drop_differences(results: Results, where: Evaluation, labels: Labels) -> Table:
    """How the drops of two arms differ."""
    primary = results.primary
    found = [
        row
        for row in results.of_whole_splits.get((where, f"{primary.name}_drop"), ())
        if row["arm_b"] is not None and row["k"] == primary.k and Labels(row["label_fraction"], row["draw"]) == labels
    ]
    rows = [
        (f"{results.arms[row['arm_a']]} minus {results.arms[row['arm_b']]}", with_interval(row), p_value(row["p"]))
        for row in found
    ]
    columns = [tables.text("Pair"), Column(f"Difference of drops [{results.level} interval]"), Column("p")]
    caption = f"Drops in {results.primary_words} to {where.dataset}; below 0 the first arm loses less."
    return tables.build(f"shift-differences-{slug(where)}", caption, columns, rows, task=SUBGROUPS)
