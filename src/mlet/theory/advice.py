"""How many inner directions a table makes use of, and what k to give it.

The cross-category part of an update is ``W2 W2ᵀ G``. Over the gradients G of an epoch its energy is
``E‖W2 W2ᵀ G‖²``. Take the rows of G as independent, with a variance that grows with how often the
category is queried, ``E[G Gᵀ] = C = diag(counts)``. In the eigenbasis V of the Gram matrix
``H = W2ᵀW2 = V Λ Vᵀ``, direction i then carries (derived)::

    energyᵢ = λᵢ · (Vᵀ W2ᵀ C W2 V)ᵢᵢ

and the energies add up to the whole. With all counts equal they are λᵢ², the squares of the extra
factors s2ᵢ² of `mlet.theory.reweighting`. The directions that carry next to nothing are those that
a smaller k could do without.

What it assumes: that the run is long enough for W2 to show which directions it wants, and that
what a direction carries is what it is worth. ``docs/theory.md`` holds it against measured quality,
with the cases where it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlet.nn.factored import Factors

#: Share of the update energy that the directions "in use" carry together.
IN_USE = 0.99


@dataclass(frozen=True)
class UpdateEnergy:
    """The cross-category update energy of one table, by inner direction.

    Attributes:
        shares: of the whole, descending; k of them, summing to 1 (to 0 for a zero table).
        total: the energy itself, ``Σ energyᵢ``; comparable between tables of one model.
        rows, dim: n and d of the table.
    """

    shares: Tensor
    total: float
    rows: int
    dim: int

    @property
    def inner_dim(self) -> int:
        """k."""
        return len(self.shares)

    def kept(self, inner_dim: int) -> float:
        """Share of the energy that the strongest ``inner_dim`` directions carry."""
        return min(1.0, float(self.shares[:inner_dim].sum()))

    def directions_for(self, share: float) -> int:
        """The fewest directions that carry at least ``share`` of the energy."""
        reached = self.shares.cumsum(0) >= share * self.shares.sum() - 1e-12
        return int(reached.nonzero()[0]) + 1 if len(self.shares) else 0

    @property
    def in_use(self) -> int:
        """The fewest directions that carry 99 % of it."""
        return self.directions_for(IN_USE)

    def sentence(self) -> str:
        """The advice in words, with its evidence."""
        smaller = smallest_power(max(self.in_use, self.dim + 1))
        text = f"directions in use: {self.in_use} of {self.inner_dim}"
        if smaller < self.inner_dim:
            return (
                f"{text}; k = {smaller} would keep {100 * self.kept(smaller):.1f} % of the update "
                f"energy"
            )
        return f"{text}; the table uses what it has, a larger k may bring more"


def update_energy(factors: Factors, counts: Tensor | None = None) -> UpdateEnergy:
    """The energies of a two-layer table's directions.

    Args:
        factors: the table.
        counts: (n,) training rows of each category; None takes all as equal.

    Raises:
        ValueError: the table is an ordinary one.
    """
    factors.wide_projection()
    gram = factors.inner_gram()
    values, basis = torch.linalg.eigh(gram)
    seen = gram if counts is None else factors.inner_gram(counts.to(torch.float64))
    energy = values.clamp(min=0) * (basis.T @ seen @ basis).diagonal().clamp(min=0)
    total = float(energy.sum())
    shares = energy.sort(descending=True).values / (total or 1.0)
    return UpdateEnergy(shares, total, factors.num_embeddings, factors.embedding_dim)


@dataclass(frozen=True)
class Suggestion:
    """An inner dimension for every table.

    Attributes:
        inner_dims: by table.
        kept: share of the whole model's update energy that they keep, as predicted.
        bytes: of the tables' float32 parameters in training, projections included.
    """

    inner_dims: dict[str, int]
    kept: float
    bytes: int


def predicted_quality(tables: Mapping[str, UpdateEnergy], inner_dim: int) -> float:
    """Share of the model's update energy that ``inner_dim`` directions in every table keep.

    The order of these over several k is the predicted order of quality.
    """
    return _kept(tables, dict.fromkeys(tables, inner_dim))


def suggest_inner_dims(
    tables: Mapping[str, UpdateEnergy],
    *,
    budget: int | None = None,
    share: float = IN_USE,
    choices: Sequence[int] | None = None,
) -> Suggestion:
    """Inner dimensions for the tables, the best that a memory budget allows.

    Every table starts at the smallest choice above its d. Whatever keeps most energy for
    its bytes is enlarged first, until every table keeps ``share`` of its energy or the budget is
    spent.

    Args:
        tables: energies of a run at a large k.
        budget: bytes of float32 parameters that all tables may have in training; None for no limit.
        share: of its energy that is enough for a table.
        choices: inner dimensions to choose from; powers of two up to the run's k by default.

    Raises:
        ValueError: the budget is too small for even the smallest choices; says how much is needed.
    """
    options: dict[str, list[int]] = {}
    for name, table in tables.items():
        powers = choices or [2**p for p in range(12)]
        fitting = [k for k in sorted(powers) if table.dim < k <= table.inner_dim]
        options[name] = fitting or [table.inner_dim]
    chosen = {name: fitting[0] for name, fitting in options.items()}
    if budget is not None and _bytes(tables, chosen) > budget:
        raise ValueError(
            f"a budget of {budget:,} bytes is too small: the smallest inner dimensions above d "
            f"take {_bytes(tables, chosen):,}"
        )
    whole = sum(table.total for table in tables.values()) or 1.0
    while True:
        best: tuple[float, str, int] | None = None
        for name, table in tables.items():
            if table.kept(chosen[name]) >= share:
                continue
            for larger in (k for k in options[name] if k > chosen[name]):
                trial = {**chosen, name: larger}
                if budget is not None and _bytes(tables, trial) > budget:
                    break
                gained = (table.kept(larger) - table.kept(chosen[name])) * table.total / whole
                worth = gained / (_bytes(tables, trial) - _bytes(tables, chosen))
                if best is None or worth > best[0]:
                    best = (worth, name, larger)
        if best is None:
            return Suggestion(chosen, _kept(tables, chosen), _bytes(tables, chosen))
        chosen[best[1]] = best[2]


def smallest_power(at_least: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << max(0, at_least - 1).bit_length()


def _kept(tables: Mapping[str, UpdateEnergy], chosen: Mapping[str, int]) -> float:
    whole = sum(table.total for table in tables.values())
    kept = sum(table.total * table.kept(chosen[name]) for name, table in tables.items())
    return kept / whole if whole else 0.0


def _bytes(tables: Mapping[str, UpdateEnergy], chosen: Mapping[str, int]) -> int:
    return sum(4 * chosen[name] * (table.rows + table.dim) for name, table in tables.items())
