"""What one optimizer step does to the product, exactly, in its three parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlet.nn.factored import Factors
from mlet.nn.two_layer import TwoLayerTable
from mlet.theory.factors import as_factors


@dataclass(frozen=True)
class UpdateParts:
    """The change ΔW of the product W = W2 W1 (n × d, float64) in one step, as a sum.

    Attributes:
        direct: what the step of W2 does: non-zero only in the rows of the batch.
        cross: what the step of W1 does: it moves **every** category.
        second_order: what both do together, of order η².
    """

    direct: Tensor
    cross: Tensor
    second_order: Tensor

    @property
    def total(self) -> Tensor:
        """ΔW = direct + cross + second_order."""
        return self.direct + self.cross + self.second_order


def decompose_update(layer: TwoLayerTable | Factors, grad: Tensor, lr: float = 1.0) -> UpdateParts:
    """One step of gradient descent, split.

    With ``G = ∂L/∂W`` (non-zero in the batch's rows) and step size η, W2 moves by ``−η G W1ᵀ`` and
    W1 by ``−η W2ᵀ G``, so that the product moves by::

        ΔW = −η G W1ᵀ W1  −  η W2 W2ᵀ G  +  η² G W1ᵀ W2ᵀ G
              direct          cross          second order

    It follows from the definition of W by algebra. Ordinary training has ``ΔW = −η G``.

    Args:
        layer: the table before the step.
        grad: G (n × d); dense or sparse, repeated rows of a sparse one are summed.
        lr: η.

    Raises:
        ValueError: ``grad`` has another shape than the table, or the table is an ordinary one.
    """
    factors = as_factors(layer)
    rows, values = _rows(factors, grad)
    w1 = factors.wide_projection()
    inner_step = -lr * values @ w1.T
    projection_step = -lr * factors.inner[rows].double().T @ values
    return _parts(factors, rows, inner_step, projection_step)


def decompose_preconditioned_update(
    layer: TwoLayerTable | Factors,
    inner_step: Tensor,
    projection_step: Tensor,
) -> UpdateParts:
    """A step of any optimizer, split, given how it moved the factors.

    Adagrad and Adam divide each entry of a factor's gradient by its own ``√s + ε``: with those
    preconditioners P2 (n × k) and P1 (k × d) applied entry by entry (⊙)::

        ΔW2 = −η P2 ⊙ (G W1ᵀ),   ΔW1 = −η P1 ⊙ (W2ᵀ G)
        ΔW  = ΔW2 W1  +  W2 ΔW1  +  ΔW2 ΔW1

    (for Adam with its running mean in the place of the gradient). The first-order part is no longer
    a scaling in singular directions, but cross-category learning stays: W2 ΔW1 has a row for every
    category.

    Args:
        layer: the table before the step.
        inner_step: ΔW2 (n × k), dense or sparse.
        projection_step: ΔW1 (k × d).

    Raises:
        ValueError: a step has another shape than its factor, or the table is an ordinary one.
    """
    factors = as_factors(layer)
    if inner_step.shape != factors.inner.shape:
        raise ValueError(
            f"inner_step has shape {tuple(inner_step.shape)}, W2 {tuple(factors.inner.shape)}"
        )
    expected = factors.wide_projection().shape
    if projection_step.shape != expected:
        raise ValueError(
            f"projection_step has shape {tuple(projection_step.shape)}, W1 {tuple(expected)}"
        )
    rows, values = _nonzero_rows(inner_step)
    return _parts(factors, rows, values, projection_step.double())


def preconditioned_steps(
    layer: TwoLayerTable | Factors,
    grad: Tensor,
    lr: float,
    inner_scale: Tensor,
    projection_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """ΔW2 (n × k) and ΔW1 (k × d) of a step whose preconditioner is known.

    Args:
        layer: the table before the step.
        grad: G (n × d), dense or sparse.
        lr: η.
        inner_scale: P2: of Adagrad ``1/(√s + ε)`` with the s of this step; (n × k), or (n × 1)
            of row-wise Adagrad.
        projection_scale: P1 (k × d).
    """
    factors = as_factors(layer)
    rows, values = _rows(factors, grad)
    w1 = factors.wide_projection()
    inner = torch.zeros(factors.inner.shape, dtype=torch.float64, device=factors.inner.device)
    inner[rows] = -lr * inner_scale.double().expand_as(inner)[rows] * (values @ w1.T)
    projection = factors.inner[rows].double().T @ values
    return inner, -lr * projection_scale.double() * projection


def _rows(factors: Factors, grad: Tensor) -> tuple[Tensor, Tensor]:
    expected = (factors.num_embeddings, factors.embedding_dim)
    if tuple(grad.shape) != expected:
        raise ValueError(f"grad has shape {tuple(grad.shape)}, the table {expected}")
    return _nonzero_rows(grad)


def _nonzero_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.detach()
    if matrix.is_sparse:
        matrix = matrix.coalesce()
        return matrix.indices()[0], matrix.values().double()
    rows = matrix.any(dim=1).nonzero().squeeze(1)
    return rows, matrix[rows].double()


def _parts(
    factors: Factors, rows: Tensor, inner_step: Tensor, projection_step: Tensor
) -> UpdateParts:
    """From the step of W2's ``rows`` (R × k) and that of W1."""
    shape = (factors.num_embeddings, factors.embedding_dim)
    direct = torch.zeros(shape, dtype=torch.float64, device=factors.inner.device)
    direct[rows] = inner_step @ factors.wide_projection()
    second_order = torch.zeros_like(direct)
    second_order[rows] = inner_step @ projection_step
    return UpdateParts(direct, factors.inner.double() @ projection_step, second_order)
