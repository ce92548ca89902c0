"""``python -S client.py SOCKET SCRIPT [ARGUMENT ...]``: have server.py run a script."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(sys.argv[1])
    request = {
        "arguments": sys.argv[2:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    code = int(server.recv(64) or 1)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
