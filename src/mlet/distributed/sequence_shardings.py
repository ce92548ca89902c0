"""TorchRec's shardings of tables whose vectors are not pooled, k wide inside and d wide outside."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingSharding
from torchrec.distributed.sharding.tw_sequence_sharding import TwSequenceEmbeddingSharding
from torchrec.distributed.types import ShardingType

from mlet.distributed.projected_lookup import ProjectedSequenceLookup
from mlet.distributed.projections import Projections


class _Narrow:
    """What both have in common.

    Args:
        projections: of the collection.
        sharding_infos, others: TorchRec's.
    """

    def __init__(self, projections: Projections, sharding_infos: Any, **others: Any) -> None:
        self._projections = projections
        self._all_tables = [info.embedding_config.name for info in sharding_infos]
        for info in sharding_infos:
            # FBGEMM looks up rows of one width together; tables are in groups of equal parameters.
            info.fused_params["_batch_key"] = info.embedding_config.embedding_dim
        super().__init__(sharding_infos, **others)  # type: ignore[call-arg]

    def create_lookup(
        self,
        device: torch.device | None = None,
        fused_params: dict[str, Any] | None = None,
        feature_processor: Any = None,
    ) -> ProjectedSequenceLookup:
        """TorchRec's with projections."""
        own = vars(self)
        return ProjectedSequenceLookup(
            self._projections,
            self._all_tables,
            grouped_configs=own["_grouped_embedding_configs"],
            pg=own["_pg"],
            device=device if device is not None else own["_device"],
            env=own["_env"],
        )


class TableWiseSequences(_Narrow, TwSequenceEmbeddingSharding):  # type: ignore[misc]
    """Whole tables; an all-to-all of vectors, d wide."""


class RowWiseSequences(_Narrow, RwSequenceEmbeddingSharding):  # type: ignore[misc]
    """Rows of every table on every process; an all-to-all of vectors, d wide."""


#: By TorchRec's name.
SEQUENCE_SHARDINGS: dict[str, type[Any]] = {
    ShardingType.TABLE_WISE.value: TableWiseSequences,
    ShardingType.ROW_WISE.value: RowWiseSequences,
}
