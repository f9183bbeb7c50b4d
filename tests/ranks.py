"""Functions that several processes run at once, as torchrun would start them, with one thread each and over gloo.

As a program: -m tests.ranks MODULE FUNCTION RESULT, the arguments pickled on standard input; what one rank does.
"""

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from tests.warm.start import warm_python

SECONDS = 300


class Died:
    """What stands in the place of a result where the process ended without one."""

    def __init__(self, status: int) -> None:
        self.status = status


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function``, importable by name, returns on each of ``ranks`` processes; an exception as the object that
    was raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    together |= {"TORCHELASTIC_RUN_ID": "test"}
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder, str(rank)) for rank in range(ranks)]
        processes = []
        for rank, result in enumerate(results):
            own = together | {"RANK": rank, "LOCAL_RANK": rank}
            process = subprocess.Popen(
                [warm_python(), "-m", "tests.ranks", function.__module__, function.__name__, str(result)],
                env=os.environ | {name: str(value) for name, value in own.items()},
                stdin=subprocess.PIPE,
                cwd=ROOT,
            )
            process.stdin.write(pickle.dumps(arguments))
            process.stdin.close()
            processes.append(process)
        try:
            statuses = [process.wait(SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [
            pickle.loads(result.read_bytes()) if result.exists() else Died(status)
            for result, status in zip(results, statuses, strict=True)
        ]


def main(module: str, function: str, result: str) -> None:
    try:
        value = getattr(importlib.import_module(module), function)(*pickle.load(sys.stdin.buffer))
    except BaseException as error:  # noqa: BLE001 - handed to the test, whatever it is
        error.add_note(traceback.format_exc())
        value = error
    # Under another name until it is whole: what is there was returned.
    part = Path(result).with_suffix(".part")
    part.write_bytes(pickle.dumps(value))
    part.rename(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
