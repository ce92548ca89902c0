"""Delimited text in frames, with the line of every record.

Every record is checked to have the expected number of columns before it is parsed, so that a
damaged row is named by its line instead of being padded with missing values.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from mlet.data.bad_rows import BadRows
from mlet.data.blocks import BLANK, NEWLINE, positions, text_blocks
from mlet.data.source import LINE
from mlet.errors import DataError

#: Those that are in use.
SEPARATORS = (",", "\t", ";", "|")
#: More lines than texts have that are meant to stand in one cell.
_MANY_LINES = 100
_BLOCK_BYTES = 32 * 1024 * 1024


def read_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | Callable[[list[str]], Sequence[str]] | None,
    *,
    quoted: bool,
    encoding: str = "utf-8",
    block_bytes: int = _BLOCK_BYTES,
    bad_rows: BadRows | None = None,
    required: Sequence[str] = (),
    types: Mapping[str, type[pl.DataType]] | None = None,
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
        bad_rows: records that may be left out.
        required: columns that the first line must name.
        types: columns that are numbers, if all is well; in a block where one of them is not, all
            are strings, for the error to be found in.

    Raises:
        DataError: the file is missing, empty, damaged or not text, or a record has another
            number of columns than expected; names the file and the line.
    """
    blocks = text_blocks(
        path, separator, quoted=quoted, encoding=encoding, size=block_bytes, bad_rows=bad_rows
    )
    for line, raw in blocks:
        block = raw.replace(b"\r\n", b"\n") if b"\r" in raw else raw
        single = separator
        if len(separator) > 1:
            single = "\x1f"
            block = block.replace(separator.encode(), single.encode())
        if columns is None:
            header, _, block = block.partition(b"\n")
            columns = _header(path, header, single, quoted)
            check_names(path, columns, required, separator=separator)
            line += 1
            if not block:
                continue
        if callable(columns):
            columns = columns(block.partition(b"\n")[0].decode().split(single))
        lines, block = _check_columns(path, block, single, columns, quoted, line, bad_rows)
        if not block:
            continue
        try:
            frame = _parse(block, single, columns, quoted, types or {})
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{path}, lines {lines[0]} to {lines[-1]}: not to be parsed "
                f"({str(error).splitlines()[0]})"
            ) from None
        yield frame.with_columns(pl.Series(LINE, lines))


def _parse(
    block: bytes,
    separator: str,
    columns: Sequence[str],
    quoted: bool,
    types: Mapping[str, type[pl.DataType]],
) -> pl.DataFrame:
    """The records of a block, as `read_delimited` has them."""
    strings: dict[str, type[pl.DataType]] = dict.fromkeys(columns, pl.String)

    def parsed(schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
        quote = '"' if quoted else None
        return pl.read_csv(
            block, has_header=False, separator=separator, schema=schema, quote_char=quote
        )

    if types:
        with suppress(pl.exceptions.PolarsError):
            return parsed({**strings, **types})
    return parsed(strings)


def check_names(
    place: Path | str,
    found: Sequence[str],
    required: Sequence[str],
    *,
    what: str = "file",
    separator: str | None = None,
) -> None:
    """Refuse a file, or what else rows come in, that lacks a column.

    Args:
        place, found: the file and its columns.
        required: those it must have.
        what: it is.
        separator: that the columns were told apart by, if it was one.

    Raises:
        DataError: one is missing; where another separator would give it, says so.
    """
    missing = next((name for name in required if name not in found), None)
    if missing is None:
        return
    hint = ""
    found = [name for name in found if name != LINE]
    for other in SEPARATORS:
        cells = [cell.strip().strip('"') for cell in (separator or "").join(found).split(other)]
        if separator not in (None, other) and missing in cells:
            shown = "\\t" if other == "\t" else other
            hint = f'; is it separated otherwise? Say separator: "{shown}" in the schema'
    raise DataError(f"{place}: no column {missing!r}; the {what} has {', '.join(found)}{hint}")


def _header(path: Path, header: bytes, separator: str, quoted: bool) -> list[str]:
    if header == BLANK:
        raise DataError(f"{path}, line 1: the column names cannot be read; mend the line")
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
    if not quoted and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        # Names are often quoted where cells are not.
        names = [name[1:-1] for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        no_names = [name for name in repeated if name == "" or is_number(name)]
        hint = "; put a line with the names of the columns before the rows" if no_names else ""
        raise DataError(
            f"{path}, line 1: repeated column names: {', '.join(map(repr, repeated))}{hint}"
        )
    return names


def is_number(text: str) -> bool:
    """Whether a cell is a number, as no name of a column is."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_even(separators: np.ndarray, starts: np.ndarray, ends: np.ndarray, each: int) -> bool:
    """Whether there are as many separators in every record, sooner seen than how many."""
    if each < 1 or len(separators) != each * len(ends):
        return False
    first, last = separators[::each], separators[each - 1 :: each]
    return bool((first >= starts).all() and (last < ends).all())


def _check_columns(
    path: Path,
    block: bytes,
    separator: str,
    columns: Sequence[str],
    quoted: bool,
    line: int,
    bad_rows: BadRows | None,
) -> tuple[np.ndarray, bytes]:
    """The line of every record of the block, all checked to have ``len(columns)`` columns.

    Returns:
        The lines, and the block without the records that are left out.
    """
    ends = positions(block, NEWLINE, quoted)
    starts = np.concatenate([[0], ends[:-1] + 1])
    quoted = quoted and b'"' in block
    if quoted:
        lines = line + np.searchsorted(positions(block, NEWLINE, quoted=False), starts)
    else:
        lines = np.arange(line, line + len(ends))
    lines = lines.astype(np.uint64)
    separators = positions(block, ord(separator), quoted)
    if not quoted and _is_even(separators, starts, ends, len(columns) - 1):
        return lines, block
    found = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
    if quoted and len(rows := np.flatnonzero(np.diff(lines) > _MANY_LINES)):
        first, last = lines[rows[0]], lines[rows[0] + 1] - 1
        warnings.warn(
            f"{path}: lines {first} to {last} are one row, since a quote opens in the first and "
            f"closes in the last; if it is a character like others, read without quoting (schema: "
            f"quote: none)",
            stacklevel=2,
        )
    data = np.frombuffer(block, np.uint8)
    blank = data[starts] == BLANK[0]
    wrong = np.flatnonzero((found != len(columns)) & ~blank)
    if len(wrong):
        first = int(wrong[0])
        message = (
            f"{path}, line {lines[first]}: {found[first]} columns where {len(columns)} are "
            f"expected; repair or remove the line"
        )
        if bad_rows is None:
            raise DataError(message)
        bad_rows.leave_out("another number of columns", message, len(wrong))
    if not len(wrong) and not blank.any():
        return lines, block
    kept = ~blank
    kept[wrong] = False
    return lines[kept], data[np.repeat(kept, ends + 1 - starts)].tobytes()
