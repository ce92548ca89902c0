"""One direction: what imports what, as docs/design.md says, function-level imports included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mlet"
#: Modules that say where something has gone.
GONE = {"experiments", "sweep"}


def order() -> list[set[str]]:
    """The layers of docs/design.md, lowest first; parts of one layer do not know each other."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert block, "docs/design.md has a block ```layers"
    return [set(line.split()) for line in block.group(1).splitlines()]


def modules(root: Path) -> dict[str, Path]:
    """Every module by its name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = ("mlet", *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of mlet that a file imports, wherever in it, but for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlet":
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def part(module: str) -> str:
    """The package, or the file, of mlet that a module belongs to."""
    return module.split(".")[1] if "." in module else "mlet"


def wrong_way(root: Path, layers: list[set[str]]) -> list[str]:
    """Imports that do not point to a lower layer."""
    known = modules(root)
    height = {name: place for place, layer in enumerate(layers) for name in layer}
    wrong = []
    for module, path in known.items():
        mine = part(module)
        if mine in GONE or module == "mlet":
            continue
        assert mine in height, f"{mine} has no place in docs/design.md"
        for other in imported(path, known):
            theirs = part(other)
            if theirs not in (mine, "mlet") and height[theirs] >= height[mine]:
                wrong.append(f"{module} imports {other}")
    return wrong


def circles(root: Path) -> list[str]:
    """Modules that import themselves by way of others."""
    known = modules(root)
    edges = {module: set(imported(path, known)) - {module} for module, path in known.items()}
    # A package's face names what is in it: that its files import each other is no circle.
    for module, path in known.items():
        if path.name == "__init__.py":
            edges[module] = {o for o in edges[module] if not o.startswith(f"{module}.")}
    # Unless one of them imports that face.
    found = [
        f"{module} -> {package} -> {module}"
        for module, others in edges.items()
        for package in others - {"mlet"}
        if module.startswith(f"{package}.")
    ]

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
            return
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, [*trail, module])
            done.add(module)

    done: set[str] = set()
    for module in known:
        visit(module, [])
    return found


def test_imports_point_one_way() -> None:
    assert wrong_way(SOURCE, order()) == []
    assert circles(SOURCE) == []


def test_every_layer_is_there() -> None:
    parts = {part(module) for module in modules(SOURCE)} - GONE - {"mlet"}
    assert set().union(*order()) == parts


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "high").mkdir()
    (tmp_path / "low" / "a.py").write_text("from mlet.high import b\n")
    (tmp_path / "high" / "b.py").write_text("def f():\n    from mlet.low.a import x\n")
    layers = [{"low"}, {"high"}]
    assert wrong_way(tmp_path, layers) == ["mlet.low.a imports mlet.high.b"]
    assert circles(tmp_path) == ["mlet.high.b -> mlet.low.a -> mlet.high.b"]
    (tmp_path / "high" / "__init__.py").write_text("from mlet.high.b import f\n")
    (tmp_path / "high" / "b.py").write_text("from mlet.high import f\n")
    (tmp_path / "low" / "a.py").write_text("x = 1\n")
    assert circles(tmp_path) == ["mlet.high.b -> mlet.high -> mlet.high.b"]
    (tmp_path / "high" / "b.py").write_text("def f():\n    from mlet.low.a import x\n")
    assert wrong_way(tmp_path, layers) == circles(tmp_path) == []


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
