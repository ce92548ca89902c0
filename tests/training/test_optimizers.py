"""Table optimizers: what they do to queried rows, and that they leave the others alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.data import BatchLoader, PreparedDataset
from mlet.errors import ConfigError
from mlet.models import DLRMConfig, build_model
from mlet.optim import RowWiseAdagrad
from mlet.training.config import OptimizerName, OptimizersConfig
from mlet.training.optimizers import Optimizers


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rowwise_adagrad_follows_its_equations(data: st.DataObject) -> None:
    n, w = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    sparse = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 99)))
    parameter = torch.nn.Parameter(torch.randn(n, w, dtype=torch.float64))
    expected, sums = parameter.detach().clone(), [0.0] * n
    optimizer = RowWiseAdagrad([parameter], lr=0.3, eps=1e-3)
    for _ in range(3):
        ids = torch.randint(n, (data.draw(st.integers(0, 5)),))
        grads = torch.randn(len(ids), w, dtype=torch.float64)
        dense = torch.zeros(n, w, dtype=torch.float64).index_add_(0, ids, grads)
        parameter.grad = (
            torch.sparse_coo_tensor(ids[None], grads, (n, w)) if sparse else dense.clone()
        )
        optimizer.step()
        for row in set(ids.tolist()):
            sums[row] += float((dense[row] ** 2).sum()) / w
            expected[row] -= 0.3 * dense[row] / (sums[row] ** 0.5 + 1e-3)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)
    if optimizer.state:
        assert optimizer.state[parameter]["sum"].shape == (n,)


def test_rowwise_adagrad_refuses_negative_settings() -> None:
    with pytest.raises(ValueError, match="must not be negative, got lr=-1"):
        RowWiseAdagrad([torch.zeros(2, 2)], lr=-1)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_tables_move_in_queried_rows_only_and_as_torchs_dense_optimizer_would(
    small_data: Path, name: str
) -> None:
    torch.manual_seed(0)
    schema = PreparedDataset(small_data).schema
    model = build_model(DLRMConfig(dim=2, inner_dim=6), schema)
    plain = copy.deepcopy(model)
    optimizers = Optimizers(OptimizersConfig.same(name, 0.05), model, 64)
    table, twin = model.embedding.tables[0], plain.embedding.tables[0]

    def dense(parameter: torch.nn.Parameter, method: str) -> torch.optim.Optimizer:
        return {
            "sgd": lambda: torch.optim.SGD([parameter], lr=0.05),
            "adagrad": lambda: torch.optim.Adagrad([parameter], lr=0.05, eps=1e-8),
            "rowwise_adagrad": lambda: RowWiseAdagrad([parameter], lr=0.05, eps=1e-8),
            "adam": lambda: torch.optim.Adam([parameter], lr=0.05, eps=1e-8),
        }[method]()

    inner = torch.nn.Parameter(twin.inner.detach().clone())
    references = [
        dense(inner, name),
        dense(twin.projection, "adagrad" if name == "rowwise_adagrad" else name),
    ]
    before = table.inner.detach().clone()
    ids = torch.tensor([[1, 2, 3], [1, 4, 3]])  # the same rows each step: lazy equals dense
    queried = torch.zeros(len(before), dtype=torch.bool)
    starts = list(table.starts.values())
    for column in range(3):
        queried[ids[:, column] + starts[column]] = True
    for _ in range(3):
        optimizers.zero_grad()
        twin.zero_grad()
        # large gradients: SparseAdam and Adam place ε differently, which matters near zero
        (1e4 * model.embedding(ids).square().sum()).backward()
        (1e4 * plain.embedding(ids).square().sum()).backward()
        inner.grad = twin.inner.grad.to_dense()
        optimizers.step()
        for reference in references:
            reference.step()
        twin.inner.data.copy_(inner.data)
    moved = (table.inner.detach() != before).any(dim=1)
    assert torch.equal(moved, queried)
    torch.testing.assert_close(table.inner.detach(), inner.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(table.projection, twin.projection, rtol=1e-4, atol=1e-6)


def test_state_survives_a_round_trip(small_data: Path) -> None:
    torch.manual_seed(0)
    schema = PreparedDataset(small_data).schema
    model = build_model(DLRMConfig(dim=2, inner_dim=6), schema)
    config = OptimizersConfig.same("adam", 0.01)
    ids = torch.tensor([[1, 2, 3]])

    def step(optimizers: Optimizers, model: torch.nn.Module) -> None:
        optimizers.zero_grad()
        model.embedding(ids).sum().backward()
        optimizers.step()

    optimizers = Optimizers(config, model, 64)
    step(optimizers, model)
    twin = copy.deepcopy(model)
    restored = Optimizers(config, twin, 64)
    restored.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    step(optimizers, model)
    step(restored, twin)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_projections_have_a_step_size_of_their_own(small_data: Path, name: OptimizerName) -> None:
    schema = PreparedDataset(small_data).schema
    batch = next(iter(BatchLoader(PreparedDataset(small_data).split("train"), 64, 0).epoch(0)))
    moved = {}
    for ratio in (1.0, 0.25):
        torch.manual_seed(0)
        model = build_model(DLRMConfig(dim=2, inner_dim=6), schema)
        tables = {"name": name, "learning_rate": 0.05, "projection_lr": ratio}
        optimizers = Optimizers(OptimizersConfig.parse({"tables": tables}, "test"), model, 64)
        table = model.embedding.tables[0]
        before = [table.inner.detach().clone(), table.projection.detach().clone()]
        model.task.loss(model(batch), batch.labels["label"]).backward()
        optimizers.step()
        after = [table.inner.detach(), table.projection.detach()]
        moved[ratio] = [new - old for new, old in zip(after, before, strict=True)]
    torch.testing.assert_close(moved[0.25][0], moved[1.0][0])
    torch.testing.assert_close(moved[0.25][1], moved[1.0][1] / 4, rtol=1e-4, atol=1e-7)
    assert moved[1.0][1].abs().max() > 0


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_damping_means_the_same_at_every_batch_size(small_data: Path, name: OptimizerName) -> None:
    """One example's gradient, averaged over a batch or not, moves its rows by as much."""
    schema = PreparedDataset(small_data).schema
    batch = next(iter(BatchLoader(PreparedDataset(small_data).split("train"), 1, 0).epoch(0)))
    moved = []
    for rows in (1, 64):
        torch.manual_seed(0)
        model = build_model(DLRMConfig(dim=2), schema)
        tables = {"name": name, "learning_rate": 0.05, "damping": 0.2}
        config = OptimizersConfig.parse({"tables": tables}, "test")
        optimizers = Optimizers(config, model, rows)
        before = model.embedding.tables[0].weight.detach().clone()
        (model.task.loss(model(batch), batch.labels["label"]) / rows).backward()
        optimizers.step()
        moved.append(model.embedding.tables[0].weight.detach() - before)
    assert 0 < moved[0].abs().max() < 0.02, "damped: a step size is 0.05"
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-7)


