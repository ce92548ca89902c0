"""Text in blocks of whole records, with the line that each begins on.

A file is read once, a few tens of MB at a time, and is checked to be text whose quotes can be told
from their contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlet.data.bad_rows import BadRows
from mlet.data.compressed import read_chunks
from mlet.errors import DataError

#: No record of click data is as long; what is has lost a newline or a quote.
_RECORD_BYTES = 16 * 1024 * 1024
NEWLINE = ord("\n")
_RETURN, _QUOTE = ord("\r"), ord('"')
#: Quotes that are looked at together; even, as they come in pairs.
_QUOTES = 20_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: What a line that is left out is replaced by; no text holds the byte.
BLANK = b"\0"


def positions(block: bytes, byte: int, quoted: bool) -> np.ndarray:
    """Where a byte stands, outside quotes, in a block that begins outside quotes."""
    data = np.frombuffer(block, np.uint8)
    found = np.flatnonzero(data == byte)
    if quoted and b'"' in block:
        before = np.searchsorted(np.flatnonzero(data == _QUOTE), found)
        found = found[before % 2 == 0]
    return found


def _no_text(block: bytes) -> int | None:
    """Where the first byte stands that is no UTF-8 text."""
    if block.isascii() and b"\0" not in block:  # most are, and that is soon seen
        return None
    position = block.find(b"\0")
    try:
        (block if position < 0 else block[:position]).decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return position if position >= 0 else None


def _wrong_quote(data: np.ndarray, quotes: np.ndarray, separator: str) -> tuple[int, int] | None:
    """The first quote that RFC 4180 does not know, and the place of its cell's opening one.

    Quotes open a cell at its very beginning and close it at its very end; within it they are
    doubled. One that does neither would merge the rows up to the next.

    Args:
        data: (N,) uint8, text.
        quotes: where its quotes stand, from the beginning of a record on.
        separator: between cells.
    """
    opening, closing = quotes[::2], quotes[1::2]
    edges = (ord(separator), NEWLINE, _QUOTE)
    before = np.where(opening > 0, data[opening - 1], NEWLINE)
    after = np.where(closing + 1 < len(data), data[np.minimum(closing + 1, len(data) - 1)], NEWLINE)
    wrong = opening[~np.isin(before, edges)]
    wrong = np.concatenate([wrong, closing[~np.isin(after, (*edges, _RETURN))]])
    if not len(wrong):
        return None
    first = int(wrong.min())
    return first, 2 * int(np.searchsorted(opening, first, side="right") - 1)


class _Damage:
    """What is done about bytes that are no rows: refused, or their lines blanked."""

    def __init__(self, path: Path, bad_rows: BadRows | None) -> None:
        self._path, self._bad_rows = path, bad_rows
        self.is_refused = bad_rows is None

    def no_text(self, block: bytes, line: int) -> bytes:
        """The block with lines blanked that are not UTF-8 text; ``line`` is its first."""
        done = []
        while (position := _no_text(block)) is not None:
            at = line + block.count(b"\n", 0, position)
            self._found(
                "not UTF-8 text",
                f"{self._path}, line {at}: byte 0x{block[position]:02x} is not UTF-8 text; is the "
                f"file binary, compressed under another name, or in another encoding?",
            )
            start = block.rfind(b"\n", 0, position) + 1
            done.append(block[:start] + BLANK)
            block, line = _from_line_end(block, position), at
        return b"".join([*done, block])

    def quotes(self, block: bytes, separator: str, line: int) -> bytes:
        """The block, which begins a record, with lines blanked that begin one with a bad quote."""
        data = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(data == _QUOTE)
        done, at, place = [], 0, 0
        while place < len(quotes):
            some = quotes[place : place + _QUOTES]
            wrong = _wrong_quote(data, some, separator)
            if wrong is None:
                place += _QUOTES
                continue
            first, opening = wrong
            number = line + block.count(b"\n", at, first)
            self._found(
                "a quote in the middle of a cell",
                f"{self._path}, line {number}: a quote in the middle of a cell; quote the whole "
                f"cell and double the quotes in it, or read the file without quoting (schema: "
                f"quote: none)",
            )
            start = _record_start_before(block, quotes, place + opening, at)
            end = block.find(b"\n", start)
            end = len(block) if end < 0 else end
            done.append(block[at:start] + BLANK)
            line += block.count(b"\n", at, end)
            at, place = end, int(np.searchsorted(quotes, end))
        return b"".join([*done, block[at:]]) if done else block

    def unclosed(self, block: bytes, line: int, message: str) -> bytes:
        """The block with the line blanked that begins its last, endless record."""
        start = _record_start(block)
        self._found("a quote that is never closed", f"{self._path}, line {line}: {message}")
        return block[:start] + BLANK + _from_line_end(block, start)

    def _found(self, reason: str, message: str) -> None:
        if self._bad_rows is None:
            raise DataError(message)
        self._bad_rows.leave_out(reason, message)


def _record_start_before(block: bytes, quotes: np.ndarray, opening: int, first: int) -> int:
    """Where the record begins that an opening quote is in; ``first`` is where one does."""
    for place in range(opening, -1, -2):
        closed = max(first, int(quotes[place - 1]) if place else first)
        newline = block.rfind(b"\n", closed, int(quotes[place]))
        if newline >= 0 or closed == first:
            return newline + 1 if newline >= 0 else first
    return first


def _from_line_end(block: bytes, position: int) -> bytes:
    end = block.find(b"\n", position)
    return block[end:] if end >= 0 else b""


def _record_start(block: bytes) -> int:
    """Where the record begins that the block ends in."""
    ends = positions(block, NEWLINE, quoted=True)
    return int(ends[-1]) + 1 if len(ends) else 0


def _lines(path: Path, encoding: str, size: int, damage: _Damage) -> Iterator[bytes]:
    """The file's text, in whole lines, those blanked that are none."""
    line, rest = 1, b""
    for chunk in read_chunks(path, size):
        rest += chunk.decode("latin-1").encode() if encoding == "latin-1" else chunk
        if line == 1:
            rest = rest.removeprefix(_BYTE_ORDER_MARK)
        if b"\0" in chunk and damage.is_refused:  # binary: a newline may never come
            damage.no_text(rest, line)
        cut = rest.rfind(b"\n") + 1
        if cut:
            block, rest = rest[:cut], rest[cut:]
            yield damage.no_text(block, line)
            line += block.count(b"\n")
        if len(rest) > _RECORD_BYTES and rest.strip():
            raise DataError(_endless(path, line, "end"))
    if rest:
        yield damage.no_text(rest, line)


