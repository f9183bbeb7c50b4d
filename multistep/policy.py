"""Reuse as a multi-step solver: few velocities are computed, those between them follow from their line.

Source: docs/multistep.md. A chunk's latents follow an ODE whose velocity is smooth in the noise level `t`. Between two
computed steps it is extrapolated from the last two (the prediction); at the next computed step the line between the
old and the new velocity is known, and what was predicted is exchanged for it (the correction). Neither costs a forward
of the model. Which steps are computed is fixed beforehand, by a chunk's own step count: where velocities bend most.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.reuse import Features
from inference.schedule import ChunkStep, Schedule, Step
from multistep.config import MultistepConfig


@dataclass(frozen=True)
class _Computed:
    velocity: Tensor
    t: float


@dataclass
class _Memory:
    """The last two computed velocities of a chunk, and what it gained in the steps skipped since.

    `time` is the sum of these steps' dt, `moment` that of (t - last.t) * dt: with them the integral of any line
    through the last velocity is known without keeping the steps.
    """

    last: _Computed
    before: _Computed | None = None
    gained: Tensor | None = None
    time: float = 0.0
    moment: float = 0.0

    def predict(self, entry: ChunkStep, damping: float) -> Tensor:
        """What the chunk gains at a skipped step; counted."""
        velocity = self.last.velocity
        if self.before is not None:
            slope = (entry.t - self.last.t) / (self.last.t - self.before.t)
            velocity = torch.lerp(self.before.velocity, velocity, 1 + damping * slope)
        gain = velocity * entry.dt
        self.gained = gain if self.gained is None else self.gained + gain
        self.time += entry.dt
        self.moment += (entry.t - self.last.t) * entry.dt
        return gain

    def correction(self, new: _Computed) -> Tensor | None:
        """What is missing from what was gained since the last velocity to the line between it and the new one."""
        if self.gained is None:
            return None
        share = self.moment / (new.t - self.last.t)
        return self.last.velocity * (self.time - share) + new.velocity * share - self.gained


class MultistepReuse:
    """A reuse policy with a fixed pattern; the state of one video is cleared by `reset`."""

    def __init__(self, config: MultistepConfig) -> None:
        self.config = config
        self._computed: frozenset[int] = frozenset()
        self._memory: dict[int, _Memory] = {}

    @property
    def clean_pass(self) -> bool:
        return self.config.clean_pass

    @property
    def nearly_clean_copy(self) -> bool:
        return not self.config.discard_nearly_clean_chunk

    def reset(self, schedule: Schedule) -> None:
        self._computed = self.config.computed_steps(schedule)
        self._memory = {}

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        return tuple(entry.chunk for entry in step.window if entry.index in self._computed)

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        new = _Computed(velocity, step.of(chunk).t)
        old = self._memory.get(chunk)
        if step.finished == chunk:
            self._memory.pop(chunk, None)
        else:
            self._memory[chunk] = _Memory(new, None if old is None else old.last)
        return None if old is None or not self.config.correct else old.correction(new)

    def advance(self, step: Step, chunk: int) -> Tensor:
        gain = self._memory[chunk].predict(step.of(chunk), self.config.damping)
        if step.finished == chunk:
            del self._memory[chunk]
        return gain
