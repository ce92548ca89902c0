"""Conversion and collapse of whole models."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import mlet
from mlet.errors import ConversionError
from mlet.nn import Field, FieldEmbedding
from mlet.nn.init import balanced_factors


class TwoTowers(nn.Module):
    """Tables in attributes, lists and dicts, one of them shared, some with options."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(50, 4, padding_idx=0)
        self.item = nn.Embedding(40, 4)
        self.history = self.item
        self.more = nn.ModuleList([nn.EmbeddingBag(9, 4, mode="sum", sparse=True), nn.Linear(4, 4)])
        self.by_name = nn.ModuleDict({"tiny": nn.EmbeddingBag(3, 2, mode="max")})
        self.head = nn.Linear(10, 1)

    def forward(self, user: Tensor, item: Tensor, bag: Tensor) -> Tensor:
        pooled = self.more[1](self.more[0](bag))
        both = torch.cat([self.user(user) * self.history(item), pooled], 1)
        return self.head(torch.cat([both, self.by_name["tiny"](bag % 3)], 1))


INPUTS = (torch.tensor([1, 0, 7]), torch.tensor([3, 3, 39]), torch.tensor([[1, 2], [8, 8], [0, 5]]))


def towers(dtype: torch.dtype = torch.float32) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers().to(dtype)


def test_preserve_keeps_the_outputs_and_collapse_restores_the_plain_model() -> None:
    plain = towers()
    twin = copy.deepcopy(plain)
    converted = mlet.convert(plain, inner_dim=16)
    assert converted is plain, "in place"
    assert converted.history is converted.item, "shared modules stay shared"
    assert isinstance(converted.item, mlet.Embedding)
    assert isinstance(converted.more[0], mlet.EmbeddingBag)
    torch.testing.assert_close(converted(*INPUTS), twin(*INPUTS), rtol=1e-5, atol=1e-6)
    back = mlet.collapse(converted)
    assert back is plain
    assert type(back.item) is nn.Embedding
    assert back.history is back.item
    twin_state, state = twin.state_dict(), back.state_dict()
    assert list(state) == list(twin_state)
    for name, value in twin_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6)
    twin.load_state_dict(state, strict=True)
    torch.testing.assert_close(back(*INPUTS), twin(*INPUTS))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_balanced_factors(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    k = d + data.draw(st.integers(0, 4))
    rank = data.draw(st.integers(0, d))
    table = torch.randn(n, rank, dtype=torch.float64) @ torch.randn(rank, d, dtype=torch.float64)
    inner, projection = balanced_factors(table, k, 0.3)
    torch.testing.assert_close(inner @ projection, table, rtol=1e-10, atol=1e-10)
    # on the directions that carry weight the factors are balanced: W2ᵀ W2 = W1 W1ᵀ = S
    shared, balance = inner[:, :d].T @ inner[:, :d], projection[:d] @ projection[:d].T
    largest = torch.linalg.svdvals(table).max()
    kept = shared.diagonal() > 1e-5 * largest
    torch.testing.assert_close(shared[kept][:, kept], balance[kept][:, kept], rtol=1e-6, atol=1e-7)
    assert int(kept.sum()) == min(rank, n)
    assert torch.equal(projection[d:], torch.zeros(k - d, d, dtype=torch.float64))


def test_extra_directions_have_the_stated_scale_and_take_part_at_once() -> None:
    torch.manual_seed(0)
    layer = mlet.convert(nn.Embedding(10_000, 4, padding_idx=3), inner_dim=12)
    extra = layer.inner.detach()[:, 4:]
    assert extra.std().item() == pytest.approx(0.01, rel=0.02)
    assert (extra[3] == 0).all(), "the padding row is not trained"
    layer(torch.tensor([1, 2])).sum().backward()
    assert (layer.projection.grad[4:] != 0).all()


@pytest.mark.parametrize(("init", "std"), [("fresh", 64**-0.5), ("paper", 0.25)])
def test_fresh_is_variance_matched_and_the_papers_is_the_papers(init: str, std: float) -> None:
    torch.manual_seed(0)
    layer = mlet.convert(nn.Embedding(1_000, 4), 64, init=init)
    assert layer.inner.abs().max() <= 1_000**-0.5
    assert layer.projection.std().item() == pytest.approx(std, rel=0.15)


def test_inner_dimensions_can_be_chosen() -> None:
    model = nn.ModuleDict(
        {"user": nn.Embedding(1_000, 4), "kind": nn.Embedding(9, 4), "wide": nn.Embedding(99, 32)}
    )
    converted = mlet.convert(model, "auto")
    assert converted["user"].inner_dim == 64
    assert type(converted["kind"]) is type(converted["wide"]) is nn.Embedding
    with pytest.raises(ConversionError, match=r"kind: n = 9 is small; wide: d = 32 is wide"):
        mlet.convert(nn.ModuleDict({"kind": model["kind"], "wide": model["wide"]}), "auto")
    with pytest.raises(ConversionError, match="or 'auto'"):
        mlet.convert(nn.Embedding(9, 2), "large")


def test_options_mode_dtype_and_frozenness_come_along() -> None:
    plain = nn.Embedding(9, 2, 4, 1.5, 1.0, sparse=True, dtype=torch.float64).eval()
    plain.weight.requires_grad_(False)
    layer = mlet.convert(copy.deepcopy(plain), inner_dim=5)
    assert (layer.padding_idx, layer.max_norm, layer.norm_type, layer.sparse) == (4, 1.5, 1.0, True)
    assert layer.inner.dtype == torch.float64
    assert not layer.training
    assert not layer.inner.requires_grad
    back = mlet.collapse(layer)
    assert not back.weight.requires_grad
    torch.testing.assert_close(back.weight, plain.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("by_frequency", [True, False])
def test_gradients_scaled_by_frequency_stay_so(kind: type[nn.Module], by_frequency: bool) -> None:
    layer = mlet.convert(kind(9, 2, scale_grad_by_freq=by_frequency), inner_dim=5)
    assert layer.scale_grad_by_freq is by_frequency
    assert mlet.collapse(layer).scale_grad_by_freq is by_frequency


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"user", "item", "more.0", "by_name.tiny"}),
        ({"include": "user"}, {"user"}),
        ({"include": ["more.*", re.compile("^it")]}, {"more.0", "item"}),
        ({"exclude": re.compile(r"\d|tiny")}, {"user", "item"}),
        ({"include": "*", "exclude": ["user", "by*"]}, {"item", "more.0"}),
        ({"min_rows": 40}, {"user", "item"}),
        ({"inner_dim": {"user": 8, "it*": 12}}, {"user", "item"}),
        ({"inner_dim": lambda name, n, d: 4 * d if n < 10 else None}, {"more.0", "by_name.tiny"}),
    ],
)
def test_choice_of_tables(arguments: dict[str, object], expected: set[str]) -> None:
    model = mlet.convert(towers(), **{"inner_dim": 16, **arguments})
    converted = {table.name: table for table in mlet.summary(model).tables}
    assert set(converted) == expected
    if isinstance(arguments.get("inner_dim"), dict):
        assert (converted["user"].k, converted["item"].k) == (8, 12)


