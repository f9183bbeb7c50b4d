"""Chunk-wise reuse: every chunk decides at every step whether it is recomputed or advanced from memory.

Source: arXiv 2602.10825; docs/flowcache.md, "Chunk-wise reuse" and "What a reused chunk gains".

The measure is the relative-L1 change of a chunk's patch-embedded latents since the step before. It is accumulated
until it reaches ``rel_l1_thresh``; as long as it stays below, the chunk is reused.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from inference.reuse import Features, relative_l1_by_chunk
from inference.schedule import ChunkStep, Schedule, Step


@dataclass(frozen=True)
class Computed:
    """A velocity (16, T, H, W) that the model gave, and where: noise level ``t``, Euler step ``dt``."""

    velocity: Tensor
    t: float
    dt: float


@dataclass
class ChunkMemory:
    """What is remembered of one chunk: its last two computed velocities and how often it was reused since."""

    computed: list[Computed] = field(default_factory=list)
    reuses: int = 0

    def remember(self, velocity: Tensor, entry: ChunkStep) -> None:
        self.computed = [*self.computed[-1:], Computed(velocity, entry.t, entry.dt)]
        self.reuses = 0


def advance(form: str, memory: ChunkMemory, entry: ChunkStep) -> Tensor:
    """What the latents of a reused chunk gain.

    ``gain``: its last computed change again, as published; ``dt`` grows along the schedule, so the steps taken no
    longer add up to 1. ``velocity``: its last velocity times this step's ``dt``. ``linear``: the velocity
    extrapolated in ``t`` from the last two computed ones (the last one held while there is only one).
    """
    last = memory.computed[-1]
    if form == "gain":
        return last.velocity * last.dt
    if form == "linear" and len(memory.computed) == 2:
        before = memory.computed[0]
        slope = (entry.t - last.t) / (last.t - before.t)
        return torch.lerp(before.velocity, last.velocity, 1 + slope) * entry.dt
    return last.velocity * entry.dt


class ChunkwiseReuse:
    """FlowCache's reuse policy. Decisions are per chunk; the state of one video is cleared by ``reset``."""

    def __init__(self, config: FlowCacheConfig) -> None:
        self.config = config
        self.accumulated: dict[int, float] = {}
        self._previous: dict[int, Tensor] = {}
        self._memory: dict[int, ChunkMemory] = {}
        self._num_steps = 0

    @property
    def clean_pass(self) -> bool:
        return self.config.clean_pass

    @property
    def nearly_clean_copy(self) -> bool:
        return not self.config.discard_nearly_clean_chunk

    def reset(self, schedule: Schedule) -> None:
        self.accumulated = dict.fromkeys(range(schedule.chunk_num), 0.0)
        self._previous = {}
        self._memory = {}
        self._num_steps = schedule.num_steps

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        if self.config.rel_l1_thresh == 0:
            # A distance is never below zero: every chunk is computed, and there is nothing to measure.
            return step.chunks
        current = dict(features())
        change = relative_l1_by_chunk(current, self._previous)
        self._previous = current
        return tuple(entry.chunk for entry in step.window if self._computes(step, entry, change))

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
        self._memory.setdefault(chunk, ChunkMemory()).remember(velocity, step.of(chunk))
        if step.finished == chunk:
            del self._memory[chunk]

    def advance(self, step: Step, chunk: int) -> Tensor:
        memory = self._memory[chunk]
        memory.reuses += 1
        change = advance(self.config.reuse_form, memory, step.of(chunk))
        if step.finished == chunk:
            del self._memory[chunk]
        return change

    def _computes(self, step: Step, entry: ChunkStep, change: dict[int, float]) -> bool:
        """The decision for one chunk; the accumulator is set as a side effect."""
        chunk = entry.chunk
        if step.is_first or step.is_last or chunk not in change:
            return True
        distance = self.accumulated[chunk] + change[chunk]
        if distance < self.config.rel_l1_thresh and not self._must_compute(entry):
            self.accumulated[chunk] = distance
            return False
        self.accumulated[chunk] = 0.0
        return True

    def _must_compute(self, entry: ChunkStep) -> bool:
        """Steps at which a chunk is computed whatever it measures."""
        if entry.index < self.config.warmup_steps:
            return True
        if self.config.protect_last_step and entry.index == self._num_steps - 1:
            return True
        limit = self.config.max_consecutive_reuse
        return limit is not None and self._memory[entry.chunk].reuses >= limit
