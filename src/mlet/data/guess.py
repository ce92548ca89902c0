"""A first schema of a table, guessed from some of its rows, with comments that say why.

What the values do not show is not guessed: it is left out, with a comment that asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from mlet.data import kinds
from mlet.data.profile import Profile, is_time_name, profile
from mlet.data.sample import Sample, read_sample

#: What labels are called.
_LABELS = {
    *("label", "click", "clicked", "is_click", "is_clicked", "target", "y", "converted"),
    *("conversion", "is_conversion", "bought", "purchase", "purchased", "installed"),
}


def guess_schema(path: Path) -> str:
    """YAML of a `TableSchema` for a file, or for the first of a folder or pattern.

    Raises:
        DataError: the file cannot be read as a table.
    """
    sample = read_sample(path)
    columns = [profile(column) for column in sample.rows.iter_columns()]
    label = _label(columns)
    split = [column for column in columns if column.split]
    timed = [column for column in columns if column.times]
    inputs = [
        column
        for column in columns
        if column not in split and column not in timed and column.name != label
    ]
    left = [column for column in inputs if _useless(column)]
    inputs = [column for column in inputs if column not in left]
    rows = len(sample.rows)
    lines = [
        f"# Guessed from the first {rows:,} rows of {sample.path.name}. Read every line, and",
        "# take out what is known only after the click: when a model serves, it is not there yet.",
        *_bad_row_lines(sample),
        *_label_lines(label, columns),
        "",
        *_dense_lines([column for column in inputs if column.kind == kinds.DECIMAL]),
        *_category_lines([c for c in inputs if c.kind != kinds.DECIMAL and not _is_bag(c)]),
        *_bag_lines([column for column in inputs if _is_bag(column)]),
        *(_time_lines(timed) if timed else _no_time_lines(columns)),
        *_split_lines(split),
        *_left_lines(left),
        *_null_lines(columns),
        *_writing_lines(sample),
    ]
    return "\n".join(lines) + "\n"


def _bad_row_lines(sample: Sample) -> list[str]:
    if sample.bad_rows is None or not sample.bad_rows.total:
        return []
    return [
        "# Some of the rows cannot be read; mend them, or pass --skip-bad-rows:",
        *(f"#   {message}" for message in sample.bad_rows.first.values()),
    ]


def _label(columns: Sequence[Profile]) -> str | None:
    """The only column that has two values, and is called as labels are."""
    named = [column.name for column in columns if column.binary and column.name.lower() in _LABELS]
    return named[0] if len(named) == 1 else None


def _label_lines(label: str | None, columns: Sequence[Profile]) -> list[str]:
    binary = [column.name for column in columns if column.binary]
    if label is not None:
        others = [name for name in binary if name != label]
        also = f"; so have {', '.join(others)}, by another name" if others else ""
        return [f"label: {_name(label)}  # has two values, no and yes{also}"]
    if binary:
        return [
            "# Which column is the label cannot be known. These have two values, no and yes;",
            *(f"# label: {_name(name)}" for name in binary),
            "# another one needs what counts as a click, as positive: [basket], or threshold: 4.",
        ]
    return [
        "# No column has two values, no and yes: which one is the label cannot be known. Name it,",
        "# and what counts as a click: some of its values, or all from a number on.",
        "# label: ?",
        "# positive: [purchase, basket]",
        "# threshold: 4",
    ]


def _useless(column: Profile) -> bool:
    told_apart = column.distinct > 1 or column.missing or column.markers
    if column.kind is None or not (told_apart or _is_bag(column)):
        return True
    if column.kind.startswith("values of type"):
        return True
    unique = column.rows > 20 and column.distinct == column.rows
    return unique and column.kind in (kinds.WHOLE, kinds.TEXT)


def _is_bag(column: Profile) -> bool:
    return column.kind == "list" or column.bag is not None


def _dense_lines(columns: Sequence[Profile]) -> list[str]:
    if not columns:
        return [
            "# dense: {a_quantity: log}  # numbers whose size matters, as counts and prices: none",
            "#                           # has fractions, so none is told from codes",
        ]
    lines = ["dense:  # log, signed_log, standard, quantile or none"]
    for column in columns:
        scale = "signed_log" if column.negative else "log"
        why = "some are below 0" if column.negative else "decimal numbers"
        if column.missing or column.markers:
            value = f"{{scale: {scale}, missing_indicator: true}}"
            lines.append(f"  {_name(column.name)}: {value}  # {why}, some missing")
        else:
            lines.append(f"  {_name(column.name)}: {scale}  # {why}")
    return lines


def _category_lines(columns: Sequence[Profile]) -> list[str]:
    if not columns:
        return ["# categorical: [?]  # no column is seen to hold categories; a schema needs one"]
    lines = ["categorical:"]
    for column in columns:
        about = f"{column.distinct:,} different"
        if column.binary:
            about += ": known before the click? Else take it out"
        elif column.kind == kinds.WHOLE:
            about += " whole numbers: codes? A quantity belongs under dense"
        lines.append(f"  - {_name(column.name)}  # {about}")
    return lines


def _bag_lines(columns: Sequence[Profile]) -> list[str]:
    if not columns:
        return []
    lines = ["multi_valued:  # several categories a row, and what separates them"]
    for column in columns:
        mark = json.dumps(column.bag or "|")
        about = "lists" if column.bag is None else f"as {column.example}"
        lines.append(f"  {_name(column.name)}: {mark}  # {about}")
    return lines


def _no_time_lines(columns: Sequence[Profile]) -> list[str]:
    called = [one for one in columns if one.kind == kinds.WHOLE and is_time_name(one.name)]
    return [
        *(f"# time: {_name(one.name)}  # as {one.example}, if it says when" for one in called),
        *(
            []
            if called
            else ["# time: ?  # no column looks like time: rows will be split at random"]
        ),
    ]


def _time_lines(columns: Sequence[Profile]) -> list[str]:
    if len(columns) > 1:
        return [
            "# Which time is that of the click cannot be known. Keep one, to split by time:",
            *(f"# time: {_name(column.name)}  # as {column.example}" for column in columns),
        ]
    (column,) = columns
    lines = [f"time: {_name(column.name)}  # as {column.example}; the split is by time"]
    if len(column.times) > 1:
        day, month = column.times
        return [
            "# Whether the day or the month comes first cannot be known. Keep one time_format:",
            *lines,
            f"# time_format: {json.dumps(day)}  # day first",
            f"# time_format: {json.dumps(month)}  # month first",
        ]
    if column.times[0]:
        lines.append(f"time_format: {json.dumps(column.times[0])}  # no other order fits all rows")
    return lines


def _split_lines(columns: Sequence[Profile]) -> list[str]:
    mark = "" if len(columns) == 1 else "# "
    return [
        f"{mark}split: {{column: {_name(one.name)}}}  # as {one.example}: rows are split already"
        for one in columns
    ]


def _left_lines(columns: Sequence[Profile]) -> list[str]:
    lines = ["# Left out:"] if columns else []
    for column in columns:
        if column.kind is None:
            why = "always missing"
        elif column.kind.startswith("values of type"):
            why = f"holds {column.kind}"
        elif column.distinct == 1:
            why = f"always {column.example}"
        else:
            why = "another value in every row, of which nothing can be learned"
        lines.append(f"#   {column.name}: {why}")
    return lines


def _null_lines(columns: Sequence[Profile]) -> list[str]:
    sure = dict.fromkeys(
        marker
        for column in columns
        if column.kind in (kinds.WHOLE, kinds.DECIMAL) and column.distinct
        for marker in column.markers
    )
    maybe = dict.fromkeys(marker for column in columns for marker in column.markers)
    lines = []
    if sure:
        values = ", ".join(json.dumps(marker) for marker in sure)
        lines.append(f"null_values: [{values}]  # among numbers, what can only be missing")
    if others := [marker for marker in maybe if marker not in sure]:
        values = ", ".join(json.dumps(marker) for marker in others)
        lines.append(f"# null_values: [{values}]  # if these are no categories, but missing ones")
    return lines


def _writing_lines(sample: Sample) -> list[str]:
    if sample.kind != "text":
        return []
    lines = []
    if sample.separator != ",":
        lines.append(f"separator: {json.dumps(sample.separator)}")
    if sample.quote == "none":
        lines.append("quote: none  # some quotes stand in the middle of cells")
    return lines


def _name(name: str) -> str:
    """A name as YAML has it."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", name) and yaml.safe_load(name) == name
    return name if plain else json.dumps(name, ensure_ascii=False)
