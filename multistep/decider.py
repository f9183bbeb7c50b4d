"""A fixed pattern: which of its own steps a chunk is computed at, decided before the run (docs/multistep.md).

With an advancer that predicts velocities along their line and corrects what it predicted, this is a multi-step solver
whose skipped steps are free: the computed ones lie where velocities bend most.
"""

from inference.reuse import Features, State
from inference.schedule import Schedule, Step
from multistep.config import MultistepConfig


class PatternDecider:
    """Computes the own steps of ``config``'s pattern; ``reset`` finds them for the schedule."""

    def __init__(self, config: MultistepConfig) -> None:
        self.config = config
        self._computed: frozenset[int] = frozenset()

    def reset(self, schedule: Schedule) -> None:
        self._computed = self.config.computed_steps(schedule)

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        return tuple(entry.chunk for entry in step.window if entry.index in self._computed)

    def state(self) -> State:
        return {}  # nothing is remembered

    def restore(self, state: State) -> None:
        return None
