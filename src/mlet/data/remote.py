"""Raw files by URL: ``s3://``, ``gs://``, ``https://`` and what else fsspec knows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlet.errors import DataError
from mlet.reading import first_line

#: At least two letters, which no drive of Windows has; a `Path` has made one slash of two.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])")
_LOCAL = ("file", "local")
_WEB = ("http", "https")
#: Drivers by what their URLs begin with, where the extra has them.
_EXTRA = ("s3", "s3a", "gs", "gcs", *_WEB)
#: Bytes that are asked for at once.
_BUFFER = 1 << 20


class Url(type(Path())):  # type: ignore[misc]
    """A URL in the place of a path, with a name, a suffix and folders; nothing local is there."""

    def __str__(self) -> str:
        return _spelled(super().__str__())


def _spelled(text: str) -> str:
    """A URL with its slashes."""
    return _URL.sub(lambda m: f"{m[1]}:///" if m[1] in _LOCAL else f"{m[1]}://", text, count=1)


def as_url(path: Path) -> Url | None:
    """The URL that a path was meant to be, if it was."""
    return Url(path) if _URL.match(str(path)) and not path.exists() else None


def is_pattern(url: Url) -> bool:
    """Whether a URL stands for others; ``?`` and brackets are parts of web addresses."""
    return bool(re.search(r"[*]" if _scheme(url) in _WEB else r"[*?[]", str(url)))


def find(url: Url) -> list[Url] | None:
    """What a pattern matches or a folder holds, by name; None for a URL of one file.

    Files of no bytes are left out. On the web, there are no folders.

    Raises:
        DataError: it cannot be looked up.
    """
    with _errors(url):
        system, path = _system(url)
        if is_pattern(url):
            found = system.glob(path, detail=True)
            for folder in [name for name, info in found.items() if info["type"] == "directory"]:
                found |= system.find(folder, detail=True)
        elif _scheme(url) in _WEB or not system.isdir(path):
            return None
        else:
            found = system.find(path, detail=True)
        files = [
            name for name, info in found.items() if info["type"] == "file" and info["size"] != 0
        ]
        return [Url(system.unstrip_protocol(name)) for name in sorted(files)]


@contextmanager
def opened(url: Url) -> Iterator[BinaryIO]:
    """The file, whose bytes are fetched as they are read.

    Raises:
        DataError: it cannot be opened, or, within, not be read on.
    """
    with _errors(url):
        system, path = _system(url)
        if _scheme(url) not in _WEB and system.isdir(path):
            raise IsADirectoryError
        file = system.open(path, "rb")
    try:
        yield io.BufferedReader(_Stream(file, url), _BUFFER)
    finally:
        file.close()


class _Stream(io.RawIOBase):
    """A remote file that fails as one that cannot be read."""

    def __init__(self, file: Any, url: Url) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of any raw stream."""
        with _errors(self._url):
            part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def _scheme(url: Url) -> str:
    return str(url).partition(":")[0]


def _system(url: Url) -> tuple[Any, str]:
    """fsspec's file system, and the URL as that has it."""
    import fsspec

    scheme = _scheme(url)
    if scheme not in fsspec.available_protocols():
        raise DataError(f"{url}: fsspec knows no {scheme}://; is it misspelled?")
    system, path = fsspec.core.url_to_fs(str(url))
    return system, path


@contextmanager
def _errors(url: Url) -> Iterator[None]:
    """Turn what fsspec and its drivers raise, each its own, into an error that names the URL."""
    try:
        yield
    except DataError:
        raise
    except ImportError as missing:
        extra = "pip install 'mlet[remote]'" if _scheme(url) in _EXTRA else first_line(missing)
        raise DataError(f"{url}: the driver for {_scheme(url)}:// is missing; {extra}") from None
    except IsADirectoryError:
        raise DataError(f"{url}: is a directory, expected a file") from None
    except Exception as given:
        error = _reason(given, url)
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{url}: no such file") from None
        if isinstance(error, PermissionError) or _is_refusal(error):
            raise DataError(
                f"{url}: no access ({first_line(error)}); give the credentials where the driver of "
                f"{_scheme(url)}:// looks for them, as its environment variables"
            ) from None
        raise DataError(
            f"{url}: cannot be read ({type(error).__name__}: {first_line(error)}); is the address "
            f"right, and does the network reach it?"
        ) from None


def _reason(error: Exception, url: Url) -> Exception:
    """What an error is about: of a web address, fsspec calls all that fails not found."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or _scheme(url) not in _WEB:
        return error
    return cause if isinstance(cause, Exception) and _status(cause) != "404" else error


def _status(error: Exception) -> str:
    """The status that a server answered with, of errors that have one."""
    return str(getattr(error, "status", None) or getattr(error, "code", None))


def _is_refusal(error: Exception) -> bool:
    """Whether an error of a driver's own says that credentials are missing or wrong."""
    return _status(error) in ("401", "403") or "Credential" in type(error).__name__
