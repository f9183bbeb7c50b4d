"""What a skipped chunk gains: from the velocities that the model computed for it before.

Source: docs/flowcache.md, "What a reused chunk gains"; docs/multistep.md, "The solver".

A chunk's latents follow an ODE whose velocity is smooth in the noise level `t`. Between two computed steps it is
predicted from the last ones; at the next computed step the line between the old and the new velocity is known, and what
was predicted can be exchanged for it. Neither costs a forward of the model.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from inference.reuse import on_its_own
from inference.schedule import ChunkStep, Schedule, Step
from inference.settings import AdvanceSettings


@dataclass(frozen=True)
class Computed:
    """A velocity (16, T, H, W) that the model gave, and where: noise level ``t``, Euler step ``dt``."""

    velocity: Tensor
    t: float
    dt: float


@dataclass
class Gained:
    """What a chunk gained in the steps skipped since its last computed one.

    ``time`` is the sum of these steps' dt, ``moment`` that of (t - last.t) * dt: with them the integral of any line
    through the last velocity is known without keeping the steps.
    """

    change: Tensor
    time: float
    moment: float

    def add(self, change: Tensor, time: float, moment: float) -> None:
        self.change = self.change + change
        self.time += time
        self.moment += moment


@dataclass
class ChunkMemory:
    """The last two computed velocities of a chunk, and what it gained since where that will be corrected."""

    last: Computed
    before: Computed | None = None
    gained: Gained | None = None

    @classmethod
    def restored(cls, parts: dict[str, Any]) -> "ChunkMemory":
        """From what ``dataclasses.asdict`` made of it."""
        before, gained = parts["before"], parts["gained"]
        return cls(
            Computed(**parts["last"]),
            None if before is None else Computed(**before),
            None if gained is None else Gained(**gained),
        )

    def predict(self, settings: AdvanceSettings, entry: ChunkStep) -> Tensor:
        """What the chunk gains at a skipped step.

        ``gain``: its last computed change again, as published; ``dt`` grows along the schedule, so the steps taken no
        longer add up to 1. ``velocity``: its last velocity times this step's ``dt``. ``linear``: the velocity
        extrapolated in ``t`` from the last two computed ones, by the share ``damping`` (the last one held while there
        is only one).
        """
        last, before = self.last, self.before
        if settings.reuse_form == "gain":
            return last.velocity * last.dt
        if settings.reuse_form == "linear" and before is not None:
            slope = (entry.t - last.t) / (last.t - before.t)
            return torch.lerp(before.velocity, last.velocity, 1 + settings.damping * slope) * entry.dt
        return last.velocity * entry.dt

    def count(self, change: Tensor, entry: ChunkStep) -> None:
        """Remember what was gained at a skipped step, for the correction."""
        moment = (entry.t - self.last.t) * entry.dt
        if self.gained is None:
            self.gained = Gained(change, entry.dt, moment)
        else:
            self.gained.add(change, entry.dt, moment)

    def correction(self, new: Computed) -> Tensor | None:
        """What is missing from what was gained since the last velocity to the line between it and the new one."""
        if self.gained is None:
            return None
        share = self.gained.moment / (new.t - self.last.t)
        return self.last.velocity * (self.gained.time - share) + new.velocity * share - self.gained.change


class MemoryAdvancer:
    """Advances chunks from their last velocities, by every form there is; the state of one video is cleared by
    ``reset``.
    """

    def __init__(self, settings: AdvanceSettings) -> None:
        self.settings = settings
        self._memory: dict[int, ChunkMemory] = {}

    def reset(self, schedule: Schedule) -> None:
        self._memory = {}

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        entry = step.of(chunk)
        new, old = Computed(on_its_own(velocity), entry.t, entry.dt), self._memory.pop(chunk, None)
        if step.finished != chunk:
            self._memory[chunk] = ChunkMemory(new, None if old is None else old.last)
        return None if old is None else old.correction(new)

    def advance(self, step: Step, chunk: int) -> Tensor:
        memory, entry = self._memory.get(chunk), step.of(chunk)
        if memory is None:
            raise RuntimeError(f"chunk {chunk} is skipped at step {step.number} before it was ever computed")
        change = memory.predict(self.settings, entry)
        if self.settings.correct:
            memory.count(change, entry)
        if step.finished == chunk:
            del self._memory[chunk]
        return change

    def state(self) -> dict[str, Any]:
        return {"chunks": {chunk: asdict(memory) for chunk, memory in self._memory.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = {chunk: ChunkMemory.restored(memory) for chunk, memory in state["chunks"].items()}

    def held(self) -> list[Tensor]:
        """Every tensor that is remembered, for measuring memory."""
        found = []
        for memory in self._memory.values():
            found += [computed.velocity for computed in (memory.last, memory.before) if computed is not None]
            found += [] if memory.gained is None else [memory.gained.change]
        return found
