"""JSON objects, one a line, in frames of strings, with the line of every object."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from mlet.data.bad_rows import BadRows
from mlet.data.blocks import BLANK, text_blocks
from mlet.data.source import LINE
from mlet.errors import DataError

_BLOCK_BYTES = 32 * 1024 * 1024


def read_jsonl(
    path: Path,
    columns: Sequence[str],
    bags: Sequence[str],
    *,
    block_bytes: int = _BLOCK_BYTES,
    bad_rows: BadRows | None = None,
) -> Iterator[pl.DataFrame]:
    """Frames of strings, one for each block of the file, plus the column `LINE`.

    Args:
        path: plain, .gz or .zst.
        columns: the keys to be read; what an object lacks is missing.
        bags: those among them that may hold lists: then columns of lists of strings.
        block_bytes: bytes of text parsed at once.
        bad_rows: lines that may be left out.

    Raises:
        DataError: the file is missing, empty or damaged, no line has one of the keys, a line is no
            object, or one of its values is an object or, but for bags, a list.
    """
    blocks = text_blocks(
        path, ",", quoted=False, encoding="utf-8", size=block_bytes, bad_rows=bad_rows
    )
    unseen = set(columns)
    for first, block in blocks:
        rows = block.split(b"\n")
        kept = [place for place, row in enumerate(rows) if row.strip() and row != BLANK]
        lines = np.array(kept, dtype=np.uint64) + np.uint64(first)
        texts = [rows[place] for place in kept]
        unseen -= {name for name in unseen if any(key in block for key in _spellings(name))}
        if unseen:
            found = ", ".join(_object(texts[0]) or {}) if texts else "nothing"
            raise DataError(f"{path}: no column {min(unseen)!r}; the first line has {found}")
        frame = _parse(texts, columns, bags)
        suspects = list(range(len(texts))) if frame is None else _may_be_nested(frame)
        if suspects and (bad := _check(path, texts, lines, suspects, columns, bags, bad_rows)):
            good = [place for place in range(len(texts)) if place not in bad]
            texts, lines = [texts[place] for place in good], lines[good]
            frame = _parse(texts, columns, bags)
        if not texts:
            continue
        if frame is None:
            raise DataError(
                f"{path}, lines {lines[0]} to {lines[-1]}: not to be parsed; does a column hold "
                f"both lists and texts?"
            )
        yield frame.with_columns(pl.Series(LINE, lines))


def _spellings(name: str) -> tuple[bytes, bytes]:
    """A key as it may stand in a line."""
    return json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode()


def _parse(
    texts: Sequence[bytes], columns: Sequence[str], bags: Sequence[str]
) -> pl.DataFrame | None:
    """The objects as a frame; None if that cannot be."""
    scalar: dict[str, pl.DataType | type[pl.DataType]] = dict.fromkeys(columns, pl.String)
    listed = dict.fromkeys(bags, pl.List(pl.String))
    for schema in ({**scalar, **listed}, scalar) if bags else (scalar,):
        try:
            frame = pl.read_ndjson(io.BytesIO(b"\n".join(texts)), schema=schema)
        except pl.exceptions.PolarsError:
            continue
        if len(frame) == len(texts):
            return frame
    return None


def _object(text: bytes) -> dict[str, object] | None:
    """The object of a line; None if it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, which Python writes, and JSON has not."""
    raise ValueError(name)


def _may_be_nested(frame: pl.DataFrame) -> list[int]:
    """The places of rows in which a text may have been read of a list or an object."""
    nested = pl.selectors.string().str.contains(r"^[\[{]").fill_null(False)
    return frame.select(pl.any_horizontal(nested).arg_true()).to_series().to_list()


def _check(
    path: Path,
    texts: Sequence[bytes],
    lines: np.ndarray,
    places: Sequence[int],
    columns: Sequence[str],
    bags: Sequence[str],
    bad_rows: BadRows | None,
) -> set[int]:
    """Those of some lines that are no objects, or hold a list or an object where none may be.

    Raises:
        DataError: there is one, and it may not be left out.
    """
    bad = set()
    for place in places:
        found = _problem(texts[place], columns, bags)
        if found is None:
            continue
        reason, problem = found
        message = f"{path}, line {lines[place]}: {problem}"
        if bad_rows is None:
            raise DataError(message)
        bad_rows.leave_out(reason, message)
        bad.add(place)
    return bad


def _problem(text: bytes, columns: Sequence[str], bags: Sequence[str]) -> tuple[str, str] | None:
    """What is wrong with a line: in short, and in full; None if nothing is."""
    values = _object(text)
    if values is None:
        problem = "no JSON object; one stands on every line"
        if any(word in text for word in (b"NaN", b"Infinity")):
            problem += ", with null, not NaN or Infinity, for what is missing"
        return "no JSON object", problem
    for name in columns:
        value = values.get(name)
        if isinstance(value, dict):
            return f"column {name!r} unreadable", f"column {name!r} holds an object"
        if isinstance(value, list) and name not in bags:
            problem = f"column {name!r} holds a list; name it under multi_valued"
            return f"column {name!r} unreadable", problem
    return None
