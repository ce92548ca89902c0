"""Names for what may come from outside code: models, compression methods, readers, tasks.

What mlet brings along registers with a decorator when it is imported; a package may offer more as
entry points, and anything importable has the name ``package.module:Class``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from mlet.errors import ConfigError

#: ``package.module:Class``.
_IMPORTABLE = re.compile(r"[\w.]+:[\w.]+")

T = TypeVar("T")
Registered = TypeVar("Registered")


class UnknownName(ConfigError, ValueError, KeyError):
    """There is nothing of that name: a problem of settings, of a value, and of a mapping's key."""

    __str__ = ConfigError.__str__  # a KeyError shows its text in quotes


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name.

    Args:
        kind: what they are, for errors: ``model``.
        group: of the entry points: ``mlet.models``.
        has: the attribute that tells such a thing from others.
    """

    def __init__(self, kind: str, group: str, has: str = "__call__") -> None:
        self._kind, self._group, self._has = kind, group, has
        self._own: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that gives something its name.

        Raises:
            ValueError: another thing has that name.
        """

        def add(thing: Registered) -> Registered:
            if name in self._own:
                raise ValueError(f"there is a {self._kind} {name!r} already")
            self._own[name] = thing  # type: ignore[assignment]
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing of a name, imported if need be.

        Raises:
            UnknownName: there is none.
            ConfigError: it is offered, but cannot be imported.
        """
        if name in self._own:
            return self._own[name]
        offered = [*entry_points(group=self._group, name=name)]
        if _IMPORTABLE.fullmatch(name):
            offered.append(EntryPoint(name, name, self._group))
        for point in offered:
            source = "" if point.value == name else f" ({point.value})"
            try:
                found: T = point.load()
            except Exception as error:  # whatever the module does when it is imported
                raise ConfigError(
                    f"{self._kind} {name!r}{source} cannot be imported: {error}"
                ) from error
            if not hasattr(found, self._has):
                raise ConfigError(f"{self._kind} {name!r}{source} is no {self._kind}")
            return found
        near = difflib.get_close_matches(name, list(self), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownName(
            f"no {self._kind} {name!r}; {hint}there are: {', '.join(self)}, and any class as "
            f"package.module:Class"
        )

    def __iter__(self) -> Iterator[str]:
        """All names but those of the form ``package.module:Class``."""
        yield from self._own
        offered = dict.fromkeys(point.name for point in entry_points(group=self._group))
        yield from (name for name in offered if name not in self._own)

    def __len__(self) -> int:
        return len(list(iter(self)))
