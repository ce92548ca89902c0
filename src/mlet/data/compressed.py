"""The bytes of plain, .gz and .zst files, decompressed on the way."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from mlet.errors import DataError

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


def read_chunks(path: Path, size: int) -> Iterator[bytes]:
    """The decompressed bytes of a plain, .gz or .zst file.

    Raises:
        DataError: the file is missing, a directory, unreadable, or damaged.
    """
    try:
        # A command would wait for ever on one that nobody writes to; those in /dev are the shell's.
        if stat.S_ISFIFO(path.stat().st_mode) and Path("/dev") not in path.parents:
            raise DataError(f"{path}: is a named pipe, expected a file; the shell gives <(command)")
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                while chunk := file.read(size):
                    yield chunk
        elif path.suffix == ".zst":
            with path.open("rb") as file:
                yield from _zstd_chunks(file, size)
        else:
            with path.open("rb") as file:
                while chunk := file.read(size):
                    yield chunk
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory, expected a file") from None
    except EOFError:
        raise DataError(f"{path}: the compressed file is cut short; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
