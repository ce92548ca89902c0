"""What categories have in common before any training: vectors of those they occur with.

Two categories of different fields co-occur in a row. With C the symmetric matrix of how often, over
all categories of all fields, and D the diagonal one of how often each occurs at all, the leading
eigenvectors of ``D^−½ C D^−½`` place categories that occur with the same others near one another
(spectral clustering: Shi and Malik 2000, doi 10.1109/34.868688). Labels are not used, so nothing of
them leaks.

C is never formed: a product with it is a pass over rows, in which every category of a row receives
the sum of the others' vectors. A few passes of orthogonal iteration from a random start suffice,
since no single eigenvector matters but the space that they span.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mlet.atomic import atomic_path
from mlet.data import layout
from mlet.data.dataset import PreparedDataset
from mlet.data.identity import fingerprint
from mlet.data.loader import Batch, BatchLoader
from mlet.data.prepare import Report
from mlet.errors import DataError, WriteError
from mlet.reading import load_torch, reading
from mlet.table_files import current_files, new_table

_BATCH_ROWS = 8_192
#: Eigenvalues of a Gram matrix below this share of the largest count as zero.
_RANK_TOLERANCE = 1e-10


def kept_co_occurrence_vectors(
    data: PreparedDataset, width: int, *, report: Report = lambda what, done, total: None
) -> dict[str, Tensor]:
    """`co_occurrence_vectors` of a data set, computed once: they are kept in its folder.

    They depend on the data and on the width, not on a run's seed. A kept file of other data, or a
    damaged one, is made anew; where the folder cannot be written to, nothing is kept.
    """
    file, mark = layout.co_occurrences(data.root, width), fingerprint(data.schema)
    if file.exists():
        try:
            with reading(file, DataError, "remove it"):
                kept = load_torch(file, mapped=current_files() is not None)
                if kept["data"] == mark:
                    return {
                        field.name: kept["vectors"][field.owner] for field in data.schema.fields
                    }
        except DataError:
            pass
    vectors = co_occurrence_vectors(data, width, report=report)
    # Each is a view of all fields', which are kept once.
    own = {field.owner: vectors[field.owner] for field in data.schema.fields}
    try:
        with atomic_path(file, failures=(RuntimeError,)) as temporary:
            torch.save({"data": mark, "vectors": own}, temporary)
    except WriteError:
        pass
    return vectors


def co_occurrence_vectors(
    data: PreparedDataset,
    width: int,
    *,
    passes: int = 5,
    max_rows: int = 2_000_000,
    seed: int = 0,
    report: Report = lambda what, done, total: None,
) -> dict[str, Tensor]:
    """A vector of length one for each category, near for categories that occur with the same ones.

    Args:
        data: its training rows are used, not their labels.
        width: k, of the vectors.
        passes: over the rows, beside one that counts.
        max_rows: used at most, drawn at random.
        seed: of the start and of the rows.
        report: told of progress.

    Returns:
        (n × k) float32 for each field, by name. A category without co-occurrences, as the unknown
        one, has zeros; so have all if there is but one field.
    """
    rows = _Rows(data, max_rows, seed)
    counts = torch.zeros(rows.categories)
    for ids, _, weights in rows:
        counts.index_add_(0, ids, weights)
    generator = torch.Generator().manual_seed(seed)
    shape = (rows.categories, width)
    vectors, others = (new_table(shape, torch.float32, current_files()) for _ in range(2))
    vectors.normal_(generator=generator)
    vectors *= (counts > 0).unsqueeze(1)
    scale = counts.clamp(min=1e-12).rsqrt().unsqueeze(1)
    for number in range(passes):
        report("co-occurrences of categories", number, passes)
        _orthonormalise(vectors, others)
        rows.multiply(vectors.mul_(scale), others)
        vectors, others = others.mul_(scale), vectors
    _orthonormalise(vectors, others)
    vectors *= scale
    vectors /= vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    own = dict(zip(rows.owners, vectors.split(rows.sizes), strict=True))
    return {field.name: own[field.owner] for field in data.schema.fields}


class _Rows:
    """The rows, their categories numbered through all vocabularies."""

    def __init__(self, data: PreparedDataset, max_rows: int, seed: int) -> None:
        schema = data.schema
        self.sizes = [field.num_categories for field in schema.vocabulary_fields]
        self.owners = [field.name for field in schema.vocabulary_fields]
        self.categories = sum(self.sizes)
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        names = [field.name for field in schema.fields]
        starts = dict(zip(self.owners, [0, *ends[:-1]], strict=True))
        self.starts = {field.name: starts[field.owner] for field in schema.fields}
        one_valued = [field.name for field in schema.one_valued]
        self._first = torch.tensor([self.starts[name] for name in one_valued])
        self._place = {name: place for place, name in enumerate(names)}
        self._columns = torch.tensor([self._place[name] for name in one_valued])
        self._loader = BatchLoader(data.split("train"), _BATCH_ROWS, seed)
        self._batches = -(-max_rows // _BATCH_ROWS)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of every batch, for each of its lookups: the category, its field's place within its row
        among all rows' fields (row · F + field), and its weight: those of a bag add up to one."""
        for number, batch in enumerate(self._loader.epoch(0)):
            if number == self._batches:
                return
            yield self._lookups(batch)

    def _lookups(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        count, fields = len(batch.ids), len(self.starts)
        places = torch.arange(count).unsqueeze(1) * fields
        ids = [(batch.ids.long() + self._first).flatten()] if len(self._first) else []
        slots = [(places + self._columns).flatten()] if len(self._first) else []
        weights = [torch.ones(len(part)) for part in ids]
        for name, (values, offsets) in batch.bags.items():
            lengths = offsets.diff()
            row = torch.arange(count).repeat_interleave(lengths)
            ids.append(values.long() + self.starts[name])
            slots.append(row * fields + self._place[name])
            weights.append((1.0 / lengths).repeat_interleave(lengths))
        return torch.cat(ids), torch.cat(slots), torch.cat(weights)

    def multiply(self, vectors: Tensor, out: Tensor) -> None:
        """``C @ vectors`` to ``out``: every category receives, from each of its rows, the sum over
        the other fields of their categories' vectors, means over bags."""
        fields, width = len(self.starts), vectors.shape[1]
        out.zero_()
        for ids, slots, weights in self:
            weights = weights.unsqueeze(1)
            rows = int(slots.max()) // fields + 1 if len(slots) else 0
            pooled = torch.zeros(rows * fields, width)
            pooled.index_add_(0, slots, vectors[ids] * weights)
            pooled = pooled.view(rows, fields, width)
            others = (pooled.sum(1, keepdim=True) - pooled).flatten(0, 1)
            out.index_add_(0, ids, others[slots] * weights)


def _orthonormalise(vectors: Tensor, others: Tensor) -> None:
    """Make of the columns of (n × k) an orthonormal basis of their space, and zeros where it has
    fewer; ``others`` is room to work in."""
    for _ in range(2):  # once leaves what rounding has made of nearly dependent columns
        gram = (vectors.T @ vectors).double()
        values, basis = torch.linalg.eigh(gram)
        kept = values > _RANK_TOLERANCE * values.max().clamp(min=1e-300)
        scaled = torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)
        torch.mm(vectors, (basis * scaled).to(vectors.dtype), out=others)
        vectors, others = others, vectors
