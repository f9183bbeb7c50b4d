"""What one video is to be, and what its making leaves to tell."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from inference.record import RunRecord
from inference.session.times import PromptChange
from inference.text.reading import PromptReading


@dataclass(frozen=True)
class Sample:
    """One video to make.

    ``identity`` names it among the samples of a run: with the base seed it determines the noise, and nothing else
    does. ``prefix``: uint8 frames (T, H, W, 3) at the configured size and rate, one for an image; None for text
    alone. ``later``: prompts that take the place of ``prompt`` from some chunk on.
    """

    prompt: str
    prefix: Tensor | None = None
    identity: str = "0"
    later: tuple[PromptChange, ...] = ()

    @property
    def changes(self) -> tuple[PromptChange, ...]:
        """All prompts, the first one among them."""
        return (PromptChange(0, self.prompt), *self.later)


@dataclass
class RunReport:
    """What a run did and how long its stages took; filled while the frames are drawn.

    ``text_from_cache``: whether the first caption's features were read from the disk; ``prompt``: what was read of it.
    None before that is known. ``prompts``: which prompt ruled from which chunk on. ``resumed``: the chunks behind which
    a process went on that an earlier one had made.
    """

    record: RunRecord = field(default_factory=RunRecord)
    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    kv_cache_bytes: int = 0
    text_from_cache: bool | None = None
    prompt: PromptReading | None = None
    prompts: list[PromptChange] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """What of it goes on in a run that is resumed."""
        return {"seconds": dict(self.seconds), "frames": self.frames, "resumed": list(self.resumed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Add what an interrupted run had done."""
        self.frames, self.resumed = state["frames"], list(state["resumed"])
        for stage, seconds in state["seconds"].items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
