"""A page prints what an arm used, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlet.studies import StudyConfig
from mlet.studies.used_settings import used_settings


def printed(small_data: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "datasets": {"clicks": {"prepared": str(small_data)}},
        "models": ["dlrm"],
        "optimizers": ["adagrad"],
        "dims": [2],
        "inner_dims": [16],
        **changes,
    }
    found: dict[str, Any] = yaml.safe_load(used_settings(StudyConfig.parse(values, "study")))
    return found


def test_what_is_replaced_or_tuned_is_left_out(small_data: Path) -> None:
    tuning = {"trials": 5, "damping": [0.1, 1], "init_scale": [0.1, 1]}
    found = printed(small_data, tuning=tuning)
    assert found["datasets"] == {"clicks": {"prepared": str(small_data)}}
    assert not {"dim", "inner_dim", "init_scale", "budget"} & found["models"]["dlrm"].keys()
    assert "damping" not in found["optimizers"]["adagrad"]["tables"]
    assert found["optimizers"]["adagrad"]["tables"]["matched_steps"] is True
    assert found["tuning"] == {**tuning, "span": 8.0}
    assert "seed" not in found["training"]
    assert found["mlet"] == {"init": "co_occurrence", "table_bias": "auto"}


def test_listed_step_sizes_take_the_place_of_the_optimizers(small_data: Path) -> None:
    optimizer = {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.02}}
    found = printed(
        small_data, tuning={"learning_rates": [0.1, 0.2]}, optimizers={"adagrad": optimizer}
    )
    assert found["tuning"] == {"learning_rates": [0.1, 0.2]}
    assert "learning_rate" not in found["optimizers"]["adagrad"]["tables"]
    assert found["optimizers"]["adagrad"]["dense"]["learning_rate"] == "0.2 × the tables'"


@pytest.mark.parametrize("name", ["projection_lr", "matched_steps"])
def test_without_two_layers_there_is_nothing_of_theirs(small_data: Path, name: str) -> None:
    found = printed(small_data, inner_dims=[], mlet={"init": "paper"})
    assert name not in found["optimizers"]["adagrad"]["tables"]
    assert "mlet" not in found
    assert "init" not in found["models"]["dlrm"]
    product = {"product": {"inner_dim": "dim"}}
    assert name in printed(small_data, peers=product)["optimizers"]["adagrad"]["tables"]
