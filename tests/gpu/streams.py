"""CUDA streams and events as vector clocks: which of two accesses is known to come first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Clock = dict[str, int]


class Stream:
    """Work of one stream is ordered; of another it sees what it was told to wait for."""

    def __init__(self, queue: "Streams", name: str) -> None:
        self.queue, self.name, self.clock = queue, name, Clock({name: 0})

    def tick(self) -> None:
        """Something is asked of this stream."""
        self.clock[self.name] += 1

    def merge(self, clock: Clock) -> None:
        for name, value in clock.items():
            self.clock[name] = max(self.clock.get(name, 0), value)

    def wait_stream(self, other: "Stream") -> None:
        self.merge(other.clock)

    def wait_event(self, event: "Event") -> None:
        self.merge(event.clock)

    def record_event(self) -> "Event":
        return Event(self.queue, dict(self.clock))

    def synchronize(self) -> None:
        self.queue.waits += 1


@dataclass
class Event:
    queue: "Streams"
    clock: Clock

    def synchronize(self) -> None:
        self.queue.waits += 1


@dataclass(frozen=True)
class Access:
    """One kernel's use of a range of bytes of a storage."""

    start: int
    end: int
    stream: str
    time: int
    write: bool
    where: str


class Streams:
    """All streams of a device, and who used which memory when; ``races`` are accesses that nothing orders."""

    def __init__(self) -> None:
        self.main = Stream(self, "main")
        self.stack = [self.main]
        self.count, self.waits = 1, 0
        self.seen: dict[int, list[Access]] = {}
        self.races: set[tuple[str, str]] = set()

    def new(self, device: object = None) -> Stream:
        self.count += 1
        return Stream(self, f"side {self.count}")

    def current(self, device: object = None) -> Stream:
        return self.stack[-1]

    @contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        self.stack.append(stream)
        try:
            yield
        finally:
            self.stack.pop()

    def touch(self, storage: int, start: int, end: int, write: bool, where: str) -> None:
        """The kernel just asked of the current stream uses these bytes."""
        stream = self.current()
        kept = []
        for other in self.seen.get(storage, ()):
            overlap = start < other.end and other.start < end
            unordered = other.stream != stream.name and stream.clock.get(other.stream, 0) < other.time
            if overlap and unordered and (write or other.write):
                self.races.add((where, other.where))
            covered = other.stream == stream.name and other.write == write and start <= other.start and other.end <= end
            if not covered:
                kept.append(other)
        self.seen[storage] = [*kept[-63:], Access(start, end, stream.name, stream.clock[stream.name], write, where)]

    def forget(self, storage: int) -> None:
        """The memory is new, or freed."""
        self.seen.pop(storage, None)
