"""The contract of a reuse policy, the policy that never reuses, and the measure that all of them are built on.

Source: docs/sampler.md, "The seams for caching".

A policy decides once per step, above guidance, which chunks of the window are computed; the others advance by what
the policy says. It serves one-pass and three-pass models alike, because it sees neither captions nor passes.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from inference.schedule import Schedule, Step

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

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
        """``chunk`` was computed at ``step`` and moved by ``velocity * dt``."""
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


def relative_l1_by_chunk(current: Mapping[int, Tensor], previous: Mapping[int, Tensor]) -> dict[int, float]:
    """Relative-L1 change of every chunk that is in both: ``mean|current - previous| / (mean|previous| + 1e-8)``.

    Taken in float32 whatever the dtype of the inputs, with one transfer from the device instead of one per chunk.
    """
    common = [chunk for chunk in current if chunk in previous]
    if not common:
        return {}
    now = torch.stack([current[chunk] for chunk in common]).float().flatten(1)
    before = torch.stack([previous[chunk] for chunk in common]).float().flatten(1)
    ratio = (now - before).abs().mean(dim=1) / (before.abs().mean(dim=1) + REL_L1_EPSILON)
    return dict(zip(common, ratio.tolist(), strict=True))
