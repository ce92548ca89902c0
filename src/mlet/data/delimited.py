"""Delimited text in blocks of whole records, with the line of every record.

A file is read once, decompressed on the way, a few tens of MB at a time. Every record is checked
to have the expected number of columns before it is parsed, so that a damaged row is named by its
line instead of being padded with missing values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from mlet.data.raw_bytes import chunks
from mlet.data.source import LINE
from mlet.errors import DataError

_BLOCK_BYTES = 32 * 1024 * 1024
#: No record of click data is as long; what is has lost a newline or a quote.
_RECORD_BYTES = 16 * 1024 * 1024
_NEWLINE, _RETURN, _QUOTE = ord("\n"), ord("\r"), ord('"')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _check_text(path: Path, block: bytes, line: int) -> None:
    """Refuse a block that is not UTF-8 text, naming the line."""
    position = block.find(b"\0")
    if position < 0:
        try:
            block.decode("utf-8")
            return
        except UnicodeDecodeError as error:
            position = error.start
    line += block.count(b"\n", 0, position)
    raise DataError(
        f"{path}, line {line}: byte 0x{block[position]:02x} is not UTF-8 text; is the file binary, "
        f"compressed under another name, or in another encoding?"
    )


def _positions(block: bytes, byte: int, quoted: bool) -> np.ndarray:
    """Where a byte stands, outside quotes, in a block that begins outside quotes."""
    data = np.frombuffer(block, np.uint8)
    found = np.flatnonzero(data == byte)
    if quoted and b'"' in block:
        before = np.searchsorted(np.flatnonzero(data == _QUOTE), found)
        found = found[before % 2 == 0]
    return found


def _check_quotes(path: Path, block: bytes, separator: str, line: int) -> None:
    """Refuse a quote that RFC 4180 does not know, naming the line; the block begins a record.

    Quotes open a cell at its very beginning and close it at its very end; within it they are
    doubled. One that does neither would merge the rows up to the next.
    """
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not len(quotes):
        return
    opening, closing = quotes[::2], quotes[1::2]
    padded = np.concatenate([[_NEWLINE], data, [_NEWLINE]])
    edges = (ord(separator), _NEWLINE, _QUOTE)
    wrong = opening[~np.isin(padded[opening], edges)]
    after = padded[closing + 2]
    wrong = np.concatenate([wrong, closing[~np.isin(after, (*edges, _RETURN))]])
    if len(wrong):
        line += block.count(b"\n", 0, int(wrong.min()))
        raise DataError(
            f"{path}, line {line}: a quote in the middle of a cell; quote the whole cell and "
            f"double the quotes in it, or read the file without quoting (schema: quote: none)"
        )


def _blocks(
    path: Path, separator: str, *, quoted: bool, encoding: str, size: int
) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole records, each ended by a newline, with the line each begins on.

    Raises:
        DataError: as `chunks`, or the file is empty, is not text, has a quote within a cell or one
            that is never closed, or a record that is far too long.
    """
    line, rest = 1, b""
    for number, chunk in enumerate(chunks(path, size)):
        text = chunk.decode("latin-1").encode() if encoding == "latin-1" else chunk
        rest += text if number else text.removeprefix(_BYTE_ORDER_MARK)
        if b"\0" in text:  # binary: a newline may never come
            _check_text(path, rest, line)
        cut = rest.rfind(b"\n") + 1
        if quoted and b'"' in rest:
            _check_quotes(path, rest, separator, line)
            ends = _positions(rest, _NEWLINE, quoted)
            cut = int(ends[-1]) + 1 if len(ends) else 0
        # Blank lines are held back until it is known whether anything follows them.
        cut = len(rest[:cut].rstrip(b"\r\n"))
        cut = rest.find(b"\n", cut) + 1 if cut else 0
        if cut:
            block, rest = rest[:cut], rest[cut:]
            _check_text(path, block, line)
            yield line, block
            line += block.count(b"\n")
        if len(rest) > _RECORD_BYTES and rest.strip():
            end = "closing quote" if quoted and rest.count(b'"') % 2 else "end"
            raise DataError(
                f"{path}, line {line}: no {end} of the row within {_RECORD_BYTES >> 20} MB; is a "
                f"newline or a quote missing?"
            )
    if rest.strip():
        _check_text(path, rest, line)
        if quoted and rest.count(b'"') % 2:
            raise DataError(f"{path}, line {line}: a quote opened here or later is never closed")
        yield line, rest.rstrip(b"\r\n") + b"\n"
    elif line == 1:
        raise DataError(f"{path}: the file is empty")


