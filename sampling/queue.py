"""Which sample a worker makes next: one queue for all workers, in a store that none of them hosts.

The whole state is one small text in the store. A change is a pure function of it, applied by compare-and-set: a worker
that dies at any moment has either made its change or not. A worker that shows no sign of life loses its sample to
another; signs of life are counters, so that the clocks of machines need not agree. (docs/sampling.md, "Workers")
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

STATE = "sampling/state"
BEAT = "sampling/beat/"
CLAIMED, DONE, KEPT, GIVEN_UP = "c", "d", "k", "x"


@dataclass(frozen=True)
class QueueState:
    """Where every sample stands.

    Attributes:
        marks: one character per sample: a digit (waiting, with so many failed attempts), claimed, done, kept (found
            there already) or given up.
        claims: the worker's name, its sample, and that sample's failed attempts.
    """

    marks: str
    claims: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, total: int) -> "QueueState":
        return cls("0" * total)

    @classmethod
    def read(cls, text: str) -> "QueueState":
        values = json.loads(text)
        claims = {worker: (sample, failed) for worker, (sample, failed) in values["claims"].items()}
        return cls(values["marks"], claims)

    def write(self) -> str:
        return json.dumps({"marks": self.marks, "claims": self.claims})

    def count(self, mark: str) -> int:
        return self.marks.count(mark)

    @property
    def finished(self) -> bool:
        """Whether nothing is waiting and nobody is at work."""
        return all(mark in (DONE, KEPT, GIVEN_UP) for mark in self.marks)

    def claim(self, worker: str) -> "QueueState":
        """Give the worker the first of the samples that failed least often; unchanged where none is waiting."""
        if worker in self.claims:
            raise ValueError(f"worker {worker} already has sample {self.claims[worker][0]}")
        waiting = [mark for mark in self.marks if mark.isdigit()]
        if not waiting:
            return self
        failed = min(waiting)
        sample = self.marks.index(failed)
        return self._mark(sample, CLAIMED, {**self.claims, worker: (sample, int(failed))})

    def finish(self, worker: str, mark: str) -> "QueueState":
        """The worker's sample is there; unchanged where it lost its claim, as another has the sample now."""
        if worker not in self.claims:
            return self
        sample, _ = self.claims[worker]
        return self._mark(sample, mark, self._without(worker))

    def fail(self, worker: str, attempts: int) -> "QueueState":
        """The worker's attempt failed; the sample waits again, or is given up after so many attempts."""
        if worker not in self.claims:
            return self
        sample, failed = self.claims[worker]
        mark = str(failed + 1) if failed + 1 < attempts else GIVEN_UP
        return self._mark(sample, mark, self._without(worker))

    def _mark(self, sample: int, mark: str, claims: dict[str, tuple[int, int]]) -> "QueueState":
        return QueueState(self.marks[:sample] + mark + self.marks[sample + 1 :], claims)

    def _without(self, worker: str) -> dict[str, tuple[int, int]]:
        return {name: claim for name, claim in self.claims.items() if name != worker}


class Store(Protocol):
    """What is used of a ``torch.distributed.Store``."""

    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class SampleQueue:
    """A worker's view of the queue.

    Args:
        store: shared by all workers, hosted by none.
        worker: its name, unlike that of any other process, earlier ones included.
        total: how many samples there are.
        plan: says what the samples are; all workers must bring the same.
        on_failure: called with a sample, the number of its attempt and the error, before this is in the queue.
        attempts: after so many failures a sample is given up.
        lease: seconds without a sign of life after which a worker counts as dead.
        clock: seconds, for the lease.

    Raises ValueError where the queue in the store is of another plan.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        total: int,
        plan: str,
        on_failure: Callable[[int, int, str], None],
        *,
        attempts: int = 3,
        lease: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.worker, self.attempts, self.on_failure = store, worker, attempts, on_failure
        self._watch = LifeWatch(store, lease, clock)
        found = store.compare_set("sampling/plan", "", plan).decode()
        if found != plan:
            raise ValueError(
                f"the workers do not agree on what to sample (plan {plan}, another's is {found}): do all machines have "
                "the same configuration, prompts and data?"
            )
        store.compare_set(STATE, "", QueueState.fresh(total).write())

    @property
    def state(self) -> QueueState:
        return QueueState.read(self.store.get(STATE).decode())

    def claim(self) -> int | None:
        """The number of a sample that is now this worker's; None where none is waiting at the moment."""
        for worker in self._watch.dead(set(self.state.claims) - {self.worker}):
            self.lost(worker)
        return self._change(lambda state: state.claim(self.worker)).claims.get(self.worker, (None, 0))[0]

    def finish(self, *, made: bool) -> None:
        """The claimed sample is there: made by this worker, or found."""
        self._change(lambda state: state.finish(self.worker, DONE if made else KEPT))

    def fail(self, error: str) -> None:
        """This attempt at the claimed sample failed."""
        self._failed(self.worker, error)

    def lost(self, worker: str) -> None:
        """Another worker is dead: its attempt failed, so that a sample that kills its workers is given up too."""
        self._failed(worker, f"worker {worker} died or was lost")

    def _failed(self, worker: str, error: str) -> None:
        sample, failed = self.state.claims.get(worker, (None, 0))
        if sample is not None:
            self.on_failure(sample, failed + 1, error)
            self._change(lambda state: state.fail(worker, self.attempts))

    def _change(self, change: Callable[[QueueState], QueueState]) -> QueueState:
        """Apply ``change`` to the state as it is in the store, again while others come first."""
        text = self.store.get(STATE).decode()
        while True:
            state = change(QueueState.read(text))
            wanted = state.write()
            if wanted == text:
                return state
            found = self.store.compare_set(STATE, text, wanted).decode()
            if found == wanted:
                return state
            text = found


class LifeWatch:
    """Who has shown no sign of life for ``lease`` seconds of this process's own clock."""

    def __init__(self, store: Store, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._lease, self._clock = store, lease, clock
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, workers: set[str]) -> list[str]:
        now = self._clock()
        for worker in workers:
            beats = self._store.add(BEAT + worker, 0)
            if worker not in self._seen or self._seen[worker][0] != beats:
                self._seen[worker] = (beats, now)
        return sorted(worker for worker in workers if now - self._seen[worker][1] > self._lease)


class Heartbeat:
    """Context manager: a thread that shows the signs of life of a worker, and calls ``on_beat`` each time.

    Args:
        store: a connection of its own, since a connection serves one call at a time.
        worker: whose life it shows.
        period: seconds between two signs, well below the lease.
        on_beat: called with the state of the queue.
        on_lost: called once where the store is gone.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        period: float,
        on_beat: Callable[[QueueState], Any],
        on_lost: Callable[[Exception], Any],
    ) -> None:
        self._store, self._worker, self._period = store, worker, period
        self._on_beat, self._on_lost = on_beat, on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._store.add(BEAT + self._worker, 1)
                state = QueueState.read(self._store.get(STATE).decode())
            except RuntimeError as error:  # what torch raises of a lost connection
                self._on_lost(error)
                return
            self._on_beat(state)
            self._stop.wait(self._period)
