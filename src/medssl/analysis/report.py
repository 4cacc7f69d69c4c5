"""The report of a study: one HTML page, with its figures and tables as files beside it.

Sections stand in the order in which a reader judges a study: what was asked, what came out, how sure that is, for
whom it holds, how training went, what the data were, what was left out, and what it was all made from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from medssl import layout
from medssl.analysis import making, page, sections, tables
from medssl.analysis import results as readings
from medssl.analysis.inputs import ReportInputs
from medssl.analysis.page import Figure
from medssl.analysis.results import DECIMALS
from medssl.analysis.tables import Table, percent

FIGURES_DIR, TABLES_DIR = "figures", "tables"
ALL_METRICS = "metrics.csv"
_TITLE = "Comparison of models"  # where no study gives one


@dataclass(frozen=True)
class Written:
    """How much a report holds."""

    num_tables: int
    num_figures: int


def write(inputs: ReportInputs, out_dir: Path) -> Written:
    """Write `index.html`, and figures and tables below `out_dir`; equal inputs give equal bytes.

    Figures are SVG and PNG, tables CSV and LaTeX.
    """
    results = readings.read(inputs.metrics, inputs.arms, study=inputs.study)
    lead = making.lead(inputs, results)
    made = [*sections.outcomes_of(inputs, results), *making.sections_of(inputs, results)]
    made.append(making.lineage(inputs, results, lead, made))
    title = inputs.study["report"]["title"] if inputs.study else _TITLE
    html = page.render(title, lead, made)
    for folder in (out_dir / FIGURES_DIR, out_dir / TABLES_DIR):
        folder.mkdir(parents=True, exist_ok=True)
    parts = list(page.leaves(part for section in made for part in section.parts))
    shown = [part for part in parts if isinstance(part, Table)]
    drawn = [part for part in parts if isinstance(part, Figure)]
    for table in shown:
        (out_dir / TABLES_DIR / f"{table.name}.csv").write_bytes(tables.to_csv(table).encode())
        (out_dir / TABLES_DIR / f"{table.name}.tex").write_text(tables.to_latex(table), encoding="utf-8")
    for figure in drawn:
        (out_dir / FIGURES_DIR / f"{figure.name}.svg").write_text(figure.drawing.svg, encoding="utf-8")
        (out_dir / FIGURES_DIR / f"{figure.name}.png").write_bytes(figure.drawing.png)
    pyarrow.csv.write_csv(_without_formulas(inputs.metrics), out_dir / TABLES_DIR / ALL_METRICS)
    (out_dir / layout.REPORT).write_text(html, encoding="utf-8")
    return Written(len(shown), len(drawn))


def _without_formulas(rows: pa.Table) -> pa.Table:
    """The table with its words as `tables.no_formula` leaves them."""
    for position, column in enumerate(rows.schema):
        if column.type == pa.string():
            encoded: Any = rows[column.name].combine_chunks().dictionary_encode()
            words = [cell and tables.no_formula(cell) for cell in encoded.dictionary.to_pylist()]
            rows = rows.set_column(position, column, pa.array(words, pa.string()).take(encoded.indices))
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
