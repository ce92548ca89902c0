"""A run's tables through the instruments of `mlet.theory`: numbers, figures, a page."""

from mlet.inspection.gains import CategoryGains, category_gains
from mlet.inspection.inspect import (
    Inspection,
    TableInspection,
    inspect_checkpoint,
    inspect_run,
    table_energies,
)
from mlet.inspection.page import SUMMARY_COLUMNS, summary_row, write_page

__all__ = [
    "SUMMARY_COLUMNS",
    "CategoryGains",
    "Inspection",
    "TableInspection",
    "category_gains",
    "inspect_checkpoint",
    "inspect_run",
    "summary_row",
    "table_energies",
    "write_page",
]
