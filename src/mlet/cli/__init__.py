"""The command line: thin commands over the library, with no logic of their own."""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper

from mlet.cli.app import app
from mlet.cli.console import complain
from mlet.errors import MletError
from mlet.interrupts import stop_politely

__all__ = ["main"]


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning is one line, without the place in the code that gave it."""
    complain(f"warning: {message}")


def main() -> None:
    """Run ``mlet``; a problem the user can act on is one line on stderr and exit code 2."""
    stop_politely()
    if isinstance(sys.stdout, TextIOWrapper):
        # Signs that a terminal's encoding lacks, as of bars and of names, are shown as "?".
        sys.stdout.reconfigure(errors="replace")
    warnings.showwarning = _warn
    try:
        app(prog_name="mlet")
    except MletError as error:
        complain(f"error: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        complain(f"error: {place}{error.strerror or error}")
    sys.exit(2)
