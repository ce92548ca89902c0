"""`mlet.optim.fused`: torch's optimizers as oracles, and all that people do to an optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

import mlet
from mlet.engine import FactoredGradient
from mlet.nn import Field, FieldEmbedding
from mlet.optim import RowWiseAdagrad, fused

KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.5, "weight_decay": 0.1}),
    "adagrad": (Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adam": (Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


class Towers(nn.Module):
    """A user table, bags of items, and layers above: of each kind of parameter one."""

    def __init__(self, users: int = 50, *, seed: int = 0, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.user = mlet.Embedding(users, 4, inner_dim=12, sparse=sparse)
        self.items = mlet.EmbeddingBag(30, 4, inner_dim=12, mode="mean", sparse=sparse)
        self.top = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.top(torch.cat([self.user(users), self.items(items)], dim=1)).squeeze(1)


def batch(seed: int, *, users: int = 50, whole: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(users, (60,), generator=generator)
    items = torch.randint(30, (60, 5), generator=generator)
    if whole:  # every row of both tables
        ids = torch.cat([torch.arange(users), ids])[:60]
        items = torch.cat([torch.arange(30), items.flatten()])[:300].view(60, 5)
    return ids, items, torch.randn(60, generator=generator)


def loss_of(model: nn.Module, seed: int, **options: Any) -> Tensor:
    ids, items, target = batch(seed, **options)
    return (model(ids, items) - target).square().mean()


def train(
    model: nn.Module, optimizer: Optimizer, steps: range = range(4), **options: Any
) -> list[Tensor]:
    for seed in steps:
        optimizer.zero_grad()
        loss_of(model, seed, **options).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor], **tolerance: float) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


@pytest.mark.parametrize("name", KINDS)
def test_where_every_row_is_touched_it_is_torchs_optimizer(name: str) -> None:
    kind, options = KINDS[name]
    torch_model, model = Towers(), Towers()
    expected = train(torch_model, kind(torch_model.parameters(), **options), whole=True)
    optimizer = fused(kind, model, matched=False, **options)
    assert isinstance(optimizer, kind)
    assert_equal(train(model, optimizer, whole=True), expected)


@pytest.mark.parametrize(
    ("kind", "reference", "options"),
    [
        (SGD, SGD, {"lr": 0.5}),
        (Adagrad, Adagrad, {"lr": 0.1, "eps": 1e-8}),
        (RowWiseAdagrad, RowWiseAdagrad, {"lr": 0.1}),
        (Adam, torch.optim.SparseAdam, {"lr": 0.01, "eps": 1e-30}),
    ],
)
def test_rows_move_as_with_torchs_sparse_optimizers(
    kind: Any, reference: Any, options: dict[str, Any]
) -> None:
    """Tables far larger than a batch, tables and layers above by an optimizer each."""
    torch_model, model = Towers(3_000, sparse=True), Towers(3_000)
    rows = [torch_model.user.inner, torch_model.items.inner]
    held = {id(row) for row in rows}
    rest = [p for p in torch_model.parameters() if id(p) not in held]
    dense = Adagrad if kind is RowWiseAdagrad else kind
    rest_options = {"eps": 1e-8, **options} if dense is Adagrad else options
    optimizers = [reference(rows, **options), dense(rest, **rest_options)]
    optimizer = fused(kind, model, matched=False, **options)
    for seed in range(4):
        torch_model.zero_grad()
        loss_of(torch_model, seed, users=3_000).backward()
        for each in optimizers:
            each.step()
    expected = [parameter.detach() for parameter in torch_model.parameters()]
    # Adagrad and Adam divide by small gradients, and with them by their rounding.
    assert_equal(train(model, optimizer, users=3_000), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [Adam, Adagrad, SGD])
def test_rows_that_are_not_touched_stay_and_no_dense_gradient_is_made(kind: Any) -> None:
    model = Towers(3_000)
    optimizer = fused(kind, model, lr=0.1)
    before = model.user.inner.detach().clone()
    touched = batch(0, users=3_000)[0].unique()
    train(model, optimizer, range(1), users=3_000)
    train(model, optimizer, range(1), users=3_000)
    assert isinstance(model.user.inner.grad, FactoredGradient)
    moved = (model.user.inner.detach() != before).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(moved, touched)


def test_step_sizes_of_two_layer_tables_are_matched_unless_asked_otherwise() -> None:
    """The first step of the product is as long as an ordinary table's."""

    def length(table: nn.Module, **options: bool) -> float:
        model = nn.Sequential(table)
        kind = fused if options else lambda kind, model, **o: kind(model.parameters(), **o)
        optimizer = kind(Adagrad, model, lr=1e-3, **options)
        target = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
        before = table.weight.detach().clone()
        (model(torch.arange(400)) * target).sum().backward()
        if options:
            table.projection.grad = None  # its step comes on top
        optimizer.step()
        return float((table.weight.detach() - before).norm())

    torch.manual_seed(0)
    ordinary = length(nn.Embedding(400, 4))
    tables = [mlet.Embedding(400, 4, inner_dim=64, init="variance_matched") for _ in range(2)]
    assert length(tables[0], matched=True) == pytest.approx(ordinary, rel=0.15)
    assert length(tables[1], matched=False) > 2.5 * ordinary