def test_a_second_conversion_takes_what_is_left() -> None:
    model = mlet.convert(towers(), 16, include="user")
    mlet.convert(model, 8, include="item")
    assert {table.name: table.k for table in mlet.summary(model).tables} == {"user": 16, "item": 8}


def test_summary_counts_and_prints() -> None:
    model = towers()
    before = sum(p.numel() for p in model.parameters())
    mlet.convert(model, 16, include=["user", "item"])
    info = mlet.summary(model)
    assert sum(t.trained for t in info.tables) + info.others == sum(
        p.numel() for p in model.parameters()
    )
    assert sum(t.served for t in info.tables) + info.others == before
    lines = str(info).splitlines()
    assert lines[0].split() == ["table", "n", "d", "k", "before", "training", "after"]
    assert lines[1].split() == ["user", "50", "4", "16", "200", "864", "200"]
    trained = f"{before - 360 + 864 + 704:,}"
    assert lines[-1].split() == ["total", f"{before}", trained, f"{before}"]


def test_param_groups_hold_every_parameter_once() -> None:
    model = mlet.convert(towers(), 16)
    groups = mlet.param_groups(model, inner={"lr": 0.5}, projection={"lr": 0.1})
    assert [group.get("lr") for group in groups] == [0.5, 0.1, None]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    torch.optim.SGD(groups, lr=0.01)
    alone = mlet.param_groups(mlet.Embedding(9, 2, inner_dim=5), rest={"lr": 0.5})
    assert [len(group["params"]) for group in alone] == [1, 1]  # torch refuses an empty group
    with pytest.raises(ConversionError, match="has no two-layer table; convert it first"):
        mlet.param_groups(towers())


