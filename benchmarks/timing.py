"""Contenders that take turns in one process: a slow moment of the machine hits all alike."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Input = TypeVar("Input")

#: Turns before the clock counts: compilation, first allocations, caches.
_WARM_UP = 3


def interleave(
    contenders: Mapping[str, Callable[[Input], object]], inputs: Iterable[Input]
) -> dict[str, float]:
    """The median of `interleaved_times` for each contender."""
    times = interleaved_times(contenders, inputs)
    return {name: statistics.median(values) for name, values in times.items()}


def interleaved_times(
    contenders: Mapping[str, Callable[[Input], object]], inputs: Iterable[Input]
) -> dict[str, list[float]]:
    """Milliseconds of each contender's steps, the first three inputs left out.

    Every input goes to all contenders, in another order every turn: whoever goes after a heavy one
    finds its caches cold, so that nobody may always go after the same one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn, value in enumerate(inputs):
        order = random.Random(turn).sample(names, len(names))
        for name in order:
            began = time.perf_counter()
            contenders[name](value)
            if turn >= _WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def environment(*packages: str) -> dict[str, Any]:
    """What the figures depend on: processor, GPU, threads, versions."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "numba", *packages)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_json(path: Path | None, content: object) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
