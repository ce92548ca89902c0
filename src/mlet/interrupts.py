"""Ctrl-C, and what else ends a process politely, where it does no harm."""

from __future__ import annotations

import signal
import threading

#: SIGTERM is what batch systems and containers send, SIGHUP a terminal that closes.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def stop_politely() -> None:
    """Let other signals that end a process clean up as Ctrl-C does, unless they are ignored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in _SIGNALS[1:]:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)


class DeferredInterrupt:
    """Holds Ctrl-C and its like back until the work within reaches a point where it may stop.

    Only Python's main thread is told of signals; in any other nothing is held back.
    """

    def __init__(self) -> None:
        self._asked = False
        self._handles = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> DeferredInterrupt:
        if self._handles:
            # One that is ignored, as SIGHUP under nohup, stays so; and one that simply ends this
            # process, as SIGTERM a worker of a pool, which waits for it to be gone.
            plain = (signal.SIG_IGN, signal.SIG_DFL, None)
            heeded = [number for number in _SIGNALS if signal.getsignal(number) not in plain]
            self._before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether Ctrl-C was pressed since the work began."""
        return self._asked

    def raise_if_asked(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed since the work began."""
        if self._asked:
            raise KeyboardInterrupt
