"""FuxiCTR: a DeepFM of its layers with two-layer tables, trained by its own ``fit``.

Two lines are ours, ``convert`` before and ``collapse`` after; and the optimizer is of torch's own
class, made by `mlet.optim.fused`, which trains tables by the rows that a batch touches.
"""

import copy
import os
import tempfile
from collections import OrderedDict

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

import mlet


class DeepFM(BaseModel):
    """As in FuxiCTR's model zoo: a factorisation machine and an MLP on shared embeddings."""

    def __init__(self, feature_map: FeatureMap, folder: str) -> None:
        super().__init__(
            feature_map, "DeepFM", model_root=folder, metrics=["AUC", "logloss"], verbose=0
        )
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim=4)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[32]
        )
        self.reset_parameters()

    def forward(self, inputs: dict) -> dict:
        features = self.get_inputs(inputs)
        embedded = self.embedding_layer(features)
        logits = self.fm(features, embedded) + self.mlp(embedded.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logits)}


def largest_change(before: dict, after: dict) -> float:
    return max((after[name] - value).abs().max().item() for name, value in before.items())


generator = np.random.default_rng(0)
rows, batch = 2_000, 250
user, item = generator.integers(1, 200, size=rows), generator.integers(1, 500, size=rows)
label = (user % 3 == item % 3).astype(np.float64)
batches = [
    {
        "user": torch.from_numpy(user[start : start + batch]),
        "item": torch.from_numpy(item[start : start + batch]),
        "label": torch.from_numpy(label[start : start + batch]),
    }
    for start in range(0, rows, batch)
]

with tempfile.TemporaryDirectory() as folder:
    os.makedirs(os.path.join(folder, "example"))  # its checkpoints go there
    feature_map = FeatureMap("example", folder)
    spec = {"type": "categorical", "source": "", "padding_idx": 0}
    feature_map.features = OrderedDict(
        user={**spec, "vocab_size": 200}, item={**spec, "vocab_size": 500}
    )
    feature_map.labels, feature_map.num_fields = ["label"], 2
    feature_map.default_emb_dim, feature_map.total_features = 4, 700
    feature_map.set_column_index()

    model = DeepFM(feature_map, folder)
    # Converted and collapsed at once, the model is what it was.
    as_built = copy.deepcopy(model.state_dict())
    mlet.collapse(mlet.convert(model, inner_dim=32))
    print(f"convert and collapse: {largest_change(as_built, model.state_dict()):.1e}")

    # The width-1 tables of the linear part (fm.lr_layer) have nothing to gain.
    mlet.convert(model, inner_dim=32, exclude="*lr_layer*")
    print(mlet.summary(model))
    model.compile("adam", "binary_crossentropy", lr=0.01)
    model.optimizer = mlet.optim.fused(torch.optim.Adam, model, lr=0.01)
    model.fit(batches, epochs=2, validation_data=batches)
    trained = model.predict(batches)

    mlet.collapse(model)
    plain = DeepFM(feature_map, folder)
    plain.load_state_dict(model.state_dict(), strict=True)
    difference = np.abs(plain.predict(batches) - trained).max()
print(f"largest difference between trained and plain scores: {difference:.1e}")
assert difference < 1e-5
