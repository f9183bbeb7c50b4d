"""Parameters of multi-step reuse, checked before a run (docs/multistep.md, "Parameters")."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from inference.settings import AdvanceSettings, PassSettings, Settings

if TYPE_CHECKING:
    from inference.schedule import Schedule

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]


Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Rows = Annotated[tuple[Numbers, ...], Field(strict=False)]


class Solver(Settings):
    """Coefficients that a calibration fitted to a pattern of n own steps.

    ``levels``: the noise level at which the model is asked at each. ``first``, ``later``: of the first chunk that is
    made and of the others, a row a computed step with a weight for every velocity so far: what the chunk gains up to
    its next computed step, or its end.
    """

    levels: Numbers
    first: Rows
    later: Rows

    @model_validator(mode="after")
    def _triangular(self) -> "Solver":
        count = len(self.levels)
        for name in ("first", "later"):
            lengths = [len(row) for row in getattr(self, name)]
            if lengths != list(range(1, count + 1)):
                raise ValueError(f"{name} has rows of {lengths} weights; with {count} levels they are 1 to {count}")
        if not all(0 <= level < 1 for level in self.levels):
            raise ValueError(f"levels {list(self.levels)} must lie from 0, which is noise, to below 1")
        return self


class MultistepConfig(PassSettings, AdvanceSettings):
    """Which of a chunk's own steps are computed, and how it advances between them.

    Either `pattern` names the steps, as a calibration found them for one model and step count, or `computed_share` and
    `spacing` say how many there are and how they lie, for any step count.
    """

    pattern: tuple[Index, ...] | None = Field(
        None, description="own steps at which every chunk is computed, ascending from 0; others advance from memory"
    )
    pattern_steps: Count | None = Field(None, description="step count that the pattern was calibrated for")
    computed_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="without a pattern: share of a chunk's steps that are computed"
    )
    spacing: Annotated[float, Field(ge=1)] = Field(
        1.5, description="without a pattern: 1 spaces the computed steps evenly, more moves them to the chunk's end"
    )
    damping: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, description=AdvanceSettings.model_fields["damping"].description
    )
    correct: bool = Field(True, description=AdvanceSettings.model_fields["correct"].description)

    solver: Solver | None = Field(
        None,
        description="coefficients of a calibrated solver for this pattern; damping and correct then mean nothing",
        json_schema_extra={"flag": False},  # dozens of numbers
    )

    @field_validator("pattern", mode="before")
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

    def computed_steps(self, schedule: "Schedule") -> frozenset[int]:
        """The own steps (0 .. num_steps - 1) at which a chunk is computed."""
        if self.pattern is not None:
            return frozenset(self.pattern)
        return frozenset(spaced(schedule.num_steps, self.computed_share, self.spacing))

    def problems(self, schedule: "Schedule") -> Iterator[str]:
        """What stands against running these settings on `schedule`, one sentence each with its numbers."""
        if self.solver is not None and len(self.pattern or ()) != len(self.solver.levels):
            evaluations = f"{len(self.solver.levels)} evaluations"
            yield f"the solver has {evaluations}, but the pattern {len(self.pattern or ())} steps; give its own pattern"
        if self.pattern is None:
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


def spaced(steps: int, share: float, spacing: float) -> tuple[int, ...]:
    """Different own steps, ascending from 0: the j-th of n at ``steps * (1 - (1 - j / n) ** spacing)``.

    n is ``share`` of ``steps``, at least one; those that would coincide at the end are moved forward.
    """
    count = max(1, round(share * steps))
    pattern = [round(steps * (1 - (1 - number / count) ** spacing)) for number in range(count)]
    following = steps
    for number in reversed(range(count)):
        following = pattern[number] = min(pattern[number], following - 1)
    return tuple(pattern)