def test_projections_step_by_the_same_factor() -> None:
    models = [Towers(), Towers()]
    start = models[0].user.projection.detach().clone()
    moves = []
    for model, matched in zip(models, (True, False), strict=True):
        train(model, fused(Adam, model, lr=0.01, matched=matched), range(1))
        moves.append(model.user.projection.detach() - start)
    ratio = moves[0] / moves[1]
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-2, atol=0)
    assert not 0.99 < float(ratio.mean()) < 1.01


@pytest.mark.parametrize("name", [*KINDS, "rowwise"])
def test_state_dict_resumes_exactly(name: str) -> None:
    kind, options = KINDS.get(name, (RowWiseAdagrad, {"lr": 0.1}))
    model = Towers()
    optimizer = fused(kind, model, **options)
    train(model, optimizer, range(3))
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    expected = train(model, optimizer, range(3, 6))

    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    other = Towers(seed=1)
    other.load_state_dict(weights)
    resumed = fused(kind, other, **options)
    resumed.load_state_dict(state)
    assert_equal(train(other, resumed, range(3, 6)), expected, rtol=0.0, atol=0.0)


def test_the_state_of_torchs_own_adam_continues() -> None:
    model, other = Towers(), Towers()
    theirs = Adam(model.parameters(), lr=0.01)
    train(model, theirs, whole=True)
    other.load_state_dict(model.state_dict())
    optimizer = fused(Adam, other, lr=0.01, matched=False)
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    expected = train(model, theirs, range(4, 6), whole=True)
    assert_equal(train(other, optimizer, range(4, 6), whole=True), expected)


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer = fused(Adam, Towers(), lr=0.01)
    wrong = Towers(60)
    others = fused(Adam, wrong, lr=0.01)
    train(wrong, others, range(1), users=60)
    with pytest.raises(ValueError, match="state of a"):
        optimizer.load_state_dict(others.state_dict())


def test_parameter_groups_have_their_own_step_sizes_and_schedulers_move_them() -> None:
    model, torch_model = Towers(), Towers()

    def groups(of: Towers) -> list[dict[str, Any]]:
        return [
            {"params": of.user.parameters(), "lr": 0.3},
            {"params": [*of.items.parameters(), *of.top.parameters()]},
        ]

    results = []
    for each, optimizer in (
        (torch_model, SGD(groups(torch_model), lr=0.1)),
        (model, fused(SGD, model, groups(model), lr=0.1, matched=False)),
    ):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for seed in range(3):
            train(each, optimizer, range(seed, seed + 1))
            schedule.step()
        results.append([parameter.detach() for parameter in each.parameters()])
        assert [group["lr"] for group in optimizer.param_groups] == [0.0375, 0.0125]
    assert_equal(*results)


