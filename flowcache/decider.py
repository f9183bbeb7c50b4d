"""Chunk-wise reuse: every chunk decides at every step whether it is recomputed or advanced from memory.

Source: arXiv 2602.10825; docs/flowcache.md, "Chunk-wise reuse" and "What a reused chunk gains".

The measure is the relative-L1 change of a chunk's patch-embedded latents since the step before. It is accumulated
until it reaches ``rel_l1_thresh``; as long as it stays below, the chunk is reused.
"""

import math

from torch import Tensor

from flowcache.config import FlowCacheConfig
from inference.reuse import Features, State, relative_l1_by_chunk
from inference.schedule import ChunkStep, Schedule, Step


class ChunkwiseDecider:
    """FlowCache's decisions, chunk by chunk; the state of one video is cleared by ``reset``.

    ``accumulated``: of each chunk in the window, the change since it was last computed; ``smallest``: the least that
    one was at a step where it might have been reused; ``threshold``: under which it is, in this video.
    """

    def __init__(self, config: FlowCacheConfig) -> None:
        self.config = config
        self.accumulated: dict[int, float] = {}
        self.smallest = math.inf
        self._reuses: dict[int, int] = {}
        self._previous: dict[int, Tensor] = {}
        self._last_index = self._warmup = 0
        self.threshold = config.rel_l1_thresh

    def reset(self, schedule: Schedule) -> None:
        self.accumulated = {}
        self._reuses = {}
        self._previous = {}
        self.smallest = math.inf
        self._last_index = schedule.num_steps - 1
        self.threshold, self._warmup = (of(schedule.num_steps) for of in (self.config.threshold, self.config.warmup))

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        if self.config.rel_l1_thresh == 0:
            # A distance is never below zero: every chunk is computed, and there is nothing to measure.
            return step.chunks
        current = dict(features())
        change = relative_l1_by_chunk(current, self._previous)
        self.accumulated = {chunk: self.accumulated.get(chunk, 0.0) for chunk in step.chunks}
        self._reuses = {chunk: self._reuses.get(chunk, 0) for chunk in step.chunks}
        self._previous = current
        return tuple(entry.chunk for entry in step.window if self._computes(step, entry, change))

    def state(self) -> State:
        counts = {"accumulated": dict(self.accumulated), "reuses": dict(self._reuses), "smallest": self.smallest}
        return counts | {"previous": dict(self._previous)}

    def restore(self, state: State) -> None:
        self.accumulated, self._reuses, self.smallest = state["accumulated"], state["reuses"], state["smallest"]
        self._previous = state["previous"]

    def _computes(self, step: Step, entry: ChunkStep, change: dict[int, float]) -> bool:
        """The decision for one chunk; the accumulator and the count of reuses are set as a side effect."""
        chunk = entry.chunk
        if not (step.is_first or step.is_last or chunk not in change):
            distance = self.accumulated[chunk] + change[chunk]
            if not self._must_compute(entry):
                self.smallest = min(self.smallest, distance)
                if distance < self.threshold:
                    self.accumulated[chunk] = distance
                    self._reuses[chunk] += 1
                    return False
            self.accumulated[chunk] = 0.0
        self._reuses[chunk] = 0
        return True

    def _must_compute(self, entry: ChunkStep) -> bool:
        """Steps at which a chunk is computed whatever it measures."""
        if entry.index < self._warmup:
            return True
        if self.config.protect_last_step and entry.index == self._last_index:
            return True
        limit = self.config.max_consecutive_reuse
        return limit is not None and self._reuses[entry.chunk] >= limit
