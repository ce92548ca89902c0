"""TorchRec's collections of tables with two layers, looked up together.

TorchRec is imported here, and this is imported only where a model has such a collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    get_embedding_names_by_table,
    process_pooled_embeddings,
    reorder_inverse_indices,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from mlet.nn.two_layer_collection import TwoLayerCollection

# TorchRec's class comes first: an instance of it becomes one of ours, and back, which Python allows
# where both have the same first ancestors.


class TwoLayerEmbeddingBagCollection(EmbeddingBagCollection, TwoLayerCollection):  # type: ignore[misc]
    """TorchRec's ``EmbeddingBagCollection`` with two-layer tables: a KeyedJaggedTensor in, the same
    KeyedTensor out. Made by `mlet.convert`.
    """

    holder, layer, plain = "embedding_bags", nn.EmbeddingBag, EmbeddingBagCollection
    pools = True

    def forward(self, features: Any) -> KeyedTensor:
        """Pooled vectors (B, Σ d), feature after feature.

        Raises:
            IndexError: an id outside its table.
            KeyError: a feature is not there.
        """
        features = maybe_td_to_kjt(features, None)
        names = self._names
        asked = [feature for of_table in names.values() for feature, _ in of_table]
        inverse = reorder_inverse_indices(features.inverse_indices_or_none(), asked)
        widths = [
            width for width, own in zip(self._widths, names.values(), strict=True) for _ in own
        ]
        return KeyedTensor(
            keys=[name for of_table in names.values() for _, name in of_table],
            values=self._pooled(features, names, inverse),
            length_per_key=widths,
        )

    def _pooled(
        self, features: Any, names: dict[str, list[tuple[str, str]]], inverse: Tensor
    ) -> Tensor:
        stacks, weighted = self.tables.stacks(), self._weighted()
        batch = self._batch(features, weighted=weighted)
        found: dict[str, list[Tensor]] = {}
        for stack in stacks:
            vectors = self._asked(stack, features).pooled(batch).float()
            if list(stack.sizes) == list(names) and not inverse.numel():
                return vectors.flatten(1)
            columns = iter(vectors.unbind(1))
            found.update({table: [next(columns) for _ in names[table]] for table in stack.sizes})
        jagged = features.to_dict() if len(found) < len(names) else {}
        parts = []
        for table, of_table in names.items():
            if table not in found:
                layer = self.tables.get_submodule(table)
                parts += [self._pooled_alone(layer, jagged[name]) for name, _ in of_table]
            else:
                parts += found[table]
        return cast("Tensor", process_pooled_embeddings(parts, inverse))

    def _pooled_alone(self, layer: nn.Module, feature: Any) -> Tensor:
        weights = feature.weights() if self._weighted() else None
        out = layer(feature.values(), feature.offsets(), per_sample_weights=weights)
        return cast("Tensor", out.float())

    def _weighted(self) -> bool:
        return bool(EmbeddingBagCollection.is_weighted(self))

    def embedding_bag_configs(self) -> list[Any]:
        """TorchRec's, of as many categories as there are now."""
        return self._configs()

    def _configs(self) -> list[Any]:
        return self._grown(EmbeddingBagCollection.embedding_bag_configs(self))

    def reset_parameters(self) -> None:
        """Draw the factors of all stacks afresh; and what goes alone."""
        TwoLayerCollection.reset_parameters(self)

    def _names_by_table(self) -> dict[str, list[tuple[str, str]]]:
        return _names_by_table(self._configs())

    def _keep_configs(self, plain: Any) -> None:
        plain._embedding_bag_configs = self._configs()


class TwoLayerEmbeddingCollection(EmbeddingCollection, TwoLayerCollection):  # type: ignore[misc]
    """TorchRec's ``EmbeddingCollection`` with two-layer tables: a KeyedJaggedTensor in, the same
    JaggedTensors out. Made by `mlet.convert`.
    """

    holder, layer, plain = "embeddings", nn.Embedding, EmbeddingCollection
    pools = False

    def forward(self, features: Any) -> dict[str, JaggedTensor]:
        """The vectors of each feature's values, end to end, by feature.

        Raises:
            IndexError: an id outside its table.
            KeyError: a feature is not there.
        """
        features = maybe_td_to_kjt(features, None)
        jagged, names = features.to_dict(), self._names
        batch = self._batch(features, weighted=False)
        found: dict[str, Any] = {}
        for stack in self.tables.stacks():
            asked = [feature for table in stack.sizes for feature, _ in names[table]]
            vectors = self._asked(stack, features).each(batch).float()
            lengths = [len(jagged[feature].values()) for feature in asked]
            parts = iter(vectors.split(lengths))
            found.update({table: [next(parts) for _ in names[table]] for table in stack.sizes})
        out = {}
        for table, of_table in names.items():
            for place, (feature, name) in enumerate(of_table):
                mine = jagged[feature]
                if table in found:
                    vectors = found[table][place]
                else:
                    vectors = self.tables.get_submodule(table)(mine.values()).float()
                ids = mine.values() if EmbeddingCollection.need_indices(self) else None
                out[name] = JaggedTensor(values=vectors, lengths=mine.lengths(), weights=ids)
        return out

    def embedding_configs(self) -> list[Any]:
        """TorchRec's, of as many categories as there are now."""
        return self._configs()

    def _configs(self) -> list[Any]:
        return self._grown(EmbeddingCollection.embedding_configs(self))

    def reset_parameters(self) -> None:
        """Draw the factors of all stacks afresh; and what goes alone."""
        TwoLayerCollection.reset_parameters(self)

    def _names_by_table(self) -> dict[str, list[tuple[str, str]]]:
        return _names_by_table(self._configs())

    def _keep_configs(self, plain: Any) -> None:
        plain._embedding_configs = self._configs()


#: What takes the place of TorchRec's own.
KINDS: dict[type[nn.Module], type[TwoLayerCollection]] = {
    EmbeddingBagCollection: TwoLayerEmbeddingBagCollection,
    EmbeddingCollection: TwoLayerEmbeddingCollection,
}


def _names_by_table(configs: Sequence[Any]) -> dict[str, list[tuple[str, str]]]:
    names = get_embedding_names_by_table(list(configs))
    return {
        config.name: list(zip(config.feature_names, own, strict=True))
        for config, own in zip(configs, names, strict=True)
    }
