"""The multi-layer perceptron of DLRM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Linear layers with ReLU between them, initialised as DLRM does (arXiv 1906.00091, code).

    Weights are normal with variance ``2 / (in + out)``, biases normal with variance ``1 / out``.

    Args:
        widths: of the input, the hidden layers and the output.
        final_activation: whether a ReLU follows the last layer too.

    Shape:
        (B, widths[0]) → (B, widths[-1]).
    """

    def __init__(self, widths: Sequence[int], *, final_activation: bool) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            linear = nn.Linear(inputs, outputs)
            nn.init.normal_(linear.weight, std=math.sqrt(2 / (inputs + outputs)))
            nn.init.normal_(linear.bias, std=math.sqrt(1 / outputs))
            layers += [linear, nn.ReLU()]
        super().__init__(*(layers if final_activation else layers[:-1]))
