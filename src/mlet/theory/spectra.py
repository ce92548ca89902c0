"""Spectra of the factors and of the product, and how balanced the factors are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlet.nn.factored import Factors
from mlet.theory.reweighting import singular_values


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, descending."""

    values: Tensor

    @property
    def effective_rank(self) -> float:
        """``exp(H(p))`` with ``pᵢ = sᵢ / Σ s`` (Roy & Vetterli 2007): how many directions count.

        0 for a zero matrix.
        """
        total = self.values.sum()
        if total == 0:
            return 0.0
        p = self.values / total
        p = p[p > 0]
        return float(torch.exp(-(p * p.log()).sum()))

    @property
    def stable_rank(self) -> float:
        """``‖·‖_F² / ‖·‖₂²``: at most the rank, hardly moved by small values; 0 for zero."""
        if self.values.numel() == 0 or self.values[0] == 0:
            return 0.0
        return float((self.values / self.values[0]).square().sum())


@dataclass(frozen=True)
class TableSpectra:
    """Spectra of a table's factors and product.

    Attributes:
        product: of W (d values).
        inner, projection: of W2 (k values) and W1; None for an ordinary table.
        imbalance: ``‖W2ᵀ W2 − W1 W1ᵀ‖_F``, which gradient flow keeps as it is (Arora, Cohen & Hazan
            2018, arXiv 1802.06509); None for an ordinary table.
    """

    product: Spectrum
    inner: Spectrum | None
    projection: Spectrum | None
    imbalance: float | None

    def record(self) -> dict[str, Any]:
        """As plain numbers, for a line of ``spectra.jsonl``."""
        result: dict[str, Any] = {}
        for name in ("product", "inner", "projection"):
            spectrum: Spectrum | None = getattr(self, name)
            if spectrum is not None:
                result[name] = {
                    "values": [float(f"{value:.6g}") for value in spectrum.values.tolist()],
                    "effective_rank": spectrum.effective_rank,
                    "stable_rank": spectrum.stable_rank,
                }
        if self.imbalance is not None:
            result["imbalance"] = self.imbalance
        return result


def table_spectra(factors: Factors) -> TableSpectra:
    """From the k × k Gram matrix of W2 alone: ``WᵀW = W1ᵀ (W2ᵀW2) W1``, ``W1W1ᵀ`` (k × k)."""
    gram = factors.inner_gram()
    if factors.projection is None:
        return TableSpectra(Spectrum(singular_values(gram)), None, None, None)
    w1 = factors.wide_projection()
    return TableSpectra(
        Spectrum(singular_values(w1.T @ gram @ w1)),
        Spectrum(singular_values(gram)),
        Spectrum(singular_values(w1.T @ w1)),
        float(torch.linalg.matrix_norm(gram - w1 @ w1.T)),
    )


def row_norms(factors: Factors) -> Tensor:
    """``‖W[r]‖`` of every category's embedding (n,), float64."""
    norms = torch.empty(factors.num_embeddings, dtype=torch.float64)
    for start, rows in factors.blocks():
        table = rows if factors.projection is None else rows @ factors.wide_projection()
        norms[start : start + len(rows)] = table.norm(dim=1)
    return norms
