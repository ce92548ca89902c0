"""Comparisons of single- and multi-layer training, and their reports."""

from mlet.experiments.compare import CompareConfig, compare
from mlet.experiments.iso_quality import IsoQuality, iso_quality
from mlet.experiments.report import write_report
from mlet.experiments.results import Comparison

__all__ = [
    "CompareConfig",
    "Comparison",
    "IsoQuality",
    "compare",
    "iso_quality",
    "write_report",
]
