"""A recorded run's decisions, made again: for timing where what is computed must not depend on the numbers."""

from collections.abc import Sequence

from inference.record import RunRecord
from inference.reuse import Decider, Features, State
from inference.schedule import Schedule, Step


def decisions(record: RunRecord) -> list[tuple[int, ...]]:
    """The chunks that were computed, step by step."""
    return [step.computed for step in record.steps]


class Replay:
    """``decider`` with its decisions replaced by recorded ones. It is still asked, so that asking takes its time."""

    def __init__(self, decider: Decider, computed: Sequence[tuple[int, ...]]) -> None:
        self._decider = decider
        self._computed = computed

    def reset(self, schedule: Schedule) -> None:
        if len(self._computed) != len(schedule.steps):
            raise ValueError(
                f"the recorded run has {len(self._computed)} steps, this one {len(schedule.steps)}: record one of the "
                "same length and step count"
            )
        self._decider.reset(schedule)

    def state(self) -> State:
        return self._decider.state()

    def restore(self, state: State) -> None:
        self._decider.restore(state)

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        self._decider.select(step, features)
        return self._computed[step.number]
