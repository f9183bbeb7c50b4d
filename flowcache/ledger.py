"""Which chunk lies where in a bounded KV buffer: pure Python, no torch.

The buffer holds the kept tokens of compressed chunks first, then whole chunks in the order in which they entered.
Every token range that the cache reads or writes is computed here.

Source: docs/flowcache.md, "When the cache is compressed" and "What a chunk sees after a compression".
"""

from typing import Any


class Ledger:
    """Places in a buffer of ``capacity_chunks`` times ``chunk_tokens`` tokens."""

    def __init__(self, capacity_chunks: int, chunk_tokens: int) -> None:
        self.capacity = capacity_chunks * chunk_tokens
        self.chunk_tokens = chunk_tokens
        self.kept = 0  # tokens at the start of the buffer that remain of compressed chunks
        self.whole: list[int] = []  # chunks stored whole, in buffer order

    def state(self) -> dict[str, int | list[int]]:
        return {"kept": self.kept, "whole": list(self.whole)}

    def restore(self, state: dict[str, Any]) -> None:
        self.kept, self.whole = state["kept"], list(state["whole"])

    @property
    def used(self) -> int:
        return self.kept + len(self.whole) * self.chunk_tokens

    @property
    def full(self) -> bool:
        """No room for another whole chunk."""
        return self.used + self.chunk_tokens > self.capacity

    def enter(self, chunk: int) -> None:
        """Give ``chunk`` the next place; nothing happens where it has one. Chunks enter in ascending order."""
        if chunk in self.whole:
            return
        if self.whole and chunk < self.whole[-1]:
            raise ValueError(f"chunk {chunk} enters after chunk {self.whole[-1]}, or was already compressed")
        if self.full:
            raise ValueError(
                f"no room for chunk {chunk}: {self.used} of {self.capacity} tokens are in use and a chunk needs "
                f"{self.chunk_tokens}; raise total_cache_chunk_nums"
            )
        self.whole.append(chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        """Token range of a whole chunk; KeyError where it is not stored whole."""
        if chunk not in self.whole:
            raise KeyError(f"chunk {chunk} is not stored whole; stored are {self.whole}")
        start = self.kept + self.whole.index(chunk) * self.chunk_tokens
        return start, start + self.chunk_tokens

    def visible(self, chunk: int, key_start: int) -> tuple[int, int]:
        """Token range that ``chunk`` attends to.

        A key window counts whole chunks: the stored ones from ``key_start`` on, and all kept tokens where it begins
            before the first of them.
        """
        end = self.span(chunk)[1]
        reached = [other for other in self.whole if other >= key_start]
        if self.kept and key_start < self.whole[0]:
            return 0, end
        return self.span(reached[0])[0], end

    def clean_tokens(self, clean: int) -> int:
        """Tokens of the compressible region: what is kept, and the first ``clean`` whole chunks."""
        return self.kept + clean * self.chunk_tokens

    def count_clean(self, last_clean: int) -> int:
        """How many whole chunks are numbered up to ``last_clean``."""
        return sum(chunk <= last_clean for chunk in self.whole)

    def compact(self, clean: int, keep: int) -> None:
        """The kept tokens and the first ``clean`` whole chunks have become ``keep`` kept tokens."""
        if not 0 < keep <= self.clean_tokens(clean):
            raise ValueError(f"cannot keep {keep} of {self.clean_tokens(clean)} tokens")
        self.kept = keep
        del self.whole[:clean]