def test_groups_may_be_added_and_named() -> None:
    model = Towers()
    optimizer = fused(SGD, model, model.top.named_parameters(), lr=0.1)
    before = model.user.inner.detach().clone()
    train(model, optimizer, range(1))
    assert torch.equal(before, model.user.inner)
    assert not isinstance(model.user.inner.grad, FactoredGradient)
    optimizer.add_param_group({"params": list(model.user.named_parameters()), "lr": 0.2})
    train(model, optimizer, range(1))
    assert isinstance(model.user.inner.grad, FactoredGradient)
    assert not torch.equal(before, model.user.inner)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [("user.inner", model.user.inner)]})


def test_gradients_accumulate_and_zero_grad_of_the_model_forgets_them() -> None:
    model, torch_model = Towers(), Towers()
    optimizer, theirs = (
        fused(SGD, model, lr=0.5, matched=False),
        SGD(torch_model.parameters(), 0.5),
    )
    for each, stepped in ((model, optimizer), (torch_model, theirs)):
        loss_of(each, 9).backward()
        each.zero_grad()
        (loss_of(each, 0) + loss_of(each, 1)).backward()
        loss_of(each, 2).backward()
        stepped.step()
    assert_equal(list(model.parameters()), list(torch_model.parameters()))


def test_a_penalty_on_the_factors_adds_to_what_the_batch_gave() -> None:
    for order in ("together", "first", "last"):
        model, torch_model = Towers(), Towers()
        optimizer, theirs = (
            fused(SGD, model, lr=0.5, matched=False),
            SGD(torch_model.parameters(), 0.5),
        )
        for each, stepped in ((model, optimizer), (torch_model, theirs)):
            penalty = 0.1 * each.user.inner.square().sum() + each.items.weight.square().sum()
            if order == "together":
                (loss_of(each, 0) + penalty).backward()
            else:
                losses = [penalty, loss_of(each, 0)]
                for part in losses if order == "first" else losses[::-1]:
                    part.backward()
            stepped.step()
        assert_equal(list(model.parameters()), list(torch_model.parameters()))


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf"), 3.0])
@pytest.mark.parametrize("fields", [False, True])
def test_clipping_by_norm_is_exact(norm_type: float, fields: bool) -> None:
    """Of tables' gradients too, whose n × k numbers are never made for the norm of order two."""

    def made() -> nn.Module:
        if not fields:
            return Towers()
        torch.manual_seed(0)
        return Fields()

    model, torch_model = made(), made()
    optimizer, theirs = (
        fused(SGD, model, lr=0.5, matched=False),
        SGD(torch_model.parameters(), 0.5),
    )
    norms = []
    for each, stepped in ((model, optimizer), (torch_model, theirs)):
        (100 * (loss_of(each, 0) + loss_of(each, 1))).backward()
        norms.append(mlet.optim.clip_grad_norm_(each.parameters(), 0.5, norm_type))
        stepped.step()
    torch.testing.assert_close(*norms)
    assert_equal(list(model.parameters()), list(torch_model.parameters()))


class Fields(nn.Module):
    """Tables in one matrix: two-layer ones, and ordinary ones of a field without a tail."""

    def __init__(self) -> None:
        super().__init__()
        fields = [Field("user", 50, 4, inner_dim=12), Field("item", 30, 4)]
        self.tables = FieldEmbedding(fields, sparse=False)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        vectors = self.tables(torch.stack([users, items[:, 0]], dim=1))
        return vectors.flatten(1).sum(dim=1)


def test_clipping_by_value() -> None:
    model, torch_model = Towers(), Towers()
    optimizer, theirs = (
        fused(SGD, model, lr=0.5, matched=False),
        SGD(torch_model.parameters(), 0.5),
    )
    for each, stepped in ((model, optimizer), (torch_model, theirs)):
        (100 * loss_of(each, 0)).backward()
        nn.utils.clip_grad_value_(each.parameters(), 0.01)
        stepped.step()
    assert_equal(list(model.parameters()), list(torch_model.parameters()))


