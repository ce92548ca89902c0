"""Whether a process of this machine, that left something behind, still runs."""

from __future__ import annotations

import psutil

#: Seconds within which two readings of one process's start agree.
_SAME = 2.0


def started(process: int | None = None) -> float:
    """When a process began, this one by default: in seconds from the start of the machine.

    Both are read from the same clock, so that setting it changes nothing.

    Raises:
        psutil.NoSuchProcess, psutil.AccessDenied: it cannot be said.
    """
    return psutil.Process(process).create_time() - psutil.boot_time()


def is_alive(process: int, began: float) -> bool:
    """Whether a process of this machine runs.

    Neither one that ended and was not waited for does, nor a later one with the same number, as in
    a container that was started again.
    """
    try:
        ended = psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        return not ended and abs(started(process) - began) < _SAME
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