def test_training_goes_on_after_conversion_and_scores_survive_the_collapse() -> None:
    model = mlet.convert(towers(), 16)
    # the model has a table with sparse gradients: torch.optim.SGD takes both kinds
    optimizer = torch.optim.SGD(mlet.param_groups(model, projection={"lr": 0.02}), lr=0.1)
    before = model.user.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        model(*INPUTS).square().mean().backward()
        optimizer.step()
    moved = (model.user.weight - before).abs().sum(1) > 0
    assert moved.sum() > 3, "rows that were not queried move too"
    trained = model(*INPUTS).detach()
    torch.testing.assert_close(mlet.collapse(model)(*INPUTS), trained, rtol=1e-5, atol=1e-6)


def test_errors_leave_the_model_alone() -> None:
    model = towers()
    kinds = [type(module) for module in model.modules()]
    cases = [
        ({"include": "usr"}, "include pattern 'usr' matches no table; there are: user, item"),
        ({"exclude": re.compile("zzz")}, "exclude pattern 'zzz' matches no table"),
        ({"inner_dim": {"film": 8}}, "inner_dim pattern 'film' matches no table"),
        ({"min_rows": 1_000}, "nothing to convert: no table is left of 'user', 'item'"),
        ({"inner_dim": 0, "init": "fresh"}, "table 'user': inner_dim must be at least 1, got 0"),
        ({"inner_dim": 3}, "table 'user': inner_dim=3 cannot hold the 4 dimensions"),
        ({"init": "xavier"}, "init='xavier' is not one of"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConversionError, match=re.escape(message)):
            mlet.convert(model, **{"inner_dim": 16, **arguments})
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(ConversionError, match="nothing to collapse in TwoTowers"):
        mlet.collapse(model)
    with pytest.raises(ConversionError, match=r"it has no nn\.Embedding"):
        mlet.convert(nn.Linear(2, 2))
    mlet.convert(model, 16)
    with pytest.raises(ConversionError, match="its tables are two-layer already: user, item"):
        mlet.convert(model, 16)


def test_tied_and_parametrized_weights_are_refused_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 4)
            self.out = nn.Linear(4, 20, bias=False)
            self.out.weight = self.words.weight

    with pytest.raises(
        ConversionError, match=r"table 'words': its weight is tied to that of 'out'"
    ):
        mlet.convert(Tied(), 16)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Embedding(20, 4)))
    with pytest.raises(ConversionError, match=r"parametrized|it has no nn\.Embedding"):
        mlet.convert(normed, 16)


def test_subclasses_are_left_alone() -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return 3 * super().forward(input)

    model = nn.ModuleList([Scaled(9, 2), nn.Embedding(9, 2)])
    mlet.convert(model, 8)
    assert type(model[0]) is Scaled
    assert isinstance(model[1], mlet.Embedding)


@pytest.mark.parametrize("pooled", [True, False])
def test_torchrec_collections(pooled: bool) -> None:
    pytest.importorskip("torchrec", reason="make test installs the extra 'clients'")
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    sizes = {"user": 20, "item": 30}
    tables = [
        kind(name=name, embedding_dim=4, num_embeddings=size, feature_names=[f"{name}_id"])
        for name, size in sizes.items()
    ]
    torch.manual_seed(0)
    make = EmbeddingBagCollection if pooled else EmbeddingCollection
    plain = make(tables=tables)
    features = KeyedJaggedTensor.from_lengths_sync(
        ["user_id", "item_id"], torch.tensor([1, 19, 3, 29, 0]), torch.tensor([1, 1, 0, 3])
    )

    def outputs(collection: nn.Module) -> Tensor:
        result = collection(features)
        if pooled:
            return result.values()
        return torch.cat([jagged.values() for jagged in result.values()])

    converted = mlet.convert(copy.deepcopy(plain), 16)
    assert len(mlet.summary(converted).tables) == 2
    torch.testing.assert_close(outputs(converted), outputs(plain), rtol=1e-5, atol=1e-6)
    plain.load_state_dict(mlet.collapse(converted).state_dict(), strict=True)


