"""Parameters of multi-step reuse, checked before a run (docs/multistep.md, "Parameters")."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from inference.schedule import Schedule

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]


class MultistepConfig(BaseModel):
    """Which of a chunk's own steps are computed, and how it advances between them.

    Either `pattern` names the steps, as a calibration found them for one model and step count, or `computed_per_stage`
    spaces them evenly, for any step count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    pattern: tuple[Index, ...] | None = Field(
        None, description="own steps at which every chunk is computed, ascending from 0; others advance from memory"
    )
    pattern_steps: Count | None = Field(None, description="step count that the pattern was calibrated for")
    computed_per_stage: tuple[Count, ...] = Field(
        (1, 2, 4, 8),
        description="without a pattern: how many steps of a stage are computed, evenly spaced, for each depth of the "
        "window from the newest chunk to the oldest",
    )
    damping: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, description="share of the linear extrapolation that is applied; 0 holds the last velocity"
    )
    correct: bool = Field(
        True, description="at a computed step, replace what was extrapolated since the last one by the interpolation"
    )
    clean_pass: bool = Field(True, description="encode each finished chunk once more, clean, as MAGI-1 does")
    discard_nearly_clean_chunk: bool = Field(
        False, description="leave out the distilled model's extra copy of a nearly clean first chunk"
    )

    @field_validator("pattern", "computed_per_stage", mode="before")
    @classmethod
    def _sequence(cls, value: Any) -> Any:
        """A file and a flag give a list, or one number alone."""
        if type(value) is int:
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("pattern")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or value[0] != 0 or list(value) != sorted(set(value))):
            raise ValueError(f"a pattern is a list of different steps ascending from 0, not {list(value)}")
        return value

    def computed_steps(self, schedule: Schedule) -> frozenset[int]:
        """The own steps (0 .. num_steps - 1) at which a chunk is computed."""
        if self.pattern is not None:
            return frozenset(self.pattern)
        length = schedule.steps_per_stage
        return frozenset(
            depth * length + round(number * length / count)
            for depth, asked in enumerate(self.computed_per_stage)
            for count in [min(asked, length)]
            for number in range(count)
        )

    def problems(self, schedule: Schedule) -> Iterator[str]:
        """What stands against running these settings on `schedule`, one sentence each with its numbers."""
        if self.pattern is None:
            if len(self.computed_per_stage) != schedule.window_size:
                yield (
                    f"computed_per_stage {list(self.computed_per_stage)} has {len(self.computed_per_stage)} entries; "
                    f"window_size {schedule.window_size} needs one for each chunk of the window"
                )
            return
        if self.pattern_steps is None:
            yield "a pattern needs pattern_steps, the step count that it was calibrated for"
        elif self.pattern_steps != schedule.num_steps:
            yield (
                f"the pattern was calibrated for {self.pattern_steps} steps, but num_steps is {schedule.num_steps}; "
                "calibrate this step count (scripts/calibrate.sh), or leave the pattern out"
            )
        if self.pattern[-1] >= schedule.num_steps:
            yield f"the pattern's last step {self.pattern[-1]} is not below num_steps {schedule.num_steps}"
