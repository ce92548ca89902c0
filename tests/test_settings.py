"""Assignments, numbers and names in settings; who may read what is written."""

from __future__ import annotations

import math
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mlet import registry
from mlet.atomic import atomic_directory, write_text
from mlet.errors import ConfigError
from mlet.registry import Registry
from mlet.settings import load_yaml, parse_assignments
from mlet.training import RunConfig


def test_the_last_assignment_counts_and_values_may_hold_equals_signs() -> None:
    assert parse_assignments(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    assert parse_assignments(["a=x=y"]) == {"a": "x=y"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_settings_are_finite(value: float) -> None:
    values = {"data": "d", "optimizer": {"tables": {"learning_rate": value}}}
    with pytest.raises(ConfigError, match=r"optimizer\.tables\.learning_rate"):
        RunConfig.parse(values, "test")


def test_what_is_registered_stays_and_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[object] = Registry("thing", "test.things")
    things.register("own")(dict)
    offered = [EntryPoint("own", "builtins:list", "test.things")]
    offered += [EntryPoint("other", "builtins:set", "test.things")] * 2
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name=None: [p for p in offered if name in (None, p.name)],
    )
    assert list(things) == ["own", "other"]
    assert things["own"] is dict
    assert things["other"] is set


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_what_is_written_is_as_readable_as_other_new_files(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "text")
        with atomic_directory(tmp_path / "folder") as building:
            (building / "inner").write_text("text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == file
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder


def test_a_file_is_on_the_device_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    flush = os.fsync

    def noted(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        steps.append(
            f"{name or 'folder'}, {'named' if (tmp_path / 'file').exists() else 'not yet'}"
        )
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "file", "text")
    assert len(steps) == 2
    assert steps[0].startswith(".file.")
    assert steps[0].endswith("not yet")
    assert steps[1] == f"{tmp_path.name}, named"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice"),
        ("a:\n  x: 1\n  x: 2\n", "line 3: 'x' is given twice"),
        ("a: {x: 1, 'x': 2}\n", "line 1: 'x' is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_yaml(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("base: &base {x: 1}\na: {<<: *base, y: 2}\n")
    assert load_yaml(tmp_path / "s.yaml")["a"] == {"x": 1, "y": 2}
