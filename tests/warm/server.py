"""Run scripts in forks of one process that has imported what they need.

    python server.py SOCKET

Of a command that takes four seconds, three go into importing its libraries; the tests give many
hundred. A script that ``client.py`` sends here runs as it would under ``python SCRIPT``: in a
process of its own, with the client's arguments, folder, environment and open files; it is killed
if the client is, and the client ends as it ended.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

#: As much as the forked workers of a study import (see mlet/studies/processes.py), and what reports
#: and searches need. Not the CPU kernels: they use no threads in a fork of who imported them.
NEEDED = (
    "mlet.cli.app", "mlet.training", "mlet.studies", "numba", "sklearn.metrics", "torch._dynamo",
    "optuna", "sqlalchemy.orm", "matplotlib.figure",
)  # fmt: skip


def serve(listening: socket.socket) -> None:
    """Until nobody is there any more to ask: the process that started it has ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        if not select.select([listening], [], [], 1)[0]:
            continue
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _run_for(client)
        client.close()


def _run_for(client: socket.socket) -> NoReturn:
    """In a process between server and script: tell the client how the script ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
    request = json.loads(text)
    script = os.fork()
    if script == 0:
        client.close()
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        _become(request)
    ended = os.pidfd_open(script)
    if client in select.select([ended, client], [], [])[0]:  # it says nothing more: it is gone
        os.kill(script, signal.SIGKILL)
    _, status = os.waitpid(script, 0)
    client.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> NoReturn:
    script, *arguments = request["arguments"]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As at the end of multiprocessing's forks: without taking all that was imported apart, which
    # lasts longer than most scripts.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    gc.freeze()  # forks share it unless it is looked through
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who stands between is not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(sys.argv[1])
        listening.listen(64)
        print("ready", flush=True)
        serve(listening)
