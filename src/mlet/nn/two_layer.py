"""What `mlet.Embedding` and `mlet.EmbeddingBag` share: the two factors and their algebra."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlet.engine import (
    RowGradient,
    TableStack,
    distinct_vectors,
    empty_rows,
    engine_serves,
)
from mlet.nn.factored import Factored, Factors
from mlet.nn.init import INITIALISATIONS, PROJECTION_STDS, InitName, balanced_factors
from mlet.nn.plain_state import TakesPlainWeight
from mlet.nn.product import product
from mlet.nn.sparse_gradients import stays_sparse


def check_dimensions(num_embeddings: int, embedding_dim: int, inner_dim: int, name: str) -> None:
    """Refuse impossible shapes and warn where two layers cannot help.

    Raises:
        ValueError: a dimension is below 1.
    """
    for what, value in (
        ("num_embeddings", num_embeddings),
        ("embedding_dim", embedding_dim),
        ("inner_dim", inner_dim),
    ):
        if value < 1:
            raise ValueError(f"{name}: {what} must be at least 1, got {value}")
    if inner_dim <= embedding_dim:
        reason = (
            f"restricts the table to rank {inner_dim}"
            if inner_dim < embedding_dim
            else "puts the extra cross-category update on too few directions to help"
        )
        warnings.warn(
            f"{name}: inner_dim={inner_dim} is not above embedding_dim={embedding_dim}, which "
            f"{reason}; multi-layer training gains where inner_dim is several times embedding_dim",
            UserWarning,
            stacklevel=4,
        )


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant, broadcast over the last dimension."""

    @staticmethod
    def forward(values: Tensor, scale: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad * scale.unsqueeze(-1).to(grad.dtype), None


class _ScaleGradientEagerly(_ScaleGradient):
    """With transforms, which ``torch.compile`` does not take.

    The forward-mode derivative is that of the identity: as in torch, the options act on what
    ``backward`` gives.
    """

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Tensor | None) -> Tensor:
        return tangent.view_as(tangent)


def _scaled_gradient(values: Tensor, scale: Tensor) -> Tensor:
    kind = _ScaleGradient if torch.compiler.is_compiling() else _ScaleGradientEagerly
    scaled: Tensor = kind.apply(values, scale)  # type: ignore[no-untyped-call]
    return scaled


