"""What a forward of the sampler attends to: the KV cache, or for an entry that stands alone, only its own tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from inference.kv_cache import KVCache
from inference.model.attention import attend_heads


@dataclass(frozen=True)
class Entry:
    """One chunk of a forward.

    ``role``: "window", a chunk being denoised; "clean", a given or finished one, encoded for its keys; "alone", one
    that sees its own tokens only and whose keys are not kept.
    """

    chunk: int
    key_start: int = 0
    role: Literal["window", "clean", "alone"] = "window"

    @property
    def alone(self) -> bool:
        return self.role == "alone"


class CachedAttention:
    """Attention context over a ``KVCache``: all entries write a layer's keys before any of them attends.

    Args:
        cache: where keys are kept.
        entries: the entries of the forward, in its order.
        backend: attention back end.
    """

    def __init__(self, cache: KVCache, entries: Sequence[Entry], backend: str) -> None:
        self.cache = cache
        self.entries = tuple(entries)
        self.backend = backend
        self._written = tuple(i for i, entry in enumerate(self.entries) if not entry.alone)
        self._noisy = [i for i in self._written if self.entries[i].role == "window"]
        if self._written != tuple(range(len(self._written))):
            raise ValueError(f"entries that stand alone must come last, got {self.entries}")
        for i in self._written:
            cache.enter(self.entries[i].chunk)
        if self._written:
            written = [self.entries[i] for i in self._written]
            cache.prepare([self._visible(entry) for entry in written], [cache.span(entry.chunk) for entry in written])

    def key_counts(self) -> tuple[int, ...]:
        """Keys that each entry attends to."""
        counts = []
        for entry in self.entries:
            start, end = (0, self.cache.geometry.chunk_tokens) if entry.alone else self._visible(entry)
            counts.append(end - start)
        return tuple(counts)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Iterator[Tensor]:
        """``q`` (E, N, H, d), fresh ``kv`` (E, N, G, 2d) to (N, H, d) of every entry, computed as they are taken."""
        if not self._written:
            yield from attend_heads(q, kv, self.backend)
            return
        for i in self._written:
            self.cache.write(layer, self.entries[i].chunk, kv[i])
        if self._noisy:
            newest = max(self._noisy, key=lambda i: self.entries[i].chunk)
            self.cache.keep_queries(layer, q[newest])
        for i, entry in enumerate(self.entries):
            keys = kv[i] if entry.alone else self.cache.view(layer, entry.chunk, entry.key_start)
            yield attend_heads(q[i : i + 1], keys[None], self.backend)[0]

    def _visible(self, entry: Entry) -> tuple[int, int]:
        return self.cache.visible(entry.chunk, entry.key_start)
