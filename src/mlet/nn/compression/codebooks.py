"""Post-training product quantization: one-byte codes into codebooks of the table.

A row has no scale and bias of its own, as in uniform quantization row by row: at d = 8 and below
those take as much as its codes. And not all rows are kept alike. Where ids are in the order of
training counts, as `mlet.data` gives them, most lookups are of the first rows: those have a code
for every column, later ones a code for two or four, and codebooks are fitted to rows as often as
Zipf's law has them looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mlet.nn.field_tables import ComputedTables

#: Entries of a codebook: what a byte tells apart.
_ENTRIES = 256
#: Draws that codebooks are fitted to, at most, and how often they are moved.
_DRAWS, _ROUNDS = 4_096, 4
#: Rows compared with a codebook at once.
_BLOCK_ROWS = 65_536
#: Which part of the rows, from the first on, has a code for one column, and for at most two.
_PARTS = (32, 4)
#: Tiers of a table: rows with a code for one column, for two, for four.
_WIDTHS = (1, 2, 4)


class _Tier(NamedTuple):
    """Rows ``start`` to ``end`` of a table: M groups of s columns, a codebook of C for each."""

    start: int
    end: int
    groups: int
    width: int
    entries: int

    @property
    def codes(self) -> int:
        return (self.end - self.start) * self.groups

    @property
    def numbers(self) -> int:
        """Of its codebooks."""
        return self.groups * self.entries * self.width


def _tiers(rows: int, dim: int, width: int) -> list[_Tier]:
    """Of a table of that many rows; some may be empty.

    Args:
        rows: n.
        dim: d.
        width: columns of a code in the last rows, 1, 2 or 4.
    """
    last = _WIDTHS.index(width)
    ends = [min(rows, max(_ENTRIES, -(-rows // part))) for part in _PARTS[:last]]
    found = []
    for start, end, columns in zip([0, *ends], [*ends, rows], _WIDTHS, strict=False):
        columns = min(columns, dim)
        entries = min(_ENTRIES, end - start)
        found.append(_Tier(start, end, -(-dim // columns), columns, entries))
    return found


@torch.no_grad()
def product_codes(table: Tensor, width: int) -> dict[str, Tensor]:
    """A table as product quantization (Jégou et al. 2011) keeps it: neighbouring columns share a
    code, the number of the nearest of at most 256 centroids of these columns.

    Args:
        table: n × d.
        width: columns of a code, 1, 2 or 4. Of 2, the first 1/32 of the rows has 1; of 4 that, and
            the first 1/4 has 2; tiers of under 256 rows are filled up first.

    Returns:
        ``codes`` (uint8), row after row; and ``codebook`` (float16), the centroids, tier after tier
        of rows, group after group of columns.
    """
    rows, dim = table.shape
    codes, books = [], []
    for tier in _tiers(rows, dim, width):
        if tier.start == tier.end:
            continue
        more = tier.groups * tier.width - dim
        padded = torch.nn.functional.pad(table[tier.start : tier.end].float(), (0, more))
        often = 1 / torch.arange(tier.start + 1, tier.end + 1, dtype=torch.float64)
        groups = []
        for group in padded.split(tier.width, dim=1):
            points = group.contiguous()
            book = _centroids(points, often, tier.entries).half()
            groups.append(_nearest(points, book.float()).to(torch.uint8))
            books.append(book.flatten())
        codes.append(torch.stack(groups, dim=1).flatten())
    return {"codes": torch.cat(codes), "codebook": torch.cat(books)}


def _centroids(points: Tensor, often: Tensor, count: int) -> Tensor:
    """Lloyd's algorithm on points (n × s), drawn as often as said: (count × s); the same for the
    same points."""
    if len(points) > count:
        generator = torch.Generator().manual_seed(0)
        points = points[often.multinomial(_DRAWS, replacement=True, generator=generator)]
    distinct = points.unique(dim=0)
    if len(distinct) <= count:
        return torch.cat([distinct, distinct[-1:].expand(count - len(distinct), -1)])
    # Evenly spaced in the order of the first column, in which single columns have their quantiles.
    centroids: Tensor = distinct[torch.linspace(0, len(distinct) - 1, count).long()]
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centroids)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        empty = (sizes == 0).squeeze(1)
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
        found: Tensor = order[torch.searchsorted((line[1:] + line[:-1]) / 2, points.flatten())]
        return found
    lengths = centroids.square().sum(dim=1)
    blocks = [
        torch.addmm(lengths, block, centroids.T, alpha=-2).argmin(dim=1)
        for block in points.split(_BLOCK_ROWS)
    ]
    return torch.cat(blocks)


class ProductTables(ComputedTables):
    """Ordinary tables as `product_codes` keeps them, one after the other; they serve, and cannot
    be trained.

    Args:
        sizes: n of each field, by name.
        dim: d.
        width: columns of a code, as of `product_codes`.
    """

    codes: Tensor
    codebook: Tensor

    def __init__(self, sizes: Mapping[str, int], dim: int, width: int) -> None:
        super().__init__(sizes)
        self.dim = dim
        self._codes: dict[str, slice] = {}
        self._books: dict[str, slice] = {}
        entries, code, number = [], 0, 0
        for name, size in sizes.items():
            tiers = _tiers(size, dim, width)
            first = code, number
            for tier in tiers:
                entries.append([*tier[:1], *tier[2:], code, number])
                code, number = code + tier.codes, number + tier.numbers
            self._codes[name] = slice(first[0], code)
            self._books[name] = slice(first[1], number)
        self.register_buffer("codes", torch.zeros(code, dtype=torch.uint8))
        self.register_buffer("codebook", torch.zeros(number, dtype=torch.float16))
        # Of each table's tiers: first row, groups, width, entries, first code, first number. No
        # buffer, as it is no weight.
        self._tiers = torch.tensor(entries).view(len(sizes), -1, 6)

    def is_plain(self, traced: bool) -> bool:
        """Always: rows are decoded sooner than it is found out which of them are the same."""
        return True

    def parts(self, name: str) -> dict[str, Tensor]:
        """Views of what `product_codes` makes of a table."""
        return {
            "codes": self.codes[self._codes[name]],
            "codebook": self.codebook[self._books[name]],
        }

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The rows decoded, (U, d) float32."""
        return self.plain_vectors(ids.unsqueeze(1), self.stack.names.index(name)).squeeze(1)

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The rows decoded, float32."""
        count, tables = ids.shape
        tiers = self._tiers.to(ids.device)[first : first + tables]
        number = tiers.shape[1]
        # The last tier that begins before the row; an empty one begins where the next one does.
        place = (ids.unsqueeze(2) >= tiers[:, 1:, 0]).sum(dim=2)
        place = place + torch.arange(tables, device=ids.device) * number
        mine = tiers.reshape(-1, 6).index_select(0, place.reshape(-1)).view(count, tables, 6, 1)
        start, groups, width, entries, code, book = mine.unbind(2)
        columns = torch.arange(self.dim, device=ids.device)
        group = columns // width
        codes = code + (ids.unsqueeze(2) - start) * groups + group
        found = self.codes.index_select(0, codes.reshape(-1)).long().view(count, tables, self.dim)
        numbers = book + (group * entries + found) * width + columns % width
        return self.codebook.index_select(0, numbers.reshape(-1)).float().view_as(numbers)