def _endless(path: Path, line: int, end: str) -> str:
    return (
        f"{path}, line {line}: no {end} of the row within {_RECORD_BYTES >> 20} MB; is a "
        f"newline or a quote missing?"
    )


def text_blocks(
    path: Path,
    separator: str,
    *,
    quoted: bool,
    encoding: str,
    size: int,
    bad_rows: BadRows | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole records, each ended by a newline, with the line each begins on.

    Args:
        path: plain, .gz or .zst.
        separator: between cells, where quotes may begin.
        quoted: whether a record may go on over lines, within double quotes.
        encoding: ``utf-8`` or ``latin-1``.
        size: bytes that are read at once.
        bad_rows: what may be left out: then such lines are `BLANK`.

    Raises:
        DataError: as `read_chunks`, or the file is empty, is not text, has a quote within a cell or
            one that is never closed, or a record that is far too long.
    """
    damage = _Damage(path, bad_rows)
    line, rest = 1, b""
    for lines in _lines(path, encoding, size, damage):
        rest += lines
        cut = rest.rfind(b"\n") + 1
        if quoted and b'"' in rest:
            rest = damage.quotes(rest, separator, line)
            cut = _record_start(rest)
        # Blank lines are held back until it is known whether anything follows them.
        if cut == 1 or rest[cut - 2 : cut - 1] in (b"\r", b"\n"):
            cut = len(rest[:cut].rstrip(b"\r\n"))
            cut = rest.find(b"\n", cut) + 1 if cut else 0
        if cut:
            block, rest = rest[:cut], rest[cut:]
            yield line, block
            line += block.count(b"\n")
        if len(rest) > _RECORD_BYTES and rest.strip():
            message = _endless(path, line, "closing quote").partition(": ")[2]
            rest = damage.unclosed(rest, line, message)
    while quoted and rest.count(b'"') % 2:
        rest = damage.unclosed(rest, line, "a quote opened here or later is never closed")
        rest = damage.quotes(rest, separator, line)
    if rest.strip():
        yield line, rest.rstrip(b"\r\n") + b"\n"
    elif line == 1:
        raise DataError(f"{path}: the file is empty")
