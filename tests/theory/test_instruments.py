"""Reweighting, flow, spectra, gradient flow and advice, against dense float64 algebra."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlet
from mlet.nn import Field, FieldEmbedding, factored
from mlet.theory import (
    Factors,
    Spectrum,
    UpdateEnergy,
    cross_category_flow,
    decompose_update,
    factors_of,
    factors_of_state_dict,
    flow_by_frequency,
    predicted_quality,
    reweighting,
    row_norms,
    suggest_inner_dims,
    table_spectra,
    update_energy,
)
from mlet.theory.gradient_flow import (
    balanced_start,
    gradient_flow,
    one_layer_strength,
    two_layer_strength,
)


def draw(n: int = 30, k: int = 8, d: int = 3, seed: int = 0) -> Factors:
    torch.manual_seed(seed)
    return Factors(torch.randn(n, k).double(), torch.randn(k, d).double())


def test_more_directions_are_boosted_as_k_grows() -> None:
    found = [reweighting(draw(k=k)).boosted for k in (4, 8, 16, 40)]
    assert found == [4, 8, 16, 30]
    flat = reweighting(Factors(torch.eye(4).double(), torch.eye(4).double()))
    assert flat.spread == pytest.approx(1.0)


def test_a_large_table_takes_bounded_memory() -> None:
    """No n × n and no n × k object beside the table: 256 MB here, of which blocks are copied.

    In a process of its own, which is refused more than 200 MB above what it holds: less than one
    copy of the table. What is allocated is bounded, not what happens to be resident.
    """
    script = (
        "import resource, torch\n"
        "from mlet.theory import Factors, reweighting\n"
        "reweighting(Factors(torch.randn(9, 64), torch.randn(64, 16)))\n"
        "table = torch.randn(1_000_000, 64)\n"
        "wide = table.double()\n"
        "expected = torch.linalg.eigvalsh(wide.T @ wide).flip(0)\n"
        "del wide\n"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 200_000_000,) * 2)\n"
        "found = reweighting(Factors(table, torch.randn(64, 16)))\n"
        "torch.testing.assert_close(found.inner_values.square(), expected)\n"
        "try:\n"
        "    table.double()\n"
        "except RuntimeError:\n"
        "    print('a copy is refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "a copy is refused"


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), k=st.integers(1, 8), d=st.integers(1, 4), seed=st.integers(0, 999))
def test_flow_is_the_movement_of_each_row(n: int, k: int, d: int, seed: int) -> None:
    factors = draw(n, k, d, seed)
    ids = torch.randperm(n)[:3]
    flow = cross_category_flow(factors, ids)
    g = torch.randn(d).double()
    for place, c in enumerate(ids.tolist()):
        grad = torch.zeros(n, d).double()
        grad[c] = g
        parts = decompose_update(factors, grad, 1.0)
        others = torch.arange(n) != c
        moved = -(parts.direct + parts.cross)
        torch.testing.assert_close(moved[others], flow[others, place].unsqueeze(1) * g)
        own = factors.inner[c].square().sum() + factors.projection.square().sum() / d
        assert float(flow[c, place]) == pytest.approx(float(own))
        direct = moved[c] - factors.inner[c].square().sum() * g
        torch.testing.assert_close(direct, factors.projection.T @ factors.projection @ g)


def test_flow_by_frequency_is_the_dense_sum() -> None:
    factors = draw(40, 6, 3)
    counts = torch.tensor([0] * 5 + [1] * 5 + [7] * 20 + [50] * 8 + [5_000] * 2)
    found = flow_by_frequency(factors, counts)
    kernel = (factors.inner @ factors.inner.T).abs()
    kernel.fill_diagonal_(0)
    sent = kernel * counts.double()
    groups = [range(5), range(5, 30), range(30, 38), range(38, 40)]
    assert found.names == ("0", "1-9", "10-99", "1000+")
    assert found.categories == (5, 25, 8, 2)
    for a, receivers in enumerate(groups):
        own = [
            counts[r] * (factors.inner[r].square().sum() + factors.projection.square().sum() / 3)
            for r in receivers
        ]
        assert float(found.own[a]) == pytest.approx(float(torch.stack(own).mean()))
        for b, senders in enumerate(groups):
            expected = sent[list(receivers)][:, list(senders)].sum(1).mean()
            assert float(found.received[a, b]) == pytest.approx(float(expected), abs=1e-9)
    assert float(found.shared[0]) == pytest.approx(1.0), "never seen: all it gets is others'"
    assert found.shared[0] > found.shared[3]


def test_flow_refuses_what_does_not_fit() -> None:
    with pytest.raises(IndexError, match="ids must lie in 0 to 29, got 30"):
        cross_category_flow(draw(), torch.tensor([30]))
    with pytest.raises(ValueError, match=r"counts has shape \(3,\); the table has 30"):
        flow_by_frequency(draw(), torch.ones(3))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), k=st.integers(1, 8), d=st.integers(1, 4), seed=st.integers(0, 999))
def test_spectra_are_those_of_the_matrices(n: int, k: int, d: int, seed: int) -> None:
    factors = draw(n, k, d, seed)
    w2, w1 = factors.inner, factors.projection
    found = table_spectra(factors)
    for spectrum, matrix in ((found.product, w2 @ w1), (found.inner, w2), (found.projection, w1)):
        values = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(
            spectrum.values[: len(values)], values, rtol=1e-5, atol=1e-6 * float(values[0])
        )
        assert (spectrum.values[len(values) :] < 1e-6 * values[0]).all()
    assert found.imbalance == pytest.approx(float((w2.T @ w2 - w1 @ w1.T).norm()))
    torch.testing.assert_close(row_norms(factors), (w2 @ w1).norm(dim=1))
    plain = table_spectra(Factors(w2 @ w1, None))
    torch.testing.assert_close(plain.product.values, found.product.values, rtol=1e-5, atol=1e-5)
    assert plain.inner is None
    assert set(found.record()) == {"product", "inner", "projection", "imbalance"}


def test_ranks_of_known_spectra() -> None:
    flat = Spectrum(torch.ones(5).double())
    assert flat.effective_rank == pytest.approx(5)
    assert flat.stable_rank == pytest.approx(5)
    peaked = Spectrum(torch.tensor([2.0, 1.0, 1.0, 0.0]).double())
    assert peaked.effective_rank == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert peaked.stable_rank == pytest.approx(1.5)
    zero = Spectrum(torch.zeros(3).double())
    assert zero.effective_rank == zero.stable_rank == 0


def test_gradient_flow_conserves_balance_from_any_start() -> None:
    torch.manual_seed(0)
    target, w2, w1 = (torch.randn(*s).double() for s in ((7, 3), (7, 5), (5, 3)))
    before = w2.T @ w2 - w1 @ w1.T
    for time in (0.3, 2.0):
        x, y = gradient_flow(target, w2, w1, time, steps=5_000)
        torch.testing.assert_close(x.T @ x - y @ y.T, before, rtol=1e-7, atol=1e-7)
        assert (x @ y - target).norm() < (w2 @ w1 - target).norm()


def test_gradient_flow_follows_the_closed_form() -> None:
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(9, 3).double())
    v, _ = torch.linalg.qr(torch.randn(3, 3).double())
    strengths = torch.tensor([3.0, 1.0, 0.4]).double()
    target = u @ torch.diag(strengths) @ v.T
    start = 0.01
    inner, projection = balanced_start(target, 6, start)
    torch.testing.assert_close(inner.T @ inner, projection @ projection.T)
    for time in (0.0, 0.5, 1.5, 4.0):
        x, y = gradient_flow(target, inner, projection, time) if time else (inner, projection)
        measured = (u.T @ (x @ y) @ v).diagonal()
        expected = [two_layer_strength(float(a), start)(time) for a in strengths]
        torch.testing.assert_close(measured, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)
    # Two layers learn the strong direction first; one layer all at one rate.
    two = [two_layer_strength(float(a), start)(1.5) / float(a) for a in strengths]
    one = [one_layer_strength(float(a), 0.0)(1.5) / float(a) for a in strengths]
    assert two[0] > 0.95 > 0.3 > two[2]
    assert one == pytest.approx([1 - math.exp(-1.5)] * 3)


def test_update_energy_is_that_of_sampled_gradients() -> None:
    """``E‖W2W2ᵀG‖²`` along each direction, over gradients drawn with variance count."""
    torch.manual_seed(0)
    factors = Factors(
        torch.randn(12, 4).double() * torch.tensor([3.0, 1, 0.5, 0.1]), draw(12, 4).projection
    )
    counts = torch.tensor([100.0, 50, 20, 10, 5, 2, 1, 1, 1, 1, 0, 0])
    found = update_energy(factors, counts)
    u, _, _ = torch.linalg.svd(factors.inner, full_matrices=False)
    energy = torch.zeros(4).double()
    draws = 4_000
    for _ in range(draws):
        g = counts.double().sqrt().unsqueeze(1) * torch.randn(12, 1).double()
        energy += (u.T @ (factors.inner @ (factors.inner.T @ g))).square().sum(1) / draws
    assert found.total == pytest.approx(float(energy.sum()), rel=0.1)
    torch.testing.assert_close(
        found.shares, (energy / energy.sum()).sort(descending=True).values, rtol=0.1, atol=0.01
    )
    equal = update_energy(factors)
    values = torch.linalg.svdvals(factors.inner) ** 4
    torch.testing.assert_close(equal.shares, values / values.sum())


def energy(shares: list[float], total: float = 1.0, rows: int = 100, dim: int = 1) -> UpdateEnergy:
    return UpdateEnergy(torch.tensor(shares).double(), total, rows, dim)


def test_advice_names_the_directions_in_use() -> None:
    table = energy([0.6, 0.3, 0.08, 0.015, 0.005, 0, 0, 0])
    assert table.kept(2) == pytest.approx(0.9)
    assert table.in_use == 4
    assert table.sentence() == (
        "directions in use: 4 of 8; k = 4 would keep 99.5 % of the update energy"
    )
    flat = energy([0.25] * 4)
    assert "uses what it has" in flat.sentence()
    # k is never advised at d, however few directions are in use.
    few = energy([1.0, 0, 0, 0, 0, 0, 0, 0], dim=2)
    assert "k = 4 would keep 100.0 %" in few.sentence()
    assert suggest_inner_dims({"few": few}).inner_dims == {"few": 4}


def test_suggestion_spends_the_budget_where_it_keeps_most() -> None:
    concentrated = energy([0.97, 0.02, 0.01, 0, 0, 0, 0, 0], rows=1_000)
    spread = energy([0.125] * 8, rows=1_000)
    tables = {"a": concentrated, "b": spread}
    free = suggest_inner_dims(tables)
    assert free.inner_dims == {"a": 2, "b": 8}
    assert free.kept == pytest.approx((0.99 + 1) / 2)
    assert free.bytes == 4 * 10 * 1_001
    tight = suggest_inner_dims(tables, budget=4 * 7 * 1_001)
    assert tight.inner_dims == {"a": 2, "b": 4}
    assert suggest_inner_dims(tables, choices=[3, 5]).inner_dims == {"a": 3, "b": 5}
    with pytest.raises(ValueError, match="too small: the smallest inner dimensions above d take"):
        suggest_inner_dims(tables, budget=100)
    assert (
        predicted_quality(tables, 1) < predicted_quality(tables, 4) < predicted_quality(tables, 8)
    )


def test_a_budget_for_one_step_goes_to_the_table_that_keeps_most_by_it() -> None:
    # Both start at k = 2; the budget lets one of them have 4.
    steep = energy([0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0], rows=1_000)  # 0.7, then all of it
    flat = energy([0.125] * 8, rows=1_000)  # a quarter, then half
    budget = 4 * 6 * 1_001
    found = suggest_inner_dims({"flat": flat, "steep": steep}, budget=budget)
    assert found.inner_dims == {"flat": 2, "steep": 4}
    # What counts is the energy itself, of which this table has most.
    heavy = energy([0.125] * 8, total=10.0, rows=1_000)
    found = suggest_inner_dims({"steep": steep, "heavy": heavy}, budget=budget)
    assert found.inner_dims == {"steep": 2, "heavy": 4}
    # And its price: the same share of a table of half the rows costs half.
    small = energy([0.4, 0.2, 0.2, 0.2, 0, 0, 0, 0], rows=400)
    found = suggest_inner_dims(
        {"steep": steep, "small": small}, budget=4 * (2 * 1_001 + 2 * 401) + 2 * 4 * 1_001
    )
    assert found.inner_dims["small"] == 4


def test_factors_are_found_in_any_model() -> None:
    model = torch.nn.Sequential(mlet.Embedding(5, 2, inner_dim=4), torch.nn.Linear(2, 2))
    found = factors_of(model)
    assert set(found) == {"0"}
    assert torch.equal(found["0"].inner, model[0].inner)
    assert factors_of_state_dict(model.state_dict())["0"].inner_dim == 4
    fields = FieldEmbedding([Field("a", 5, 2, 4), Field("b", 6, 2), Field("c", 7, 2, 4)])
    found = factors_of(fields)
    assert [found[name].num_embeddings for name in ("a", "b", "c")] == [5, 6, 7]
    assert found["b"].inner_dim is None
    torch.testing.assert_close(
        fields.table("c"), found["c"].inner @ found["c"].projection, rtol=1e-5, atol=1e-6
    )
    # Two layers with a field of one name: the second by its layer's name too.
    towers = torch.nn.ModuleDict(
        {name: FieldEmbedding([Field("a", size, 2, 4)]) for name, size in (("x", 5), ("y", 9))}
    )
    found = factors_of(towers)
    assert {name: factors.num_embeddings for name, factors in found.items()} == {"a": 5, "y.a": 9}


def test_directions_beyond_the_rank_of_the_table_are_not_boosted() -> None:
    factors = draw(30, 8)
    factors.inner[:, 5:] = factors.inner[:, :3]
    assert reweighting(factors).boosted == 5


def test_tables_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    factors, counts = draw(), torch.arange(30.0)
    w2, product = factors.inner, factors.inner @ factors.projection
    monkeypatch.setattr(factored, "_BLOCK_ROWS", 7)
    torch.testing.assert_close(row_norms(factors), product.norm(dim=1))
    weighted = w2.T @ (counts.double().unsqueeze(1) * w2)
    torch.testing.assert_close(factors.inner_gram(counts), weighted)
    flow = cross_category_flow(factors, torch.tensor([3, 20]))
    flow[[3, 20], [0, 1]] = 0
    expected = w2 @ w2[[3, 20]].T
    expected[[3, 20], [0, 1]] = 0
    torch.testing.assert_close(flow, expected)


def test_flow_from_groups_and_receivers_of_one_s_own() -> None:
    factors, counts = draw(40), torch.arange(40)
    whole = flow_by_frequency(factors, counts, edges=[5, 30])
    assert whole.categories == (5, 25, 10)
    # From a few receivers it is an estimate, of which the draws depend on the seed alone.
    some = [flow_by_frequency(factors, counts, edges=[5, 30], receivers=20, seed=s) for s in (0, 1)]
    again = flow_by_frequency(factors, counts, edges=[5, 30], receivers=20, seed=1)
    assert torch.equal(some[1].received, again.received)
    assert not torch.equal(some[0].received[1], some[1].received[1])
    for drawn in some:
        torch.testing.assert_close(drawn.received[1], whole.received[1], rtol=0.3, atol=0)
    # Where all receivers are alike, any few of them give what all do.
    factors.inner[5:30] = factors.inner[5]
    counts[5:30] = 7
    whole, few = (flow_by_frequency(factors, counts, edges=[5, 30], receivers=n) for n in (100, 2))
    torch.testing.assert_close(few.received[1], whole.received[1])
