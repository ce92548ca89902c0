"""Embedding tables of equal shape in one matrix, looked up through the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.engine import FetchedRows, Lookups, RowGradient, TableStack, look_up
from mlet.errors import ConfigError
from mlet.nn.factored import INNER, PROJECTION, TABLE_BIAS, WEIGHT, Factors, collapse_table
from mlet.nn.field_tables import FieldTables
from mlet.nn.in_the_graph import look_up_in_graph, number
from mlet.nn.init import (
    INITIALISATIONS,
    PROJECTION_STDS,
    InitName,
    balanced_factors,
    single_layer_,
    single_layer_shard_,
)
from mlet.nn.sparse_gradients import stays_sparse
from mlet.nn.two_layer import check_dimensions
from mlet.table_files import current_files, new_table
from mlet.table_shards import Shards


class StackedTables(FieldTables):
    """T tables with the same d and k, one above the other.

    Args:
        sizes: number of categories of each table, by field name.
        dim: embedding dimension d.
        inner_dim: inner dimension k of two-layer tables; None for ordinary ones.
        init: initialisation of two-layer tables.
        sparse: give the stacked matrix a sparse gradient over the distinct rows; a dense one
            otherwise.
        train_projection: leave the projections as they were initialised if false.
        table_dtype: keep the stacked matrix in ``torch.bfloat16`` or ``torch.float16``; projections
            and outputs stay as they are. None keeps it in torch's default dtype.
        table_bias: add a trained vector to all rows of a table, by which categories that are rare
            or never seen start from what the others have in common; zero at first.
        init_scale: the tables' rows are initialised this many times larger.
        shards: which rows are here of large tables, where several processes have some of them each
            (`mlet.table_shards`). Such tables are initialised to the rows of whole ones.

    Attributes:
        inner, projection: (Σn × k) and (T × k × d), where ``inner_dim`` is given; of n rows of a
            sharded table those that are here.
        weight: (Σn × d), where it is not.
        table_bias: (T × d), or None.
        row_gradients: where a fused optimizer (`mlet.optim`) trains these tables, what the backward
            passes since its last step left for it, and neither factor gets a ``.grad``; else None.
        factored_gradient: the backward pass gives the stacked matrix a
            `mlet.engine.FactoredGradient`, for `mlet.optim.fused`.
        sharded: the names of tables of which other rows are elsewhere.
        asked: a list to which lookups are noted, for zeros, instead of being looked up; else None.
        fetched: what is given for the next lookups, looked up and projected; else None.
    """

    factored_gradient: bool = False
    sharded: frozenset[str] = frozenset()
    asked: list[Lookups] | None = None
    fetched: FetchedRows | None = None

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        inner_dim: int | None,
        *,
        init: InitName,
        sparse: bool,
        train_projection: bool = True,
        table_dtype: torch.dtype | None = None,
        table_bias: bool = False,
        init_scale: float = 1.0,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(sizes)
        for name, size in sizes.items():
            check_dimensions(size, dim, dim + 1, f"field {name!r}")
        if inner_dim is not None:
            self._check_inner_dim(inner_dim, dim)
        if table_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"table_dtype must be bfloat16 or float16, got {table_dtype}")
        self.shards = shards
        if shards is not None:
            width = inner_dim or dim
            self.sharded = frozenset(
                name for name, n in sizes.items() if shards.applies((n, width), table_dtype)
            )
        own = self.stack_here()
        self.starts = dict(zip(sizes, own.first_rows, strict=False))
        self.dim = dim
        self.inner_dim = inner_dim
        self.init: InitName = init
        self.init_scale = init_scale
        self.sparse = sparse
        self.table_dtype = table_dtype
        self.row_gradients: list[RowGradient] | None = None
        rows = sum(own.sizes)
        if inner_dim is None:
            self.weight = nn.Parameter(new_table((rows, dim), table_dtype, self.files))
        else:
            self.inner = nn.Parameter(new_table((rows, inner_dim), table_dtype, self.files))
            self.projection = nn.Parameter(
                torch.empty(len(sizes), inner_dim, dim), requires_grad=train_projection
            )
        self.table_bias = nn.Parameter(torch.empty(len(sizes), dim)) if table_bias else None
        self.number = number(self)
        self.reset_parameters()

    def _check_inner_dim(self, inner_dim: int, dim: int) -> None:
        names = f"fields {', '.join(self.sizes)}"
        check_dimensions(sum(self.sizes.values()), dim, inner_dim, names)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is no longer trained by the original's fused optimizer."""
        left = {"row_gradients": None, "factored_gradient": False, "fetched": None, "asked": None}
        return {**self.__dict__, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has a number of its own."""
        super().__setstate__({**state, "number": number(self)})  # type: ignore[no-untyped-call]

    @property
    def stacked(self) -> nn.Parameter:
        """The matrix that is looked up: ``inner`` or ``weight``."""
        return self.weight if self.inner_dim is None else self.inner

    @property
    def projection_std(self) -> float | None:
        """Standard deviation of the projection as initialised; None of ordinary tables."""
        if self.inner_dim is None:
            return None
        return PROJECTION_STDS[self.init](self.inner_dim)

    def stack_here(self, rank: int | None = None) -> TableStack:
        """Which rows of the matrix are whose, in this process or another one."""
        if not self.sharded or self.shards is None:
            return self.stack
        count = self.shards.count
        sizes = (count(n, rank) if name in self.sharded else n for name, n in self.sizes.items())
        return TableStack(self.stack.names, tuple(sizes))

    def own_of(self, name: str, rows: Tensor, first: int = 0) -> Tensor:
        """Of rows of one whole table, from number ``first`` on, those that are here: a view."""
        return rows[self.shards.own(first)] if self.shards and name in self.sharded else rows

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise each table on its own, by its own number of categories."""
        for place, name in enumerate(self.sizes):
            rows = self.rows_of(name)
            if self.shards is not None and name in self.sharded:
                single_layer_shard_(rows, self.sizes[name], self.shards)
                if self.projection_std is not None:
                    self.projection[place].normal_(0.0, self.projection_std)
            elif self.inner_dim is None:
                single_layer_(rows)
            else:
                INITIALISATIONS[self.init](rows, self.projection[place])
            if self.init_scale != 1.0:
                rows.mul_(self.init_scale)
        if self.table_bias is not None:
            self.table_bias.zero_()

    def rows_of(self, name: str) -> Tensor:
        """One table's rows of the stacked matrix: a view, n × k or n × d."""
        return self._rows(name).detach()

    def _rows(self, name: str) -> Tensor:
        start, size = self.starts[name], self.sizes[name]
        if self.shards is not None and name in self.sharded:
            size = self.shards.count(size)
        return self.stacked[start : start + size]

    def parts(self, name: str) -> dict[str, Tensor]:
        """One table's rows and projection, or its rows alone; and its bias."""
        place = list(self.sizes).index(name)
        bias = {} if self.table_bias is None else {TABLE_BIAS: self.table_bias[place]}
        if self.inner_dim is None:
            return {WEIGHT: self._rows(name), **bias}
        return {INNER: self._rows(name), PROJECTION: self.projection[place], **bias}

    def _own_parts(self, name: str) -> dict[str, Tensor]:
        """`parts` by the names that they have here, whatever subclasses call them; detached."""
        return {part: tensor.detach() for part, tensor in StackedTables.parts(self, name).items()}

    def table(self, name: str) -> Tensor:
        """One table as it would be served (n × d): a copy, collapsed if two-layer.

        Raises:
            ValueError: it is sharded.
        """
        if name in self.sharded:
            raise ValueError(f"field {name!r}: other rows of its table are in other processes")
        parts = self._own_parts(name)
        bias = parts.get(TABLE_BIAS)
        if self.inner_dim is not None:
            projection = parts[PROJECTION]
            out = None
            if self.files is not None:
                out = new_table((self.sizes[name], self.dim), projection.dtype, self.files)
            return collapse_table(parts[INNER], projection, bias, out)
        rows = parts[WEIGHT]
        dtype = torch.float32 if self.table_dtype else rows.dtype
        if self.files is None:
            rows = rows.to(dtype, copy=True)
        else:
            rows = new_table(rows.shape, dtype, self.files).copy_(rows)
        return rows if bias is None else rows.add_(bias)

    def factors(self, name: str) -> Factors:
        """Views of one table's W2 (n × k) and W1 (k × d); of an ordinary one W and None."""
        parts = self._own_parts(name)
        rows = parts[WEIGHT if self.inner_dim is None else INNER]
        return Factors(rows, parts.get(PROJECTION))

    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The parameters that hold the factors of all tables, if they are two-layer."""
        if self.inner_dim is not None:
            yield self.inner, self.projection

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """One table, collapsed if it is two-layer."""
        return {WEIGHT: self.table(name)}

    def load_collapsed(self, name: str, given: Mapping[str, Tensor]) -> None:
        """Fill an ordinary table."""
        if self.inner_dim is not None:
            raise ValueError(f"field {name!r} is two-layer; only ordinary tables can be filled")
        if self.table_bias is not None:
            raise ValueError(f"field {name!r} has a table_bias; only collapsed ones can be filled")
        super().load_collapsed(name, given)

    @torch.no_grad()
    def start_from(self, name: str, table: Tensor) -> None:
        """Let one field hold a trained table (n × d): exactly, in balanced factors if two-layer.

        Raises:
            ValueError: the table is of another shape.
        """
        expected = (self.sizes[name], self.dim)
        if table.shape != expected:
            raise ValueError(f"field {name!r}: a table {tuple(table.shape)} for {expected}")
        self._hold(name, table)

    def _hold(self, name: str, table: Tensor) -> None:
        parts = self.parts(name)
        if TABLE_BIAS in parts:
            parts[TABLE_BIAS].zero_()
        if self.inner_dim is None:
            parts[WEIGHT].copy_(self.own_of(name, table))
            return
        std = 1.0 / math.sqrt(len(table))
        if name in self.sharded:  # made whole where tables are made now, in a file
            whole = new_table((len(table), self.inner_dim), table.dtype, current_files())
            balanced_factors(table, self.inner_dim, std, out=(whole, parts[PROJECTION]))
            parts[INNER].copy_(self.own_of(name, whole))
            return
        if self.files is not None and parts[INNER].dtype == table.dtype:
            balanced_factors(table, self.inner_dim, std, out=(parts[INNER], parts[PROJECTION]))
            return
        factors = balanced_factors(table, self.inner_dim, std)
        parts[INNER].copy_(factors[0])
        parts[PROJECTION].copy_(factors[1])

    def is_plain(self, traced: bool) -> bool:
        """Of ordinary tables where no gradient is asked for: reading rows is all there is to do.

        A fused optimizer counts on what the engine leaves for it, but not of programs that are
        exported, which it does not train.
        """
        asked = torch.is_grad_enabled() and self.stacked.requires_grad
        if self.asked is not None or self.fetched is not None or self.sharded:
            return False
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            return True
        if traced:
            return not (asked and (self.row_gradients is not None or self.factored_gradient))
        return self.inner_dim is None and not asked

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """Rows, projected if two-layer, with their biases."""
        tables = slice(first, first + ids.shape[1])
        vectors = F.embedding(self.bounds.rows(ids, first), self.stacked)
        if self.table_dtype is not None:
            vectors = vectors.float()
        if self.inner_dim is not None:
            vectors = torch.einsum("nuk,ukd->nud", vectors, self.projection[tables])
        return vectors if self.table_bias is None else vectors + self.table_bias[tables]

    def forward(self, lookups: Lookups) -> Tensor:
        """Embed a batch's ids: (B, T, d), or each by itself (V, d), in the dtype of the
        projections, of ordinary tables their own; float32 for ordinary tables with ``table_dtype``.
        """
        if lookups.each and self.table_bias is not None:
            raise ValueError("lookups of each id by itself go with no table_bias")
        if self.asked is not None:
            self.asked.append(lookups)
            return self.stacked.new_zeros(lookups.batch, len(self.sizes), self.dim)
        projection = None if self.inner_dim is None else self.projection
        if self.fetched is not None or self.sharded:
            vectors = self._fetched_of(lookups).hand_out(self.stacked, self.row_gradients)
        elif torch.compiler.is_compiling():
            vectors = look_up_in_graph(self.number, projection, lookups)
        else:
            vectors = look_up(
                self.stacked,
                projection,
                lookups,
                self.stack,
                sparse=stays_sparse(self),
                sink=self.row_gradients,
                factored=self.factored_gradient,
            )
        if self.inner_dim is not None:
            vectors = vectors.to(self.projection.dtype)
        elif not self.table_dtype:
            vectors = vectors.to(self.weight.dtype)
        if self.table_bias is None:
            return vectors
        masses = lookups.masses(self.table_bias.dtype)
        bias = self.table_bias if masses is None else masses.unsqueeze(2) * self.table_bias
        return vectors + bias

    def _fetched_of(self, lookups: Lookups) -> FetchedRows:
        """What has been fetched for these.

        Raises:
            ConfigError: that is of others.
        """
        fetched = self.fetched
        if fetched is None or not torch.equal(fetched.lookups.ids, lookups.ids):
            raise ConfigError(
                f"fields {', '.join(self.sizes)}: the model looks up other ids than those of its "
                f"batch, which sharded tables are asked for; keep tables whole: "
                f"training.shard_tables_above=null"
            )
        return fetched
