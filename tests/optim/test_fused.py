"""Fused optimizers against torch's own on the same gradients, through `FieldEmbedding`."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.stacked_tables import StackedTables
from mlet.optim import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedOptimizer,
    FusedRowWiseAdagrad,
    FusedSGD,
    RowWiseAdagrad,
)

FIELDS = [
    Field("user", 500, 4, 12),
    Field("tags", 60, 4, 12, multi_valued=True),
    Field("plain", 70, 4),
]


def layer(**options: Any) -> FieldEmbedding:
    torch.manual_seed(0)
    return FieldEmbedding(FIELDS, **options)


def batch(seed: int, rows: int = 40) -> tuple[torch.Tensor, dict[str, Bags]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, count: int) -> torch.Tensor:
        return torch.randint(size, (count,), generator=generator)

    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), draw(4, rows).cumsum(0)])
    ids = torch.stack([draw(500, rows), draw(70, rows)], 1)
    return ids, {"tags": Bags(draw(60, int(offsets[-1])), offsets)}


def loss(model: FieldEmbedding, seed: int) -> torch.Tensor:
    target = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(seed))
    return 100 * (model(*batch(seed)) - target).square().mean()


def sparse_and_dense(
    model: FieldEmbedding,
    sparse: Callable[[list[nn.Parameter], float], torch.optim.Optimizer],
    dense: Callable[[list[nn.Parameter], float], torch.optim.Optimizer],
    ratio: float = 1.0,
) -> list[torch.optim.Optimizer]:
    tables = [table.stacked for table in model.tables]
    projections = [p for p in model.parameters() if p not in set(tables)]
    return [sparse(tables, 0.1), dense(projections, 0.1 * ratio)]


REFERENCES: dict[type[FusedOptimizer], Any] = {
    FusedSGD: (lambda p, lr: torch.optim.SGD(p, lr), lambda p, lr: torch.optim.SGD(p, lr)),
    FusedAdagrad: (
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
    ),
    FusedRowWiseAdagrad: (
        lambda p, lr: RowWiseAdagrad(p, lr),
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
    ),
    FusedLazyAdam: (
        lambda p, lr: torch.optim.SparseAdam(p, lr),
        # Adam puts ε elsewhere than SparseAdam; with gradients of this size it does not show.
        lambda p, lr: torch.optim.Adam(p, lr),
    ),
}


@pytest.mark.parametrize("fused", REFERENCES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    ("passes", "ratio", "bias"), [(1, 1.0, False), (2, 1.0, True), (1, 0.3, True)]
)
def test_as_torchs_optimizer_on_the_same_gradients(
    fused: Any, passes: int, ratio: float, bias: bool
) -> None:
    mine, theirs = layer(table_bias=bias), layer(table_bias=bias)
    optimizer = fused(mine, lr=0.1, projection_lr=ratio)
    references = sparse_and_dense(theirs, *REFERENCES[fused], ratio)
    for step in range(4):
        optimizer.zero_grad()
        theirs.zero_grad()
        for number in range(passes):  # several backward passes add up
            loss(mine, 10 * step + number).backward()
            loss(theirs, 10 * step + number).backward()
        biases = [p for table in mine.tables if (p := table.table_bias) is not None]
        assert all(p.grad is None for p in mine.parameters() if all(p is not b for b in biases))
        optimizer.step()
        for reference in references:
            reference.step()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_weight_decay_acts_on_touched_rows_only() -> None:
    mine, theirs = layer(), layer()
    FusedSGD(theirs, lr=0.1)
    optimizer = FusedSGD(mine, lr=0.1, weight_decay=0.5)
    before = mine.tables[0].inner.detach().clone()
    ids, bags = batch(1)
    (0 * mine(ids, bags)).sum().backward()
    optimizer.step()
    touched = torch.zeros(len(before), dtype=torch.bool)
    touched[ids[:, 0]] = True
    touched[500 + bags["tags"].values] = True
    torch.testing.assert_close(mine.tables[0].inner.detach()[touched], 0.95 * before[touched])
    assert torch.equal(mine.tables[0].inner.detach()[~touched], before[~touched])
    torch.testing.assert_close(mine.tables[0].projection, 0.95 * theirs.tables[0].projection)


def test_row_wise_adagrad_decays_projections_too() -> None:
    mine, theirs = layer(), layer()
    optimizer = FusedRowWiseAdagrad(mine, lr=0.1, weight_decay=0.5)
    loss(theirs, 1).backward()
    projections = [table.projection for table in theirs.tables if table.inner_dim is not None]
    reference = torch.optim.Adagrad(projections, lr=0.1, weight_decay=0.5, eps=1e-8)
    for _ in range(2):
        optimizer.zero_grad()
        (0 * loss(mine, 1)).backward()
        for projection in projections:
            projection.grad.zero_()
        optimizer.step()
        reference.step()
    found = [table.projection for table in mine.tables if table.inner_dim is not None]
    for one, other in zip(found, projections, strict=True):
        torch.testing.assert_close(one, other)


def test_zero_grad_forgets_and_a_step_without_gradient_changes_nothing() -> None:
    model = layer()
    optimizer = FusedAdagrad(model)
    before = copy.deepcopy(model.state_dict())
    loss(model, 0).backward()
    optimizer.zero_grad()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("fused", REFERENCES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("table_dtype", [None, torch.bfloat16])
def test_resumes_to_the_bit_from_its_state(fused: Any, table_dtype: torch.dtype | None) -> None:
    def step(model: FieldEmbedding, optimizer: FusedOptimizer, seed: int) -> None:
        optimizer.zero_grad()
        loss(model, seed).backward()
        optimizer.step()

    model = layer(table_dtype=table_dtype)
    optimizer = fused(model, lr=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
    twin = layer(table_dtype=table_dtype)
    twin.load_state_dict(model.state_dict())
    resumed = fused(twin, lr=0.7)
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for state in resumed.state.values():
        assert all(value.dtype == torch.float32 for value in state.values())
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(twin, resumed, seed)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_schedulers_and_closures_work() -> None:
    model = layer()
    optimizer = FusedSGD(model, lr=0.4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(model, 3)
        value.backward()
        return float(value.detach())

    first = optimizer.step(closure)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optimizer.step(closure) < first


def test_a_16_bit_table_learns_where_rounding_to_nearest_stands_still() -> None:
    def distance(model: FieldEmbedding, steps: int, optimizer: torch.optim.Optimizer) -> float:
        ids = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(steps):
            optimizer.zero_grad()
            (1e-3 * (model(ids) - 2.0).square().sum()).backward()
            optimizer.step()
        return float((model(ids) - 2.0).abs().max())

    def one() -> FieldEmbedding:
        model = FieldEmbedding([Field("a", 1, 2)], table_dtype=torch.bfloat16)
        nn.init.ones_(model.tables[0].weight)
        return model

    rounded, nearest = one(), one()
    assert distance(rounded, 1_500, FusedSGD(rounded, lr=1.0)) < 0.3
    assert distance(nearest, 1_500, torch.optim.SGD(nearest.parameters(), lr=1.0)) == 1.0


def test_16_bit_tables_keep_projections_outputs_and_collapsed_tables_in_float32() -> None:
    model = layer(table_dtype=torch.float16)
    assert model.tables[0].inner.dtype == torch.float16
    assert model.tables[0].projection.dtype == torch.float32
    out = model(*batch(0))
    assert out.dtype == torch.float32
    plain = model.collapse()
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    torch.testing.assert_close(plain(*batch(0)), out)


def test_a_copy_is_trained_by_torchs_optimizers_again() -> None:
    model = layer()
    FusedSGD(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        loss(twin, 0).backward()
        assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.parametrize("fused", REFERENCES, ids=lambda cls: cls.__name__)
def test_a_model_and_its_optimizer_are_copied_together(fused: Any, tmp_path: Path) -> None:
    model = layer()
    optimizer = fused(model, lr=0.03)
    loss(model, 0).backward()
    optimizer.step()
    torch.save((model, optimizer), tmp_path / "both.pt")
    twins = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
        torch.load(tmp_path / "both.pt", weights_only=False),
        (model, optimizer),
    ]
    for twin, own in twins:
        loss(twin, 1).backward()
        assert all(p.grad is None for p in twin.parameters())
        own.step()
        for name, value in twin.state_dict().items():
            assert torch.equal(value, twins[0][0].state_dict()[name]), name
    alone = copy.deepcopy(optimizer)
    alone.step()


def test_parameters_that_were_replaced_are_noticed() -> None:
    model = layer()
    optimizer = FusedSGD(model)
    table = next(part for part in model.modules() if isinstance(part, StackedTables))
    loss(model, 0).backward()
    table.inner = torch.nn.Parameter(table.inner.detach().clone())
    with pytest.raises(RuntimeError, match="parameters are others than when this optimizer"):
        optimizer.step()


@pytest.mark.parametrize("fused", [FusedAdagrad, FusedRowWiseAdagrad, FusedLazyAdam])
def test_a_state_of_another_shape_or_dtype_is_refused(fused: Any) -> None:
    model = layer()
    optimizer = fused(model)
    loss(model, 0).backward()
    optimizer.step()
    good = copy.deepcopy(optimizer.state_dict())
    name = next(iter(good["state"][0]))
    wrong = [
        {**good["state"][0], name: torch.zeros(2, 1)},
        {**good["state"][0], name: good["state"][0][name].double()},
        {**good["state"][0], "more": torch.zeros(2)},
        {"less": torch.zeros(2)},
        {**good["state"][0], name: 3},
    ]
    for state in wrong:
        with pytest.raises(ValueError, match="the state of a"):
            optimizer.load_state_dict({**good, "state": {**good["state"], 0: state}})
    # What is not laid out as kernels read it is taken, and laid out.
    turned = good["state"][0][name].T.contiguous().T
    optimizer.load_state_dict(
        {**good, "state": {**good["state"], 0: {**good["state"][0], name: turned}}}
    )
    assert optimizer.state[optimizer.param_groups[0]["params"][0]][name].is_contiguous()


def test_zero_grad_of_the_embedding_forgets_too() -> None:
    model = layer()
    optimizer = FusedSGD(model)
    before = copy.deepcopy(model.state_dict())
    loss(model, 0).backward()
    model.zero_grad()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_detached_or_gone_it_leaves_the_tables_free() -> None:
    model = layer()
    optimizer = FusedSGD(model)
    with pytest.raises(ValueError, match="another fused optimizer"):
        FusedAdagrad(model)
    optimizer.detach()
    loss(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    second = FusedAdagrad(model)
    assert second.param_groups
    del second
    gc.collect()
    model.zero_grad()
    loss(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "lr must not be negative, got -1"),
        ({"projection_lr": -1}, "projection_lr must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"eps": -1e-3}, "eps must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedLazyAdam(layer(), **settings)


def test_frozen_factors_are_not_moved_silently() -> None:
    model = layer()
    optimizer = FusedSGD(model)
    model.tables[0].inner.requires_grad_(False)
    loss(model, 0).backward()
    with pytest.raises(RuntimeError, match="could be trained when it was made"):
        optimizer.step()


def test_process_groups_are_warned_of() -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        with pytest.warns(UserWarning, match=r"over processes.*use mlet\.optim\.fused"):
            FusedSGD(layer())
    finally:
        distributed.destroy_process_group()


def test_a_model_without_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no FieldEmbedding"):
        FusedSGD(nn.Linear(2, 2))


def test_table_dtype_is_checked() -> None:
    with pytest.raises(
        ValueError, match=r"table_dtype must be bfloat16 or float16, got torch\.int8"
    ):
        layer(table_dtype=torch.int8)


@pytest.mark.parametrize("fused", [FusedAdagrad, FusedRowWiseAdagrad, FusedLazyAdam])
def test_settings_arrive(fused: Any) -> None:
    (group,) = fused(layer(), lr=0.3, weight_decay=0.2, eps=0.5).param_groups
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.3, 0.2, 0.5)
    (group,) = FusedLazyAdam(layer(), betas=(0.5, 0.6)).param_groups
    assert group["betas"] == (0.5, 0.6)


@pytest.mark.parametrize("fused", [FusedAdagrad, FusedRowWiseAdagrad, FusedLazyAdam])
def test_epsilon_is_of_rows_and_not_of_what_they_share(fused: Any) -> None:
    model = layer(table_bias=True)
    twin = copy.deepcopy(model)
    optimizer = fused(model, lr=0.1, eps=1e6)
    loss(model, 0).backward()
    optimizer.step()
    loss(twin, 0).backward()
    for stack, other in zip(model.stacks(), twin.stacks(), strict=True):
        # Where ε is far above the gradients, a row's step is that of plain SGD at η / ε.
        step = 0.1 if fused is not FusedLazyAdam else 0.1 * (1 - 0.999) ** 0.5
        grad = other.stacked.grad.to_dense()
        moved = (stack.stacked - other.stacked).detach()
        torch.testing.assert_close(moved, -step / 1e6 * grad, rtol=2e-2, atol=2e-7)
        shared = [(stack.table_bias, other.table_bias)]
        if stack.inner_dim is not None:
            shared.append((stack.projection, other.projection))
        for mine, theirs in shared:
            assert theirs.grad.abs().max() > 0
            expected = theirs - 0.1 * theirs.grad.sign()
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)


def test_the_seed_of_rounding_is_drawn_from_torch() -> None:
    seeds = []
    for seed in (1, 1, 2):
        model = layer()
        torch.manual_seed(seed)
        seeds.append(FusedSGD(model).param_groups[0]["seed"])
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_state_of_mlet_0_1_goes_on_with_one_step_size_for_both() -> None:
    optimizer = FusedAdagrad(layer(), projection_lr=0.3)
    state = optimizer.state_dict()
    del state["param_groups"][0]["projection_lr"]
    optimizer.load_state_dict(state)
    (group,) = optimizer.param_groups
    assert group["projection_lr"] == 1.0


@pytest.mark.parametrize(("bias_lr", "step"), [(None, 0.5), (0.3, 0.3), (0.0, 0.0)])
def test_biases_have_a_step_size_of_their_own(bias_lr: float | None, step: float) -> None:
    """Adagrad's first step is the step size, whatever the gradient."""
    model = layer(table_bias=True)
    optimizer = FusedAdagrad(model, lr=0.1, projection_lr=0.5, bias_lr=bias_lr)
    loss(model, 1).backward()
    optimizer.step()
    biases = [table.table_bias for table in model.tables if isinstance(table, StackedTables)]
    for bias in biases:
        assert bias is not None
        torch.testing.assert_close(bias.detach().abs(), torch.full_like(bias, 0.1 * step))
    with pytest.raises(ValueError, match="bias_lr must not be negative"):
        FusedAdagrad(layer(), bias_lr=-1.0)
