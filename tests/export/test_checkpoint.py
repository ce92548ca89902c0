"""Checkpoints of any trainer: where their ``state_dict`` is, what becomes of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlet
from mlet.errors import ConversionError, RunError
from mlet.export.checkpoint import collapse_checkpoint


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(mlet.Embedding(50, 2, inner_dim=6), torch.nn.Linear(2, 1))
    return model.state_dict()


@pytest.mark.parametrize("place", ["", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_state_dict_is_found_and_collapsed(tmp_path: Path, place: str, suffix: str) -> None:
    trained = state()
    torch.save({place: trained, "epoch": 3} if place else trained, tmp_path / "last.pt")
    out = tmp_path / f"plain{suffix}"
    done = collapse_checkpoint(tmp_path / "last.pt", out)
    plain = load_file(out) if suffix == ".safetensors" else torch.load(out)
    assert plain.keys() == {"0.weight", "1.weight", "1.bias"}
    product = trained["0.inner"].double() @ trained["0.projection"].double()
    assert torch.equal(plain["0.weight"], product.float())
    # float32: 50 × 6 and 6 × 2, then 50 × 2; three numbers of the linear layer
    assert (done.tables, done.before, done.after) == (1, 4 * (300 + 12 + 3), 4 * (100 + 3))


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    trained = state()
    trained["tied"] = trained["1.weight"]
    trained["turned"] = torch.arange(6.0).view(2, 3).T
    torch.save(trained, tmp_path / "last.pt")
    collapse_checkpoint(tmp_path / "last.pt", tmp_path / "plain.safetensors")
    plain = load_file(tmp_path / "plain.safetensors")
    assert torch.equal(plain["tied"], plain["1.weight"])
    assert torch.equal(plain["turned"], trained["turned"])


def test_what_is_no_converted_model_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ConversionError, match=r"plain\.safetensors"):
        collapse_checkpoint(tmp_path / "plain.safetensors", tmp_path / "out.pt")
    torch.save(state(), tmp_path / "last.pt")
    (tmp_path / "out.pt").write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        collapse_checkpoint(tmp_path / "last.pt", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "mine"


def test_what_safetensors_cannot_keep_is_named(tmp_path: Path) -> None:
    torch.save({**state(), "step": 3, "name": "mine"}, tmp_path / "last.pt")
    done = collapse_checkpoint(tmp_path / "last.pt", tmp_path / "plain.safetensors")
    assert done.left_out == ("step", "name")
    assert load_file(tmp_path / "plain.safetensors").keys() == {"0.weight", "1.weight", "1.bias"}
    assert collapse_checkpoint(tmp_path / "last.pt", tmp_path / "plain.pt").left_out == ()
    assert torch.load(tmp_path / "plain.pt")["step"] == 3
