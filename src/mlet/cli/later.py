"""Commands that are imported when they are called: ``mlet --help`` is there at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Later(NamedTuple):
    """Where a command is, and its first sentence.

    Attributes:
        place: ``module:function``, or ``module:app`` of what has commands of its own.
        summary: what its help begins with.
    """

    place: str
    summary: str


class StandIn(TyperCommand):
    """Stands for a command until it is called, or asked for its own help."""

    def __init__(self, name: str, later: Later) -> None:
        super().__init__(name, help=later.summary, rich_markup_mode="markdown")
        self._place = later.place

    def make_context(self, *args: Any, **options: Any) -> Any:
        """That of the command itself, which is then what runs."""
        return self.load().make_context(*args, **options)

    def load(self) -> Any:
        """The command itself."""
        module, _, name = self._place.partition(":")
        found: Any = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            app.command(name=self.name)(found)
            found = app
        command = typer.main.get_command(found)
        command.name = self.name
        return command


class LaterGroup(TyperGroup):
    """A group of the commands that a subclass names in ``later``, in their order."""

    later: ClassVar[dict[str, Later]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: StandIn(name, later) for name, later in self.later.items()}
