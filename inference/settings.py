"""Parameters that caching methods share, checked before a run; no tensor library is needed to read them.

Source: docs/flowcache.md, "Parameters" and "What a reused chunk gains"; docs/multistep.md, "Parameters". A method's own
settings are these and what it adds: how it decides (rel-L1 or a pattern), how a skipped chunk advances, which of
MAGI-1's passes it keeps.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ReuseForm = Literal["gain", "velocity", "linear"]


class Settings(BaseModel):
    """Frozen, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class PassSettings(Settings):
    """Which of MAGI-1's passes are made. The defaults keep all of them."""

    clean_pass: bool = Field(True, description="encode each finished chunk once more, clean, as MAGI-1 does")
    discard_nearly_clean_chunk: bool = Field(
        False, description="leave out the distilled model's extra copy of a nearly clean first chunk"
    )


class AdvanceSettings(Settings):
    """What a chunk gains at a step at which it is not computed."""

    reuse_form: ReuseForm = Field(
        "linear",
        description="what a reused chunk gains: gain (its last change, as published), velocity (its last velocity "
        "times this step's dt), linear (the last two computed velocities extrapolated in t)",
    )
    damping: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of the linear extrapolation that is applied; 0 holds the last velocity"
    )
    correct: bool = Field(
        False,
        description="at a computed step, replace what was gained since the last one by the line between the two "
        "velocities",
    )


class ChangeSettings(Settings):
    """Deciding by the accumulated relative-L1 change. The defaults compute every chunk."""

    rel_l1_thresh: Annotated[float, Field(ge=0)] = Field(
        0.0, description="accumulated relative-L1 change under which a chunk is reused; 0 computes every chunk"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        5, description="steps of each chunk's own count during which it is always computed"
    )
    thresh_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="step count that rel_l1_thresh and warmup_steps are meant for: with fewer steps, over which more "
        "changes, they follow; null takes them as they are, per step, as published",
    )
    protect_last_step: bool = Field(
        True, description="always compute a chunk's own last step, whose keys and values stay when clean_pass is off"
    )

    def threshold(self, num_steps: int) -> float:
        """``rel_l1_thresh`` in a run of ``num_steps``: per unit of the schedule where ``thresh_steps`` is given."""
        return self.rel_l1_thresh * (1 if self.thresh_steps is None else self.thresh_steps / num_steps)

    def warmup(self, num_steps: int) -> int:
        """``warmup_steps`` in a run of ``num_steps``: the same share of it where ``thresh_steps`` is given."""
        if self.thresh_steps is None:
            return self.warmup_steps
        return math.ceil(self.warmup_steps * num_steps / self.thresh_steps)


class ReuseSettings(PassSettings, AdvanceSettings, ChangeSettings):
    """Parameters of a method that decides by change. The defaults reuse nothing and keep all passes."""
