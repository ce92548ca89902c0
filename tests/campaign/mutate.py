"""Damage to files, as disks, networks, editors and people do it; every bit of it from a seed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def _flip_bit(content: bytearray, chance: random.Random) -> bytearray:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def _change_bytes(content: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.randint(2, 16)):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    return content


def _cut(content: bytearray, chance: random.Random) -> bytearray:
    return content[: chance.randrange(len(content))] if content else content


def _zero(content: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    stop = min(len(content), start + chance.choice([1, 16, 512, 4096]))
    content[start:stop] = bytes(stop - start)
    return content


def _repeat(content: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    return content[:start] + content[start : start + 64] + content[start:]


def _insert(content: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    return content[:start] + bytearray(chance.randbytes(chance.randint(1, 32))) + content[start:]


def _change_digit(content: bytearray, chance: random.Random) -> bytearray:
    digits = [place for place, byte in enumerate(content[:20_000]) if 48 <= byte <= 57]
    if digits:
        content[chance.choice(digits)] = 48 + chance.randrange(10)
    return content


#: Changes of what is in a file.
CONTENTS: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "bit flipped": _flip_bit,
    "bytes changed": _change_bytes,
    "cut short": _cut,
    "zeros": _zero,
    "part repeated": _repeat,
    "bytes inserted": _insert,
    "digit changed": _change_digit,
    "emptied": lambda content, chance: bytearray(),
    "other file": lambda content, chance: bytearray(b"\x93NUMPY other \x00 file"),
}
#: Other things in a file's place.
PLACES = ("missing", "folder", "fifo", "link to nowhere", "link to itself", "swapped")


def mutate(file: Path, others: list[Path], chance: random.Random) -> str:
    """Damage a file; says how. ``others`` are those that it may be swapped with."""
    others = [other for other in others if other != file]
    kind = chance.choice([*CONTENTS, *CONTENTS, *PLACES])
    if kind in CONTENTS:
        file.write_bytes(CONTENTS[kind](bytearray(file.read_bytes()), chance))
        return kind
    if kind == "swapped" and others:
        shutil.copy(chance.choice(others), file)
        return kind
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "link to nowhere":
        file.symlink_to("nowhere")
    elif kind == "link to itself":
        file.symlink_to(file.name)
    return kind