class TwoLayerTable(TakesPlainWeight, Factored):
    """An n × d table held as ``inner`` (n × k) times ``projection`` (k × d).

    Base of the public layers; it owns the parameters and torch's options whose meaning is stated
    on the *product*: ``padding_idx``, ``max_norm``, ``scale_grad_by_freq``.

    Attributes:
        row_gradients: where a fused optimizer (`mlet.optim`) trains the table, what the backward
            passes since its last step left for it; else None.
        factored_gradient: the backward pass gives ``inner`` a `mlet.engine.FactoredGradient`, for
            `mlet.optim.fused`.
    """

    inner: nn.Parameter
    projection: nn.Parameter
    factored_gradient: bool = False

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        inner_dim: int,
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool,
        sparse: bool,
        init: InitName,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_dimensions(num_embeddings, embedding_dim, inner_dim, type(self).__name__)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"padding_idx={padding_idx} is outside the table's {num_embeddings} categories"
                )
            padding_idx %= num_embeddings
        if sparse and scale_grad_by_freq:
            raise ValueError(
                "scale_grad_by_freq needs dense gradients, as in torch: leave sparse=False"
            )
        if init not in INITIALISATIONS:
            raise ValueError(f"init={init!r} is not one of {sorted(INITIALISATIONS)}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.inner_dim = inner_dim
        self.padding_idx = padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.init: InitName = init
        self.stack = TableStack(("",), (num_embeddings,))
        self.row_gradients: list[RowGradient] | None = None
        self.inner = nn.Parameter(empty_rows((num_embeddings, inner_dim), dtype, device))
        self.projection = nn.Parameter(
            torch.empty(inner_dim, embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors afresh with ``init``; the padding row of ``inner`` becomes zero."""
        INITIALISATIONS[self.init](self.inner, self.projection)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.inner[self.padding_idx].zero_()

    @staticmethod
    def _table_shape(table: Tensor) -> tuple[int, int]:
        if table.dim() != 2:
            raise ValueError(f"a table has 2 dimensions, n × d; got shape {tuple(table.shape)}")
        return table.shape[0], table.shape[1]

    @torch.no_grad()
    def set_table(self, table: Tensor) -> None:
        """Let the product equal ``table`` (n × d) to float precision, in balanced factors.

        The extra k − d directions are drawn with standard deviation ``1/sqrt(n)``, those of the
        padding row excepted; see `mlet.nn.init.balanced_factors`.

        Raises:
            ValueError: the table is of another shape; or k < d, where the product cannot hold it.
        """
        if table.shape != (self.num_embeddings, self.embedding_dim):
            raise ValueError(
                f"a table {tuple(table.shape)} for a layer of {self.num_embeddings} categories, "
                f"{self.embedding_dim} wide"
            )
        factors = self.inner.detach(), self.projection.detach()
        balanced_factors(table, self.inner_dim, self.num_embeddings**-0.5, out=factors)
        if self.padding_idx is not None and not table.is_meta:
            self.inner[self.padding_idx, self.embedding_dim :] = 0

    @property
    def weight(self) -> Tensor:
        """The table the layer stands for, ``inner @ projection`` (n × d), differentiable.

        Computed afresh at each access, at the cost of one n × k × d product: what would write to
        it in place raises a RuntimeError; see `set_table` and `reset_parameters`.
        """
        return product(self.inner, self.projection)

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module, but for `weight`."""
        if name == "weight":
            raise AttributeError(
                "the weight of a two-layer table is computed from inner and projection: give it a "
                "table with set_table(values)"
            )
        super().__setattr__(name, value)

    def named_factors(self) -> dict[str, Factors]:
        """The one table, under the name ""."""
        return {"": Factors(self.inner.detach(), self.projection.detach())}

    @property
    def stacked(self) -> nn.Parameter:
        """The matrix that is looked up: ``inner``."""
        return self.inner

    @property
    def projection_std(self) -> float:
        """Standard deviation of the projection as initialised."""
        return PROJECTION_STDS[self.init](self.inner_dim)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is no longer trained by the original's fused optimizer."""
        return {**self.__dict__, "row_gradients": None, "factored_gradient": False}

    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Both factors."""
        yield self.inner, self.projection

    def _renormalise(self, ids: Tensor) -> None:
        """Scale down, in place, the looked-up rows whose product exceeds ``max_norm``.

        torch rescales the row of the table; scaling the row of ``inner`` by the same factor
        scales the product's row by it, so the meaning carries over exactly.
        """
        if self.max_norm is None:
            return
        with torch.no_grad():
            rows = ids.unique()
            norms = (self.inner[rows] @ self.projection).norm(p=self.norm_type, dim=1)
            long = norms > self.max_norm
            factors = self.max_norm / (norms[long] + 1e-7)
            self.inner[rows[long]] *= factors.unsqueeze(1)

    def _vectors(self, ids: Tensor, *, each: bool = False) -> tuple[Tensor, Tensor] | None:
        """Vectors (R × d) of the distinct categories of ``ids``, and each id's place among them; or
        of each id its own (… × d).

        None where the engine does not serve: what traces or transforms the lookup, other dtypes,
        no ids at all, and rows that `_renormalise` changes between one lookup and the next. The
        same is then done in torch's operations, one projection a lookup.
        """
        factors = self.inner, self.projection
        if self.max_norm is not None or not engine_serves(*factors, ids):
            return None
        if ids.numel() == 0 and not self.factored_gradient:
            return None
        if self.inner.device != ids.device or self.inner.device != self.projection.device:
            return None  # torch says what is where
        vectors, places = distinct_vectors(
            self.inner,
            self.projection,
            ids,
            self.stack,
            frozen_row=self.padding_idx,
            sparse=stays_sparse(self),
            sink=self.row_gradients,
            factored=self.factored_gradient,
            each=each,
        )
        if self.scale_grad_by_freq:
            counts = torch.bincount(places.reshape(-1), minlength=len(vectors)).clamp(min=1)
            vectors = _scaled_gradient(vectors, counts.to(vectors.dtype).reciprocal())
        return vectors, places

    def _multiply(self, rows: Tensor) -> Tensor:
        """``rows @ projection`` in the parameters' own dtype.

        torch's lookups stay out of autocast; a product would be rounded to its lower precision.
        """
        device = rows.device.type
        if not torch.amp.is_autocast_available(device):  # as for the meta device
            return rows @ self.projection
        with torch.autocast(device, enabled=False):
            return rows @ self.projection

    def _project(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Map rows of ``inner`` (… × k) to embeddings (… × d) of the categories ``ids`` (…)."""
        embeddings = self._multiply(rows)
        scale = None
        if self.scale_grad_by_freq:
            # As long as the table, as its dense gradient is anyway; of a shape that vmap knows.
            places = ids.reshape(-1).long()
            ones = torch.ones_like(places, dtype=embeddings.dtype)
            counts = ones.new_zeros(self.num_embeddings).index_add(0, places, ones)
            scale = counts.reciprocal()[ids.long()]
        if self.padding_idx is not None:
            # The padding row's own factor gets no gradient from the lookup; this keeps its
            # gradient out of the projection too, should the user have made the row non-zero.
            trained = (ids != self.padding_idx).to(embeddings.dtype)
            scale = trained if scale is None else scale * trained
        return embeddings if scale is None else _scaled_gradient(embeddings, scale)

    def extra_repr(self) -> str:
        """Torch's summary of the table, plus the inner dimension."""
        text = f"{self.num_embeddings}, {self.embedding_dim}, inner_dim={self.inner_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}"
        if self.norm_type != 2.0:
            text += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += ", scale_grad_by_freq=True"
        if self.sparse:
            text += ", sparse=True"
        return text
