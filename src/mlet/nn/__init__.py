"""Two-layer embeddings in torch.nn's vocabulary."""

from mlet.nn.embedding import Embedding
from mlet.nn.embedding_bag import EmbeddingBag
from mlet.nn.field_embedding import FieldEmbedding
from mlet.nn.fields import Bags, Field

__all__ = ["Bags", "Embedding", "EmbeddingBag", "Field", "FieldEmbedding"]
