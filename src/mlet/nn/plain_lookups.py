"""What lookups by torch's own operations need: ids that are checked, bags that are pooled.

Everything here can be traced, exported and compiled, for batches of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlet.engine import TableStack


class IdBounds:
    """Which ids the tables of a stack have.

    Args:
        stack: the tables.
    """

    def __init__(self, stack: TableStack) -> None:
        self._stack, self._tables = stack, len(stack)
        # Not buffers of a module, which DistributedDataParallel would send around at every step.
        self._starts = torch.tensor(stack.first_rows[:-1])
        self._last = torch.tensor(stack.sizes) - 1
        self._nought = torch.zeros(1, dtype=torch.int64)

    def check(self, ids: Tensor, first: int, *, traced: bool) -> Tensor:
        """The ids (… × U, int64) of the U tables from ``first`` on, none of them outside its table.

        Args:
            ids: int32 or int64.
            first: the table of the first column.
            traced: leave it to the program that is made to fail where it is given such an id.

        Raises:
            IndexError: one of them is outside; names the field, the id and the table size.
        """
        ids = ids.long()
        last = self._of(self._last, ids, first)
        if traced:
            # There is no second entry: this lookup fails in any runtime.
            nought = self._nought.to(ids.device)
            return ids + nought[((ids < 0) | (ids > last)).long()]
        if not torch.equal(ids.clamp(torch.zeros_like(last), last), ids):
            place = tuple(((ids < 0) | (ids > last)).nonzero()[0].tolist())
            raise self._stack.no_such_id(first + place[-1], int(ids[place]))
        return ids

    def rows(self, ids: Tensor, first: int) -> Tensor:
        """The rows of the stacked matrix that checked ids stand for."""
        return ids + self._of(self._starts, ids, first)

    def _of(self, bounds: Tensor, ids: Tensor, first: int) -> Tensor:
        tables = ids.shape[-1]
        mine = bounds if tables == self._tables else bounds[first : first + tables]
        return mine if ids.device == mine.device else mine.to(ids.device)


def pool(vectors: Tensor, offsets: Tensor, *, mean: bool) -> Tensor:
    """The sum or mean of each bag: of V vectors (V, d), (B, d); zeros of an empty one.

    Args:
        vectors: of the values of all bags, end to end.
        offsets: (B + 1,), where each begins and the last one ends.
        mean: divide by the lengths.
    """
    ends = offsets[1:].long()
    # A value belongs to the bag that as many others have ended before.
    ended = ends.new_zeros(vectors.shape[0] + 1).index_add(0, ends, torch.ones_like(ends))
    bags = ended.cumsum(0)[:-1]
    sums = vectors.new_zeros(ends.shape[0], vectors.shape[1]).index_add(0, bags, vectors)
    if not mean:
        return sums
    lengths = ends - offsets[:-1].long()
    return sums / lengths.clamp(min=1).unsqueeze(1).to(sums.dtype)
