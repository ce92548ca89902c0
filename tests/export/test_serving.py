"""A model as plain tensors in, predictions out; and as a program that runs without mlet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zoo import CONFIGS

from mlet.data import BatchLoader, PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError, ConversionError
from mlet.export import ServingModule, load_collapsed, save_collapsed, serving_module, to_torch
from mlet.models import CTRModel, build_model
from mlet.nn import Bags
from mlet.nn.compression import PRECISIONS
from mlet.training.predict import predict

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]

#: Scores with a program, in a process in which mlet cannot be imported.
ELSEWHERE = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "mlet":
            raise ModuleNotFoundError("no mlet here")
sys.meta_path.insert(0, Refuse())
import torch
inputs, program = torch.load(sys.argv[2]), torch.export.load(sys.argv[1]).module()
torch.save([program(*given) for given in inputs], sys.argv[3])
assert not any(name.split(".")[0] == "mlet" for name in sys.modules)
try:
    import mlet
except ModuleNotFoundError:
    print("without mlet")
"""


@pytest.fixture(scope="module")
def schema(small_data: Path) -> DatasetSchema:
    """The synthetic fields, the last of them multi-valued."""
    schema = PreparedDataset(small_data).schema
    *others, last = schema.fields
    bag = last.model_copy(update={"multi_valued": True})
    return schema.model_copy(update={"fields": [*others, bag]})


def trained(name: str, schema: DatasetSchema) -> CTRModel:
    torch.manual_seed(0)
    return build_model(CONFIGS[name], schema)


