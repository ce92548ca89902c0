"""Where this was is said to whoever imports it."""

raise ImportError(
    "mlet.experiments is now mlet.studies: CompareConfig, compare and iso_quality have their names "
    "there, write_report is write_comparison"
)
