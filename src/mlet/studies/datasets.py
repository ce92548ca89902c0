"""The data sets of a study: prepared ones, raw files to prepare, or synthetic clicks."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field as Setting
from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from mlet.atomic import write_text
from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.checksums import crc32
from mlet.data.files import find_files
from mlet.data.prepare import Report
from mlet.data.readers import READERS, TableSchema, TableSource
from mlet.data.readers.registry import OF_FILES, open_raw
from mlet.data.source import RawSource, SplitBy
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.errors import ConfigError
from mlet.reading import read_sealed, write_sealed
from mlet.settings import Settings


class DatasetConfig(Settings):
    """One data set; exactly one of ``prepared``, ``synthetic`` and ``format``. Paths are relative
    to where the study is run.

    Attributes:
        prepared: a directory made by ``mlet prepare`` or ``mlet synthesize``.
        synthetic: settings of the click generator; `{}` takes its defaults.
        format: of raw ``files``: criteo, avazu, movielens, libfm, table, or the reader of another
            package (`mlet.data.readers.READERS`).
        files: raw files (movielens: the folder; table: also folders and patterns); ``${NAME}`` is
            that variable of the environment.
        schema_file: of the format ``table``: its YAML schema.
        split, valid, test, seed, min_count: as of ``mlet prepare``.
    """

    prepared: Path | None = None
    synthetic: SyntheticConfig | None = None
    format: str | None = None
    files: list[Path] = Setting(default_factory=list)
    schema_file: Path | None = None
    split: SplitBy | None = None
    valid: float = 0.1
    test: float = 0.1
    seed: int = Setting(0, ge=0)
    min_count: PositiveInt = 1

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.prepared is not None, self.synthetic is not None, self.format is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of 'prepared', 'synthetic' and 'format'")
        if (self.format is not None) != bool(self.files):
            raise ValueError("'format' and 'files' belong together")
        if (self.format == "table") != (self.schema_file is not None):
            raise ValueError("format 'table' and 'schema_file' belong together")
        if self.format not in (None, "table"):
            READERS[self.format or ""]
        return self

    @property
    def raw_files(self) -> list[Path]:
        """Where ``files`` are.

        Raises:
            ConfigError: one names a variable that is not set.
        """
        expanded = [Path(os.path.expandvars(path)) for path in self.files]
        for path in expanded:
            if unset := re.search(r"\$\{(\w+)\}", str(path)):
                raise ConfigError(f"{path}: the environment has no variable {unset[1]}; set it")
        return expanded


def make_ready(config: DatasetConfig, folder: Path, report: Report) -> Path:
    """The prepared data set, made in ``folder`` if it is not there yet.

    Raises:
        ConfigError: ``folder`` holds data made with other settings.
        DataError: a raw file or the prepared data set is damaged or missing.
    """
    if config.prepared is not None:
        PreparedDataset(config.prepared)  # raises if it is none
        return config.prepared.resolve()
    # Beside the data set, not in it: `prepare` makes a directory whole or not at all.
    note = folder.with_suffix(".yaml")
    if folder.exists():
        if not note.exists() or DatasetConfig.load(note) != config:
            raise ConfigError(
                f"{folder}: holds data made with other settings; choose another --out, or remove it"
            )
        _check_sources(config, folder)
        return folder.resolve()
    write_text(note, config.to_yaml())
    known = {str(path): [*_stamp(path), crc32(path)] for path in _sources(config)}
    write_sealed(_sources_note(folder), known)
    rule = SplitRule(by=config.split, valid=config.valid, test=config.test, seed=config.seed)
    prepare(_source(config), folder, split=rule, min_count=config.min_count, report=report)
    return folder.resolve()


def _sources(config: DatasetConfig) -> list[Path]:
    """The raw files, and what describes them; those that are there."""
    files = config.raw_files
    if config.format in OF_FILES:
        files = [file.path for file in find_files(files)]
    named = [*files, *([config.schema_file] if config.schema_file else [])]
    inner = [file for path in named if path.is_dir() for file in sorted(path.iterdir())]
    return [path for path in (*named, *inner) if path.is_file()]


def _sources_note(folder: Path) -> Path:
    return folder.with_suffix(".sources.json")


def _stamp(path: Path) -> list[int]:
    """Size and time of the last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _check_sources(config: DatasetConfig, folder: Path) -> None:
    """Refuse to go on with data whose raw files are others now; they may have been put away.

    Raises:
        ConfigError: one has changed.
    """
    note = _sources_note(folder)
    if not note.exists():  # of mlet 0.1
        return
    known = read_sealed(note, ConfigError, f"remove {folder} and it, to prepare again")
    for path in _sources(config):
        before = known.get(str(path), [])
        # Raw files are large: one that nobody has touched is not read again.
        if before[:2] != _stamp(path) and before[2:] != [crc32(path)]:
            raise ConfigError(
                f"{path}: has changed since {folder} was made from it; choose another --out, or "
                f"put it back"
            )


def _source(config: DatasetConfig) -> RawSource:
    if config.synthetic is not None:
        return SyntheticSource(config.synthetic)
    if config.format == "table":
        assert config.schema_file is not None
        return TableSource(config.raw_files, TableSchema.load(config.schema_file))
    assert config.format is not None
    return open_raw(config.format, config.raw_files)
