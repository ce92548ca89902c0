"""Nodes of an ONNX graph in the making."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

#: The domain of LabelEncoder, and the version of it.
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3


class Nodes:
    """Operators and constants; every value that one gives is named under ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix, self._named = prefix, count()

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """One more operator with one output, whose name is returned."""
        return self.add_several(operator, inputs, [output or self._new()], **attributes)[0]

    def add_several(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """One more operator, with the outputs named."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def constant(self, value: npt.ArrayLike) -> str:
        """A constant of any number of dimensions: double, int64, bool or strings, as it is."""
        from onnx import TensorProto, helper, numpy_helper

        array, name = np.asarray(value), self._new()
        if array.dtype.kind == "U":
            texts = [text.encode() for text in array.ravel().tolist()]
            tensor = helper.make_tensor(name, TensorProto.STRING, array.shape, texts)
        else:
            tensor = numpy_helper.from_array(array, name)
        self.constants.append(tensor)
        return name

    def cast(self, value: str, to: str) -> str:
        """A value as ``FLOAT``, ``INT64`` or another type of ONNX."""
        from onnx import TensorProto

        return self.add("Cast", value, to=TensorProto.DataType.Value(to))

    def column(self, value: str) -> str:
        """(B,) as (B, 1)."""
        return self.add("Unsqueeze", value, self.constant([1]))

    def columns(self, values: Sequence[str]) -> str:
        """(B, ·) side by side; an error where B differs."""
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=1)

    def apart(self, matrix: str, width: int) -> Sequence[str]:
        """The columns of (B, width), each (B, 1)."""
        if width == 1:
            return [matrix]
        outputs = [self._new() for _ in range(width)]
        return self.add_several("Split", [matrix], outputs, axis=1, num_outputs=width)

    def some(self, matrix: str, places: Sequence[int]) -> str:
        """Some columns of (B, ·)."""
        return self.add("Gather", matrix, self.constant(list(places)), axis=1)

    def encode(self, keys: dict[str, int] | dict[int, int], values: str) -> str:
        """Ids (int64) of texts or integers; 0 of those that are no key."""
        kind = "strings" if isinstance(next(iter(keys)), str) else "int64s"
        given: dict[str, Any] = {f"keys_{kind}": list(keys), "values_int64s": list(keys.values())}
        return self.add("LabelEncoder", values, domain=ML_DOMAIN, default_int64=0, **given)

    def refuse(self, bad: str, why: str) -> str:
        """Zeros (B, 1), int64, of ``bad`` (B, ·); where one is true, an error that says why."""
        # A lookup that there is no row for: ONNX has no operator that fails. A node's name is what
        # ONNX Runtime says of an error.
        index = self.add("ReduceMax", self.cast(bad, "INT64"), self.constant([1]), keepdims=1)
        return self.add("Gather", self.constant([0]), index, name=why)

    def _new(self) -> str:
        return f"{self._prefix}{next(self._named)}"
