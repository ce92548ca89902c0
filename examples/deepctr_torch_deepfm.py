"""DeepCTR-Torch: a DeepFM with two-layer tables, trained by its own ``fit``.

Two lines are ours, ``convert`` before and ``collapse`` after; and the optimizer is of torch's own
class, made by `mlet.optim.fused`, which trains tables by the rows that a batch touches.
"""

import copy

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, get_feature_names
from deepctr_torch.models import DeepFM

import mlet

generator = np.random.default_rng(0)
rows = 2_000
inputs = {
    "user": generator.integers(200, size=rows),
    "item": generator.integers(500, size=rows),
    "price": generator.random(rows),
}
labels = (inputs["user"] % 3 == inputs["item"] % 3).astype(np.float64)

columns = [
    SparseFeat("user", vocabulary_size=200, embedding_dim=4),
    SparseFeat("item", vocabulary_size=500, embedding_dim=4),
    DenseFeat("price", 1),
]


def build() -> DeepFM:
    # The library keeps a list of the weights it regularises from when the model is built; weight
    # decay for the new factors belongs in the optimizer.
    return DeepFM(columns, columns, dnn_hidden_units=(32,), l2_reg_embedding=0, l2_reg_linear=0)


def largest_change(before: dict, after: dict) -> float:
    return max((after[name] - value).abs().max().item() for name, value in before.items())


feed = {name: inputs[name] for name in get_feature_names(columns)}
model = build()
# Converted and collapsed at once, the model is what it was.
as_built = copy.deepcopy(model.state_dict())
mlet.collapse(mlet.convert(model, inner_dim=32))
print(f"convert and collapse: {largest_change(as_built, model.state_dict()):.1e}")

# The width-1 tables of the linear part have nothing to gain.
mlet.convert(model, inner_dim=32, exclude="*linear_model*")
print(mlet.summary(model))
optimizer = mlet.optim.fused(torch.optim.Adagrad, model, lr=0.01)
model.compile(optimizer, "binary_crossentropy", metrics=["auc"])
model.fit(feed, labels, batch_size=256, epochs=3, verbose=0)
trained = model.predict(feed, batch_size=512)

mlet.collapse(model)
plain = build()
plain.load_state_dict(model.state_dict(), strict=True)
difference = np.abs(plain.predict(feed, batch_size=512) - trained).max()
print(f"largest difference between trained and plain scores: {difference:.1e}")
assert difference < 1e-5
