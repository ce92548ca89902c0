"""Which signals wait for a harmless moment, and which end a process at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from mlet.interrupts import DeferredInterrupt, stop_politely
number = int(sys.argv[1])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # even where the tests run under nohup
if sys.argv[2] == "command":
    stop_politely()
if sys.argv[2] == "ignoring":
    signal.signal(number, signal.SIG_IGN)
try:
    with DeferredInterrupt() as interrupt:
        os.kill(os.getpid(), number)
        print("held back", flush=True)
        interrupt.raise_if_asked()
    print("went on", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "kind", "said", "code"),
    [
        (signal.SIGINT, "command", ["held back", "stopped"], 0),
        (signal.SIGTERM, "command", ["held back", "stopped"], 0),
        (signal.SIGHUP, "command", ["held back", "stopped"], 0),
        (signal.SIGINT, "worker", ["held back", "stopped"], 0),
        # A pool that ends its workers waits until they are gone.
        (signal.SIGTERM, "worker", [], -signal.SIGTERM),
        (signal.SIGHUP, "worker", [], -signal.SIGHUP),
        (signal.SIGTERM, "ignoring", ["held back", "went on"], 0),
    ],
)
def test_signals(number: signal.Signals, kind: str, said: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), kind], capture_output=True, text=True
    )
    assert (done.stdout.split("\n")[:-1], done.returncode) == (said, code)
