"""Tables sharded over processes train to the numbers of one process that has them whole."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from test_several_processes import in_parts, numbers
from test_tables_in_files import Interrupted
from torch import distributed, multiprocessing

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.errors import ConfigError
from mlet.models import build_model
from mlet.nn import Field, FieldEmbedding
from mlet.nn.init import InitName
from mlet.nn.stacked_tables import StackedTables
from mlet.table_shards import Shards, sharded
from mlet.training import RunConfig, RunDirectory, resume, run_tables, train
from mlet.training.loop import _Trainer
from mlet.training.optimizers import Optimizers
from mlet.training.processes import Processes
from mlet.training.run_tables import build_tables, tables_of_run

ROWS = 1_500
#: Bytes of tables: with k = 8 those of items and users are sharded, the others whole.
ABOVE = 4_000


#: k of the table of many categories.
WIDTH = 768


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows with many categories."""
    folder, draw = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    bags = [*draw.permutation(24_000).reshape(2_000, -1), *draw.integers(0, 24_000, (200, 12))]
    rows = pl.DataFrame(
        {
            "click": draw.integers(0, 2, len(bags)),
            "user": [f"u{u}" for u in draw.integers(0, 20, len(bags))],
            "tags": ["|".join(map(str, bag)) for bag in bags],
            "price": draw.random(len(bags)),
        }
    )
    rows.write_csv(folder / "rows.csv")
    schema = {
        "label": "click", "dense": ["price"], "categorical": ["user"],
        "multi_valued": {"tags": "|"},
    }  # fmt: skip
    source = TableSource([folder / "rows.csv"], TableSchema.parse(schema, "schema"))
    prepare(source, folder / "data", split=SplitRule(by="order", valid=0.05, test=0.04))
    return folder / "data"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users and items, those that were shown before among them, and a field that is small."""
    folder, draw = tmp_path_factory.mktemp("logs"), np.random.default_rng(0)
    item = draw.zipf(1.3, ROWS).clip(max=400)
    history = [draw.zipf(1.3, draw.integers(5)).clip(max=500).tolist() for _ in range(ROWS)]
    tags = [draw.integers(0, 30, draw.integers(1, 4)).tolist() for _ in range(ROWS)]
    rows = pl.DataFrame(
        {
            "click": (draw.random(ROWS) < 0.2 + 0.5 * (item % 2)).astype(int),
            "user": [f"u{user}" for user in draw.zipf(1.2, ROWS).clip(max=300)],
            "item": [f"i{one}" for one in item],
            "device": [f"d{one}" for one in draw.integers(0, 4, ROWS)],
            "history": ["|".join(f"i{one}" for one in items) for items in history],
            "tags": ["|".join(map(str, some)) for some in tags],
            "price": draw.random(ROWS),
        }
    )
    rows.write_csv(folder / "rows.csv")
    schema = {
        "label": "click", "dense": ["price"], "categorical": ["user", "item", "device"],
        "multi_valued": {"history": "|", "tags": "|"}, "shares": {"history": "item"},
    }  # fmt: skip
    source = TableSource([folder / "rows.csv"], TableSchema.parse(schema, "schema"))
    prepare(source, folder / "data", split=SplitRule(by="order", valid=0.1, test=0.05))
    return folder / "data"


def settings(data: Path, name: str, **training: object) -> dict[str, Any]:
    """Of a run by the name of what it is about."""
    models: dict[str, dict[str, Any]] = {
        "sgd": {"name": "fm", "dim": 8},
        "adagrad": {"name": "fm", "inner_dim": 8, "table_bias": True},
        "rowwise": {"name": "deepfm", "inner_dim": 8, "two_layer_first_order": True, "mlp": [4]},
        "adam": {"name": "fm", "inner_dim": 8, "min_count": 2, "rare_rows": 3, "pooling": "sum"},
        "start": {"name": "fm", "inner_dim": 8, "init": "co_occurrence"},
    }
    optimizers: dict[str, dict[str, Any]] = {
        "sgd": {"name": "sgd", "weight_decay": 1e-3},
        "adagrad": {"damping": 0.5, "matched_steps": True, "weight_decay": 1e-3},
        "rowwise": {"name": "rowwise_adagrad", "damping": 0.1},
        "adam": {"name": "adam"},
        "start": {"damping": 0.5},
    }
    return {
        "data": str(data),
        "model": {"dim": 4, **models[name]},
        "optimizer": {"tables": optimizers[name]},
        "training": {
            # The last batch is one row, which one process has.
            "batch_size": 53, "epochs": 1, "validate_every": 16, "threads": 1, "keep_state": True,
            "shard_tables_above": ABOVE, **training,
        },
    }  # fmt: skip


NAMES = ("sgd", "adagrad", "rowwise", "adam", "start")


def together(size: int, work: Callable[..., None], *given: Any) -> None:
    """Do some work in processes that are one group."""
    multiprocessing.start_processes(
        _join, (size, work, given), nprocs=size, start_method="forkserver"
    )


def _join(rank: int, size: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meeting = Path(given[0]) / f"meeting-{size}-{work.__name__}"
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    work(*given)
    distributed.destroy_process_group()


def are_alike(one: Path, other: Path, tolerance: float) -> None:
    """Metrics, the model that is served, and all that training would go on from."""
    for mine, theirs in zip(numbers(one), numbers(other), strict=True):
        assert mine == pytest.approx(theirs, rel=max(50 * tolerance, 1e-8))
    models = [load_file(run / "model.safetensors") for run in (one, other)]
    states = [RunDirectory(run).load_last() for run in (one, other)]
    torch.testing.assert_close(models[0], models[1], rtol=tolerance, atol=tolerance)
    for part in ("model", "optimizers", "random"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=tolerance, atol=tolerance)
    summaries = [RunDirectory(run).summary() for run in (one, other)]
    assert summaries[0].training_bytes == summaries[1].training_bytes
    assert summaries[0].model_bytes == summaries[1].model_bytes


def _train(folder: str, data: str, names: tuple[str, ...], suffix: str) -> None:
    for name in names:
        config = RunConfig.parse(settings(Path(data), name), name)
        train(config, Path(folder, f"{name}-{suffix}"))


def test_four_processes_train_to_the_numbers_of_one(logs: Path, many: Path, tmp_path: Path) -> None:
    """And have at no time had a whole table in their memory."""
    together(4, _train_within_limits, str(tmp_path), str(logs), str(many))
    _train(str(tmp_path), str(logs), NAMES, "one")
    for name in NAMES:
        are_alike(tmp_path / f"{name}-four", tmp_path / f"{name}-one", 1e-5)
    one = tmp_path / "many-one"
    train(of_many(many, None), one)
    resume(one, epochs=2)
    are_alike(tmp_path / "many-four", one, 1e-4)


def _train_within_limits(folder: str, data: str, many: str) -> None:
    _train(folder, data, NAMES, "four")
    warm = of_many(Path(many), 0).model_dump(mode="json")
    warm["model"].update(dim=2, inner_dim=4)
    train(RunConfig.parse(warm, "warm"), Path(folder, "warm"))
    table = PreparedDataset(Path(many)).schema.num_categories * WIDTH * 4
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    gc.collect()
    resource.setrlimit(resource.RLIMIT_DATA, (private_memory() + table * 9 // 10, hard))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        build_model(of_many(Path(many), None).model, PreparedDataset(Path(many)).schema)
    run = Path(folder, "many-four")
    train(of_many(Path(many), 1 << 20), run)
    gc.collect()
    resume(run, epochs=2)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def private_memory() -> int:
    """What RLIMIT_DATA counts: memory that is this process' alone, and may be written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def of_many(data: Path, above: int | None) -> RunConfig:
    """A run with a table of more than a process is allowed."""
    values = settings(
        data, "rowwise", batch_size=256, validate_every=1_000, shard_tables_above=above
    )
    values["model"] = {"name": "fm", "dim": 8, "inner_dim": WIDTH}
    return RunConfig.parse(values, "many")


