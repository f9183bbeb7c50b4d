"""Functions that several processes run at once, as torchrun would start them, with one thread each and over gloo."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

# Forked from a process that has the slow imports behind it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "inference.video.vae", "flowcache.decider", "tests.tiny"])
SECONDS = 300


class Died:
    """What stands in the place of a result where the process ended without one."""

    def __init__(self, status: int | None) -> None:
        self.status = status


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function``, importable by name, returns on each of ``ranks`` processes; an exception as the object that
    was raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(ranks):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(rank, ranks, port, function, arguments, theirs))
        process.start()
        theirs.close()
        workers.append((process, ours))
    results = [_receive(process, connection) for process, connection in workers]
    for process, _ in workers:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
    return results


def _receive(process: Any, connection: Connection) -> Any:
    try:
        if connection.poll(SECONDS):
            return pickle.loads(connection.recv_bytes())
    except EOFError:
        process.join(SECONDS)
        return Died(process.exitcode)
    process.kill()
    raise TimeoutError(f"no result within {SECONDS} s")


def _work(
    rank: int, ranks: int, port: int, function: Callable[..., Any], arguments: tuple, connection: Connection
) -> None:
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    torch.set_num_threads(1)
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - handed to the test, whatever it is
        error.add_note(traceback.format_exc())
        result = error
    # As bytes: tensors would travel as shared memory, which ends with this process.
    connection.send_bytes(pickle.dumps(result))
