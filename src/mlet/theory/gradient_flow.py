"""Gradient flow on the smallest problem that shows what two layers do.

The loss is ``L = ½ ‖W2 W1 − A‖²`` for a fixed matrix A (n × d), and the factors follow its negative
gradient in continuous time::

    dW2/dt = (A − W2 W1) W1ᵀ,    dW1/dt = W2ᵀ (A − W2 W1)

Two facts about it are exact and are tested: ``W2ᵀW2 − W1W1ᵀ`` never changes; and from a small
balanced start along A's own singular directions, every direction of the product grows on its own,
as a logistic curve. Strong directions are learnt first, weak ones after a wait: ordinary training
(``dW/dt = A − W``) closes the gap at the same rate in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def balanced_start(target: Tensor, inner_dim: int, strength: float) -> tuple[Tensor, Tensor]:
    """Factors with ``W2 W1 = strength · U Vᵀ`` in A's singular directions, balanced.

    Args:
        target: A (n × d), n ≥ d.
        inner_dim: k ≥ d.
        strength: the initial singular value of every direction.
    """
    u, _, vt = torch.linalg.svd(target.double(), full_matrices=False)
    n, d = target.shape
    root = strength**0.5
    inner = torch.zeros(n, inner_dim, dtype=torch.float64)
    projection = torch.zeros(inner_dim, d, dtype=torch.float64)
    inner[:, :d] = root * u
    projection[:d] = root * vt
    return inner, projection


def gradient_flow(
    target: Tensor, inner: Tensor, projection: Tensor, time: float, steps: int = 1_000
) -> tuple[Tensor, Tensor]:
    """The factors after ``time``, by the classical Runge–Kutta method of fourth order (float64)."""
    a = target.double()
    w2, w1 = inner.double(), projection.double()

    def velocity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        error = a - x @ y
        return error @ y.T, x.T @ error

    h = time / steps
    for _ in range(steps):
        k1 = velocity(w2, w1)
        k2 = velocity(w2 + h / 2 * k1[0], w1 + h / 2 * k1[1])
        k3 = velocity(w2 + h / 2 * k2[0], w1 + h / 2 * k2[1])
        k4 = velocity(w2 + h * k3[0], w1 + h * k3[1])
        w2 = w2 + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        w1 = w1 + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    return w2, w1


def two_layer_strength(target: float, start: float) -> Callable[[float], float]:
    """A direction's singular value over time with two layers (Saxe et al. 2013, arXiv 1312.6120).

    It solves ``ds/dt = 2 s (a − s)``: ``s(t) = a e^{2at} / (e^{2at} − 1 + a/s₀)``.
    """

    def at(time: float) -> float:
        decay = math.exp(-2 * target * time)
        return target / (1 - decay + decay * target / start)

    return at


def one_layer_strength(target: float, start: float) -> Callable[[float], float]:
    """The same with one layer: ``ds/dt = a − s``, so ``s(t) = a + (s₀ − a) e^{−t}``."""

    def at(time: float) -> float:
        return target + (start - target) * math.exp(-time)

    return at