def test_a_compiled_model_collapses_to_the_users_own() -> None:
    model = mlet.convert(towers(), 16)
    compiled = torch.compile(model, backend="eager")
    trained = compiled(*INPUTS).detach()
    back = mlet.collapse(compiled)
    assert back is model
    torch.testing.assert_close(back(*INPUTS), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_collapse_without_the_model(prefix: str) -> None:
    plain = towers()
    model = mlet.convert(copy.deepcopy(plain), 16)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    collapsed = mlet.collapse_state_dict(state)
    plain.load_state_dict(collapsed, strict=True)
    torch.testing.assert_close(plain(*INPUTS), model(*INPUTS), rtol=1e-5, atol=1e-6)


def test_a_part_that_is_called_module_keeps_its_name() -> None:
    model = nn.ModuleDict({"module": nn.Embedding(9, 2), "head": nn.Linear(2, 1)})
    collapsed = mlet.collapse_state_dict(mlet.convert(copy.deepcopy(model), 8).state_dict())
    model.load_state_dict(collapsed, strict=True)


def test_state_dicts_that_cannot_be_collapsed() -> None:
    with pytest.raises(ConversionError, match="no pair of 'inner' and 'projection'"):
        mlet.collapse_state_dict(towers().state_dict())
    bad = {"t.inner": torch.zeros(3, 4), "t.projection": torch.zeros(5, 2)}
    with pytest.raises(ConversionError, match=r"'t.inner' \(3, 4\) and its projection \(5, 2\)"):
        mlet.collapse_state_dict(bad)
    root = mlet.Embedding(5, 2, inner_dim=8)
    assert list(mlet.collapse_state_dict(root.state_dict())) == ["weight"]


def hooked(module: nn.Module) -> tuple[list[str], list[Any]]:
    """Register one hook of each kind; what they write to, and their handles."""
    calls: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append("forward")),
        module.register_forward_pre_hook(lambda *_: calls.append("before")),
        module.register_forward_hook(lambda *_, **__: calls.append("with"), with_kwargs=True),
        module.register_full_backward_hook(lambda *_: calls.append("backward")),
        module.register_full_backward_pre_hook(lambda *_: calls.append("before back")),
    ]
    return calls, handles


@pytest.mark.parametrize("change", ["convert", "collapse", "collapse fields"])
def test_hooks_are_carried_over_with_their_handles(change: str) -> None:
    table: nn.Module = nn.Embedding(10, 4)
    if change != "convert":
        table = mlet.Embedding(10, 4, inner_dim=8)
    ids = torch.tensor([[1]])
    if change == "collapse fields":
        table = FieldEmbedding([Field("a", 10, 4, 8)])
    model = nn.ModuleDict({"e": table})
    calls, handles = hooked(model["e"])
    if change == "convert":
        mlet.convert(model, 8)
    else:
        mlet.collapse(model)
    assert model["e"] is not table
    model["e"](ids).sum().backward()
    assert sorted(calls) == ["backward", "before", "before back", "forward", "with"]
    for handle in handles:
        handle.remove()
    model["e"](ids)
    assert len(calls) == 5


def test_hooks_on_a_state_dict_are_carried_over_or_refused() -> None:
    calls: list[str] = []
    model = nn.ModuleDict({"e": nn.Embedding(10, 4)})
    model["e"].register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    mlet.convert(model, 8)
    model.load_state_dict(model.state_dict())
    assert calls == ["loaded"]
    fields = nn.ModuleDict({"e": FieldEmbedding([Field("a", 10, 4, 8)]), "f": nn.Identity()})
    # One that has such a hook itself cannot take another's for it.
    fields["e"].register_state_dict_post_hook(lambda *_: calls.append("saved"))
    before = fields["e"]
    with pytest.raises(ConversionError, match="table 'e' has hooks of its own"):
        mlet.collapse(fields)
    assert fields["e"] is before


def test_tables_in_wrappers_that_would_keep_the_old_one_are_refused() -> None:
    def compiled(table: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict({"e": torch.compile(table, backend="eager")})

    message = "'e._orig_mod' is compiled by itself"
    with pytest.raises(ConversionError, match=message):
        mlet.convert(compiled(nn.Embedding(10, 4)), 8)
    with pytest.raises(ConversionError, match=message):
        mlet.collapse(compiled(mlet.Embedding(10, 4, inner_dim=8)))
    with pytest.raises(ConversionError, match="'_orig_mod' is compiled by itself"):
        mlet.convert(torch.compile(nn.Embedding(10, 4), backend="eager"), 8)
    # Inside a compiled model it is looked up anew at every call.
    model = torch.compile(nn.Sequential(nn.Embedding(10, 4)), backend="eager")
    mlet.convert(model, 8)
    model(torch.tensor([1])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_inside_ddp_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Embedding(10, 4)))
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(ConversionError, match="convert it first, then wrap it"):
                mlet.convert(model, 8)
    finally:
        torch.distributed.destroy_process_group()


