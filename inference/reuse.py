"""The contract of a reuse policy, the policy that never reuses, and what those that do have in common.

Source: docs/sampler.md, "The seams for caching"; docs/flowcache.md, "What a reused chunk gains".

A policy decides once per step, above guidance, which chunks of the window are computed; the others advance by what
the policy says. It serves one-pass and three-pass models alike, because it sees neither captions nor passes.
Policies differ in which chunks they compute; how a skipped chunk advances is here, once, in :class:`MemoryReuse`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from inference.schedule import ChunkStep, Schedule, Step

# What a policy may look at: the patch-embedded latents of every chunk in the window, made only when asked for.
Features = Callable[[], Mapping[int, Tensor]]

REL_L1_EPSILON = 1e-8


class ReusePolicy(Protocol):
    """Decides which chunks to compute. One object serves one video at a time; ``reset`` makes it as new."""

    @property
    def clean_pass(self) -> bool:
        """A finished chunk is encoded once more, clean, before later chunks rely on its keys (as MAGI-1 does)."""
        ...

    @property
    def nearly_clean_copy(self) -> bool:
        """A distilled model's extra copy of a nearly clean first chunk is made (as MAGI-1 does)."""
        ...

    def reset(self, schedule: Schedule) -> None:
        """Forget everything; called by the sampler at the start of each video."""
        ...

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        """The chunks of ``step.chunks`` to compute, ascending; called once per step."""
        ...

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        """``chunk`` was computed at ``step`` and moved by ``velocity * dt``; returns what its latents gain besides, if
        anything: a correction of what it advanced by before.
        """
        ...

    def advance(self, step: Step, chunk: int) -> Tensor:
        """What the latents of the skipped ``chunk`` gain at ``step``."""
        ...


class NoReuse:
    """Every chunk is computed at every step: MAGI-1 itself."""

    clean_pass = True
    nearly_clean_copy = True

    def reset(self, schedule: Schedule) -> None:
        return None

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        return step.chunks

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
        return None

    def advance(self, step: Step, chunk: int) -> Tensor:
        raise RuntimeError(f"chunk {chunk} was not computed at step {step.number}, but nothing is ever reused here")


ReuseForm = Literal["gain", "velocity", "linear"]


class ReuseSettings(BaseModel):
    """Parameters of every policy that advances chunks from memory. The defaults reuse nothing and keep all passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    rel_l1_thresh: Annotated[float, Field(ge=0)] = Field(
        0.0, description="accumulated relative-L1 change under which a chunk is reused; 0 computes every chunk"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        5, description="steps of each chunk's own count during which it is always computed"
    )
    reuse_form: ReuseForm = Field(
        "linear",
        description="what a reused chunk gains: gain (its last change, as published), velocity (its last velocity "
        "times this step's dt), linear (the last two computed velocities extrapolated in t)",
    )
    clean_pass: bool = Field(True, description="encode each finished chunk once more, clean, as MAGI-1 does")
    protect_last_step: bool = Field(
        True, description="always compute a chunk's own last step, whose keys and values stay when clean_pass is off"
    )
    discard_nearly_clean_chunk: bool = Field(
        False, description="leave out the distilled model's extra copy of a nearly clean first chunk"
    )


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


class MemoryReuse:
    """A policy without its decision: subclasses add ``select``. The state of one video is cleared by ``reset``."""

    def __init__(self, config: ReuseSettings) -> None:
        self.config = config
        self._memory: dict[int, ChunkMemory] = {}
        self._num_steps = 0

    @property
    def clean_pass(self) -> bool:
        return self.config.clean_pass

    @property
    def nearly_clean_copy(self) -> bool:
        return not self.config.discard_nearly_clean_chunk

    def reset(self, schedule: Schedule) -> None:
        self._memory = {}
        self._num_steps = schedule.num_steps

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

    def reuses(self, chunk: int) -> int:
        """How often ``chunk`` was reused since it was last computed."""
        return self._memory[chunk].reuses

    def is_protected(self, entry: ChunkStep) -> bool:
        """A chunk's own last step, where that is always computed."""
        return self.config.protect_last_step and entry.index == self._num_steps - 1


def relative_l1_by_chunk(current: Mapping[int, Tensor], previous: Mapping[int, Tensor]) -> dict[int, float]:
    """Relative-L1 change of every chunk that is in both: ``mean|current - previous| / (mean|previous| + 1e-8)``.

    Taken in float32 whatever the dtype of the inputs, with one transfer from the device instead of one per chunk.
    """
    common = [chunk for chunk in current if chunk in previous]
    if not common:
        return {}
    change, size = _change_and_size(current, previous, common)
    return dict(zip(common, (change / (size + REL_L1_EPSILON)).tolist(), strict=True))


def relative_l1_of_window(current: Mapping[int, Tensor], previous: Mapping[int, Tensor]) -> float | None:
    """The same of all chunks that are in both taken together: one mean over all of them; None where there is none."""
    common = [chunk for chunk in current if chunk in previous]
    if not common:
        return None
    change, size = _change_and_size(current, previous, common)
    return (change.mean() / (size.mean() + REL_L1_EPSILON)).item()


def _change_and_size(
    current: Mapping[int, Tensor], previous: Mapping[int, Tensor], chunks: list[int]
) -> tuple[Tensor, Tensor]:
    """``mean|current - previous|`` and ``mean|previous|``, each (len(chunks),) in float32; chunks are equally large."""
    now = torch.stack([current[chunk] for chunk in chunks]).float().flatten(1)
    before = torch.stack([previous[chunk] for chunk in chunks]).float().flatten(1)
    return (now - before).abs().mean(dim=1), before.abs().mean(dim=1)
