"""Post-training product quantization: rows of one-byte codes into codebooks of their table.

A row needs no scale of its own, as uniform quantization row by row does: at d = 8 and below those
scales take as much as the codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlet.nn.field_tables import ComputedTables

#: Entries of a codebook: what a byte tells apart.
_ENTRIES = 256
#: Rows that codebooks are fitted to, at most, and how often they are moved.
_FITTED_ROWS, _ROUNDS = 32_768, 15
#: Rows compared with a codebook at once.
_BLOCK_ROWS = 65_536


@torch.no_grad()
def product_codes(table: Tensor, width: int) -> dict[str, Tensor]:
    """A table as product quantization keeps it (Jégou et al. 2011): ``width`` neighbouring columns
    share a code, the number of the nearest of at most 256 centroids of these columns in this table.

    Args:
        table: n × d.
        width: columns of a code, s; at most d are.

    Returns:
        ``codes`` (n × M, uint8) with M = ⌈d / s⌉, and ``codebook`` (M · C × s, float16) with
        C = min(256, n) centroids for each of the M groups of columns, end to end.
    """
    rows, dim = table.shape
    width = min(width, dim)
    groups = -(-dim // width)
    padded = torch.nn.functional.pad(table.float(), (0, groups * width - dim))
    codes, books = [], []
    for group in padded.split(width, dim=1):
        book = _centroids(group.contiguous(), min(_ENTRIES, rows)).half()
        codes.append(_nearest(group, book.float()).to(torch.uint8))
        books.append(book)
    return {"codes": torch.stack(codes, dim=1), "codebook": torch.cat(books)}


def _centroids(points: Tensor, count: int) -> Tensor:
    """Lloyd's algorithm on points (n × s): (count × s); the same for the same points."""
    step = -(-len(points) // _FITTED_ROWS)
    points = points[::step]
    distinct = points.unique(dim=0)
    if len(distinct) <= count:
        return torch.cat([distinct, distinct[-1:].expand(count - len(distinct), -1)])
    # Evenly spaced in the order of the first column, in which single columns have their quantiles.
    centroids = distinct[torch.linspace(0, len(distinct) - 1, count).long()]
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centroids)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        empty = (sizes == 0).squeeze(1)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        if missing := int(empty.sum()):
            # Where nobody is, they are put to those farthest from all.
            far = (points - centroids[nearest]).square().sum(dim=1).topk(missing).indices
            centroids[empty] = points[far]
    return centroids


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The number of the nearest centroid (n,) of each point (n × s)."""
    if points.shape[1] == 1:  # by halves of the line, in place of all distances
        order = centroids.flatten().argsort()
        line = centroids.flatten()[order]
        found: Tensor = order[
            torch.searchsorted((line[1:] + line[:-1]) / 2, points.flatten().contiguous())
        ]
        return found
    lengths = centroids.square().sum(dim=1)
    blocks = [
        torch.addmm(lengths, block, centroids.T, alpha=-2).argmin(dim=1)
        for block in points.split(_BLOCK_ROWS)
    ]
    return torch.cat(blocks)


class ProductTables(ComputedTables):
    """Ordinary tables as `product_codes` keeps them, one above the other; they serve, and cannot
    be trained.

    Args:
        sizes: n of each field, by name.
        dim: d.
        width: columns of a code, s.
    """

    codes: Tensor
    codebook: Tensor

    def __init__(self, sizes: Mapping[str, int], dim: int, width: int) -> None:
        super().__init__(sizes)
        self.dim, self.width = dim, min(width, dim)
        self.groups = -(-dim // self.width)
        entries = [min(_ENTRIES, size) for size in sizes.values()]
        ends = torch.tensor([self.groups * count for count in entries]).cumsum(0).tolist()
        self._books = {
            name: slice(end - self.groups * count, end)
            for name, count, end in zip(sizes, entries, ends, strict=True)
        }
        self.register_buffer(
            "codes", torch.zeros(sum(sizes.values()), self.groups, dtype=torch.uint8)
        )
        self.register_buffer("codebook", torch.zeros(ends[-1], self.width, dtype=torch.float16))
        # Where each table's (T) and group's (M) centroids begin. No buffer, as it is no weight.
        firsts = torch.tensor([book.start for book in self._books.values()])
        steps = torch.tensor(entries).unsqueeze(1) * torch.arange(self.groups)
        self._starts = firsts.unsqueeze(1) + steps

    def is_plain(self, traced: bool) -> bool:
        """Always: rows are decoded sooner than it is found out which of them are the same."""
        return True

    def parts(self, name: str) -> dict[str, Tensor]:
        """Views of what `product_codes` makes of a table."""
        start = self.stack.first_rows[self.stack.names.index(name)]
        rows = slice(start, start + self.sizes[name])
        return {"codes": self.codes[rows], "codebook": self.codebook[self._books[name]]}

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The rows decoded, (U, d) float32."""
        return self.plain_vectors(ids.unsqueeze(1), self.stack.names.index(name)).squeeze(1)

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The rows decoded, float32."""
        tables = ids.shape[1]
        rows = self.bounds.rows(ids, first).reshape(-1)
        starts = self._starts.to(ids.device)[first : first + tables]
        codes = self.codes.index_select(0, rows).long().view(-1, tables, self.groups)
        entries = (codes + starts).reshape(-1)
        vectors = self.codebook.index_select(0, entries).float()
        return vectors.view(-1, tables, self.groups * self.width)[..., : self.dim]
