"""What mlet 0.1 left on disk."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "v0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.yaml"):
        path.write_text(path.read_text().replace("/tmp/old", str(folder)))
    return folder / "v0.1"


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of the folder that make_v0.1.sh made, in ``tmp_path``."""
    for path in unpacked.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path)
    for path in tmp_path.rglob("*.yaml"):
        path.write_text(path.read_text().replace(str(unpacked), str(tmp_path)))
    return tmp_path
