"""Raw values in, predictions out: what an ONNX graph does before the model."""

from mlet.export.raw.check import compared_raw
from mlet.export.raw.columns import RawColumn, RawTable
from mlet.export.raw.graph import with_raw_inputs

__all__ = ["RawColumn", "RawTable", "compared_raw", "with_raw_inputs"]
