"""Categories in a graph: one spelling for each, as `mlet.data.texts` has it, and their ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlet.data.texts import WHOLE_FLOAT, WORDS
from mlet.export.raw.columns import RawTable
from mlet.export.raw.nodes import Nodes

# RE2's \d and \s are of ASCII alone, those of Polars of Unicode.
_DIGIT, _SPACE = r"\p{Nd}", r"[\t-\r\x{85}\p{Z}]"
_NEGATIVE_ZERO = r"-0\.0+"


def id_nodes(nodes: Nodes, table: RawTable) -> tuple[list[str], list[str]]:
    """The ids of one-valued fields, each (B, 1), int64, and what refuses values."""
    ids: dict[str, str] = {}
    refused = []
    if table.time is not None:
        parts = table.time.parts(nodes, nodes.column(table.time.name))
        for field, values in zip(table.time.fields, parts[:2], strict=True):
            ids[field] = nodes.encode(_integer_keys(table, field), values)
        if parts.bad is not None:
            why = f"{table.time.name!r} holds what is not {table.time.form}"
            refused.append(nodes.refuse(parts.bad, why))
    for field in sorted(table.integers):
        ids[field] = nodes.column(nodes.encode(_integer_keys(table, field), field))
    texts = [field.name for field in table.schema.one_valued if field.name not in ids]
    for respelled in (False, True):
        fields = [name for name in texts if table.is_respelled(name) == respelled]
        columns: Sequence[str] = [nodes.column(name) for name in fields]
        if fields and (respelled or table.missing):
            matrix = _clean(nodes, table, nodes.columns(columns), respelled=respelled)
            columns = nodes.apart(matrix, len(fields))
        for field, column in zip(fields, columns, strict=True):
            ids[field] = nodes.encode(_text_keys(table, field), column)
    return [ids[field.name] for field in table.schema.one_valued], refused


def bag_nodes(nodes: Nodes, table: RawTable, field: str) -> tuple[str, str]:
    """The ids of a multi-valued field, end to end (V,), and how many each row has (B, 1)."""
    flat = nodes.add("Reshape", field, nodes.constant([-1]))
    if table.is_respelled(field):
        # Not of bags that are all empty: of no text there is no part before a point.
        more = nodes.add("Concat", flat, nodes.constant([""]), axis=0)
        spelled = _respelled(nodes, more)
        flat = nodes.add(
            "Slice", spelled, nodes.constant([0]), nodes.constant([-1]), nodes.constant([0])
        )
    codes = nodes.encode(_bag_keys(table, field), flat)
    kept = nodes.add("GreaterOrEqual", codes, nodes.constant([0]))
    counted = nodes.add(
        "Reshape", nodes.cast(kept, "INT64"), nodes.add("Shape", field), allowzero=1
    )
    lengths = nodes.add("ReduceSum", counted, nodes.constant([1]), keepdims=1)
    return nodes.add("Compress", codes, kept), lengths


def _text_keys(table: RawTable, field: str) -> dict[str, int]:
    known = table.known(field)
    return _with_words(table, field, {"": 0, **known})


def _bag_keys(table: RawTable, field: str) -> dict[str, int]:
    """What fills up a row, and what stands for nothing, is no category: -1."""
    nothing = dict.fromkeys(("", *table.missing), -1)
    return _with_words(table, field, {**table.known(field), **nothing})


def _with_words(table: RawTable, field: str, keys: dict[str, int]) -> dict[str, int]:
    if field not in table.as_written:
        keys |= {word: keys[digit] for word, digit in WORDS.items() if digit in keys}
    return keys


def _integer_keys(table: RawTable, field: str) -> dict[int, int]:
    known = table.known(field)
    missing = known.pop("", 0)
    keys = {int(category): id_ for category, id_ in known.items()}
    keys |= dict.fromkeys(table.missing_integers, missing)
    return keys or {0: 0}  # there must be one


def _clean(nodes: Nodes, table: RawTable, texts: str, *, respelled: bool) -> str:
    """Texts with one spelling for each category, and "" for what stands for nothing."""
    spelled = _respelled(nodes, texts) if respelled else texts
    if not table.missing:
        return spelled
    pattern = "|".join(map(_spellings, table.missing))
    stands = nodes.add("RegexFullMatch", texts, pattern=f"{_SPACE}*(?:{pattern}){_SPACE}*")
    return nodes.add("Where", stands, nodes.constant([""]), spelled)


def _respelled(nodes: Nodes, texts: str) -> str:
    """Texts with 7 for 7.0."""
    # With a point behind it, every text has a part before one.
    pointed = nodes.add("StringConcat", texts, nodes.constant(["."]))
    outputs = [f"{pointed}.parts", f"{pointed}.counts"]
    parts, _ = nodes.add_several("StringSplit", [pointed], outputs, delimiter=".", maxsplit=1)
    bare = nodes.add("Gather", parts, nodes.constant(0), axis=-1)
    whole = WHOLE_FLOAT.strip("^$").replace(r"\d", _DIGIT)
    spelled = nodes.add("Where", nodes.add("RegexFullMatch", texts, pattern=whole), bare, texts)
    zero = nodes.add("RegexFullMatch", texts, pattern=_NEGATIVE_ZERO)
    return nodes.add("Where", zero, nodes.constant(["0"]), spelled)


def _spellings(text: str) -> str:
    """A pattern of all texts that are spelled as one is."""
    ways = [re.escape(text)]
    if re.fullmatch(r"0|-?[1-9]\d*", text):
        ways.append(rf"{re.escape(text)}\.0+")
    if text == "0":
        ways.append(_NEGATIVE_ZERO)
    return "|".join([*ways, *(word for word, digit in WORDS.items() if digit == text)])
