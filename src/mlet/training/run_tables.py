"""The tables of a run in the course of its training: whole in every process, or sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mlet.data import Batch, DatasetSchema
from mlet.data.dataset import SplitColumns
from mlet.errors import ConfigError
from mlet.models import CTRModel, build_model
from mlet.nn.stacked_tables import StackedTables
from mlet.table_files import TableFiles, tables_in
from mlet.table_shards import Shards, sharded
from mlet.training.config import RunConfig
from mlet.training.optimizers import Optimizers
from mlet.training.predict import predict
from mlet.training.processes import Processes
from mlet.training.run import RunDirectory
from mlet.training.sharded_rows import ShardedRows
from mlet.training.whole_state import WholeState

#: Bytes above which a table is sharded, unless it is said otherwise.
_LARGE = 64 << 20


def _needs_whole(config: RunConfig) -> list[str]:
    """The settings, of those that were made, that do not go with sharded tables."""
    given = {
        "model.compression": config.model.compression is not None,
        "grow": config.grow is not None,
        "training.record_spectra": config.training.record_spectra,
    }
    return [name for name, is_given in given.items() if is_given]


def build_tables(config: RunConfig, schema: DatasetSchema, processes: Processes) -> CTRModel:
    """The model of a run, with this process' rows alone of tables that are sharded.

    Raises:
        ConfigError: it cannot be built, or settings do not go with sharded tables.
    """
    above = config.training.shard_tables_above
    if above == "auto":
        above = None if _needs_whole(config) else _LARGE
    shards = None
    if above is not None and processes.size > 1:
        shards = Shards(processes.rank, processes.size, above)
    with sharded(shards):
        return build_model(config.model, schema)


class RunTables:
    """Whole tables: every process has all of them.

    Args:
        config: of the run.
        run: its directory.
        model, optimizers: what is trained; its tables on which device is the optimizers' affair.
        processes: that train it.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        model: CTRModel,
        optimizers: Optimizers,
        processes: Processes,
    ) -> None:
        self._config, self._run, self._processes = config, run, processes
        self._model, self._optimizers = model, optimizers
        #: Whether checkpoints are left in their files when they are read.
        self.mapped = config.training.tables_in == "file"

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Within the context, they are filled with what training begins with."""
        yield

    def fetch(self, batch: Batch | None) -> None:
        """What the model needs for a batch; for None, what other processes need."""

    def add_gradients(self) -> None:
        """Let every gradient be the sum of all processes'."""
        self._processes.add_gradients(self._model)

    def predict(self, columns: SplitColumns, most_rows: int) -> npt.NDArray[np.float64]:
        """Predictions for this process' rows of a split, of which another has ``most_rows``."""
        return predict(self._model, columns, device=self._config.training.device)

    def weights(self) -> dict[str, Any]:
        """The model's ``state_dict``, to be kept by the first process."""
        return self._model.state_dict()

    def states(self) -> dict[str, Any]:
        """That of its optimizers."""
        return self._optimizers.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError: it does not
                fit.
        """
        self._model.load_state_dict(state["model"])
        self._optimizers.load_state_dict(state["optimizers"])

    def best(self, schema: DatasetSchema) -> CTRModel:
        """The model with the best weights, whole, in the first process."""
        self._model.load_state_dict(self._run.load_best(mapped=self.mapped)["model"])
        return self._model


class ShardedTables(RunTables):
    """Tables some of which are sharded (`mlet.table_shards`)."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        model: CTRModel,
        optimizers: Optimizers,
        processes: Processes,
    ) -> None:
        super().__init__(config, run, model, optimizers, processes)
        self.mapped = True
        self._rows = ShardedRows(model, processes)
        self._whole = WholeState(model, optimizers, processes, run.root)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """What is made on the way, for whole tables, lies in files."""
        with tables_in(TableFiles(self._run.root)):
            yield

    def fetch(self, batch: Batch | None) -> None:
        """The vectors of all that a batch asks for."""
        self._rows.fetch(batch)

    def add_gradients(self) -> None:
        """Of rows where they are."""
        self._rows.send_gradients()
        self._processes.add_shared(self._model, self._rows.tables)

    def predict(self, columns: SplitColumns, most_rows: int) -> npt.NDArray[np.float64]:
        """All processes predict together."""
        return predict(self._model, columns, fetch=self.fetch, most_rows=most_rows)

    def weights(self) -> dict[str, Any]:
        """Whole in the first process, in a file."""
        return self._whole.model()

    def states(self) -> dict[str, Any]:
        """Whole in the first process, in files."""
        return self._whole.optimizers()

    def load(self, state: dict[str, Any]) -> None:
        """This process' rows of it."""
        super().load(self._whole.own(state))

    def best(self, schema: DatasetSchema) -> CTRModel:
        """Another model, whose whole tables lie in files."""
        with tables_in(TableFiles(self._run.root)):
            model = build_model(self._config.model, schema)
        model.load_state_dict(self._run.load_best(mapped=True)["model"])
        return model


def tables_of_run(
    config: RunConfig,
    run: RunDirectory,
    model: CTRModel,
    optimizers: Optimizers,
    processes: Processes,
) -> RunTables:
    """Those of a model that `build_tables` made.

    Raises:
        ConfigError: some are sharded, and settings do not go with that.
    """
    parts = [part for part in model.modules() if isinstance(part, StackedTables)]
    names = sorted({name for part in parts for name in part.sharded})
    if not names:
        return RunTables(config, run, model, optimizers, processes)
    for what in _needs_whole(config):
        raise ConfigError(
            f"{what} is not for sharded tables, which {', '.join(names)} would have in "
            f"{processes.size} processes; keep tables whole: training.shard_tables_above=null"
        )
    return ShardedTables(config, run, model, optimizers, processes)
