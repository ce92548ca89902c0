"""Studies: quality against dimension, per model and method, every arm tuned alike."""

from mlet.studies.compare import CompareConfig, Comparison, compare, write_comparison
from mlet.studies.iso_quality import IsoQuality, iso_quality
from mlet.studies.report import write_report
from mlet.studies.results import StudyResult
from mlet.studies.runner import sweep
from mlet.studies.study import StudyConfig

__all__ = [
    "CompareConfig",
    "Comparison",
    "IsoQuality",
    "StudyConfig",
    "StudyResult",
    "compare",
    "iso_quality",
    "sweep",
    "write_comparison",
    "write_report",
]
