"""Other ways to make tables smaller, as options of a field: what MLET is compared with.

Each method is a frozen config and the tables it builds, in a file of its own.
"""

from mlet.nn.compression.base import COMPRESSIONS, AnyCompression, Compression
from mlet.nn.compression.deep_hash import DeepHash
from mlet.nn.compression.hashing import Hashing
from mlet.nn.compression.low_rank import LowRank, MixedDimension
from mlet.nn.compression.pruned import Pruned
from mlet.nn.compression.quantized import (
    PRECISIONS,
    Precision,
    QuantizedTables,
    of_linear_parts,
    quantize,
    quantized_tables,
)
from mlet.nn.compression.quotient_remainder import QuotientRemainder
from mlet.nn.compression.tensor_train import TensorTrain

__all__ = [
    "COMPRESSIONS",
    "PRECISIONS",
    "AnyCompression",
    "Compression",
    "DeepHash",
    "Hashing",
    "LowRank",
    "MixedDimension",
    "Precision",
    "Pruned",
    "QuantizedTables",
    "QuotientRemainder",
    "TensorTrain",
    "of_linear_parts",
    "quantize",
    "quantized_tables",
]
