"""A worker: claims samples, makes those that are not there, until every sample is made or given up.

(docs/sampling.md, "Workers")
"""

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore
from tqdm import tqdm

from harness.device import choose_device
from harness.json_files import save_json
from sampling.job import Job
from sampling.maker import SampleMaker
from sampling.queue import DONE, GIVEN_UP, KEPT, Heartbeat, QueueState, SampleQueue
from sampling.task import SampleTask
from sampling.verify import check_sample, later_prompts

logger = logging.getLogger(__name__)

# Seconds between two looks at the queue while others have the last samples.
PAUSE = 0.5
LONGEST_BEAT = 5.0
LONGEST_ERROR = 2000
STORE_TIMEOUT = timedelta(seconds=60)
# Errors after which a process is as good as new. Others, say of a GPU kernel, may leave it broken.
HARMLESS = (ValueError, OSError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Place:
    """Where among the workers this one is, as ``torchrun`` tells its processes."""

    rank: int
    local_rank: int
    store_host: str
    store_port: int

    @classmethod
    def from_environment(cls) -> "Place":
        """ValueError outside of torchrun."""
        try:
            values = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
        except KeyError as error:
            raise ValueError(f"{error} is not set: workers are started by scripts/sample.py, or by torchrun") from None
        return cls(int(values[0]), int(values[1]), values[2], int(values[3]))

    def connect(self) -> TCPStore:
        """A connection to the store, which torchrun's agent hosts: it outlives every worker."""
        return TCPStore(
            self.store_host, self.store_port, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT
        )


def worker_name(rank: int, pid: int) -> str:
    """Unlike that of any other process that takes part, also where machines have the same name."""
    return f"{socket.gethostname()}-{rank}-{pid}"


def work(job: Job, place: Place, died: int | None = None) -> bool:
    """Make samples until none is left. False where this process should be replaced by a fresh one.

    Args:
        job: what to make.
        place: which worker this is.
        died: process number of the worker of this place before this one, whose sample is free at once.

    Raises what loading the models raises, and ``RuntimeError`` where the store is gone.
    """
    name, store = worker_name(place.rank, os.getpid()), place.connect()
    settings = {"attempts": job.run.attempts, "lease": job.run.lease_seconds}
    queue = SampleQueue(store, name, len(job.tasks), plan_digest(job), failure_writer(job, name), **settings)
    if died is not None:
        queue.lost(worker_name(place.rank, died))
    period = min(LONGEST_BEAT, job.run.lease_seconds / 5)
    parent = os.getppid()
    progress = Progress(len(job.tasks)) if place.rank == 0 else None

    def on_beat(state: QueueState) -> None:
        if progress is not None:
            progress.show(state)
        if os.getppid() != parent:
            leave("the process that started it is gone")

    def leave(reason: object) -> None:
        logger.error("worker %s stops: %s", name, reason)
        os._exit(1)

    with Heartbeat(place.connect(), name, period, on_beat, leave):
        sound = make_samples(job, queue, lambda: SampleMaker(job, pick_device(job, place), name))
    if progress is not None:
        progress.show(queue.state)
        progress.close()
    return sound


def make_samples(job: Job, queue: SampleQueue, load: Callable[[], SampleMaker]) -> bool:
    """The loop of a worker. Models are loaded once, when the first sample is to be made."""
    maker = None
    while True:
        number = queue.claim()
        if number is None:
            if queue.state.finished:
                return True
            time.sleep(PAUSE)
            continue
        task = job.tasks[number]
        finding = check_sample(job, task)
        if finding is None:
            queue.finish(made=False)
        elif finding.kind == "foreign":
            queue.fail(finding.reason)
        else:
            maker = maker or load()
            error = attempt(maker, task)
            if error is None:
                queue.finish(made=True)
            else:
                queue.fail(f"{type(error).__name__}: {error}")
                if not isinstance(error, HARMLESS):
                    return False


def attempt(maker: SampleMaker, task: SampleTask) -> Exception | None:
    """Make a sample; gives what went wrong, whatever it is, so that the others are made."""
    try:
        maker.make(task)
    except Exception as error:
        logger.exception("%s failed", task.path)
        return error
    return None


def pick_device(job: Job, place: Place) -> torch.device:
    """The configured device; "auto" gives the GPUs of a machine to its workers in turn."""
    if job.run.device == "auto" and torch.cuda.is_available():
        return torch.device("cuda", place.local_rank % torch.cuda.device_count())
    return choose_device(job.run.device)


def plan_digest(job: Job) -> str:
    """The samples and the settings of their videos as one short text."""
    tasks = [(str(task.path), task.prompt, task.identity, task.seed, later_prompts(task)) for task in job.tasks]
    settings = [job.model.to_json_dict(full=True), {**job.method.to_json_dict(), "source": None}]
    digest = hashlib.sha256(json.dumps([tasks, settings], sort_keys=True).encode("utf-8", "surrogatepass"))
    return f"{len(tasks)} samples, {digest.hexdigest()[:16]}"


def failure_writer(job: Job, name: str) -> Callable[[int, int, str], None]:
    """Keeps the error of each attempt as a file until the launcher sums them up: the store ends with it."""

    def write(sample: int, attempt: int, error: str) -> None:
        folder = job.private / "errors"
        folder.mkdir(parents=True, exist_ok=True)
        contents: dict[str, Any] = {
            "path": str(job.tasks[sample].path),
            "attempt": attempt,
            "error": error[:LONGEST_ERROR],
            "reported_by": name,
        }
        save_json(folder / f"{sample:06d}-{attempt}.json", contents)

    return write


class Progress:
    """The bar over all workers. What was there before it began does not count into the speed."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="sample", dynamic_ncols=True, smoothing=0)
        self._earlier: int | None = None  # done before this worker, which may have replaced a dead one

    def show(self, state: QueueState) -> None:
        kept, failed = state.count(KEPT), state.count(GIVEN_UP)
        ended = state.count(DONE) + failed
        self._earlier = ended if self._earlier is None else self._earlier
        self._bar.initial = kept + self._earlier
        self._bar.n = kept + ended
        self._bar.set_postfix({"there before": kept, "given up": failed, "working": len(state.claims)}, refresh=True)

    def close(self) -> None:
        self._bar.close()
