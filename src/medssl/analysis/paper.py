"""The report's section that sets the study beside the paper: which tables and figures of its supplement are here."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from medssl.analysis import groups, paper_figures, paper_tables, tables
from medssl.analysis.external import external_sets, test_split
from medssl.analysis.page import Details, Figure, Part, Section
from medssl.analysis.results import Evaluation, Results
from medssl.analysis.tables import Cell, Table

_NO_CURVE = "every arm was trained at one label fraction alone"


@dataclass(frozen=True)
class _Shown:
    """A figure of the supplement: its parts here, or where else it stands, or why it is not here."""

    name: str
    what: str
    parts: Sequence[Part]
    otherwise: str


def section(
    results: Results, arms: pa.Table, members: dict[str, list[str]], skin_order: Sequence[str], *, long: int
) -> Section:
    """The section.

    Args:
        results: The metrics.
        arms: schema.ARMS.
        members: Name to arms of each group of variants.
        skin_order: Groups of skin types, the lightest first.
        long: Rows beyond which a table is folded.
    """
    where = test_split(results)
    if where is None:
        return Section("paper", "Beside the paper", ("No test split was evaluated.",))
    beside = paper_tables.beside(results, where, arms, members)
    figures = _figures(results, where, arms, skin_order)
    intro = (
        "Tables and figures are numbered as in the supplement of Azizi et al. 2021. Arms are matched to its rows by "
        "the names of architecture and method. Data, splits and settings differ from the paper's, so a difference is "
        "no error."
    )
    parts: list[Part] = [intro, _contents(beside, figures)]
    for one in beside:
        if one.table:
            words = f"Table {one.name}: {one.title} ({one.num_here} of {one.num_values} values run)"
            parts.append(Details(words, (one.table,)) if len(one.table.rows) > long else one.table)
    parts += [part for figure in figures for part in figure.parts]
    return Section("paper", "Beside the paper", tuple(parts))


def _contents(beside: Sequence[paper_tables.Beside], figures: Sequence[_Shown]) -> Table:
    rows: list[tuple[str, str, str | Cell]] = [
        (
            f"Table {one.name}",
            one.title,
            f"{one.num_here} of {one.num_values} values" if one.table else "not run: no arm of this study is in it",
        )
        for one in beside
    ]
    rows += [(one.name, one.what, "below" if one.parts else one.otherwise) for one in figures]
    columns = list(map(tables.text, ("In the supplement", "What it shows", "Here")))
    return tables.build("paper", "Tables and figures of the supplement, and what of them is here.", columns, rows)


def _figures(results: Results, where: Evaluation, arms: pa.Table, skin_order: Sequence[str]) -> list[_Shown]:
    def shown(name: str, what: str, made: Figure | Sequence[Figure] | None, otherwise: str) -> _Shown:
        parts = [made] if isinstance(made, Figure) else list(made or ())
        return _Shown(name, what, parts, otherwise)

    curves = len({labels.fraction for labels in results.labels}) > 1
    in_labels = "in the section on label efficiency" if curves else f"not run: {_NO_CURVE}"
    sets = external_sets(results)
    no_set = "not run: no external set was evaluated" if not sets else "no metric was evaluable on both sets"
    last = shown("Main paper", "distribution shift", paper_figures.shift(results, arms), no_set)
    if results.unit_kind == "image":
        per_finding = paper_figures.per_finding(results, where, arms)
        return [
            _Shown("Figure B.8", "mean AUC by share of labels", (), in_labels),
            shown("Figure B.9", "AUC of each finding by share of labels", per_finding, f"not run: {_NO_CURVE}"),
            last,
        ]
    no_steps = "not run: no method was pretrained for several numbers of steps"
    attribute = next((a for a in ("skin_type_group", "skin_type") if a in groups.attributes(results, where)), "")
    by_skin = paper_figures.skin_types(results, where, attribute, skin_order) if attribute else None
    longer = paper_figures.longer_training(results, where, arms)
    no_longer = f"not run: {_NO_CURVE}" if paper_figures.step_series(results, arms) else no_steps
    by_steps = paper_figures.by_steps(results, where, arms)
    return [
        shown("Figure B.4", "top-1 accuracy by pretraining steps", by_steps, no_steps),
        shown("Figure B.5", "longer pretraining by share of labels", longer, no_longer),
        _Shown("Figure B.6", "accuracy and AUC by share of labels", (), in_labels),
        shown("Figure B.7", "accuracy by skin type", by_skin, "not run: no group of skin types has a value"),
        last,
    ]
