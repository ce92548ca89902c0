"""Named settings to start from."""

from __future__ import annotations

from typing import Any

from mlet.errors import ConfigError

#: The authors' settings, from their public code (benghaem/dlrm_mlet, shell workflows).
_AUTHORS: dict[str, Any] = {
    "model": {"name": "dlrm", "dim": 16, "inner_dim": 64, "top_mlp": [512, 256]},
    "optimizer": {
        "tables": {"name": "sgd", "learning_rate": 0.2},
        "dense": {"name": "sgd", "learning_rate": 0.2},
    },
    "training": {"batch_size": 128, "epochs": 1, "patience": None},
}

PRESETS: dict[str, dict[str, Any]] = {
    # Chosen on debdeps: docs/results.md.
    "recipe": {
        "model": {"inner_dim": 64, "init": "co_occurrence", "table_bias": True},
        "optimizer": {
            "tables": {
                "name": "adagrad",
                "learning_rate": 0.1,
                "projection_lr": 0.3,
                "damping": 1.0,
            },
            "dense": {"name": "adagrad", "learning_rate": 0.03},
        },
    },
    "paper": {
        "model": {"inner_dim": 64, "init": "paper"},
        "optimizer": _AUTHORS["optimizer"],
        "training": _AUTHORS["training"],
    },
    "criteo-kaggle": {
        **_AUTHORS,
        "model": {**_AUTHORS["model"], "bottom_mlp": [512, 256, 64]},
        "training": {**_AUTHORS["training"], "validate_every": 3_000},
    },
    "avazu": {
        **_AUTHORS,
        "model": {**_AUTHORS["model"], "bottom_mlp": [256, 64]},
        "training": {**_AUTHORS["training"], "validate_every": 30_000},
    },
}


def preset(name: str) -> dict[str, Any]:
    """A named set of settings.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
