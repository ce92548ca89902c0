"""The gradient of a table's rows as its two factors, in the place of a dense ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from mlet.engine.batch import RowGradient, TableStack
from mlet.engine.rounding import compute_dtype

_aten = torch.ops.aten


@dataclass
class _Content:
    """What a gradient is made of; shared by its views, as memory is by those of a tensor.

    Attributes:
        parts: to be added up; their sums are in the dtype of computation.
        wide: or the rows (R,) and what they have (R × k), where that is no product any more.
    """

    parts: list[RowGradient]
    wide: tuple[Tensor, Tensor] | None = None


class FactoredGradient(Tensor):
    """``∂W2 = G · W1ᵀ`` on the rows that were looked up: G (R × d) is held, not the n × k product.

    It is a tensor of the shape, dtype and device of W2, so that it can be a parameter's ``.grad``.
    Gradients add up, are scaled, and have norms and checks for infinities (as clipping and
    `torch.amp.GradScaler` ask for) without the product being formed; a norm of order two needs but
    ``GᵀG`` and ``W1ᵀW1``. Whatever else reads it reads the product, n × k, made for it; what would
    write into it is refused. Of ordinary tables W1 is absent, and G is the gradient of their rows.

    Args:
        table: W2 (Σn × k) of T tables, or W (Σn × d).
        projection: W1 (T × k × d), or None.
        gradient: of the product.
        stack: which rows are whose.
    """

    # What comes of an operation is an ordinary tensor, unless `__torch_dispatch__` says otherwise.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(
        cls,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient | _Content,
        stack: TableStack,
    ) -> FactoredGradient:
        """A tensor without memory of its own."""
        return cls._make_wrapper_subclass(cls, table.shape, dtype=table.dtype, device=table.device)

    def __init__(
        self,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient | _Content,
        stack: TableStack,
    ) -> None:
        super().__init__()
        self._content: _Content
        self._content = _Content([gradient]) if isinstance(gradient, RowGradient) else gradient
        self._projection = projection
        self._stack = stack

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FactoredGradient(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FactoredGradient:
        return self._with(self._copied())

    def merged(self) -> RowGradient | None:
        """G, each row once; None where the gradient is no product any more."""
        content = self._content
        if content.wide is not None:
            return None
        if len(content.parts) != 1:
            content.parts = [RowGradient.merge(content.parts, self._stack)]
        return content.parts[0]

    def factors(self) -> tuple[RowGradient, Tensor | None] | None:
        """G, each row once, and W1 (T × k × d; None of ordinary tables); None where the gradient is
        no product any more."""
        gradient = self.merged()
        return None if gradient is None else (gradient, self._projection)

    def replace(self, gradient: RowGradient) -> None:
        """Let this be the gradient, as after its exchange with other processes."""
        self._content.parts, self._content.wide = [gradient], None

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows that have a gradient (R,), and theirs (R × k), in the dtype of computation."""
        if self._content.wide is not None:
            return self._content.wide
        gradient = self.merged()
        assert gradient is not None
        gradient = gradient.compact()
        if self._projection is None:
            return gradient.rows, gradient.sums
        wide = self._projection.detach().to(gradient.sums.dtype)
        values = gradient.sums.new_empty(len(gradient.rows), self.shape[1])
        for place, (low, high) in enumerate(pairwise(gradient.starts)):
            torch.mm(gradient.sums[low:high], wide[place].t(), out=values[low:high])
        return gradient.rows, values

    def dense(self) -> Tensor:
        """The same as an ordinary tensor (n × k)."""
        rows, values = self.rows()
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return dense.index_copy_(0, rows, values.to(self.dtype))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        own = _OPERATIONS.get(func)
        if own is not None:
            result = own(*args, **kwargs)
            if result is not NotImplemented:
                return result
        schema = func._schema
        changed = [
            value
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        found: list[FactoredGradient] = []
        tree_map_only(FactoredGradient, found.append, changed)
        if found:
            raise RuntimeError(
                f"{schema.name} cannot change the gradient of a table that mlet.optim.fused "
                f"trains: it is held as two factors, not as n x k numbers. What can: adding, "
                f"scaling, clamping, zero_; or train the table with torch's own optimizer"
            )
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))

    def _with(self, content: _Content) -> FactoredGradient:
        return FactoredGradient(self, self._projection, content, self._stack)

    def _copied(self) -> _Content:
        """Numbers of its own."""
        return self._scaled(1.0)

    def _scaled(self, factor: Tensor | float) -> _Content:
        if isinstance(factor, Tensor):  # of the dtype of computation, as of a scalar
            factor = factor.to(self.device)
        content = self._content
        if content.wide is not None:
            return _Content([], (content.wide[0], content.wide[1] * factor))
        return _Content([replace(part, sums=part.sums * factor) for part in content.parts])

    def _take(self, content: _Content) -> FactoredGradient:
        """Change in place, and with it every view."""
        self._content.parts, self._content.wide = content.parts, content.wide
        return self

    def _values(self) -> Tensor:
        """What may be checked or scaled in place of the product; not shared with anything else."""
        if self.merged() is None:
            rows, values = self.rows()
            self._content.wide = (rows, values.clone())
            return self._content.wide[1]
        self._take(self._copied())
        return self._content.parts[0].sums

    def _norm(self, order: float) -> Tensor:
        gradient = self.merged()
        if order != 2 or gradient is None or self._projection is None:
            norm: Tensor = torch.linalg.vector_norm(self.rows()[1], order)
            return norm
        # |G W1ᵀ|² = tr(GᵀG · W1ᵀW1): the products are d × d.
        squares = gradient.sums.new_zeros(())
        wide = self._projection.detach().to(gradient.sums.dtype)
        for place, (low, high) in enumerate(pairwise(gradient.starts)):
            sums = gradient.sums[low:high]
            squares += ((sums.t() @ sums) * (wide[place].t() @ wide[place])).sum()
        return squares.clamp(min=0.0).sqrt()


def rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (R,) of any gradient of a table in which it has something, and what (R × k)."""
    if isinstance(grad, FactoredGradient):
        return grad.rows()
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.ne(0).any(dim=1).nonzero().squeeze(1)
    return rows, grad[rows]


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, FactoredGradient) else value


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Tensor) or (
        value.dim() == 0 and not isinstance(value, FactoredGradient)
    )


def _multiply(one: Any, other: Any) -> Any:
    if isinstance(other, FactoredGradient):
        one, other = other, one
    if not _is_scalar(other):
        return NotImplemented
    return one._with(one._scaled(other))


def _divide(one: Any, other: Any) -> Any:
    if not _is_scalar(other) or not isinstance(one, FactoredGradient):
        return NotImplemented
    return _multiply(one, 1.0 / other)


def _in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    def changed(one: Any, *others: Any, **options: Any) -> Any:
        result = operation(one, *others, **options)
        if not isinstance(one, FactoredGradient) or not isinstance(result, FactoredGradient):
            return NotImplemented
        return one._take(result._content)

    return changed


def _add(one: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(one, FactoredGradient) or not isinstance(other, Tensor):
        return NotImplemented
    if isinstance(other, FactoredGradient):
        added = other._content if alpha == 1 else other._scaled(alpha)
        if one._content.wide is None and added.wide is None:
            return one._with(_Content([*one._content.parts, *added.parts]))
        rows, values = other._with(added).rows()
    else:
        rows, values = rows_of(other)
        values = values * alpha
    mine, own = one.rows()
    rows, places = torch.unique(torch.cat([mine, rows]), return_inverse=True)
    given = torch.cat([own, values.to(own.dtype)])
    sums = own.new_zeros(len(rows), own.shape[1]).index_add_(0, places, given)
    return one._with(_Content([], (rows, sums)))


def _vector_norm(
    one: Any,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    if dim is not None or keepdim:
        return NotImplemented
    return one._norm(2.0 if order is None else float(order)).to(dtype or one.dtype)


def _vector_norms(grads: Sequence[Tensor], order: Any = 2, dtype: Any = None) -> Any:
    return [torch.linalg.vector_norm(grad, order, dtype=dtype) for grad in grads]


def _multiply_all(grads: Sequence[Tensor], factor: Any) -> None:
    factors = factor if isinstance(factor, (list, tuple)) else [factor] * len(grads)
    for grad, own in zip(grads, factors, strict=True):
        grad.mul_(own)


def _unscale(grads: Sequence[Tensor], found_inf: Tensor, inverse: Tensor) -> None:
    """As `torch.amp.GradScaler` asks for: infinities of the factors are those of the product."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        values = grad._values() if isinstance(grad, FactoredGradient) else grad
        by_dtype.setdefault(values.dtype, []).append(values)
    for values_of_one in by_dtype.values():
        torch._amp_foreach_non_finite_check_and_unscale_(values_of_one, found_inf, inverse)


def _clamp(one: Any, low: Any = None, high: Any = None) -> Any:
    """Entry by entry: rows that were not looked up stay zero only where zero may stay."""
    if (low is not None and low > 0) or (high is not None and high < 0):
        return NotImplemented
    rows, values = one.rows()
    return one._with(_Content([], (rows, values.clamp(low, high))))


def _zero(one: Any) -> Any:
    empty = torch.empty(0, dtype=torch.int64, device=one.device)
    sums = torch.zeros(0, one.shape[1], dtype=compute_dtype(one), device=one.device)
    return one._take(_Content([], (empty, sums)))


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: lambda one: one._with(one._content),
    _aten.alias.default: lambda one: one._with(one._content),
    _aten.clone.default: lambda one, memory_format=None: one._with(one._copied()),
    _aten.mul.Tensor: _multiply,
    _aten.mul.Scalar: _multiply,
    _aten.mul_.Tensor: _in_place(_multiply),
    _aten.mul_.Scalar: _in_place(_multiply),
    _aten.div.Tensor: _divide,
    _aten.div.Scalar: _divide,
    _aten.div_.Tensor: _in_place(_divide),
    _aten.div_.Scalar: _in_place(_divide),
    _aten.neg.default: lambda one: one._with(one._scaled(-1.0)),
    _aten.add.Tensor: _add,
    _aten.add_.Tensor: _in_place(_add),
    _aten.zero_.default: _zero,
    _aten.clamp.default: _clamp,
    _aten.clamp_.default: _in_place(_clamp),
    _aten.linalg_vector_norm.default: _vector_norm,
    _aten.norm.Scalar: _vector_norm,
    _aten._foreach_norm.Scalar: _vector_norms,
    _aten._foreach_mul_.Scalar: _multiply_all,
    _aten._foreach_mul_.Tensor: _multiply_all,
    _aten._foreach_mul_.ScalarList: _multiply_all,
    _aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale,
}
