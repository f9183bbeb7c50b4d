"""A recorded run's decisions, made again: for timing where what is computed must not depend on the numbers."""

from collections.abc import Sequence

from torch import Tensor

from inference.record import RunRecord
from inference.reuse import Features, ReusePolicy
from inference.schedule import Schedule, Step


def decisions(record: RunRecord) -> list[tuple[int, ...]]:
    """The chunks that were computed, step by step."""
    return [step.computed for step in record.steps]


class Replay:
    """``policy`` with its decisions replaced by recorded ones. It is still asked, so that asking takes its time."""

    def __init__(self, policy: ReusePolicy, computed: Sequence[tuple[int, ...]]) -> None:
        self._policy = policy
        self._computed = computed

    @property
    def clean_pass(self) -> bool:
        return self._policy.clean_pass

    @property
    def nearly_clean_copy(self) -> bool:
        return self._policy.nearly_clean_copy

    def reset(self, schedule: Schedule) -> None:
        if len(self._computed) != len(schedule.steps):
            raise ValueError(
                f"the recorded run has {len(self._computed)} steps, this one {len(schedule.steps)}: record one of the "
                "same length and step count"
            )
        self._policy.reset(schedule)

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        self._policy.select(step, features)
        return self._computed[step.number]

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        return self._policy.observe(step, chunk, velocity)

    def advance(self, step: Step, chunk: int) -> Tensor:
        return self._policy.advance(step, chunk)