def _with_hook(table: nn.Embedding) -> None:
    table.weight.register_hook(lambda grad: grad)


def _with_late_hook(table: nn.Embedding) -> None:
    table.weight.register_post_accumulate_grad_hook(lambda weight: None)


def _with_forward(table: nn.Embedding) -> None:
    table.forward = lambda ids: ids  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_hook, "its weight has hooks on its gradient"),
        (_with_late_hook, "its weight has hooks on its gradient"),
        (_with_forward, "has a forward of its own"),
        (lambda table: table.add_module("extra", nn.Linear(1, 1)), "holds extra beside its weig"),
        (lambda table: table.register_buffer("seen", torch.zeros(1)), "holds seen beside"),
        (lambda table: table.weight.data.fill_(float("nan")), "holds NaN or infinite values"),
    ],
)
def test_what_a_replacement_could_not_have_is_refused(
    change: Callable[[nn.Embedding], None], message: str
) -> None:
    model = nn.ModuleDict({"e": nn.Embedding(9, 2), "f": nn.Embedding(9, 2)})
    change(model["e"])
    with pytest.raises(ConversionError, match=f"table 'e'.*{message}"):
        mlet.convert(model, 8)
    assert type(model["f"]) is nn.Embedding, "nothing is converted by halves"
    mlet.convert(model, 8, include="f")


def test_tables_that_share_memory_are_refused() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(9, 2), "head": nn.Linear(2, 9)})
    model["head"].weight.data = model["e"].weight.data
    with pytest.raises(ConversionError, match="table 'e': its weight is tied to that of 'head'"):
        mlet.convert(model, 8)


def test_what_users_attach_goes_along() -> None:
    model = nn.Sequential(nn.Embedding(9, 2))
    model[0].tag = "users"
    model[0].weight.lr_scale = 0.5
    mlet.convert(model, 8)
    assert model[0].tag == "users"
    assert model[0].inner.lr_scale == model[0].projection.lr_scale == 0.5
    mlet.collapse(model)
    assert model[0].tag == "users"
    assert vars(model[0]).keys() - vars(nn.Embedding(9, 2)).keys() == {"tag"}


def test_a_pruned_factor_is_named() -> None:
    model = mlet.convert(nn.Sequential(nn.Embedding(9, 2)), 8)
    prune.random_unstructured(model[0], "inner", 0.5)
    with pytest.raises(ConversionError, match="table '0': its inner is parametrized or pruned"):
        mlet.collapse(model)
    prune.remove(model[0], "inner")
    mlet.collapse(model)(torch.tensor([1]))


def test_inner_dimensions_are_whole_numbers() -> None:
    assert mlet.convert(nn.Embedding(9, 2), np.int64(8)).inner_dim == 8
    for wrong in (8.0, "8", lambda name, n, d: 8.5):
        with pytest.raises(ConversionError, match=r"inner_dim=.* expected an integer, a mapping"):
            mlet.convert(nn.Embedding(9, 2), wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(2)}, "has names as keys, not 1"),
        ({"e.weight": torch.zeros(9, 2)}, "table 'e' has both factors and a weight"),
        ({"e.inner": torch.zeros(9, 4).to_sparse()}, "is no plain tensor of floating point"),
        ({"e.inner": torch.zeros(9, 4, device="meta")}, "is no plain tensor of floating point"),
        ({"e.inner": torch.zeros(9, 4, dtype=torch.int64)}, "is no plain tensor of floating point"),
        (
            {"e.projection": torch.full((4, 2), 6e4, dtype=torch.float16)},
            "exceeds what torch",
        ),
    ],
)
def test_states_that_are_none_are_named(change: dict[Any, torch.Tensor], message: str) -> None:
    state = {"e.inner": torch.full((9, 4), 100.0), "e.projection": torch.ones(4, 2)}
    mlet.collapse_state_dict(state)
    with pytest.raises(ConversionError, match=message):
        mlet.collapse_state_dict({**state, **change})
