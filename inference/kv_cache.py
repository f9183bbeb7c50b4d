"""Keys and values of the chunks of one video: memory per layer, written in place, read as one contiguous range.

This is the plain cache: it holds every chunk that a key window can still reach, and no other. ``flowcache`` derives one
of bounded size from it.
What a chunk may attend to is asked in chunks (``key_start``, from the schedule) and answered in tokens (``visible``).
Sources: docs/sampler.md, "KV cache" and "Which keys a chunk sees".
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.placement.kv_rows import DeviceRows, HostRows, Range, without
from inference.placement.packed_rows import PackedRows
from inference.placement.packing import packed_row_bytes
from inference.reuse import State
from inference.schedule import Schedule, Step


@dataclass(frozen=True)
class KVGeometry:
    """Sizes of a cache: layers, key/value groups, head width, tokens of a chunk and of a frame, dtype, device; query
    heads, which only the memory planned for the queries of a compressed cache depends on; ``offload``, whether the
    rows lie in host memory; and ``bits``, 8 or 4 where they are stored in fewer than those of the dtype.
    """

    layers: int
    groups: int
    head_width: int
    chunk_tokens: int
    frame_tokens: int
    dtype: torch.dtype
    device: torch.device
    heads: int = 0
    offload: bool = False
    bits: int | None = None

    @property
    def row_bytes(self) -> int:
        """Keys and values of one token in one group of a layer, as they are stored."""
        if self.bits is not None:
            return packed_row_bytes(self.bits, self.head_width)
        return 2 * self.head_width * self.dtype.itemsize

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, as they are stored."""
        return self.layers * self.groups * self.row_bytes

    def unpacked_bytes(self, chunks: int) -> int:
        """What a cache of fewer bits has besides its rows: one layer unpacked, and the grids of all keys."""
        if self.bits is None:
            return 0
        layer = chunks * self.chunk_tokens * self.groups * 2 * self.head_width * self.dtype.itemsize
        return layer + self.layers * chunks * 2 * self.groups * self.head_width * torch.float32.itemsize

    def make_rows(self) -> DeviceRows:
        """Where and how keys and values are kept; nothing is allocated."""
        kind = HostRows if self.offload else DeviceRows
        if self.bits is None:
            return kind(self.dtype, self.device)
        return PackedRows(kind(torch.uint8, self.device), self.bits, self.chunk_tokens, self.dtype)


class KVCache:
    """A window of chunks that moves along the video; chunk ``c`` lies at token ``(c - first) * chunk_tokens``.

    ``first``: the chunk at the beginning of the memory. With the whole history in view it stays chunk 0, and there is
    room for every chunk.
    """

    def __init__(self, geometry: KVGeometry) -> None:
        self.geometry = geometry
        self.rows = geometry.make_rows()
        self.first = 0
        self._newest = -1  # the last chunk that entered
        self._schedule: Schedule | None = None

    def reset(self, schedule: Schedule) -> None:
        """Make room for a new video and forget the last one."""
        self._schedule, self.first, self._newest = schedule, 0, -1
        self._allocate(self._capacity(schedule))

    @property
    def memory(self) -> Tensor:
        """All rows (layers, tokens, G, 2d), wherever they lie; in fewer bits packed (layers, tokens, G, R)."""
        return self.rows.memory

    @property
    def bytes(self) -> int:
        """Size of the memory held, all layers together."""
        return self.rows.bytes

    def planned_bytes(self, schedule: Schedule) -> int:
        """What the cache will hold of a video at most; nothing is allocated."""
        return self.planned_rows(schedule) + self.geometry.unpacked_bytes(self._capacity(schedule))

    def planned_rows(self, schedule: Schedule) -> int:
        """The keys and values among ``planned_bytes``."""
        return self._capacity(schedule) * self.geometry.chunk_tokens * self.geometry.bytes_per_token

    def end_early(self, schedule: Schedule) -> None:
        """The video ends before its time: ``schedule`` is that of its beginning, with fewer chunks."""
        self._schedule = schedule

    def enter(self, chunk: int) -> None:
        """Give ``chunk`` a place, where it has none; called before its first forward, in ascending order."""
        self._newest = max(chunk, self._newest)

    def span(self, chunk: int) -> tuple[int, int]:
        """Token range in which the keys of ``chunk`` are written; KeyError where it has no place."""
        start, size = (chunk - self.first) * self.geometry.chunk_tokens, self.geometry.chunk_tokens
        if not 0 <= start < self.memory.shape[1]:
            raise KeyError(f"chunk {chunk} has no place: the cache begins with chunk {self.first}")
        return start, start + size

    def visible(self, chunk: int, key_start: int) -> tuple[int, int]:
        """Token range that ``chunk`` attends to: the chunks from ``key_start`` up to itself."""
        return self.span(key_start)[0], self.span(chunk)[1]

    def prepare(self, read: Iterable[Range], written: Iterable[Range]) -> None:
        """A forward begins that reads and writes these token ranges of every layer, the written ones first."""
        self.rows.prepare(without(tuple(read), tuple(written)))

    def write(self, layer: int, chunk: int, kv: Tensor) -> None:
        """Store the keys and values ``(chunk_tokens, G, 2d)`` of a chunk."""
        self.rows.write(layer, self.span(chunk)[0], kv)

    def view(self, layer: int, chunk: int, key_start: int) -> Tensor:
        """Keys and values that ``chunk`` attends to, (tokens, G, 2d); a view of the memory, good until another layer is
        asked for.
        """
        start, end = self.visible(chunk, key_start)
        return self.rows.layer(layer)[start:end]

    def keep_queries(self, layer: int, q: Tensor) -> None:
        """Offered at every forward of the window: the queries (N, H, d) of its newest chunk. The plain cache has no
        use for them.
        """
        return None

    def compacts_after(self, step: Step) -> bool:
        """Whether ``end_step`` will move or drop tokens after this step."""
        return False

    def end_step(self, step: Step) -> None:
        """The step is integrated; room is made here, and only here."""
        schedule, newest = self._require_schedule(), step.window[-1].chunk
        room = self.memory.shape[1] // self.geometry.chunk_tokens
        if step.is_last or newest + 1 - self.first < room or newest + 1 == schedule.chunk_num:
            return
        following = schedule.step(step.number + 1)
        if following.window[-1].chunk > newest:
            self._move_to(schedule.first_reached(following), newest)

    def state(self) -> State:
        """What is kept of the video under way: the rows in use, on the CPU, and what they are."""
        return {"first": self.first, "newest": self._newest, "rows": self.rows.state(self._used())}

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken; after ``reset``."""
        self.first, self._newest = state["first"], state["newest"]
        self.rows.restore(state["rows"])

    def _used(self) -> int:
        """Tokens at the beginning of the memory that mean something, between two stages."""
        return 0 if self._newest < self.first else self.span(self._newest)[1]

    def _move_to(self, first: int, newest: int) -> None:
        """Forget the chunks before ``first`` and move the others, up to ``newest``, to the front."""
        size, by = self.geometry.chunk_tokens, first - self.first
        for layer in range(self.geometry.layers):
            self.rows.move(layer, by * size, self.span(newest)[1], 0)
        self.first = first

    def _capacity(self, schedule: Schedule) -> int:
        """Chunks that there is room for."""
        return schedule.chunks_reached

    def _require_schedule(self) -> Schedule:
        if self._schedule is None:
            raise RuntimeError("the cache was not reset for a video yet")
        return self._schedule

    def _allocate(self, chunks: int) -> None:
        g = self.geometry
        self.rows.allocate((g.layers, chunks * g.chunk_tokens, g.groups, 2 * g.head_width))