def elsewhere(program: Path, inputs: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """The scores of a program, loaded where there is no mlet."""
    given, found = program.with_suffix(".in"), program.with_suffix(".out")
    torch.save(inputs, given)
    command = [sys.executable, "-I", "-c", ELSEWHERE, program, given, found]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "without mlet", done.stderr
    return torch.load(found)


def test_it_scores_as_the_model(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    model = trained("deepfm", data.schema)
    module = serving_module(model, data.schema)
    assert module.inputs == ("dense", "ids")
    assert module.output == "probability"
    batch = next(BatchLoader(data.split("valid"), 100).epoch())
    found = module(batch.dense, batch.ids)
    assert not found.requires_grad
    expected = torch.from_numpy(predict(model, data.split("valid"), max_rows=100)).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert model.embedding.stacks()[0].inner_dim == 9, "the model stays as it is"
    with pytest.raises(ValueError, match="expected dense, ids, got 1 tensors"):
        module(batch.ids)
    with pytest.raises(IndexError, match=r"field 'C1': id 1[0-9]+ is outside its table"):
        module(batch.dense, batch.ids + 1000)


def test_bags_are_given_by_values_and_lengths(schema: DatasetSchema) -> None:
    model = trained("fm", schema)
    module = serving_module(model, schema)
    assert module.inputs == ("dense", "ids", "C3.values", "C3.lengths")
    ids, values = torch.tensor([[3, 1], [0, 4], [2, 2]]), torch.tensor([5, 1, 6])
    dense = torch.rand(3, 2)
    found = module(dense, ids, values, torch.tensor([2, 0, 1]))
    vectors = model.embedding(ids, {"C3": Bags(values, torch.tensor([0, 2, 2, 3]))})
    served = module.model.embedding(ids, {"C3": Bags(values, torch.tensor([0, 2, 2, 3]))})
    torch.testing.assert_close(served, vectors)
    alone = [
        module(dense[i : i + 1], ids[i : i + 1], bag, torch.tensor([len(bag)]))
        for i, bag in enumerate((values[:2], values[:0], values[2:]))
    ]
    torch.testing.assert_close(torch.cat(alone), found)
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 3"):
        module(dense, ids, values, torch.tensor([2, 0, 2]))


@pytest.mark.parametrize("name", ["dlrm", "fm", "finalmlp"])
@pytest.mark.parametrize("lacking", ["dense features", "one-valued fields"])
def test_inputs_that_a_data_set_lacks_are_no_inputs(
    name: str, lacking: str, schema: DatasetSchema
) -> None:
    bag = schema.fields[2]
    two_bags = [bag, bag.model_copy(update={"name": "x.y z"})]
    lacks = {"dense": []} if lacking == "dense features" else {"fields": two_bags}
    schema = schema.model_copy(update=lacks)
    module = serving_module(trained(name, schema), schema)
    bags = [
        f"{field.name}.{part}" for field in schema.multi_valued for part in ("values", "lengths")
    ]
    left = "ids" if lacking == "dense features" else "dense"
    assert module.inputs == (left, *bags)
    program = torch.export.export(module, module.random_inputs(3))
    torch.testing.assert_close(
        program.module()(*module.random_inputs(3)), module(*module.random_inputs(3))
    )


def test_it_compiles_and_is_traced(schema: DatasetSchema) -> None:
    module = serving_module(trained("deepfm", schema), schema, "int8")
    traced = torch.jit.trace(module, module.random_inputs(3), check_trace=False)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for rows in (1, 5, 40):
        given = module.random_inputs(rows, seed=rows)
        torch.testing.assert_close(traced(*given), module(*given))
        torch.testing.assert_close(compiled(*given), module(*given))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_programs_of_all_models(name: str, schema: DatasetSchema, tmp_path: Path) -> None:
    module = serving_module(trained(name, schema), schema)
    done = to_torch(trained(name, schema), schema, tmp_path / "model.pt2")
    assert done.largest_difference <= 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (1, 2, 33):
        given = module.random_inputs(rows, seed=rows)
        torch.testing.assert_close(program(*given), module(*given), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_program_runs_without_mlet(schema: DatasetSchema, tmp_path: Path) -> None:
    for precision in PRECISIONS:
        model = trained("dlrm", schema)
        path = tmp_path / f"{precision}.pt2"
        done = to_torch(model, schema, path, tables=precision)
        assert done.inputs == ("dense", "ids", "C3.values", "C3.lengths")
        assert done.bytes == path.stat().st_size
        module = serving_module(model, schema, precision)
        inputs = [module.random_inputs(rows, seed=rows) for rows in (1, 2, 33)]
        for given, found in zip(inputs, elsewhere(path, inputs), strict=True):
            torch.testing.assert_close(found, module(*given), rtol=0, atol=1e-5)
    told: dict[str, str] = {"mlet": ""}
    torch.export.load(path, extra_files=told)
    assert json.loads(told["mlet"])["ids"] == ["C1", "C2"]
    assert json.loads(told["mlet"])["tables"] == PRECISIONS[-1]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), (
        "nor knows where it was"
    )


def test_precisions_are_kept_and_refused(schema: DatasetSchema, tmp_path: Path) -> None:
    model, path = trained("fm", schema), tmp_path / "int8.safetensors"
    save_collapsed(model, CONFIGS["fm"], schema, path, "int8")
    coded, _, _ = load_collapsed(path)
    kept = serving_module(coded, schema)
    assert kept.model.embedding.precision == "int8"
    given = kept.random_inputs(9)
    assert serving_module(model, schema, "int8")(*given).equal(kept(*given))
    with pytest.raises(ConversionError, match="the tables are int8 already"):
        serving_module(coded, schema, "int4")
    with pytest.raises(ConfigError, match="no precision 'int2' of tables; there are float32,"):
        serving_module(model, schema, "int2")  # type: ignore[arg-type]


def test_a_program_that_scores_otherwise_is_not_written(
    schema: DatasetSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ServingModule.forward

    def lies(self: ServingModule, *given: torch.Tensor) -> torch.Tensor:
        return forward(self, *given) * (1.01 if torch.compiler.is_compiling() else 1.0)

    monkeypatch.setattr(ServingModule, "forward", lies)
    with pytest.raises(ConversionError, match="scores differ from the model's by"):
        to_torch(trained("fm", schema), schema, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
