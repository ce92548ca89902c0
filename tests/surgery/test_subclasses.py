"""Subclasses that the caller vouches for: they stay what they are, with two layers underneath."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlet
from mlet.errors import ConversionError
from mlet.optim import fused


class Scaled(nn.Embedding):
    """Through ``super()``, with a number of its own and a buffer."""

    def __init__(self, *args: Any, scale: float = 3.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = scale
        self.register_buffer("shift", torch.ones(self.embedding_dim))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain * self.scale * super().forward(input) + self.shift


class Direct(nn.Embedding):
    """Reads the weight itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).tanh()


class Doubled(nn.EmbeddingBag):
    def forward(self, *args: Any) -> Tensor:
        return 2 * super().forward(*args)


TABLES = {
    "scaled": lambda: Scaled(9, 2, padding_idx=1),
    "direct": lambda: Direct(9, 2),
    "bag": lambda: Doubled(9, 2, mode="sum"),
}
IDS = torch.tensor([[3, 1, 3], [8, 0, 2]])


@pytest.mark.parametrize("name", TABLES)
def test_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(TABLES[name]())
    kind, keys = type(plain[0]), list(plain.state_dict())
    before, expected = copy.deepcopy(plain), plain(IDS)
    model = mlet.convert(plain, 16, subclasses={kind})
    assert isinstance(model[0], kind)
    torch.testing.assert_close(model(IDS), expected, rtol=1e-5, atol=1e-6)
    assert {"0.inner", "0.projection"} <= {*model.state_dict()}
    assert mlet.summary(model).tables[0].k == 16

    optimizer = fused(torch.optim.SGD, model, lr=0.1)
    model(IDS).sum().backward()
    optimizer.step()
    trained = model(IDS).detach()
    assert not torch.allclose(trained, expected)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(IDS), trained)
        assert type(twin[0]) is type(model[0])

    collapsed = mlet.collapse(model)
    assert type(collapsed[0]) is kind
    assert not hasattr(collapsed[0], "inner_dim")
    torch.testing.assert_close(collapsed(IDS), trained, rtol=1e-5, atol=1e-6)
    assert sorted(collapsed.state_dict()) == sorted(keys)
    before.load_state_dict(collapsed.state_dict(), strict=True)


def test_lookups_of_a_subclass_go_by_distinct_rows() -> None:
    """Its ``super().forward`` is the two-layer lookup: the product is not made."""
    model = mlet.convert(nn.Sequential(Scaled(1_000, 2)), 16, subclasses={Scaled})
    fused(torch.optim.SGD, model, lr=0.1)
    names: list[str] = []
    model(torch.tensor([3, 3])).grad_fn.next_functions  # noqa: B018
    node: Any = model(torch.tensor([3, 3])).grad_fn
    todo = [node]
    while todo:
        node = todo.pop()
        if node is not None:
            names.append(node.name())
            todo += [following for following, _ in node.next_functions]
    assert "_VectorsBackward" in names


def test_unless_vouched_for_they_are_left_alone_and_named() -> None:
    model = nn.ModuleList([Scaled(9, 2), nn.Embedding(9, 2)])
    mlet.convert(model, 8)
    assert type(model[0]) is Scaled
    assert isinstance(model[1], mlet.Embedding)
    only = r"only Scaled: vouch for what it does with subclasses=\{Scaled\}"
    with pytest.raises(ConversionError, match=only):
        mlet.convert(nn.Sequential(Scaled(9, 2)), 8)
    with pytest.raises(ConversionError, match="the model has no Direct; its subclasses are: none"):
        mlet.convert(nn.Sequential(nn.Embedding(9, 2)), 8, subclasses={Direct})
    with pytest.raises(ConversionError, match=r"Linear is no subclass of nn\.Embedding"):
        mlet.convert(nn.Sequential(nn.Linear(9, 2)), 8, subclasses={nn.Linear})


def test_hugging_faces_scaled_and_tied_words() -> None:
    """A small BART from a configuration: its word table is shared by encoder, decoder and head."""
    transformers = pytest.importorskip("transformers", reason="make test installs 'clients'")
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=90, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, scale_embedding=True,
        max_position_embeddings=20, dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    plain = transformers.BartForConditionalGeneration(config)
    keys = plain.state_dict().keys()
    words = torch.randint(4, 90, (2, 7))
    expected = plain(input_ids=words, labels=words)
    model = mlet.convert(
        copy.deepcopy(plain), 48, subclasses={BartScaledWordEmbedding}, tied="together"
    )
    got = model(input_ids=words, labels=words)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    optimizer = fused(torch.optim.Adam, model, lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=words, labels=words).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = model(input_ids=words, labels=words).logits.detach()
    collapsed = mlet.collapse(model)
    assert collapsed.state_dict().keys() == keys
    assert collapsed.lm_head.weight is collapsed.model.encoder.embed_tokens.weight
    plain.load_state_dict(collapsed.state_dict(), strict=True)
    logits = plain(input_ids=words, labels=words).logits
    torch.testing.assert_close(logits, trained, rtol=1e-4, atol=1e-4)
