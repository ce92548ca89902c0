"""Opening files that anybody may have changed: whatever is wrong with one is one line of error.

Parsers of file formats fail in as many ways as there are damaged files, most of which their
documentation does not list. Everything that mlet opens is opened within `reading`, so that no
command has a way of its own to fail.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mlet.atomic import write_text
from mlet.errors import MletError

#: The key under which a sealed file keeps the checksum of the rest.
_SEAL = "seal"


@contextmanager
def reading(
    path: Path,
    error: type[MletError],
    remedy: str,
    *,
    missing: str = "",
    shown: Path | None = None,
) -> Iterator[None]:
    """Turn all that goes wrong while a file is read into an error that names it.

    Args:
        path: the file.
        error: what to raise.
        remedy: what the user can do about a damaged file.
        missing: what to say of one that is not there; else that it is missing, and the remedy.
        shown: what to call it, where the file itself is a copy.

    Raises:
        MletError: of the kind ``error``, for a file that is missing, no regular file, not to be
            read or damaged. Those of the work within pass as they are.
    """
    path = Path(path)  # callers of public functions may well give a string
    name = path if shown is None else shown
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no regular file"
            raise error(f"{name}: is {kind}; {remedy}")
        yield
    except MletError:
        raise
    except FileNotFoundError:
        raise error(f"{name}: {missing or f'missing; {remedy}'}") from None
    except MemoryError:
        raise error(f"{name}: damaged, or larger than memory; {remedy}") from None
    except OSError as problem:
        reason = problem.strerror or first_line(problem)
        raise error(f"{name}: cannot be read ({reason}); {remedy}") from None
    except Exception as problem:
        raise error(f"{name}: damaged ({first_line(problem)}); {remedy}") from None
    except BaseException as problem:
        # What Polars raises where its own code fails on a file; it is no Exception.
        if type(problem).__name__ != "PanicException":
            raise
        raise error(f"{name}: damaged; {remedy}") from None


def load_torch(path: Path, *, mapped: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors and plain values, never code. To be called in `reading`.

    torch itself does not compare the checksums that its files carry.

    Args:
        path: the file.
        mapped: leave tensors in the file, from where they come into memory as they are read. They
            must not be written to.
    """
    import torch  # takes a second, and most files are not its own

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is another")
    mapped = mapped and zipfile.is_zipfile(path)
    try:
        with _sharing(path) if mapped else nullcontext():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        # torch advises to run the code that is in the file.
        raise ValueError(
            "no file of torch's, or one with more than tensors and plain values"
        ) from None


@contextmanager
def _sharing(path: Path) -> Iterator[None]:
    """Let torch map a file as what it is, not as a copy to be written to: of that the system would
    have to have room for all. It does so with files only that may be written to."""
    from torch import serialization

    if not hasattr(serialization, "set_default_mmap_options") or not os.access(path, os.W_OK):
        yield
        return
    before = serialization.get_default_mmap_options()
    assert before is not None
    serialization.set_default_mmap_options(mmap.MAP_SHARED)
    try:
        yield
    finally:
        serialization.set_default_mmap_options(before)


def first_line(problem: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    lines = str(problem).strip().splitlines()
    return lines[0][:200] if lines else type(problem).__name__


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON that `read_sealed` will know to be the one that was written."""
    rest = {key: value for key, value in values.items() if key != _SEAL}
    write_text(path, json.dumps({**rest, _SEAL: checksum(rest)}, indent=2) + "\n")


def read_sealed(
    path: Path,
    error: type[MletError],
    remedy: str,
    *,
    missing: str = "",
    shown: Path | None = None,
) -> dict[str, Any]:
    """The values that `write_sealed` wrote; of mlet 0.1, which had no seal, as they are.

    Raises:
        MletError: of the kind ``error``, as `reading`.
    """
    with reading(path, error, remedy, missing=missing):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise error(f"{path}: damaged (no JSON object); {remedy}")
        seal = values.pop(_SEAL, None)
        if seal is not None and seal != checksum(values):
            raise error(f"{path}: damaged (it is not what was written); {remedy}")
        return values


def write_sealed_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON, a record a line, each sealed together with those before it."""
    seal, lines = 0, []
    for record in records:
        seal = checksum(record, seal)
        lines.append(json.dumps({**record, _SEAL: seal}) + "\n")
    write_text(path, "".join(lines))


def read_sealed_lines(path: Path, error: type[MletError], remedy: str) -> list[dict[str, Any]]:
    """The records that `write_sealed_lines` wrote; of mlet 0.1, which had no seals, as they are.

    Raises:
        MletError: of the kind ``error``, as `reading`.
    """
    with reading(path, error, remedy):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not records:
            raise error(f"{path}: damaged (empty); {remedy}")
        seals = [record.pop(_SEAL, None) for record in records]
        seal = 0
        for place, (record, known) in enumerate(zip(records, seals, strict=True), start=1):
            seal = checksum(record, seal)
            if any(seals) and known != seal:
                raise error(f"{path}: line {place}: damaged (it is not what was written); {remedy}")
        return records


def checksum(values: Mapping[str, Any], before: int = 0) -> int:
    """CRC-32 of the values, however they are spaced, and of what went ``before`` them."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode(), before)
