"""Where this was is said to whoever imports it."""

raise ImportError(
    "mlet.sweep is now mlet.studies: StudyConfig and sweep have their names there, "
    "write_study_report is write_report"
)
