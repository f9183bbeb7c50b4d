"""What a run did, in plain numbers: which chunks were computed, which advanced from memory, and how much was attended
to.

The sampler fills it; the sidecar file, the reuse map and the FLOP count read it.
"""

from dataclasses import dataclass, field


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
class RunRecord:
    """Everything that one call of the sampler did."""

    chunk_num: int = 0
    offset: int = 0
    num_steps: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    forwards: list[ForwardRecord] = field(default_factory=list)

    @property
    def computed(self) -> int:
        """Chunk-forwards of the window that were computed."""
        return sum(len(step.computed) for step in self.steps)

    @property
    def reused(self) -> int:
        """Chunk-steps that advanced from memory."""
        return sum(len(step.reused) for step in self.steps)

    @property
    def share_reused(self) -> float:
        """Share of the window's chunk-steps that advanced from memory."""
        total = self.computed + self.reused
        return self.reused / total if total else 0.0

    @property
    def compactions(self) -> int:
        return sum(step.compacted for step in self.steps)

    def reuse_map(self) -> list[list[int]]:
        """Rows of steps, columns of chunks: 1 reused, 0 computed, -1 not in the window."""
        rows = []
        for step in self.steps:
            row = [-1] * self.chunk_num
            for chunk in step.computed:
                row[chunk] = 0
            for chunk in step.reused:
                row[chunk] = 1
            rows.append(row)
        return rows

    def summary(self) -> dict[str, int | float]:
        """Counts for a report."""
        return {
            "steps": len(self.steps),
            "chunk_forwards_computed": self.computed,
            "chunk_forwards_reused": self.reused,
            "share_reused": self.share_reused,
            "clean_passes": sum(len(step.clean) for step in self.steps),
            "nearly_clean_copies": sum(step.nearly_clean is not None for step in self.steps),
            "kv_compactions": self.compactions,
            "transformer_forwards": len(self.forwards),
        }
