"""A calibrated solver: per computed step the weights of all velocities so far (docs/multistep.md, "Calibrated solver").

Where a chunk stands after its computed step i is its noise plus a sum of the velocities that the model gave at its
computed steps 0 .. i; the rule of `inference.advance` is of this form too, and `rule_weights` writes it so. A chunk
jumps at once to where it has to be at its next computed step: the model never looks at it between.
"""

import numpy as np
import torch
from torch import Tensor

from inference.reuse import State, on_its_own
from inference.schedule import ChunkStep, Schedule, Step
from multistep.config import Solver


class SolverAdvancer:
    """Advances chunks by the weights of a ``Solver``; the state of one video is cleared by ``reset``."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self._offset = 0
        self._velocities: dict[int, list[Tensor]] = {}

    def reset(self, schedule: Schedule) -> None:
        self._offset, self._velocities = schedule.offset, {}

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        """What the chunk gains besides ``velocity * dt``: nothing, bit for bit, where the weights are MAGI-1's own."""
        velocities = self._velocities.setdefault(chunk, [])
        velocities.append(on_its_own(velocity))
        row = len(velocities) - 1
        table = self.solver.first if chunk == self._offset else self.solver.later
        if row >= len(table):
            raise RuntimeError(f"chunk {chunk} is computed a {row + 1}th time; its solver has {len(table)} evaluations")
        weights = list(table[row])
        weights[row] -= step.of(chunk).dt
        if step.finished == chunk:
            del self._velocities[chunk]
        if not any(weights):
            return None
        return sum((w * v for w, v in zip(weights, velocities, strict=True) if w), torch.zeros_like(velocity))

    def advance(self, step: Step, chunk: int) -> Tensor:
        velocities = self._velocities.get(chunk)
        if not velocities:
            raise RuntimeError(f"chunk {chunk} is skipped at step {step.number} before it was ever computed")
        if step.finished == chunk:
            del self._velocities[chunk]
        return torch.zeros_like(velocities[-1])

    def state(self) -> State:
        return {"velocities": {chunk: list(velocities) for chunk, velocities in self._velocities.items()}}

    def restore(self, state: State) -> None:
        self._velocities = state["velocities"]

    def held(self) -> list[Tensor]:
        """Every tensor that is remembered, for measuring memory."""
        return [velocity for velocities in self._velocities.values() for velocity in velocities]


class SolverLevels:
    """The noise levels at which a ``Solver`` asks the model, in place of those of the schedule, by own step."""

    def __init__(self, solver: Solver, pattern: tuple[int, ...]) -> None:
        self._levels = dict(zip(pattern, solver.levels, strict=True))

    def __call__(self, entry: ChunkStep) -> float:
        return self._levels[entry.index]


def rule_weights(pattern: tuple[int, ...], times: np.ndarray, damping: float, correct: bool) -> np.ndarray:
    """The rule of `inference.advance` as weights (n, n), float64: row i is what a chunk gains from its computed step i
    up to the next one, or the end; column j the velocity of computed step j.

    Args:
        pattern: own steps that are computed, ascending from 0.
        times: (N + 1,) noise levels.
        damping, correct: as in the settings.
    """
    t, dt = times[:-1].astype(np.float64), np.diff(times).astype(np.float64)
    weights = np.zeros((len(pattern), len(pattern)))
    predicted = np.zeros(len(pattern))
    for row, last in enumerate(pattern):
        before = pattern[row - 1] if row else last
        end = pattern[row + 1] if row + 1 < len(pattern) else len(t)
        weights[row, row] = dt[last]
        if row and correct:
            weights[row] -= predicted
            for step in range(before + 1, last):
                share = (t[step] - t[before]) / (t[last] - t[before])
                weights[row, row - 1] += (1 - share) * dt[step]
                weights[row, row] += share * dt[step]
        predicted = np.zeros(len(pattern))
        for step in range(last + 1, end):
            slope = damping * (t[step] - t[last]) / (t[last] - t[before]) if row else 0.0
            predicted[row] += (1 + slope) * dt[step]
            if row:
                predicted[row - 1] -= slope * dt[step]
        weights[row] += predicted
    return weights


def rule_solver(pattern: tuple[int, ...], times: np.ndarray, damping: float, correct: bool) -> Solver:
    """The rule of `inference.advance` as a ``Solver``, asked at the schedule's own noise levels."""
    weights = rule_weights(pattern, times, damping, correct)
    rows = tuple(tuple(float(weight) for weight in weights[row, : row + 1]) for row in range(len(pattern)))
    levels = tuple(float(times[step]) for step in pattern)
    return Solver(levels=levels, first=rows, later=rows)
