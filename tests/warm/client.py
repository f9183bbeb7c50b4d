"""What stands for ``python`` in ``tests/warm/start.py``: client.py SOCKET [ARGUMENTS OF PYTHON]

Standard library only, and little of it: this is started for every program.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys

RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(address: str, *arguments: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)  # until it is known to whom they go
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "number": os.getpid(),
        "largest_file": resource.getrlimit(resource.RLIMIT_FSIZE),
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(body)
        answers = server.makefile("r", encoding="ascii")
        program = int(answers.readline() or sys.exit("the warm Python is gone"))
        for number in RELAYED:
            signal.signal(number, lambda number, _: relay(program, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELAYED)
        status = int(answers.readline() or sys.exit("the warm Python is gone"))
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def relay(program: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(program, number)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
