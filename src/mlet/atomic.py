"""Files and directories that appear whole or not at all.

Everything mlet leaves on disk is written under a temporary name beside its final one, flushed
to the device and renamed. A full disk or a killed process costs the file being written and
nothing that was there before.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlet.errors import RunError, WriteError
from mlet.liveness import is_alive, started


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path, failures: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a failure to write into an error that names the file and the remedy."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *failures)):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        # What a library reports without a number is most often this; Rust's have it in the text.
        told = re.search(r"os error (\d+)", reason)
        number = int(told[1]) if told else getattr(error, "errno", None)
        full = number in (None, errno.ENOSPC, errno.EDQUOT)
        question = "is the disk full? " if full else ""
        raise WriteError(
            f"{path}: cannot be written ({reason}); {question}Earlier files are intact"
        ) from None


def _mark(path: Path) -> str:
    """How the temporary neighbours of a path begin: with the process that they belong to."""
    return f".{path.name}.{os.getpid()}-{started():.0f}@{socket.gethostname()}."


def _remove_stale(path: Path) -> None:
    """Remove what processes of this machine left beside a path when they were killed.

    Killed between putting the old directory aside and the new one in its place, a process leaves
    neither: then the old one is put back.
    """
    pattern = re.compile(
        rf"\.{re.escape(path.name)}\.(\d+)-(\d+)@{re.escape(socket.gethostname())}\..*\.(tmp|old)"
    )
    for neighbour in path.parent.iterdir():
        found = pattern.fullmatch(neighbour.name)
        if found is None or is_alive(int(found[1]), float(found[2])):
            continue
        if found[3] == "old" and not path.exists() and (neighbour / path.name).exists():
            (neighbour / path.name).replace(path)
        if neighbour.is_dir():
            shutil.rmtree(neighbour, ignore_errors=True)
        else:
            neighbour.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, *, failures: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is renamed to ``path``.

    Args:
        path: the file to appear.
        failures: what the writer raises, beside OSError, when it cannot write.

    Raises:
        WriteError: the file cannot be written.
    """
    path = Path(path)
    with _naming(path, failures), _replacement(path) as temporary:
        yield temporary


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    descriptor, name = tempfile.mkstemp(prefix=_mark(path), suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result should be as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory to fill; on success it is renamed to ``path``.

    Raises:
        RunError: ``path`` exists and ``overwrite`` is false, be it that it appeared meanwhile, or
            is not a directory, or something in it cannot be written.
    """
    path = Path(path)
    if path.parent.is_dir():
        _remove_stale(path)
    if path.exists() and (not overwrite or not path.is_dir()):
        remedy = "pass --overwrite or choose another directory" if path.is_dir() else "it is a file"
        raise RunError(f"{path} already exists: {remedy}")
    with _naming(path, ()), _replacement_directory(path, overwrite) as temporary:
        yield temporary


@contextmanager
def _replacement_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_mark(path), suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.exists() and overwrite:
            discarded = Path(tempfile.mkdtemp(prefix=_mark(path), suffix=".old", dir=path.parent))
            path.replace(discarded / path.name)
            temporary.replace(path)
            shutil.rmtree(discarded)
        else:
            try:
                temporary.replace(path)
            except OSError:
                if not path.exists():
                    raise
                raise RunError(
                    f"{path} appeared meanwhile, made by another process; pass --overwrite or "
                    f"choose another directory"
                ) from None
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
