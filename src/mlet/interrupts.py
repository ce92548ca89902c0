"""Ctrl-C where it does no harm."""

from __future__ import annotations

import signal
import threading


class DeferredInterrupt:
    """Holds Ctrl-C back until the work within reaches a point where it may stop.

    Only Python's main thread is told of signals; in any other nothing is held back.
    """

    def __init__(self) -> None:
        self._asked = False
        self._handles = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> DeferredInterrupt:
        if self._handles:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def raise_if_asked(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed since the work began."""
        if self._asked:
            raise KeyboardInterrupt