#: Of settings, where several are tried in one launch.
VARIANTS: dict[str, dict[str, Any]] = {
    "file": {"training.tables_in": "file", "model.init": "variance_matched"},
    "begun": {"start": "adagrad-one"},
    "begun-ordinary": {"start": "adagrad-one", "model.inner_dim": None},
    "halves": {"model.inner_dim": None},
    "frozen": {"model.train_projection": False},
    "half": {"model.table_dtype": "bfloat16", "model.inner_dim": None},
}


def variant(folder: Path, data: Path, changed: dict[str, Any]) -> RunConfig:
    values = settings(data, "adagrad")
    for setting, value in changed.items():
        part, _, name = setting.rpartition(".")
        (values[part] if part else values)[name] = value if part else str(folder / value)
    return RunConfig.parse(values, "variant")


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Bytes that this process gives to others in exchanges, and to sums over all."""
    found, rank = {"exchanged": 0, "summed": 0}, distributed.get_rank()
    exchange, total = distributed.all_to_all_single, distributed.all_reduce

    def all_to_all(got, sent, theirs, mine):  # type: ignore[no-untyped-def]
        if sent.dtype != torch.float64:  # which scores are
            found["exchanged"] += (len(sent) - mine[rank]) * sent.element_size()
        return exchange(got, sent, theirs, mine)

    def all_reduce(values):  # type: ignore[no-untyped-def]
        found["summed"] += values.numel() * values.element_size()
        return total(values)

    distributed.all_to_all_single, distributed.all_reduce = all_to_all, all_reduce
    try:
        yield found
    finally:
        distributed.all_to_all_single, distributed.all_reduce = exchange, total


def _go_on(folder: str, data: str) -> None:
    root = Path(folder)
    for name in ("adagrad", "rowwise"):
        resume(root / f"{name}-two", epochs=2)
    for name, changed in VARIANTS.items():
        train(variant(root, Path(data), changed), root / f"{name}-two")
    sent = {}
    for k in (8, 64):
        changed = {"model.inner_dim": k, "training.shard_tables_above": 0}
        with counted() as sent[k]:
            train(variant(root, Path(data), changed), root / f"k{k}")
    Path(folder, f"sent-{distributed.get_rank()}.json").write_text(json.dumps(sent))


def test_a_run_goes_on_with_any_number_of_processes(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And begins with another's weights, and has its shards in files; what is sent is d wide."""
    names = ("adagrad", "rowwise")
    _train(str(tmp_path), str(logs), names[:1], "one")
    config = RunConfig.parse(settings(logs, "rowwise"), "rowwise")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "rowwise-one", Interrupted())
    for name in names:
        shutil.copytree(tmp_path / f"{name}-one", tmp_path / f"{name}-two")
    settled = tmp_path / "rowwise-two" / "config.yaml"  # to go on with all of them sharded
    text = settled.read_text()
    assert f"shard_tables_above: {ABOVE}" in text
    settled.write_text(text.replace(f"above: {ABOVE}", "above: 0"))
    together(2, _go_on, str(tmp_path), str(logs))
    for name, changed in VARIANTS.items():
        if name == "halves":
            monkeypatch.setattr(_Trainer, "_step", in_parts(2))
        train(variant(tmp_path, logs, changed), tmp_path / f"{name}-one")
        monkeypatch.undo()
        tolerance = {"half": 0.02}.get(name, 1e-5)
        are_alike(tmp_path / f"{name}-two", tmp_path / f"{name}-one", tolerance)
    halves = [load_file(tmp_path / f"halves-{n}" / "model.safetensors") for n in ("one", "two")]
    for name in ("user", "item", "device", "tags"):
        # To the bit, as a sum of two has no order; row 0 is a mean, of which each has a part.
        one, two = (tensors[f"embedding.{name}"][1:] for tensors in halves)
        assert torch.equal(one, two)
    for name in names:
        resume(tmp_path / f"{name}-one", epochs=2)
        are_alike(tmp_path / f"{name}-two", tmp_path / f"{name}-one", 1e-4)
    for rank in range(2):
        narrow, wide = json.loads((tmp_path / f"sent-{rank}.json").read_text()).values()
        assert narrow["exchanged"] == wide["exchanged"] > 0
        assert wide["summed"] > narrow["summed"], "projections are"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model.compression": {"name": "hashing"}, "model.inner_dim": None}, "model.compression"),
        ({"grow": "old"}, "grow"),
        ({"training.record_spectra": True}, "training.record_spectra"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(
    logs: Path, tmp_path: Path, changed: dict[str, Any], what: str
) -> None:
    changed = {"model.name": "deepfm", "model.table_bias": False, **changed}
    grow = {"run": changed.pop("grow")} if "grow" in changed else None
    values = variant(tmp_path, logs, {**changed, "training.shard_tables_above": 0})
    config = RunConfig.parse({**values.model_dump(mode="json"), "grow": grow}, "refused")
    processes = Processes()
    processes.size = 2
    model = build_tables(config, PreparedDataset(logs).schema, processes)
    optimizers = Optimizers(config.optimizer, model, 2)
    with pytest.raises(ConfigError, match=f"^{what} is not for sharded .*keep tables whole: train"):
        tables_of_run(config, RunDirectory(tmp_path), model, optimizers, processes)


def test_tables_stay_whole_unasked_where_they_must(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tables, "_LARGE", 0)  # as if all tables were large
    processes = Processes()
    processes.size = 2
    schema = PreparedDataset(logs).schema

    def shards(**changed: Any) -> set[str]:
        values = variant(tmp_path, logs, {"training.shard_tables_above": "auto", **changed})
        model = build_tables(values, schema, processes)
        parts = [part for part in model.modules() if isinstance(part, StackedTables)]
        return {name for part in parts for name in part.sharded}

    assert shards()
    assert not shards(**{"training.record_spectra": True})


@pytest.mark.parametrize(
    ("k", "dtype", "init"), [(None, None, "paper"), (64, torch.bfloat16, "variance_matched")]
)
def test_shards_begin_as_the_rows_of_whole_tables(
    k: int | None, dtype: torch.dtype | None, init: InitName
) -> None:
    """Of a table that is drawn in several blocks, and of one too small to be sharded."""
    fields = [Field("many", 40_001, 32, k), Field("few", 7, 32, k), Field("one", 3, 2)]

    def made(shards: Shards | None) -> FieldEmbedding:
        torch.manual_seed(1)
        with sharded(shards):
            return FieldEmbedding(fields, init=init, table_dtype=dtype, init_scale=2.0)

    whole = made(None)
    for rank in range(3):
        shard = made(Shards(rank, 3, above=1_000_000))
        rows = len(range(rank, 40_001, 3))
        assert [len(stack.stacked) for stack in shard.stacks()] == [rows + 7, 3]
        for field in fields:
            for part, given in whole.parts(field.name).items():
                mine = field.name == "many" and part != "projection"
                expected = given[rank::3] if mine else given
                assert torch.equal(shard.parts(field.name)[part], expected)
        with pytest.raises(ConfigError, match="fields many, few: the model looks up other ids"):
            shard(torch.zeros(1, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="field 'many': other rows of its table are in other"):
            shard.collapse()
