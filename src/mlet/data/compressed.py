"""The bytes of plain, .gz and .zst files, URLs and standard input, decompressed on the way."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from mlet.data.remote import as_url, opened
from mlet.errors import DataError

#: Stands for standard input among raw files; it is read once.
STDIN = Path("<stdin>")

#: Bytes of standard input that are looked at before it is read: a whole block of zstd.
_HEAD_BYTES = 1 << 18
#: How files begin whose compression no name tells.
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}

#: Compressed bytes that are handed to zstd at once.
_ZSTD_BYTES = 2048


def _zstd_chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Decompress zstd frames; raises EOFError where the last one is cut short."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    parts: list[bytes] = []
    gathered = 0
    # What is decompressed at once is not bounded otherwise, and may be 30 000 times as long.
    while compressed := file.read(_ZSTD_BYTES):
        while compressed:
            if decoder.eof:
                decoder = zstandard.ZstdDecompressor().decompressobj()
            parts.append(decoder.decompress(compressed))
            gathered += len(parts[-1])
            compressed = decoder.unused_data
        if gathered >= size:
            yield b"".join(parts)
            parts.clear()
            gathered = 0
    yield b"".join(parts)
    if not decoder.eof:
        raise EOFError


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A file, or standard input, and the suffix of its compression, or any other."""
    if path == STDIN:
        yield io.BufferedReader(_Stdin(), 1 << 20), _compression(_head())
        return
    if (url := as_url(path)) is not None:
        with opened(url) as remote:
            yield remote, path.suffix
        return
    # A command would wait for ever on one that nobody writes to; those in /dev are the shell's.
    if stat.S_ISFIFO(path.stat().st_mode) and Path("/dev") not in path.parents:
        raise DataError(f"{path}: is a named pipe, expected a file; the shell gives <(command)")
    with path.open("rb") as file:
        yield file, path.suffix


def read_chunks(path: Path, size: int) -> Iterator[bytes]:
    """The decompressed bytes of a plain, .gz or .zst file, or of `STDIN`, whatever they are.

    Raises:
        DataError: the file is missing, a directory, unreadable, or damaged.
    """
    suffix = path.suffix
    try:
        with _opened(path) as (raw, suffix):
            if suffix == ".gz":
                with gzip.open(raw, "rb") as file:
                    while chunk := file.read(size):
                        yield chunk
            elif suffix == ".zst":
                yield from _zstd_chunks(raw, size)
            else:
                while chunk := raw.read(size):
                    yield chunk
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory, expected a file") from None
    except EOFError:
        raise DataError(f"{path}: the compressed file is cut short; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: not a readable {suffix} file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def beginning(path: Path) -> bytes:
    """Some of the first bytes, decompressed; they can still be read.

    Raises:
        DataError: as `read_chunks`.
    """
    if path != STDIN:
        return b"".join(islice(read_chunks(path, 4_096), 1))
    kind = _compression(_head())
    try:
        if kind == ".gz":
            return zlib.decompressobj(wbits=31).decompress(_head(), 4_096)
        return zstandard.ZstdDecompressor().decompressobj().decompress(_head()) if kind else _head()
    except (zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: not a readable {kind} file ({error})") from None


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file that can be read from its end, as Parquet is: of a URL or standard input a copy, for
    as long as it is read."""
    if path != STDIN and as_url(path) is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlet-") as folder:
        copy = Path(folder) / "copy.parquet"
        with copy.open("wb") as file, _opened(path) as (raw, _):
            shutil.copyfileobj(raw, file, 1 << 20)
        yield copy


def _compression(head: bytes) -> str:
    """The suffix of files that begin so."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


@cache
def _head() -> bytes:
    """The first bytes of standard input, taken from it once."""
    return sys.stdin.buffer.read(_HEAD_BYTES)


class _Stdin(io.RawIOBase):
    """Standard input with the bytes that `_head` has taken."""

    def __init__(self) -> None:
        self._rest = _head()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of any raw stream."""
        part = self._rest[: len(buffer)] or sys.stdin.buffer.read(len(buffer))
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)
