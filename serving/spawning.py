"""Starting the worker: fresh Pythons, so that nothing of the server's is in them, and a pipe to the first one.

For several GPUs there is a process of each, which meet as those that torchrun starts do (docs/parallel.md).
"""

import multiprocessing
import os
import secrets
import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from inference.config import MagiConfig

# So long the first process has to say what it knows of another one's end, before it is ended too.
SECONDS_TO_TELL = 10


@dataclass(frozen=True)
class Worker:
    """The processes of a worker, the first of which talks through ``pipe``; that is closed when it ends."""

    processes: list[BaseProcess]
    pipe: Connection

    @property
    def first(self) -> BaseProcess:
        return self.processes[0]

    def end(self, patience: float = 0) -> None:
        """End them all, by force where they take longer than ``patience`` seconds."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        for process in self.processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
                process.join()


def spawn_worker(config: MagiConfig, config_file: str, device: str, ranks: int = 1) -> Worker:
    """A worker of ``ranks`` processes, which load the models and then wait for orders."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    places = [{}] if ranks == 1 else rank_places(ranks)
    processes = []
    for rank, place in enumerate(places):
        arguments = (theirs if rank == 0 else None, config, config_file, device, place)
        processes.append(context.Process(target=_enter, args=arguments, name=f"worker-{rank}", daemon=True))
        processes[-1].start()
    theirs.close()
    return Worker(processes, ours)


def rank_places(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each of ``ranks`` processes of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": f"serve-{secrets.token_hex(4)}"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _enter(pipe: Connection | None, config: MagiConfig, config_file: str, device: str, place: dict[str, str]) -> None:
    os.environ.update(place)
    # Here, so that only the worker imports torch.
    from serving.worker import work

    work(pipe, config, config_file, device)
