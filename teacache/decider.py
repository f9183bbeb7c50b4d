"""TeaCache: one decision per step for the whole window (docs/teacache.md, "The rule").

The measure is the relative-L1 change, since the step before, of the patch-embedded latents of all chunks together. It
is accumulated until it reaches ``rel_l1_thresh``; as long as it stays below, the window advances from memory.
"""

import math

from torch import Tensor

from inference.reuse import Features, State, relative_l1_of_window
from inference.schedule import ChunkStep, Schedule, Step
from teacache.config import TeaCacheConfig


class WindowDecider:
    """TeaCache's decisions; the state of one video is cleared by ``reset``.

    ``accumulated``: the change since all chunks of the window were last computed; ``smallest``: the least that it was
    at a step where the window might have been reused; ``threshold``: under which it is, in this video.
    """

    def __init__(self, config: TeaCacheConfig) -> None:
        self.config = config
        self.accumulated = 0.0
        self.smallest = math.inf
        self._previous: dict[int, Tensor] = {}
        self._last_index = self._warmup = 0
        self.threshold = config.rel_l1_thresh

    def reset(self, schedule: Schedule) -> None:
        self._last_index = schedule.num_steps - 1
        self.threshold, self._warmup = (of(schedule.num_steps) for of in (self.config.threshold, self.config.warmup))
        self.accumulated, self.smallest = 0.0, math.inf
        self._previous = {}

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        if self.config.rel_l1_thresh == 0:
            # Said here because a polynomial may be negative: threshold 0 computes every chunk in any case.
            return step.chunks
        current, previous = dict(features()), self._previous
        self._previous = current
        if not self._reuses_window(step, relative_l1_of_window(current, previous)):
            return step.chunks
        return tuple(entry.chunk for entry in step.window if entry.chunk not in previous or self._is_protected(entry))

    def state(self) -> State:
        return {"accumulated": self.accumulated, "smallest": self.smallest, "previous": dict(self._previous)}

    def restore(self, state: State) -> None:
        self.accumulated, self.smallest, self._previous = state["accumulated"], state["smallest"], state["previous"]

    def _reuses_window(self, step: Step, change: float | None) -> bool:
        """The decision; the accumulator is set as a side effect. ``change`` is None where no chunk was there before."""
        must_compute = step.is_first or step.is_last or step.number < self._warmup
        if change is not None and not must_compute:
            self.accumulated += self._rescaled(change)
            self.smallest = min(self.smallest, self.accumulated)
            if self.accumulated < self.threshold:
                return True
        self.accumulated = 0.0
        return False

    def _is_protected(self, entry: ChunkStep) -> bool:
        """A chunk's own last step, where that is always computed."""
        return self.config.protect_last_step and entry.index == self._last_index

    def _rescaled(self, change: float) -> float:
        """The polynomial of ``coefficients`` at ``change``, by Horner's rule."""
        if self.config.coefficients is None:
            return change
        value = 0.0
        for coefficient in self.config.coefficients:
            value = value * change + coefficient
        return value