def test_damping_is_not_of_sgd() -> None:
    with pytest.raises(ConfigError, match=r"damping is of adagrad.*sgd has none"):
        OptimizersConfig.parse({"tables": {"name": "sgd", "damping": 1.0}}, "test")


@pytest.mark.parametrize(("dense", "step"), [("adagrad", 0.03), ("adam", 0.1)])
def test_table_biases_take_the_dense_layers_step_size(
    dense: str, step: float, small_data: Path
) -> None:
    """If that is of the same method; Adagrad's first step is the step size."""
    data = PreparedDataset(small_data)
    model = build_model(
        DLRMConfig(dim=4, bottom_mlp=[8], top_mlp=[8], table_bias=True), data.schema
    )
    config = OptimizersConfig.model_validate(
        {
            "tables": {"name": "adagrad", "learning_rate": 0.1},
            "dense": {"name": dense, "learning_rate": 0.03},
        }
    )
    optimizers = Optimizers(config, model, 64)
    batch = next(BatchLoader(data.split("train"), 64, 0).epoch(0))
    model.task.loss(model(batch), batch.labels[model.task.label]).backward()
    optimizers.step()
    moved = [
        parameter.detach().abs().max().item()
        for name, parameter in model.named_parameters()
        if name.endswith("table_bias")
    ]
    assert moved
    assert max(moved) == pytest.approx(step, rel=1e-3)
