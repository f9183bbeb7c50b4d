"""Starting the worker: a fresh Python, so that nothing of the server's is in it, and a pipe to it."""

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from inference.config import MagiConfig


def spawn_worker(config: MagiConfig, config_file: str, device: str) -> tuple[BaseProcess, Connection]:
    """The process, and the server's end of its pipe, which is closed from the other end when the process ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_enter, args=(theirs, config, config_file, device), name="worker", daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _enter(pipe: Connection, config: MagiConfig, config_file: str, device: str) -> None:
    # Here, so that only the worker imports torch.
    from serving.worker import work

    work(pipe, config, config_file, device)
