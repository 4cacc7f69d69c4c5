"""What the subcommands of `medssl` take and print, beside the stages; the work is done elsewhere."""

from medssl.commands import cleanup, compare, lineage, promotion, report, tables, weights

__all__ = ["cleanup", "compare", "lineage", "promotion", "report", "tables", "weights"]
