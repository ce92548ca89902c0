"""How far an update on one category moves every other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlet.data.frequency import DEFAULT_EDGES, group_by_count
from mlet.nn.factored import Factors
from mlet.nn.two_layer import TwoLayerTable
from mlet.theory.factors import as_factors


def cross_category_flow(layer: TwoLayerTable | Factors, ids: Tensor) -> Tensor:
    """The movement of every category per unit of upstream gradient on some, to first order.

    A gradient row g on category c moves row r of the product by (derived)::

        ΔW[r] = −η ⟨W2[r], W2[c]⟩ g          for r ≠ c
        ΔW[c] = −η (⟨W2[c], W2[c]⟩ + W1ᵀ W1) g

    so that the flow from c to r is the number ``⟨W2[r], W2[c]⟩``; negative where r moves the other
    way. On c itself the direct part W1ᵀ W1 is added, as its mean over directions ``‖W1‖²/d``.
    With one layer the flow is 1 from a category to itself and 0 elsewhere.

    Args:
        layer: the table.
        ids: (m,) categories whose updates are looked at.

    Returns:
        (n × m) float64; column j is the flow from ``ids[j]``.

    Raises:
        ValueError: the table is an ordinary one.
        IndexError: an id outside the table.
    """
    factors = as_factors(layer)
    _check(ids, factors.num_embeddings)
    flow = torch.empty(factors.num_embeddings, len(ids), dtype=torch.float64)
    sources = factors.inner[ids].double()
    for start, rows in factors.blocks():
        flow[start : start + len(rows)] = rows @ sources.T
    flow[ids, torch.arange(len(ids))] += direct_share(factors)
    return flow


def direct_share(factors: Factors) -> float:
    """``‖W1‖²/d``: the mean factor with which a category's own gradient moves it through W2."""
    return float(factors.wide_projection().square().sum() / factors.embedding_dim)


@dataclass(frozen=True)
class FlowByFrequency:
    """What categories receive in one pass over the data, by how often they occur.

    Every category c is taken to send one unit of gradient for each of its training rows. A receiver
    r then moves by ``count_r · (‖W2[r]‖² + ‖W1‖²/d)`` of its own, and by
    ``Σ_{c≠r} count_c |⟨W2[r], W2[c]⟩|`` at most through others; units of gradient, to first order.

    Attributes:
        names: of the groups, by training count.
        categories: how many each group has.
        own: mean movement of a receiver of each group by its own rows.
        received: (G × G) mean movement of a receiver of group a by all categories of group b.
    """

    names: tuple[str, ...]
    categories: tuple[int, ...]
    own: Tensor
    received: Tensor

    @property
    def shared(self) -> Tensor:
        """(G,): share of a receiver's movement that comes from other categories."""
        others = self.received.sum(dim=1)
        return others / (others + self.own).clamp(min=torch.finfo(torch.float64).tiny)


def flow_by_frequency(
    layer: TwoLayerTable | Factors,
    counts: Tensor,
    *,
    edges: Sequence[int] = DEFAULT_EDGES,
    receivers: int = 256,
    seed: int = 0,
) -> FlowByFrequency:
    """Summarise `cross_category_flow` by training frequency.

    All categories send; of each group at most ``receivers`` are drawn to receive, so the cost is
    n × k for each of them.

    Args:
        layer: the table.
        counts: (n,) training rows of each category.
        edges: counts where a group begins; below the first is a group too. Groups without a
            category are left out.
        receivers: drawn from each group.
        seed: of the draw.

    Raises:
        ValueError: the table is an ordinary one, or ``counts`` has another length.
    """
    factors = as_factors(layer)
    counts = counts.to(torch.float64)
    if counts.shape != (factors.num_embeddings,):
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}; the table has "
            f"{factors.num_embeddings} categories"
        )
    names, members_of = group_by_count(counts.numpy(), edges)
    groups = [torch.from_numpy(members) for members in members_of]
    group = torch.empty(len(counts), dtype=torch.int64)
    for number, members in enumerate(groups):
        group[members] = number
    generator = torch.Generator().manual_seed(seed)
    own = torch.zeros(len(groups), dtype=torch.float64)
    received = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    direct = direct_share(factors)
    for a, members in enumerate(groups):
        drawn = members[torch.randperm(len(members), generator=generator)[:receivers]]
        rows = factors.inner[drawn].double()
        square = rows.square().sum(dim=1)
        own[a] = (counts[drawn] * (square + direct)).mean()
        for start, senders in factors.blocks():
            share = slice(start, start + len(senders))
            moved = (rows @ senders.T).abs() * counts[share]
            for b in range(len(groups)):
                received[a, b] += moved[:, group[share] == b].sum() / len(drawn)
        # A receiver is no sender to itself.
        received[a, a] -= (counts[drawn] * square).mean()
    return FlowByFrequency(names, tuple(len(members) for members in groups), own, received)


def _check(ids: Tensor, size: int) -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise IndexError(f"ids must lie in 0 to {size - 1}, got {int(ids.min())}…{int(ids.max())}")
