"""The queue of samples: every one is made once, whatever happens to the workers."""

import itertools
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore

from sampling.queue import DONE, GIVEN_UP, KEPT, Heartbeat, QueueState, SampleQueue


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Failures:
    """Keeps what is reported as failed."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, str]] = []

    def __call__(self, sample: int, attempt: int, error: str) -> None:
        self.seen.append((sample, attempt, error))


@pytest.fixture
def store() -> HashStore:
    return HashStore()


def queue(
    store: HashStore | TCPStore,
    worker: str,
    total: int = 3,
    plan: str = "plan",
    failures: Failures | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SampleQueue:
    return SampleQueue(store, worker, total, plan, failures or Failures(), attempts=3, lease=10, clock=clock)


def test_each_sample_goes_to_one_worker(store: HashStore) -> None:
    first, second = queue(store, "a"), queue(store, "b")
    assert [first.claim(), second.claim()] == [0, 1]
    first.finish(made=True)
    assert first.claim() == 2
    assert second.state.marks == "dcc"
    second.finish(made=False)
    assert second.claim() is None and not second.state.finished
    first.finish(made=True)
    assert first.claim() is None and first.state.finished
    assert first.state.marks == "dkd" and (first.state.count(DONE), first.state.count(KEPT)) == (2, 1)


def test_a_worker_has_one_sample_at_a_time(store: HashStore) -> None:
    worker = queue(store, "a")
    worker.claim()
    with pytest.raises(ValueError, match="worker a already has sample 0"):
        worker.claim()


def test_a_failed_sample_comes_last_and_is_given_up_after_three_attempts(store: HashStore) -> None:
    failures = Failures()
    worker = queue(store, "a", failures=failures)
    order = []
    while (sample := worker.claim()) is not None:
        order.append(sample)
        if sample == 0:
            worker.fail(f"broken {order.count(0)}")
        else:
            worker.finish(made=True)
    assert order == [0, 1, 2, 0, 0]
    assert worker.state.marks == "xdd" and worker.state.finished and worker.state.count(GIVEN_UP) == 1
    assert failures.seen == [(0, 1, "broken 1"), (0, 2, "broken 2"), (0, 3, "broken 3")]


def test_a_silent_worker_loses_its_sample_after_the_lease(store: HashStore) -> None:
    clock, failures = Clock(), Failures()
    dead, alive = queue(store, "dead"), queue(store, "alive", failures=failures, clock=clock)
    assert dead.claim() == 0
    for sample in (1, 2):
        assert alive.claim() == sample
        alive.finish(made=True)
        clock.now += 4
    assert alive.claim() is None and not alive.state.finished  # silent for 8 s of the 10
    clock.now += 3
    assert alive.claim() == 0
    assert failures.seen == [(0, 1, "worker dead died or was lost")]
    alive.finish(made=True)
    assert alive.state.finished
    dead.finish(made=True)  # it was only slow: nothing changes, the file is the same
    dead.fail("too late")
    assert alive.state.marks == "ddd"


def test_a_beating_worker_keeps_its_sample(store: HashStore) -> None:
    clock = Clock()
    slow, other = queue(store, "slow", total=1), queue(store, "other", total=1, clock=clock)
    slow.claim()
    for _ in range(10):
        clock.now += 8
        store.add("sampling/beat/slow", 1)
        assert other.claim() is None
    assert "slow" in other.state.claims


def test_a_death_that_is_known_frees_the_sample_at_once(store: HashStore) -> None:
    failures = Failures()
    queue(store, "old").claim()
    new = queue(store, "new", failures=failures)
    new.lost("old")
    new.lost("never seen")
    assert failures.seen == [(0, 1, "worker old died or was lost")]
    assert new.state.marks == "100" and new.claim() == 1  # what was lost once comes after what never failed


def test_a_sample_that_kills_its_workers_is_given_up(store: HashStore) -> None:
    for generation in range(3):
        worker = queue(store, str(generation), total=1)
        if generation:
            worker.lost(str(generation - 1))
        assert worker.claim() == 0
    last = queue(store, "last", total=1)
    last.lost("2")
    assert last.claim() is None and last.state.marks == "x"


def test_workers_with_another_plan_are_refused(store: HashStore) -> None:
    queue(store, "a", plan="3 samples, 0123")
    with pytest.raises(ValueError, match=r"do not agree.*3 samples, 4567, another's is 3 samples, 0123"):
        queue(store, "b", plan="3 samples, 4567")


def test_a_queue_goes_on_where_its_store_does(store: HashStore) -> None:
    first = queue(store, "a")
    first.claim()
    first.finish(made=True)
    assert queue(store, "b").claim() == 1


def test_the_state_survives_writing() -> None:
    state = QueueState.fresh(12).claim("a").fail("a", 3).claim("b")
    assert QueueState.read(state.write()) == state
    assert (state.marks, state.claims) == ("1c" + "0" * 10, {"b": (1, 0)})


def test_many_workers_at_once_make_every_sample_once() -> None:
    """Eight threads, each with a connection of its own to a real store."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    made: list[list[int]] = [[] for _ in range(8)]

    def run(number: int) -> None:
        client = TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
        worker = queue(client, f"w{number}", total=100)
        while (sample := worker.claim()) is not None:
            made[number].append(sample)
            worker.finish(made=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain.from_iterable(made)) == list(range(100))
    assert queue(server, "last", total=100).state.finished


def test_a_heartbeat_is_seen_and_stops() -> None:
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    queue(server, "a", total=2)
    beats: list[QueueState] = []
    enough = threading.Event()

    def on_beat(state: QueueState) -> None:
        beats.append(state)
        if len(beats) == 3:
            enough.set()

    with Heartbeat(server, "a", 0.01, on_beat, pytest.fail):
        assert enough.wait(20)
    count = server.add("sampling/beat/a", 0)
    assert count == len(beats) >= 3 and beats[0].marks == "00"
