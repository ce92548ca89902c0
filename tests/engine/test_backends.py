"""One suite for all backends: forward, gradients and updates against float64 loops and autograd."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlet.engine import (
    BackendName,
    Lookups,
    RowGradient,
    Rule,
    RuleName,
    TableStack,
    choose_backend,
    look_up,
    new_state,
    use_backend,
)
from mlet.engine.rules import STATE_NAMES

TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
BACKENDS = ["torch", "cpu", pytest.param("cuda", marks=TRITON)]
GPU = torch.cuda.is_available()


def device_of(name: BackendName) -> str:
    """The CUDA backend runs on a GPU where there is one, else in Triton's interpreter."""
    return "cuda" if name == "cuda" and GPU else "cpu"


@dataclass
class Case:
    """Tables, a batch of ids and an upstream gradient, in float32."""

    sizes: tuple[int, ...]
    table: Tensor
    projection: Tensor | None
    columns: Tensor
    bags: list[tuple[Tensor, Tensor]]
    mean: list[bool]
    upstream: Tensor

    @classmethod
    def draw(
        cls,
        seed: int,
        sizes: tuple[int, ...],
        k: int | None,
        d: int,
        batch: int,
        bagged: tuple[bool, ...],
        skewed: bool,
        device: str,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def ids(size: int, count: int) -> Tensor:
            u = torch.rand(count, generator=generator)
            drawn = (size * (u**6 if skewed else u)).long().clamp(max=size - 1)
            if count >= 2:  # the borders
                drawn[0], drawn[-1] = 0, size - 1
            return drawn.to(device)

        singles = [size for size, bag in zip(sizes, bagged, strict=True) if not bag]
        multis = [size for size, bag in zip(sizes, bagged, strict=True) if bag]
        columns = [ids(size, batch) for size in singles]
        bags = []
        for size in multis:
            lengths = torch.randint(4, (batch,), generator=generator)  # some are empty
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            bags.append((ids(size, int(lengths.sum())), offsets.to(device)))
        ordered = (*singles, *multis)
        normal: Any = {"generator": generator}
        width = d if k is None else k
        return cls(
            ordered,
            torch.randn(sum(sizes), width, **normal).to(device),
            None if k is None else torch.randn(len(sizes), k, d, **normal).to(device),
            torch.stack(columns, 1)
            if columns
            else torch.empty(batch, 0, dtype=torch.int64, device=device),
            bags,
            [bool(torch.rand((), **normal) < 0.5) for _ in multis],
            torch.randn(batch, len(sizes), d, **normal).to(device),
        )

    @property
    def stack(self) -> TableStack:
        return TableStack(tuple(f"field{i}" for i in range(len(self.sizes))), self.sizes)

    @property
    def lookups(self) -> Lookups:
        return Lookups.gather(self.columns, self.bags, self.mean)

    def rows_asked_for(self) -> Tensor:
        first = self.stack.first_rows
        values = [column.cpu() for column in self.columns.unbind(1)]
        values += [bag.cpu() for bag, _ in self.bags]
        return torch.unique(torch.cat([v + f for v, f in zip(values, first, strict=False)]))

    def expected(self, table: Tensor, projection: Tensor | None) -> Tensor:
        """The output (B, T, d), one lookup after another, from the stack's product."""
        first = self.stack.first_rows
        columns = []
        for place, column in enumerate(self.columns.cpu().unbind(1)):
            rows = table[column + first[place]]
            columns.append(rows if projection is None else rows @ projection[place])
        for number, (values, offsets) in enumerate(self.bags):
            place = self.columns.shape[1] + number
            rows = table[values.cpu() + first[place]]
            if projection is not None:
                rows = rows @ projection[place]
            pooled = []
            for start, stop in pairwise(offsets.tolist()):
                total = rows[start:stop].sum(0)
                pooled.append(
                    total / (stop - start) if self.mean[number] and stop > start else total
                )
            columns.append(torch.stack(pooled))
        return torch.stack(columns, 1)

    def float64(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Factors as leaves of autograd, and the output."""
        table = self.table.cpu().double().requires_grad_()
        projection = None
        if self.projection is not None:
            projection = self.projection.cpu().double().requires_grad_()
        return table, projection, self.expected(table, projection)


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "sizes": st.lists(st.sampled_from([1, 2, 3, 40, 3_000]), min_size=1, max_size=4).map(tuple),
        "k": st.sampled_from([None, 1, 3, 8, 33]),
        "d": st.sampled_from([1, 2, 5, 16]),
        "batch": st.sampled_from([1, 2, 7, 70]),
        "skewed": st.booleans(),
    }
)


def examples(name: BackendName, count: int) -> int:
    """Fewer where kernels are interpreted."""
    return count if name != "cuda" or GPU else count // 4


def draw(shape: dict[str, Any], data: st.DataObject, name: BackendName) -> Case:
    count = len(shape["sizes"])
    bagged = tuple(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return Case.draw(**shape, bagged=bagged, device=device_of(name))


def close(actual: Tensor, expected: Tensor) -> None:
    """To the rounding of float32 sums: up to some hundred terms of size one."""
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("sparse", [True, False])
def test_forward_and_gradients(name: BackendName, sparse: bool) -> None:
    @settings(max_examples=examples(name, 40), deadline=None)
    @given(shape=shapes, data=st.data())
    def check(shape: dict[str, Any], data: st.DataObject) -> None:
        case = draw(shape, data, name)
        table = case.table.clone().requires_grad_()
        projection = None if case.projection is None else case.projection.clone().requires_grad_()
        with use_backend(name):
            out = look_up(table, projection, case.lookups, case.stack, sparse=sparse)
            out.backward(case.upstream)
        table64, projection64, expected = case.float64()
        expected.backward(case.upstream.cpu().double())
        close(out.detach(), expected.detach())
        assert table.grad is not None
        assert table.grad.is_sparse == sparse
        if sparse:
            rows = table.grad.coalesce().indices()[0]
            assert torch.equal(rows.cpu(), case.rows_asked_for()), "exactly the rows asked for"
        close(table.grad.to_dense(), table64.grad)
        if projection is not None:
            close(projection.grad, projection64.grad)

    check()


@pytest.mark.parametrize("k", [None, 5])
def test_gradcheck_in_float64(k: int | None) -> None:
    """The reference backend, whose gradients the others are held against above."""
    case = Case.draw(4, (6, 4, 5), k, 3, 5, (False, True, True), False, "cpu")
    table = case.table.double().requires_grad_()
    projection = None if k is None else case.projection.double().requires_grad_()

    def embed(table: Tensor, projection: Tensor | None) -> Tensor:
        return look_up(table, projection, case.lookups, case.stack, sparse=False)

    assert torch.autograd.gradcheck(embed, (table, projection))


# A large ε, so that the rounding of a gradient near zero is not magnified by dividing by its size.
RULES = [
    Rule(RuleName.SGD, 0.1),
    Rule(RuleName.SGD, 0.1, weight_decay=0.3),
    Rule(RuleName.ADAGRAD, 0.1, eps=0.5),
    Rule(RuleName.ADAGRAD, 0.1, weight_decay=0.3, eps=0.5),
    Rule(RuleName.ROWWISE_ADAGRAD, 0.1, eps=0.5),
    Rule(RuleName.ADAM, 0.1, eps=0.5, betas=(0.8, 0.95)),
    Rule(RuleName.ADAM, 0.1, weight_decay=0.2, eps=0.5, betas=(0.8, 0.95)),
]


def reference_update(
    rule: Rule, rows: list[int], table: Tensor, grad: Tensor, state: dict[str, Tensor]
) -> None:
    """`mlet.engine.rules`, one row at a time in float64."""
    for row in rows:
        g = grad[row] + rule.weight_decay * table[row]
        if rule.name is RuleName.SGD:
            table[row] -= rule.lr * g
        elif rule.name is RuleName.ADAGRAD:
            state["sum"][row] += g**2
            table[row] -= rule.lr * g / (state["sum"][row].sqrt() + rule.eps)
        elif rule.name is RuleName.ROWWISE_ADAGRAD:
            state["sum"][row] += (g**2).mean()
            table[row] -= rule.lr * g / (state["sum"][row].sqrt() + rule.eps)
        else:
            beta1, beta2 = rule.betas
            m, v = state["exp_avg"], state["exp_avg_sq"]
            m[row] = beta1 * m[row] + (1 - beta1) * g
            v[row] = beta2 * v[row] + (1 - beta2) * g**2
            table[row] -= rule.lr * m[row] / (v[row].sqrt() + rule.eps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name.name}{rule.weight_decay}")
def test_updates(name: BackendName, rule: Rule) -> None:
    @settings(max_examples=examples(name, 12), deadline=None)
    @given(shape=shapes, data=st.data())
    def check(shape: dict[str, Any], data: st.DataObject) -> None:
        case = draw(shape, data, name)
        table, projection = case.table.clone(), case.projection
        table64, projection64, _ = case.float64()
        values64 = table64.detach().clone()
        state = new_state(rule.name, table)
        state64 = {key: value.cpu().double() for key, value in state.items()}
        rows = case.rows_asked_for().tolist()
        with use_backend(name):
            backend = choose_backend(table)
            for turn in range(2):
                sink: list[RowGradient] = []
                leaf = table.clone().requires_grad_()
                upstream = case.upstream if turn == 0 else -0.5 * case.upstream
                look_up(leaf, projection, case.lookups, case.stack, sink=sink).backward(upstream)
                assert leaf.grad is None
                projection_grad = backend.update(
                    table,
                    projection,
                    sink[0],
                    rule,
                    tuple(state[k] for k in STATE_NAMES[rule.name]),
                )
                fresh = values64.clone().requires_grad_()
                wide = None if projection64 is None else projection64.detach().requires_grad_()
                case.expected(fresh, wide).backward(upstream.cpu().double())
                reference_update(rule, rows, values64, fresh.grad, state64)
                if wide is None:
                    assert projection_grad is None
                else:
                    close(projection_grad, wide.grad)
        close(table, values64)
        for key, value in state.items():
            torch.testing.assert_close(value.cpu().double(), state64[key], rtol=1e-3, atol=1e-3)
        others = torch.ones(len(table), dtype=torch.bool)
        others[rows] = False
        assert torch.equal(table.cpu()[others], case.table.cpu()[others]), "no other row moves"

    check()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("sizes", [(4_000, 1, 700), (0, 5_000, 0), (3, 0, 0, 2)])
def test_an_update_without_the_projections_gradient(
    name: BackendName, rule: Rule, sizes: tuple[int, ...]
) -> None:
    """Rows may then be shared out in other pieces than tables; some tables have none."""
    generator = torch.Generator().manual_seed(3)
    k, d, device = 7, 3, device_of(name)
    table = torch.randn(sum(sizes), k, generator=generator).to(device)
    projection = torch.randn(len(sizes), k, d, generator=generator).to(device)
    starts = tuple(accumulate(sizes, initial=0))
    touched = torch.rand(sum(sizes), generator=generator) < 0.7
    sums = torch.randn(sum(sizes), d, generator=generator) / 60 * touched.unsqueeze(1)
    gradient = RowGradient(
        torch.arange(sum(sizes), device=device), starts, sums.to(device), touched.to(device)
    )
    results = []
    for asked in (True, False):
        rows, state = table.clone(), new_state(rule.name, table)
        with use_backend(name):
            grad = choose_backend(rows).update(
                rows,
                projection,
                gradient,
                rule,
                tuple(state[part] for part in STATE_NAMES[rule.name]),
                projection_grad=asked,
            )
        assert (grad is not None) is asked
        results.append(rows)
        if asked:
            whole = gradient.compact()
            for place, (low, high) in enumerate(pairwise(whole.starts)):
                before = table[whole.rows[low:high]]
                close(grad[place], before.double().t() @ whole.sums[low:high].double())
    close(results[1], results[0].double())
    assert torch.equal(results[1].cpu()[~touched], table.cpu()[~touched])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("n", [1, 100, 10_000, 10_000_000])
def test_any_table_size(name: BackendName, n: int) -> None:
    case = Case.draw(0, (3, n, 1), 2, 1, 500, (False, False, True), False, device_of(name))
    table = case.table.clone()
    with use_backend(name):
        sink: list[RowGradient] = []
        out = look_up(table.requires_grad_(), case.projection, case.lookups, case.stack, sink=sink)
        out.backward(case.upstream)
        with torch.no_grad():
            choose_backend(table).update(
                table, case.projection, sink[0], Rule(RuleName.SGD, 0.5), ()
            )
    rows = case.rows_asked_for()
    first = case.stack.first_rows
    tables = torch.searchsorted(torch.tensor(first), rows, right=True) - 1
    before = case.table.cpu()[rows].double()
    _, _, expected = case.float64()
    close(out.detach(), expected.detach())
    # From the output alone: the row's gradient is that of its lookups.
    compact = {int(row): place for place, row in enumerate(rows)}
    sums = torch.zeros(len(rows), 1, dtype=torch.float64)
    for place, column in enumerate(case.columns.cpu().unbind(1)):
        for b, i in enumerate(column.tolist()):
            sums[compact[i + first[place]]] += case.upstream[b, place].cpu().double()
    values, offsets = case.bags[0]
    for b, (start, stop) in enumerate(pairwise(offsets.tolist())):
        for i in values[start:stop].tolist():
            share = case.upstream[b, 2].cpu().double()
            sums[compact[i + first[2]]] += share / (stop - start) if case.mean[0] else share
    gradients = torch.einsum("rd,rkd->rk", sums, case.projection.cpu().double()[tables])
    moved = before - 0.5 * gradients
    close(table.detach()[rows.to(table.device)], moved)
    untouched = torch.ones(len(table), dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(table.detach().cpu()[untouched], case.table.cpu()[untouched])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("table", "bad"), [(0, 3), (0, -1), (1, 5_000), (2, 9)])
@pytest.mark.parametrize("batch", [2, 3_000])
def test_an_id_out_of_range_names_field_id_and_size(
    name: BackendName, table: int, bad: int, batch: int
) -> None:
    sizes = (3, 5_000, 9)
    case = Case.draw(1, sizes, 4, 2, batch, (False, False, True), False, device_of(name))
    if table < 2:
        case.columns[batch // 2, table] = bad
    else:
        values, offsets = case.bags[0]
        values = torch.cat([values, values.new_tensor([bad])])
        offsets = torch.cat([offsets[:-1], offsets[-1:] + 1])
        case.bags[0] = (values, offsets)
    message = f"field 'field{table}': id {bad} is outside its table of {sizes[table]} categories"
    with use_backend(name), pytest.raises(IndexError, match=message):
        look_up(case.table, case.projection, case.lookups, case.stack)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_empty_batch(name: BackendName) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 0, (False, True), False, device_of(name))
    with use_backend(name):
        table = case.table.clone().requires_grad_()
        out = look_up(table, case.projection, case.lookups, case.stack)
        assert out.shape == (0, 2, 2)
        out.sum().backward()
    assert table.grad is not None
    assert not table.grad.to_dense().any()


@pytest.mark.parametrize("name", BACKENDS)
def test_second_derivatives_are_refused(name: BackendName) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 6, (False, True), False, device_of(name))
    with use_backend(name):
        projection = case.projection.clone().requires_grad_()
        out = look_up(case.table, projection, case.lookups, case.stack)
        (grad,) = torch.autograd.grad(out.square().sum(), projection, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()


@pytest.mark.parametrize("name", BACKENDS)
def test_bags_changed_before_backward_are_noticed(name: BackendName) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 6, (False, True), False, device_of(name))
    table = case.table.clone().requires_grad_()
    for how in ("torch", "numpy"):
        with use_backend(name):
            out = look_up(table, case.projection, case.lookups, case.stack)
            expected = torch.autograd.grad(out.sum(), table, retain_graph=True)[0].to_dense()
            offsets = next(o for o in case.lookups.offsets if o is not None)
            if how == "torch":
                offsets += 10**6
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    out.sum().backward()
                offsets -= 10**6
            elif offsets.device.type == "cpu":  # autograd does not see this one
                offsets.numpy()[:] += 10**6
                found = torch.autograd.grad(out.sum(), table)[0].to_dense()
                offsets.numpy()[:] -= 10**6
                assert torch.equal(found, expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_matrices_of_other_shapes_are_refused(name: BackendName) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 6, (False, False), False, device_of(name))
    assert case.projection is not None
    for table, projection in (
        (case.table[:-1], case.projection),
        (case.table.flatten(), case.projection),
        (case.table, case.projection[:1]),
        (case.table, case.projection[:, :-1]),
        (case.table, case.projection[0]),
    ):
        with use_backend(name), pytest.raises(ValueError, match="rows in all, but their matrices"):
            look_up(table, projection, case.lookups, case.stack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", BACKENDS)
def test_torchs_defaults_do_not_matter(name: BackendName, dtype: torch.dtype) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 6, (False, True), False, device_of(name))
    found = []
    for default in (torch.float32, dtype):
        table = case.table.float().clone().requires_grad_()
        projection = case.projection.float().clone().requires_grad_()
        torch.set_default_dtype(default)
        try:
            with use_backend(name), torch.device("meta" if default is dtype else "cpu"):
                out = look_up(table, projection, case.lookups, case.stack)
                out.sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append((out, table.grad.to_dense(), projection.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_table_changed_before_backward_is_noticed(name: BackendName) -> None:
    case = Case.draw(1, (3, 5), 4, 2, 6, (False, True), False, device_of(name))
    with use_backend(name):
        table = case.table.clone().requires_grad_()
        out = look_up(table, case.projection, case.lookups, case.stack)
        gradient: list[RowGradient] = []
        look_up(table, case.projection, case.lookups, case.stack, sink=gradient).sum().backward()
        backend = choose_backend(table)
        backend.update(table.detach(), case.projection, gradient[0], Rule(RuleName.SGD, 0.1), ())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [None, 8])
def test_16_bit_tables_are_read_exactly_and_rounded_stochastically(
    name: BackendName, dtype: torch.dtype, k: int | None
) -> None:
    case = Case.draw(2, (6, 400), k, 4, 3_000, (False, False), True, device_of(name))
    table = (0.01 * case.table).to(dtype)
    table[:6] *= 1e-5  # float16's denormals
    case.table = table.float()
    step = 1e-4 * case.upstream
    with use_backend(name):
        backend = choose_backend(table)
        sink: list[RowGradient] = []
        leaf = table.clone().requires_grad_()
        out = look_up(leaf, case.projection, case.lookups, case.stack, sink=sink)
        out.backward(step)
        _, _, expected = case.float64()
        assert out.dtype == torch.float32
        close(out.detach(), expected.detach())
        exact = case.table.clone()
        backend.update(exact, case.projection, sink[0], Rule(RuleName.SGD, 0.1), ())
        trials = 64 if name != "cuda" or GPU else 16
        results = []
        for seed in range(trials):
            trial = table.clone()
            backend.update(trial, case.projection, sink[0], Rule(RuleName.SGD, 0.1, seed=seed), ())
            results.append(trial.double())
    results, exact = torch.stack(results).cpu(), exact.cpu().double()
    # Each result is one of the two neighbours: nearer than the distance between them.
    _, exponent = torch.frexp(exact)
    digits, least = (8, -133) if dtype is torch.bfloat16 else (11, -24)
    gap = torch.ldexp(torch.ones_like(exact), (exponent - digits).clamp(min=least))
    assert ((results - exact).abs() <= gap * 1.001).all()
    # Without bias: the mean over trials and entries of the error, in units of the gap.
    errors = ((results - exact) / gap).mean(0)
    assert errors.mean().abs() < 4 * 0.5 / (trials * errors.numel()) ** 0.5
    # Entry by entry too, with slack for the worst of thousands.
    assert errors.abs().max() < 5.5 * 0.5 / trials**0.5
    assert len({tuple(r.flatten().tolist()) for r in results}) > 1, "seeds matter"


@pytest.mark.parametrize("name", BACKENDS)
def test_infinite_and_nan_stay(name: BackendName) -> None:
    device = device_of(name)
    values = torch.tensor([[float("inf"), float("nan"), -float("inf"), 1.0]])
    for dtype in (torch.bfloat16, torch.float16):
        table = values.to(dtype).to(device)
        gradient = RowGradient(
            torch.tensor([0], device=device), (0, 1), torch.zeros(1, 4, device=device)
        )
        with use_backend(name):
            choose_backend(table).update(table, None, gradient, Rule(RuleName.SGD, 0.1), ())
        torch.testing.assert_close(table.float().cpu(), values, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, data=st.data(), threads=st.integers(1, 4))
@example(
    shape={"seed": 0, "sizes": (40, 3_000, 3), "k": 8, "d": 5, "batch": 2_000, "skewed": True},
    data=None,
    threads=2,
).via("large enough for threads")
def test_the_cpu_backend_gives_the_same_bits_with_any_number_of_threads(
    shape: dict[str, Any], data: st.DataObject | None, threads: int
) -> None:
    if data is None:
        case = Case.draw(**shape, bagged=(False, False, True), device="cpu")
    else:
        case = draw(shape, data, "cpu")
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        try:
            table = case.table.clone().requires_grad_()
            projection = None if case.projection is None else case.projection.clone()
            out = look_up(table, projection, case.lookups, case.stack)
            out.backward(case.upstream)
            assert table.grad is not None
            results.append((out.detach(), table.grad.coalesce().values()))
        finally:
            torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_cpu_backend_works_in_a_forked_process() -> None:
    """OpenMP's threads do not survive a fork; the kernels then run without them."""
    import multiprocessing

    case = Case.draw(3, (40, 3_000), 8, 4, 2_000, (False, False), True, "cpu")
    with torch.no_grad():
        here = look_up(case.table, case.projection, case.lookups, case.stack)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            out = look_up(case.table, case.projection, case.lookups, case.stack)
        sender.send_bytes(out.numpy().tobytes())

    process = context.Process(target=child)
    process.start()
    sender.close()  # so that the end of the child is the end of what can be received
    try:
        assert receiver.poll(120), "the forked process hangs"
        assert receiver.recv_bytes() == here.numpy().tobytes()
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def test_the_choice_of_a_backend() -> None:
    kinds = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        kinds[dtype] = type(choose_backend(torch.zeros(2, 2, dtype=dtype))).__name__
    assert list(kinds.values()) == ["CPUBackend"] * 3 + ["ReferenceBackend"]
    with use_backend("torch"):
        assert type(choose_backend(torch.zeros(2, 2))).__name__ == "ReferenceBackend"
    assert type(choose_backend(torch.zeros(2, 2))).__name__ == "CPUBackend"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_states_are_float32_but_for_float64_tables(dtype: torch.dtype) -> None:
    table = torch.zeros(3, 2, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in RuleName:
        for tensor in new_state(name, table).values():
            assert tensor.dtype == expected
            assert tensor.shape == ((3, 1) if name is RuleName.ROWWISE_ADAGRAD else (3, 2))
