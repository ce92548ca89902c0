"""`mlet.EmbeddingBag`: torch's pooled lookup, trained as a product of two matrices."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.nn.factored import collapse_table
from mlet.nn.init import InitName
from mlet.nn.sparse_gradients import stays_sparse
from mlet.nn.two_layer import TwoLayerTable


class EmbeddingBag(TwoLayerTable):
    r"""Sums, means or maxima of bags of embeddings, the table trained as :math:`W = W_2 W_1`.

    Takes the arguments of :class:`torch.nn.EmbeddingBag`, with their meaning on the product, plus
    ``inner_dim`` and ``init`` (see `mlet.Embedding`). Sums and means are pooled in the inner
    dimension and projected once per bag, which is the same by linearity; maxima are taken over
    projected rows.

    ``scale_grad_by_freq`` divides by the category's own frequency in the mini-batch, as torch
    defines it; torch 2.13's CPU kernel divides by another category's in some batches.

    Shape:
        - Input: (N,) with ``offsets`` (B,), or (B, L) without; int32 or int64.
        - ``per_sample_weights``: the shape of the input; ``mode="sum"`` only, as in torch.
        - Output: (B, d). Empty bags give zeros.

    Raises:
        ValueError: a dimension, index or mode is out of range, or options contradict each other.

    Example:
        >>> layer = mlet.EmbeddingBag(10_000, 8, mode="sum", inner_dim=64)
        >>> layer(torch.tensor([3, 14, 15]), offsets=torch.tensor([0, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Literal["sum", "mean", "max"] = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        inner_dim: int = 64,
        init: InitName = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"mode={mode!r} is not one of 'sum', 'mean', 'max'")
        if mode == "max" and (sparse or scale_grad_by_freq):
            raise ValueError(
                "mode='max' goes with neither sparse nor scale_grad_by_freq, as in torch"
            )
        super().__init__(
            num_embeddings,
            embedding_dim,
            inner_dim=inner_dim,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled embeddings (B, d) of the bags in ``input``."""
        if per_sample_weights is not None:
            if self.mode != "sum":
                raise ValueError(
                    f"per_sample_weights goes with mode='sum' only, as in torch; this layer's "
                    f"mode is {self.mode!r}"
                )
            if per_sample_weights.shape != input.shape:
                raise ValueError(
                    f"per_sample_weights has shape {tuple(per_sample_weights.shape)}, the input "
                    f"{tuple(input.shape)}; they must be the same"
                )
        if input.dim() not in (1, 2):
            raise ValueError(f"the input has to be 1-D or 2-D, got {input.dim()} dimensions")
        if input.dim() == 2 and offsets is not None:
            raise ValueError("offsets goes with a 1-D input only; each row of a 2-D one is a bag")
        if input.dim() == 1 and offsets is None:
            raise ValueError("a 1-D input needs offsets, the position where each bag starts")
        found = self._vectors(input)
        if found is not None:
            return self._pool_distinct(*found, input, offsets, per_sample_weights)
        self._renormalise(input)
        if self.mode == "max" or self.scale_grad_by_freq:
            return self._pool_projected(input, offsets, per_sample_weights)
        pooled = F.embedding_bag(
            input,
            self.inner,
            offsets,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )
        return self._multiply(pooled)

    def _pool_distinct(
        self,
        vectors: Tensor,
        places: Tensor,
        input: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
    ) -> Tensor:
        """torch's pooling, of distinct vectors."""
        padded = None
        if self.padding_idx is not None:
            left_out = places[input == self.padding_idx]
            padded = int(left_out[0]) if len(left_out) else None
        return F.embedding_bag(
            places,
            vectors,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padded,
        )

    def _pool_projected(
        self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        """Project each position, then pool: for what does not commute with the projection."""
        ids = input.reshape(-1)
        if offsets is None:
            offsets = torch.arange(0, ids.numel() + 1, input.shape[1], device=ids.device)
        elif not self.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([ids.numel()])])
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if self.padding_idx is not None:
            # Bags are pooled over positions here, so torch's padding_idx (a row) cannot be used:
            # the padded positions are taken out instead.
            kept = ids != self.padding_idx
            ends = torch.cat([offsets.new_zeros(1), kept.cumsum(0).to(offsets.dtype)])
            offsets, ids = ends[offsets.long()], ids[kept]
            weights = None if weights is None else weights[kept]
        embeddings = self._project(F.embedding(ids, self.inner, sparse=stays_sparse(self)), ids)
        return F.embedding_bag(
            torch.arange(ids.numel(), device=ids.device, dtype=offsets.dtype),
            embeddings,
            offsets,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=True,
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Literal["sum", "mean", "max"] = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        inner_dim: int = 64,
    ) -> EmbeddingBag:
        """A layer that holds a given table (n × d); see `mlet.Embedding.from_pretrained`."""
        layer = cls(
            *cls._table_shape(embeddings),
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            include_last_offset,
            padding_idx,
            inner_dim=inner_dim,
            device=embeddings.device,
            dtype=embeddings.dtype,
        )
        layer.set_table(embeddings)
        layer.requires_grad_(not freeze)
        return layer

    def collapse(self) -> nn.EmbeddingBag:
        """The ordinary torch layer with the same options and the same outputs."""
        return nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            sparse=self.sparse,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            _weight=collapse_table(self.inner, self.projection),
        ).train(self.training)

    def extra_repr(self) -> str:
        """Torch's summary of the layer, plus the inner dimension."""
        return f"{super().extra_repr()}, mode={self.mode!r}"
