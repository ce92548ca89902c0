"""All categorical fields of a CTR batch in one call."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlet.engine import engine_serves
from mlet.errors import ConversionError
from mlet.nn.compression import Precision, quantize, quantized_tables
from mlet.nn.factored import Factored, Factors
from mlet.nn.field_names import FieldEntries
from mlet.nn.field_tables import FieldTables
from mlet.nn.fields import Bags, Field, check_bags, check_integers, owners_of
from mlet.nn.init import InitName
from mlet.nn.rare_rows import RareMap
from mlet.nn.shared_tables import look_up_gathered, look_up_shared
from mlet.nn.stacked_tables import StackedTables
from mlet.table_files import TableFiles, current_files, tables_in
from mlet.table_shards import current_shards


class _Group(NamedTuple):
    """The fields of one stack: the columns of the one-valued ones, then the multi-valued ones; or
    those that share one table, and their names."""

    columns: list[int]
    multi_valued: list[Field]
    mean: list[bool]
    sharing: tuple[str, ...] = ()


class FieldEmbedding(FieldEntries, Factored):
    r"""Embeds every categorical field of a batch: F fields, one call.

    Fields of equal (d, k) share one stacked matrix, and the engine reads, projects and updates each
    distinct category of a batch once. Two-layer (``inner_dim=k``) and ordinary
    (``inner_dim=None``) fields may be mixed.

    Args:
        fields: the fields, in output order. Several may be looked up in one table, which is then
            there once: its gradient is the sum over all of them.
        init: initialisation of two-layer tables; ordinary tables are uniform on ``±sqrt(1/n)``.
        sparse: give tables sparse gradients over the batch's distinct rows, each once; dense
            ones otherwise. Projections always get dense gradients.
        train_projection: train the projections of two-layer tables; false leaves them random, as
            the MLET authors tried.
        table_dtype: keep tables in ``torch.bfloat16`` or ``torch.float16``, at half the memory, and
            compute in float32. Train them with an optimizer of `mlet.optim`, which rounds
            stochastically; others lose small updates to rounding.
        table_bias: add a trained vector to all rows of a field's table. It collapses with the rest
            and gives categories that are rare or never seen what the others have in common. Not
            with a ``compression``.
        init_scale: initialise the rows this many times larger.
        width: let every field have vectors of this length, those of narrower tables filled up with
            zeros; None leaves them as they are.

    Shape:
        - ``ids``: (B, F₁), the one-valued fields in the order of ``fields``; int32 or int64.
        - ``bags``: for each multi-valued field by name, `Bags` of B bags.
        - Output: (B, F, ``width``); without one (B, F, d) if all fields share d, else (B, Σ d) with
          the fields end to end.

    Raises:
        ValueError: duplicate names, impossible shapes, or tables that cannot be shared.
        IndexError: an id outside its field's table; names the field, the id and the table size.
        TypeError: ids, values or offsets are no integers of 32 or 64 bits.

    Example:
        >>> layer = FieldEmbedding([Field("user", 671, 4, 64), Field("film", 9066, 4, 64)])
        >>> layer(torch.tensor([[1, 17], [2, 30]])).shape
        torch.Size([2, 2, 4])
    """

    fields: tuple[Field, ...]

    #: The fields that have a table of their own.
    table_names: tuple[str, ...]

    _files: TableFiles | None = None

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        init: InitName = "paper",
        sparse: bool = True,
        train_projection: bool = True,
        table_dtype: torch.dtype | None = None,
        table_bias: bool = False,
        init_scale: float = 1.0,
        width: int | None = None,
        _precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if not fields:
            raise ValueError("FieldEmbedding needs at least one field")
        self._owners = owners_of(fields)
        names = [field.name for field in fields]
        self.table_names = tuple(
            dict.fromkeys(name for name in names if name == self._owners[name])
        )
        smallest = min(field.num_embeddings for field in fields)
        fields = [
            replace(
                field,
                compression=field.compression
                and field.compression.of_field(field.num_embeddings, smallest, field.dim),
            )
            for field in fields
        ]
        self.fields = tuple(fields)
        self._files = current_files()
        self.init = init
        self.sparse = sparse
        self.train_projection = train_projection
        self.precision: Precision = _precision
        self.table_dtype = table_dtype
        self.table_bias, self.init_scale = table_bias, init_scale
        if not 0 < init_scale < math.inf:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        self.width = width
        for field in fields:
            if width is not None and field.dim > width:
                raise ValueError(f"field {field.name!r}: d = {field.dim} is above {width}")
        by_kind: dict[tuple[int, int | None, str], list[Field]] = defaultdict(list)
        shared = {field.shares for field in fields}
        sharing: dict[str, list[Field]] = defaultdict(list)
        for field in fields:
            compression = field.compression
            if compression and field.inner_dim is not None and not compression.takes_inner_dim:
                kind = type(compression).__name__
                raise ValueError(f"field {field.name!r}: {kind} cannot be trained with inner_dim")
            if compression and table_bias:
                kind = type(compression).__name__
                raise ValueError(f"field {field.name!r}: {kind} cannot be trained with table_bias")
            if compression and field.rare:
                raise ValueError(f"field {field.name!r}: a compressed table has no rare rows")
            if self._owners[field.name] in shared:
                sharing[self._owners[field.name]].append(field)
            else:
                by_kind[field.dim, field.inner_dim, repr(compression)].append(field)
        kinds = [tuple(sorted(group, key=_one_valued_first)) for group in by_kind.values()]
        stacks = [*kinds, *([self._field(name)] for name in sharing)]
        kinds += [tuple(sorted(group, key=_one_valued_first)) for group in sharing.values()]
        order = [field.name for kind in kinds for field in kind]
        self._order = [order.index(name) for name in names]
        self._in_order = order == names
        self.tables = nn.ModuleList(self._build(stack) for stack in stacks)
        one_valued = [field.name for field in fields if not field.multi_valued]
        self._column = {name: column for column, name in enumerate(one_valued)}
        self.rows = RareMap(fields)
        self._groups = [
            _Group(
                columns=[self._column[f.name] for f in kind if not f.multi_valued],
                multi_valued=[f for f in kind if f.multi_valued],
                mean=[f.pooling == "mean" for f in kind if f.multi_valued],
                sharing=tuple(f.name for f in kind if self._owners[f.name] in shared),
            )
            for kind in kinds
        ]

    def _build(self, group: Sequence[Field]) -> FieldTables:
        """The tables of fields of one kind."""
        sizes = {f.name: f.rare.rows if f.rare else f.num_embeddings for f in group}
        dim, inner_dim, compression = group[0].dim, group[0].inner_dim, group[0].compression
        if self.precision != "float32" and compression is None:
            return quantized_tables(sizes, dim, self.precision)
        build = partial(StackedTables, table_bias=self.table_bias, shards=current_shards())
        tables = (build if compression is None else compression.build)(
            sizes,
            dim,
            inner_dim,
            init=self.init,
            sparse=self.sparse,
            train_projection=self.train_projection,
            table_dtype=self.table_dtype,
            init_scale=self.init_scale,
        )
        # Whatever k they are trained with: a field must not be hashed otherwise once collapsed.
        own = (self._field(name) for name in self.table_names)
        alike = [f for f in own if (f.dim, f.compression) == (dim, compression)]
        places = {f.name: place for place, f in enumerate(sorted(alike, key=_one_valued_first))}
        tables.seeds = {name: places[name] for name in sizes}
        return tables

    def extra_repr(self) -> str:
        """A line for each field."""
        return "\n".join(
            f"{field.name!r}: n={field.num_embeddings}, d={field.dim}"
            + (f", k={field.inner_dim}" if field.inner_dim is not None else "")
            + (f", {field.pooling} of a bag" if field.multi_valued else "")
            + (f", {field.compression!r}" if field.compression is not None else "")
            + (f", in the table of {field.shares!r}" if field.shares is not None else "")
            for field in self.fields
        )

    @property
    def same_dim(self) -> bool:
        """Whether all fields have the same embedding dimension."""
        return len({field.dim for field in self.fields}) == 1

    def forward(self, ids: Tensor, bags: Mapping[str, Bags] | None = None) -> Tensor:
        """Embeddings of every field: (B, F, width or d), or (B, Σ d) where dimensions differ."""
        bags = bags or {}
        traced = not engine_serves(ids)
        check_integers("ids", ids)
        if ids.dim() != 2 or ids.shape[1] != len(self._column):
            raise ValueError(
                f"ids has shape {tuple(ids.shape)}; expected (B, {len(self._column)}), one column "
                f"for each one-valued field: {', '.join(self._column)}"
            )
        ids = self.rows.columns(ids, traced=traced)
        groups = [
            self._embed_group(group, table, ids, bags, traced)
            for group, table in zip(self._groups, self.tables, strict=True)
        ]
        if self.width is not None:
            groups = [_filled_up(vectors, self.width) for vectors in groups]
        if self.same_dim or self.width is not None:
            vectors = groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)
            return vectors if self._in_order else vectors[:, self._order]
        columns = [vector for group in groups for vector in group.unbind(1)]
        return torch.cat([columns[place] for place in self._order], dim=1)

    def _embed_group(
        self,
        group: _Group,
        table: nn.Module,
        ids: Tensor,
        bags: Mapping[str, Bags],
        traced: bool,
    ) -> Tensor:
        """Vectors (B, T, d) of the fields in one stack."""
        for field in group.multi_valued:
            if field.name not in bags:
                raise ValueError(f"no bags given for the multi-valued field {field.name!r}")
            if not traced:
                check_bags(field.name, bags[field.name], len(ids))
        assert isinstance(table, FieldTables)
        block = ids if len(group.columns) == ids.shape[1] else ids[:, group.columns]
        mine = [
            (self.rows.values(field.name, bags[field.name][0], traced=traced), bags[field.name][1])
            for field in group.multi_valued
        ]
        if group.sharing:
            size = self._field(group.sharing[0]).num_embeddings
            return look_up_shared(
                table, block, mine, group.mean, group.sharing, size, traced=traced
            )
        if table.is_plain(traced):
            return table.plain(block, mine, group.mean, traced=traced)
        return look_up_gathered(table, block, mine, group.mean)

    def parts(self, name: str) -> dict[str, Tensor]:
        """All that is one field's own, by name: views of the parameters and buffers it lies in."""
        return self.tables_of(name).parts(self._owners[name])

    @torch.no_grad()
    def table(self, name: str) -> Tensor:
        """The n × d table that one field stands for, collapsed if it is two-layer: a copy."""
        table = self.tables_of(name).table(self._owners[name])
        return table[self.rows.of(name).to(table.device)] if self.rows.is_needed else table

    def factors(self, name: str) -> Factors:
        """Views of one field's factors W2 (n × k) and W1 (k × d); of an ordinary field its table
        (n × d)."""
        return self.tables_of(name).factors(self._owners[name])

    def named_factors(self) -> dict[str, Factors]:
        """The factors of every table, by the field that it is of."""
        return {name: self.factors(name) for name in self.table_names}

    def start_from(self, name: str, table: Tensor) -> None:
        """Let one field begin with a trained table (n × d): exactly, in balanced factors if it is
        two-layer, or cut to its rank if it is ``low_rank``.

        Raises:
            ValueError: the field's ``compression`` cannot hold one, or it is of another shape.
        """
        self.tables_of(name).start_from(self._owners[name], table)

    def has_rare_rows(self, name: str) -> bool:
        """Whether rare categories of a field share rows."""
        return self._field(name).rare is not None

    def stacks(self) -> list[StackedTables]:
        """The matrices that the engine looks up and updates, those within compressions too."""
        return [part for part in self.modules() if isinstance(part, StackedTables)]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those too that are left for a fused optimizer."""
        super().zero_grad(set_to_none)
        for stack in self.stacks():
            if stack.row_gradients:
                stack.row_gradients.clear()

    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Stacked inner tables and their projections, a pair for each kind of two-layer fields."""
        for stack in self.stacks():
            yield from stack.factor_parameters()

    @torch.no_grad()
    def collapsed(self, name: str, precision: Precision = "float32") -> dict[str, Tensor]:
        """What is kept of one field to serve it: ``weight`` (n × d), collapsed if it is two-layer,
        or its codes at another precision; with a ``compression`` that method's tensors.

        Raises:
            ConversionError: another precision than float32, where all fields are compressed.
        """
        if precision != "float32" and all(field.compression for field in self.fields):
            raise ConversionError(
                f"{precision}: there is no ordinary table to quantize, since all fields are "
                f"compressed; leave them in float32"
            )
        parts = self.tables_of(name).collapsed(self._owners[name])
        if precision != "float32" and self._field(name).compression is None and "weight" in parts:
            return quantize(parts["weight"], precision)
        return parts

    def served(self, name: str) -> dict[str, Tensor]:
        """Not there any more."""
        raise TypeError("FieldEmbedding.served(name) is now collapsed(name)")

    def _field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)

    def tables_of(self, name: str) -> FieldTables:
        """The tables of one kind that one field's is among."""
        for tables in self.tables:
            assert isinstance(tables, FieldTables)
            if self._owners.get(name) in tables.sizes:
                return tables
        raise KeyError(f"no field {name!r}; the fields are {[f.name for f in self.fields]}")

    def collapse(self, precision: Precision = "float32") -> FieldEmbedding:
        """The same fields as they are served: ordinary tables with the same outputs, or tables of
        ``int8`` or ``int4`` codes, quantized row by row; a ``compression`` stays, and so do codes.
        """
        plain = self.like_collapsed(precision)
        for name in self.table_names:
            plain.load_collapsed(name, self.collapsed(name, precision))
        return plain

    def like_collapsed(self, precision: Precision = "float32") -> FieldEmbedding:
        """What `collapse` gives, its tables still to be filled with `load_collapsed`."""
        if self.precision != "float32":
            precision = self.precision
        with tables_in(self._files):
            plain = FieldEmbedding(
                [replace(field, inner_dim=None) for field in self.fields],
                init=self.init,
                sparse=self.sparse,
                width=self.width,
                _precision=precision,
            )
        like = self._float_like()
        plain.to(device=like.device)
        if like.is_floating_point() and precision == "float32":
            plain.to(dtype=like.dtype)
        return plain.train(self.training)

    def _float_like(self) -> Tensor:
        """An empty tensor of the device and dtype of the outputs."""
        like = next(iter([*self.parameters(), *self.buffers()])).new_empty(0)
        return like.float() if self.table_dtype else like

    def load_collapsed(self, name: str, parts: Mapping[str, Tensor]) -> None:
        """Copy what `collapsed` gave into one field of this layer, which must not be two-layer.

        Raises:
            ValueError: the field is two-layer, or a part is missing or has another shape.
        """
        self.tables_of(name).load_collapsed(self._owners[name], parts)


def _one_valued_first(field: Field) -> bool:
    """The order of fields within a stack; else it is that of the fields."""
    return field.multi_valued


def _filled_up(vectors: Tensor, width: int) -> Tensor:
    """Vectors (B, T, d) with zeros behind: (B, T, width)."""
    more = width - vectors.shape[2]
    return nn.functional.pad(vectors, (0, more)) if more else vectors
