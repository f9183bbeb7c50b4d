"""What benchmarks/rules/reuse.py tries: a rule taken literally, and decisions by the error just observed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.reuse import Features, Reuse
from inference.schedule import Schedule, Step


@dataclass(frozen=True)
class Rule:
    """`steps`: own steps that are computed; None where the observed error decides. `predict`, `correct`: order of the
    polynomial through the last velocities that skipped steps follow, and of the one that replaces it at the next
    computed step (None: none does). `damping`: share by which the prediction leaves the last velocity. `copies`: the
    nearly-clean copies are made. `tolerance`: error of the latents that an interval may add, mean of absolute values;
    `together`: the window is computed as a whole, when its first chunk is due.
    """

    name: str
    steps: tuple[int, ...] | None
    predict: int = 1
    correct: int | None = None
    damping: float = 1.0
    copies: bool = True
    tolerance: float = 0.0
    together: bool = False

    def make(self) -> "RuleReuse":
        return RuleReuse(self) if self.steps is not None else ErrorControlled(self)


def through(points: Sequence[tuple[float, Tensor]], t: float) -> Tensor:
    """The polynomial through (t, velocity) points, at another t."""
    total = torch.zeros_like(points[0][1])
    for number, (here, velocity) in enumerate(points):
        weight = 1.0
        for other, (there, _) in enumerate(points):
            if other != number:
                weight *= (t - there) / (here - there)
        total = total + weight * velocity
    return total


class RuleReuse:
    """Decider and advancer of a rule, taken literally: every velocity and gain is kept, sums are made when needed.

    `computed` and `asked` count chunk-steps over all videos.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.computed = self.asked = 0
        self._points: dict[int, list[tuple[float, Tensor]]] = {}
        self._skipped: dict[int, list[tuple[float, float, Tensor]]] = {}

    def reuse(self) -> Reuse:
        """As an argument of the sampler, which makes it as new twice, since it is both."""
        return Reuse(self, self, nearly_clean_copy=self.rule.copies)

    def reset(self, schedule: Schedule) -> None:
        self._points, self._skipped = {}, {}

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        chosen = self._choose(step)
        self.computed, self.asked = self.computed + len(chosen), self.asked + len(step.window)
        return chosen

    def _choose(self, step: Step) -> tuple[int, ...]:
        steps = self.rule.steps or ()
        return tuple(entry.chunk for entry in step.window if entry.index in steps)

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        points = self._points.setdefault(chunk, [])
        points.append((step.of(chunk).t, velocity))
        skipped = self._skipped.pop(chunk, [])
        if self.rule.correct is None or not skipped:
            return None
        line = points[-(self.rule.correct + 1) :]
        return sum((through(line, t) * dt - gained for t, dt, gained in skipped), torch.zeros_like(velocity))

    def predicted(self, chunk: int, t: float) -> Tensor:
        """The velocity that a skipped step at `t` follows."""
        points = self._points[chunk]
        held = points[-1][1]
        return held + self.rule.damping * (through(points[-(self.rule.predict + 1) :], t) - held)

    def advance(self, step: Step, chunk: int) -> Tensor:
        entry = step.of(chunk)
        gained = self.predicted(chunk, entry.t) * entry.dt
        self._skipped.setdefault(chunk, []).append((entry.t, entry.dt, gained))
        return gained


class ErrorControlled(RuleReuse):
    """Intervals as an adaptive solver sets them: by how wrong the prediction turned out to be.

    An interval's error in the latents is taken as the velocity's error at its end times its length in t. It grows with
    the third power of the length, so the next interval is the last one times (tolerance / error) ** (1/3).
    """

    _GROWTH = 2.5  # at most, from one interval to the next

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self._last: dict[int, int] = {}  # own step at which a chunk was computed last
        self._due: dict[int, int] = {}

    def reset(self, schedule: Schedule) -> None:
        super().reset(schedule)
        self._last, self._due = {}, {}

    def _choose(self, step: Step) -> tuple[int, ...]:
        due = tuple(entry.chunk for entry in step.window if entry.index >= self._due.get(entry.chunk, 0))
        return step.chunks if due and self.rule.together else due

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        entry = step.of(chunk)
        interval = 1.0
        if len(self._points.get(chunk, [])) >= 2:
            length = entry.index - self._last[chunk]
            elapsed = entry.t - self._points[chunk][-1][0]
            error = float((velocity - self.predicted(chunk, entry.t)).abs().mean()) * elapsed
            interval = length * min(self._GROWTH, (self.rule.tolerance / max(error, 1e-12)) ** (1 / 3))
        self._last[chunk], self._due[chunk] = entry.index, entry.index + max(1, round(interval))
        return super().observe(step, chunk, velocity)