def test_grad_scaler_unscales_clips_and_skips_steps_with_infinities() -> None:
    model, torch_model = Towers(), Towers()
    results = []
    for each, optimizer in (
        (model, fused(Adam, model, lr=0.01, matched=False)),
        (torch_model, Adam(torch_model.parameters(), lr=0.01)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for seed in range(4):
            optimizer.zero_grad()
            value = loss_of(each, seed, whole=True)
            scaler.scale(value * (float("inf") if seed == 1 else 1.0)).backward()
            if seed >= 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(each.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
        results.append([parameter.detach() for parameter in each.parameters()])
    assert_equal(*results)


def test_infinities_of_the_tables_alone_skip_a_step() -> None:
    model = nn.Sequential(mlet.Embedding(30, 4, inner_dim=12))
    optimizer = fused(SGD, model, lr=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(model(torch.arange(5)).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_equal(list(model.parameters()), before, rtol=0.0, atol=0.0)
    assert scaler.get_scale() == 2.0


def test_autocast_closure_and_hooks() -> None:
    model = Towers()
    optimizer = fused(SGD, model, lr=0.5)
    SGD(Towers().parameters(), lr=0.1)  # torch then wraps the class' own step
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss_of(model, 0)
        value.backward()
        return value

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert first is not None
    assert last is not None
    assert float(last) < float(first)
    assert calls == ["before", "after"] * 6


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", KINDS)
def test_model_and_optimizer_are_copied_together(name: str, how: str) -> None:
    kind, options = KINDS[name]
    model = Towers()
    optimizer = fused(kind, model, **options)
    train(model, optimizer, range(2))
    optimizer.zero_grad()
    if how == "deepcopy":
        twin, twins = copy.deepcopy((model, optimizer))
    else:
        twin, twins = pickle.loads(pickle.dumps((model, optimizer)))
    assert type(twins) is type(optimizer)
    expected = train(model, optimizer, range(2, 4))
    assert_equal(train(twin, twins, range(2, 4)), expected, rtol=0.0, atol=0.0)


def test_a_moving_average_of_the_model_is_a_model() -> None:
    model = Towers()
    optimizer = fused(Adam, model, lr=0.01)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    for seed in range(3):
        train(model, optimizer, range(seed, seed + 1))
        average.update_parameters(model)
    loss_of(average, 0).backward()
    assert type(average.module.user.inner.grad) is Tensor
    assert not torch.equal(average.module.user.inner, model.user.inner)


def test_when_the_optimizer_is_gone_gradients_are_torchs_again() -> None:
    model = Towers()
    optimizer = fused(Adam, model, lr=0.01)
    with pytest.raises(ValueError, match="another fused optimizer"):
        fused(Adam, model, lr=0.01)
    del optimizer
    loss_of(model, 0).backward()
    assert type(model.user.inner.grad) is Tensor
    fused(Adam, model, lr=0.01).detach()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [SGD, Adagrad, Adam])
def test_frozen_parts_stay(kind: Any) -> None:
    model = Towers()
    model.user.inner.requires_grad_(False)
    model.items.projection.requires_grad_(False)
    before = [model.user.inner.detach().clone(), model.items.projection.detach().clone()]
    train(model, fused(kind, model, lr=0.1))
    assert_equal([model.user.inner, model.items.projection], before, rtol=0.0, atol=0.0)


def test_max_norm_and_empty_batches_are_served() -> None:
    model = nn.Sequential(mlet.Embedding(30, 4, inner_dim=12, max_norm=1.0))
    optimizer = fused(SGD, model, lr=0.1)
    before = model[0].inner.detach().clone()
    model(torch.tensor([3, 3, 7])).sum().backward()
    optimizer.step()
    moved = (model[0].inner != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3, 7]
    for empty in (torch.empty(0, dtype=torch.int64), torch.empty(0, 3, dtype=torch.int64)):
        plain = nn.Sequential(mlet.Embedding(30, 4, inner_dim=12))
        optimizer = fused(Adam, plain, lr=0.1)
        before = plain[0].inner.detach().clone()
        assert plain(empty).shape == (*empty.shape, 4)
        plain(empty).sum().backward()
        optimizer.step()
        assert torch.equal(plain[0].inner, before)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SGD, {"momentum": 0.9}, "momentum=0.9 has no form that moves touched rows alone"),
        (Adam, {"amsgrad": True}, "amsgrad"),
        (Adam, {"maximize": True}, "maximize"),
    ],
)
def test_what_has_no_lazy_form_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused(kind, Towers(), lr=0.1, **options)


def test_other_classes_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"no fused rule is that of RMSprop.*Adagrad"):
        fused(torch.optim.RMSprop, Towers(), lr=0.1)


