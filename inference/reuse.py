"""The two contracts of caching, what MAGI-1 itself does in their place, and the relative-L1 measure.

Source: docs/sampler.md, "The seams for caching".

A *decider* says once per step, above guidance, which chunks of the window are computed; an *advancer* says what the
others gain, and corrects them by a velocity that was computed. Both serve one-pass and three-pass models alike, because
they see neither captions nor passes, and any decider goes with any advancer.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.schedule import ChunkStep, Schedule, Step

# What a decider may look at: the patch-embedded latents of every chunk in the window, made only when asked for.
Features = Callable[[], Mapping[int, Tensor]]

REL_L1_EPSILON = 1e-8

# What is remembered of a video under way: names to numbers, text, tensors, and lists and dictionaries of them
# (docs/long_video.md, "Resume").
State = dict[str, Any]


class Decider(Protocol):
    """Which chunks are computed. One object serves one video at a time; ``reset`` makes it as new."""

    def reset(self, schedule: Schedule) -> None:
        """Forget everything; called by the sampler at the start of each video."""
        ...

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        """The chunks of ``step.chunks`` to compute, ascending; called once per step.

        A chunk's own first step is always among them: there is nothing yet to advance it by.
        """
        ...

    def state(self) -> State:
        """What is remembered of the video under way, for ``restore`` after a ``reset``."""
        ...

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken; its tensors are on the model's device."""
        ...


class Advancer(Protocol):
    """What chunks gain that are not computed. One object serves one video at a time; ``reset`` makes it as new."""

    def reset(self, schedule: Schedule) -> None:
        """Forget everything; called by the sampler at the start of each video."""
        ...

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        """``chunk`` was computed at ``step`` and moved by ``velocity * dt``; (16, T, H, W) float32.

        Returns what its latents gain besides, if anything: a correction of what it advanced by before.
        """
        ...

    def advance(self, step: Step, chunk: int) -> Tensor:
        """What the latents (16, T, H, W) of ``chunk``, which is not computed at ``step``, gain there."""
        ...

    def state(self) -> State:
        """As for a ``Decider``."""
        ...

    def restore(self, state: State) -> None:
        """As for a ``Decider``."""
        ...


class ComputeAll:
    """The decider of MAGI-1 itself: every chunk, at every step."""

    def reset(self, schedule: Schedule) -> None:
        return None

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        return step.chunks

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:
        return None


class NoMemory:
    """The advancer of MAGI-1 itself, which nothing is ever asked of."""

    def reset(self, schedule: Schedule) -> None:
        return None

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
        return None

    def advance(self, step: Step, chunk: int) -> Tensor:
        raise RuntimeError(f"chunk {chunk} was not computed at step {step.number}, but nothing is remembered here")

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:
        return None


def scheduled_level(entry: ChunkStep) -> float:
    """The noise level of the schedule, at which MAGI-1 asks its model."""
    return entry.t


@dataclass(frozen=True)
class Reuse:
    """How a video is cached: who decides, who advances, and which of MAGI-1's passes are made. The defaults are MAGI-1.

    ``noise_level``: at which noise level (0 noise, 1 clean) the model is asked about a chunk that is computed.
    ``clean_pass``: a finished chunk is encoded once more, clean, before later chunks rely on its keys.
    ``nearly_clean_copy``: a distilled model's extra copy of a nearly clean first chunk is made.
    """

    decider: Decider = field(default_factory=ComputeAll)
    advancer: Advancer = field(default_factory=NoMemory)
    clean_pass: bool = True
    nearly_clean_copy: bool = True
    noise_level: Callable[[ChunkStep], float] = scheduled_level

    def reset(self, schedule: Schedule) -> None:
        """Make both as new, at the start of a video."""
        self.decider.reset(schedule)
        self.advancer.reset(schedule)

    def asked(self, step: Step, todo: Collection[int]) -> Step:
        """``step`` with the noise levels at which the model is asked about the chunks ``todo``; key windows and all
        else stay the schedule's.
        """
        levels = [self.noise_level(entry) if entry.chunk in todo else entry.t for entry in step.window]
        if levels == [entry.t for entry in step.window]:
            return step
        window = tuple(replace(entry, t=level) for entry, level in zip(step.window, levels, strict=True))
        return replace(step, window=window)

    def state(self) -> State:
        """What both remember."""
        return {"decider": self.decider.state(), "advancer": self.advancer.state()}

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken; after ``reset``."""
        self.decider.restore(state["decider"])
        self.advancer.restore(state["advancer"])


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


def on_its_own(velocity: Tensor) -> Tensor:
    """``velocity`` without those of the other chunks of its forward, which would be kept with it as long as it is."""
    return velocity if velocity.untyped_storage().nbytes() == velocity.nbytes else velocity.clone()


def moved(value: Any, device: torch.device) -> Any:
    """``value``, a ``State`` or a part of one, with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device) for part in value)
    return value
