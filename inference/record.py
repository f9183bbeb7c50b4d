"""What a run did, in plain numbers: which chunks were computed, which advanced from memory, and how much was attended
to.

The sampler fills it; the sidecar file, the reuse map and the FLOP count read it. Of a long video the last steps are
kept one by one, of those before them the counts, and of every chunk two numbers.
"""

import itertools
from collections import Counter
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

# More steps than this, ten minutes of 64 steps a chunk have ten times as many, are only counted.
KEPT_STEPS = 1024
# Up to nine forwards a step: three passes of a step, and clean ones.
KEPT_FORWARDS = 4 * KEPT_STEPS


@dataclass(frozen=True)
class ForwardRecord:
    """One forward of the transformer: tokens of each entry, keys each attends to, caption tokens of each."""

    kind: str  # "prefix", "text", "previous", "alone", "clean"
    chunk_tokens: int
    keys: tuple[int, ...]
    caption_tokens: tuple[int, ...]


@dataclass(frozen=True)
class StepRecord:
    """One step of the window.

    ``clean``: finished chunks that were encoded once more at this step; ``nearly_clean``: the chunk that was copied,
    if any.
    """

    number: int
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    clean: tuple[int, ...]
    nearly_clean: int | None
    compacted: bool


@dataclass
class Counts:
    """Sums over steps."""

    steps: int = 0
    computed: int = 0
    reused: int = 0
    clean: int = 0
    nearly_clean: int = 0
    compactions: int = 0

    def add(self, step: StepRecord) -> None:
        self.steps += 1
        self.computed += len(step.computed)
        self.reused += len(step.reused)
        self.clean += len(step.clean)
        self.nearly_clean += step.nearly_clean is not None
        self.compactions += step.compacted


@dataclass
class RunRecord:
    """Everything that one call of the sampler did.

    ``steps``, ``forwards``: all of a short video, the last ones of a long one. ``counts``: of all steps.
    ``by_chunk``: how often each chunk, given ones included, was computed and advanced from memory.
    """

    chunk_num: int = 0
    offset: int = 0
    num_steps: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    forwards: list[ForwardRecord] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    by_chunk: list[tuple[int, int]] = field(default_factory=list)
    _earlier: Counter[ForwardRecord] = field(default_factory=Counter)

    def add_step(self, step: StepRecord) -> None:
        self.steps.append(step)
        self.counts.add(step)
        for chunk in (*step.computed, *step.reused):
            self.by_chunk += [(0, 0)] * (chunk + 1 - len(self.by_chunk))
            computed, reused = self.by_chunk[chunk]
            self.by_chunk[chunk] = (computed + (chunk in step.computed), reused + (chunk in step.reused))
        if len(self.steps) >= 2 * KEPT_STEPS:
            del self.steps[:-KEPT_STEPS]

    def add_forward(self, forward: ForwardRecord) -> None:
        self.forwards.append(forward)
        if len(self.forwards) >= 2 * KEPT_FORWARDS:
            self._earlier.update(self.forwards[:-KEPT_FORWARDS])
            del self.forwards[:-KEPT_FORWARDS]

    def forward_counts(self) -> Counter[ForwardRecord]:
        """How often each kind of forward was made in the whole run."""
        return self._earlier + Counter(self.forwards)

    @property
    def computed(self) -> int:
        """Chunk-forwards of the window that were computed."""
        return self.counts.computed

    @property
    def reused(self) -> int:
        """Chunk-steps that advanced from memory."""
        return self.counts.reused

    @property
    def share_reused(self) -> float:
        """Share of the window's chunk-steps that advanced from memory."""
        total = self.computed + self.reused
        return self.reused / total if total else 0.0

    @property
    def compactions(self) -> int:
        return self.counts.compactions

    @property
    def whole(self) -> bool:
        """Every step of the run is still there."""
        return len(self.steps) == self.counts.steps

    def mapped_chunks(self) -> range:
        """The chunks that are the columns of ``reuse_map``: all of the video, or of a long one those of the last
        steps.
        """
        seen = [chunk for step in self.steps for chunk in (*step.computed, *step.reused)]
        if self.whole and self.chunk_num <= KEPT_STEPS:
            return range(self.chunk_num)
        return range(min(seen, default=0), max(seen, default=-1) + 1)

    def reuse_map(self) -> list[list[int]]:
        """Rows of steps, columns of chunks: 1 reused, 0 computed, -1 not in the window. Of a long video the last steps,
        from ``steps[0].number`` on, and the chunks in them, ``mapped_chunks``.
        """
        chunks, rows = self.mapped_chunks(), []
        for step in self.steps:
            row = [-1] * len(chunks)
            for chunk in step.computed:
                row[chunk - chunks.start] = 0
            for chunk in step.reused:
                row[chunk - chunks.start] = 1
            rows.append(row)
        return rows

    def summary(self) -> dict[str, int | float]:
        """Counts for a report."""
        return {
            "steps": self.counts.steps,
            "chunk_forwards_computed": self.computed,
            "chunk_forwards_reused": self.reused,
            "share_reused": self.share_reused,
            "clean_passes": self.counts.clean,
            "nearly_clean_copies": self.counts.nearly_clean,
            "kv_compactions": self.compactions,
            "transformer_forwards": len(self.forwards) + self._earlier.total(),
        }

    def state(self) -> dict[str, Any]:
        """For ``restored``; plain values."""
        return {
            "sizes": (self.chunk_num, self.offset, self.num_steps),
            "steps": [astuple(step) for step in self.steps],
            "forwards": [astuple(forward) for forward in self.forwards],
            "counts": asdict(self.counts),
            "by_chunk": list(itertools.chain.from_iterable(self.by_chunk)),
            "earlier": [(*astuple(forward), count) for forward, count in self._earlier.items()],
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "RunRecord":
        flat = state["by_chunk"]
        return cls(
            *state["sizes"],
            [StepRecord(*step) for step in state["steps"]],
            [ForwardRecord(*forward) for forward in state["forwards"]],
            Counts(**state["counts"]),
            list(zip(flat[::2], flat[1::2], strict=True)),
            Counter({ForwardRecord(*parts): count for *parts, count in state["earlier"]}),
        )