def test_a_model_without_tables_is_warned_of_and_trained_by_torchs_class() -> None:
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    models[1].load_state_dict(models[0].state_dict())
    with pytest.warns(UserWarning, match=r"Linear has no two-layer table.*convert it first"):
        optimizers = [fused(Adam, models[0], lr=0.1), Adam(models[1].parameters(), lr=0.1)]
    for model, optimizer in zip(models, optimizers, strict=True):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
    assert_equal(list(models[0].parameters()), list(models[1].parameters()), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("schedule", ["cycle", "cosine", "plateau"])
def test_schedulers_of_torch(schedule: str) -> None:
    """Those that move betas too, and those that look at the loss."""
    made: dict[str, Callable[[Optimizer], Any]] = {
        "cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=6),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
        "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    }
    results = []
    for kind in (Adam, lambda of, **options: fused(Adam, of, matched=False, **options)):
        model = Towers()
        optimizer = kind(model if kind is not Adam else model.parameters(), lr=0.01)
        moved = made[schedule](optimizer)
        for seed in range(5):
            train(model, optimizer, range(seed, seed + 1), whole=True)
            moved.step(*([1.0] if schedule == "plateau" else []))
        results.append([parameter.detach() for parameter in model.parameters()])
    assert_equal(*results, rtol=1e-4, atol=1e-5)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", KINDS)
def test_deterministic_algorithms_give_the_same_bits(name: str, deterministic: None) -> None:
    kind, options = KINDS[name]
    results = []
    for _ in range(2):
        model = Towers(3_000)
        results.append(train(model, fused(kind, model, **options), users=3_000))
    assert_equal(*results, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tables_of_other_dtypes(dtype: torch.dtype) -> None:
    model = Towers().to(dtype)
    optimizer = fused(Adam, model, lr=0.01)
    ids, items, target = batch(0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = (model(ids, items) - target.to(dtype)).square().mean()
        value.backward()
        optimizer.step()
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    state = optimizer.state[model.user.inner]["exp_avg"]
    assert state.dtype == (torch.float32 if dtype == torch.bfloat16 else torch.float64)
    twin = copy.deepcopy(model)
    again = fused(Adam, twin, lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[twin.user.inner]["exp_avg"].dtype == state.dtype


def test_what_reads_the_gradient_reads_the_product() -> None:
    model, torch_model = Towers(), Towers()
    fused_model: Callable[[], Optimizer] = lambda: fused(SGD, model, lr=0.1)  # noqa: E731
    optimizer = fused_model()
    for each in (model, torch_model):
        loss_of(each, 0).backward()
    mine, theirs = model.user.inner.grad, torch_model.user.inner.grad
    assert mine is not None
    assert theirs is not None
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine + torch.zeros_like(theirs), theirs)
    torch.testing.assert_close(mine.sum(), theirs.sum())
    assert type(mine.norm()) is type(mine.abs()) is Tensor
    assert float(mine.norm()) == pytest.approx(float(theirs.norm()), rel=1e-5)
    torch.testing.assert_close((mine * 2).abs().max(), (theirs * 2).abs().max())
    with pytest.raises(RuntimeError, match="copy_ cannot change the gradient"):
        mine.copy_(theirs)
    optimizer.step()