def read_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | Callable[[list[str]], Sequence[str]] | None,
    *,
    quoted: bool,
    encoding: str = "utf-8",
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[pl.DataFrame]:
    """Frames of strings, one for each block of the file, plus the column `LINE`.

    Args:
        path: plain, .gz or .zst.
        separator: one character, or several as in MovieLens' ``::``.
        columns: the columns' names, or what makes them of the cells of the first row, where there
            are several kinds of rows; None takes them from the first line.
        quoted: whether fields may be enclosed in double quotes.
        encoding: ``utf-8`` or ``latin-1``.
        block_bytes: bytes of text parsed at once.

    Raises:
        DataError: the file is missing, empty, damaged or not text, or a record has another
            number of columns than expected; names the file and the line.
    """
    blocks = _blocks(path, separator, quoted=quoted, encoding=encoding, size=block_bytes)
    for line, raw in blocks:
        block = raw.replace(b"\r\n", b"\n")
        single = separator
        if len(separator) > 1:
            single = "\x1f"
            block = block.replace(separator.encode(), single.encode())
        if columns is None:
            header, _, block = block.partition(b"\n")
            columns = _header(path, header, single, quoted)
            line += 1
            if not block:
                continue
        if callable(columns):
            columns = columns(block.partition(b"\n")[0].decode().split(single))
        lines = _check_columns(path, block, single, columns, quoted, line)
        try:
            frame = pl.read_csv(
                io.BytesIO(block),
                has_header=False,
                separator=single,
                schema=dict.fromkeys(columns, pl.String),
                quote_char='"' if quoted else None,
                low_memory=True,
            )
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{path}, lines {lines[0]} to {lines[-1]}: not to be parsed "
                f"({str(error).splitlines()[0]})"
            ) from None
        yield frame.with_columns(pl.Series(LINE, lines))


def _header(path: Path, header: bytes, separator: str, quoted: bool) -> list[str]:
    text = header.decode()
    if quoted and text.count('"') % 2:
        raise DataError(
            f"{path}, line 1: a quote in the column names is not closed on the line; names may "
            f"hold no line breaks"
        )
    try:
        cells = next(csv.reader([text], delimiter=separator)) if quoted else text.split(separator)
    except csv.Error:  # of lines that end with carriage returns alone, as those of old Macs
        raise DataError(f"{path}, line 1: lines end with \\r alone; convert them to \\n") from None
    names = [name.strip() for name in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: repeated column names: {', '.join(repeated)}")
    return names


def _check_columns(
    path: Path, block: bytes, separator: str, columns: Sequence[str], quoted: bool, line: int
) -> np.ndarray:
    """The line of every record in the block, all checked to have ``len(columns)`` columns."""
    ends = _positions(block, _NEWLINE, quoted)
    before = np.searchsorted(_positions(block, ord(separator), quoted), ends)
    found = np.diff(before, prepend=0) + 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    lines = line + np.searchsorted(_positions(block, _NEWLINE, quoted=False), starts)
    wrong = np.flatnonzero(found != len(columns))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{path}, line {lines[first]}: {found[first]} columns where {len(columns)} are "
            f"expected; repair or remove the line"
        )
    return lines.astype(np.uint64)
