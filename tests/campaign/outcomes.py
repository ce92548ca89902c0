"""What commands leave, as texts to be compared: numbers and weights, not times and places."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Outcome = Callable[[Path], str]


def bytes_of(*names: str) -> Outcome:
    """Checksums of files, or of all files of folders."""

    def outcome(folder: Path) -> str:
        files = [
            file
            for name in names
            for file in sorted([folder / name, *(folder / name).rglob("*")])
            if file.is_file()
        ]
        return "\n".join(
            f"{file.relative_to(folder)} {zlib.crc32(file.read_bytes())}" for file in files
        )

    return outcome


def numbers_of(name: str) -> Outcome:
    """A JSON file, without what is measured in seconds and where things lie."""

    def outcome(folder: Path) -> str:
        values = json.loads((folder / name).read_text())
        return json.dumps(_timeless(values)).replace(str(folder.resolve()), "")

    return outcome


def both(*outcomes: Outcome) -> Outcome:
    """All of some outcomes."""
    return lambda folder: "\n".join(outcome(folder) for outcome in outcomes)


def study(name: str, numbers: str) -> Outcome:
    """A study's numbers and stored predictions."""

    def outcome(folder: Path) -> str:
        scores = []
        for file in sorted((folder / name / "runs").rglob("test*.npz")):
            with np.load(file) as arrays:
                # Not to which run they belong, whose summary has its seconds.
                content = arrays["probabilities"].tobytes() + arrays["resamples"].tobytes()
            scores.append(f"{file.relative_to(folder)} {zlib.crc32(content)}")
        return "\n".join([numbers_of(f"{name}/{numbers}")(folder), *scores])

    return outcome


def run(name: str) -> Outcome:
    """A run's weights and the records of its validations."""

    def outcome(folder: Path) -> str:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        records = [_timeless(json.loads(line)) for line in lines]
        return f"{bytes_of(f'{name}/model.safetensors')(folder)}\n{json.dumps(records)}"

    return outcome


def _timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            key: _timeless(value)
            for key, value in values.items()
            if "second" not in key and key not in ("data", "jobs", "machine")
        }
    return [_timeless(value) for value in values] if isinstance(values, list) else values
