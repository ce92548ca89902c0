"""`mlet.Embedding`: torch's embedding lookup, trained as a product of two matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.nn.factored import collapse_table
from mlet.nn.init import InitName
from mlet.nn.sparse_gradients import stays_sparse
from mlet.nn.two_layer import TwoLayerTable


class Embedding(TwoLayerTable):
    r"""A lookup table trained as :math:`W = W_2 W_1`, served as one table (arXiv 2309.15881).

    Takes the arguments of :class:`torch.nn.Embedding`, with their meaning on the product, plus
    ``inner_dim``. ``collapse()`` gives the ordinary layer with the same outputs.

    Args:
        num_embeddings: number of categories n.
        embedding_dim: size d of each embedding vector.
        padding_idx: this row starts as zero and gets no gradient.
        max_norm: looked-up product rows with a larger norm are rescaled to it, in place.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide gradients by the category's frequency in the mini-batch.
        sparse: give ``inner`` a sparse gradient (queried rows only), as torch's ``sparse`` does
            for ``weight``; the gradient of ``projection`` is always dense.
        inner_dim: the inner dimension k, several times d for a gain.
        init: ``"paper"`` or ``"variance_matched"``, see `mlet.nn.init`.

    Shape:
        - Input: :math:`(*)`, int32 or int64.
        - Output: :math:`(*, d)`.

    Attributes:
        inner: :math:`W_2` (n × k).
        projection: :math:`W_1` (k × d).

    Raises:
        ValueError: a dimension or index is out of range, or options contradict each other.
        UserWarning: (warning) ``inner_dim`` is not above ``embedding_dim``.

    Example:
        >>> layer = mlet.Embedding(10_000, 8, inner_dim=64)
        >>> layer(torch.tensor([3, 14])).shape
        torch.Size([2, 8])
        >>> layer.collapse()
        Embedding(10000, 8)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        inner_dim: int = 64,
        init: InitName = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings (…, d) of the categories ``input`` (…)."""
        found = self._vectors(input, each=not self.scale_grad_by_freq)
        if found is not None:
            vectors, places = found
            return F.embedding(places, vectors) if self.scale_grad_by_freq else vectors
        self._renormalise(input)
        rows = F.embedding(input, self.inner, self.padding_idx, sparse=stays_sparse(self))
        return self._project(rows, input)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        inner_dim: int = 64,
    ) -> Embedding:
        """A layer that holds a given table (n × d) to float precision, in balanced factors.

        Args:
            embeddings: the table; ``inner_dim`` must not be below its width d.
            freeze: train neither factor, torch's default.
            padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, inner_dim: as for the
                class. The padding row keeps the values given, as in torch.

        Raises:
            ValueError: the table is not two-dimensional, or ``inner_dim`` is below d.
        """
        layer = cls(
            *cls._table_shape(embeddings),
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            inner_dim=inner_dim,
            device=embeddings.device,
            dtype=embeddings.dtype,
        )
        layer.set_table(embeddings)
        layer.requires_grad_(not freeze)
        return layer

    def collapse(self) -> nn.Embedding:
        """The ordinary torch layer with the same options and the same outputs."""
        return nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            padding_idx=self.padding_idx,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            _weight=collapse_table(self.inner, self.projection),
        ).train(self.training)
