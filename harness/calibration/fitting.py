"""Fitting a solver's coefficients end to end: by backpropagation through whole sampling runs (docs/multistep.md,
"Calibrated solver").

What counts is where the videos end, in the closed loop: least squares on recorded velocities or states make it worse
(docs/experiments.md). Where a chunk stands after each computed step is the rule's own sum of velocities plus a
correction, whose coefficients are in units in which they move the latents alike: whitened by the velocities' inner
products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.calibration.differentiable import Coefficients, DifferentiableRun, Start
from inference.files import replacing
from multistep.config import Solver
from multistep.solver import rule_weights

# Found for the prototype; a longer or faster training learned its own captions by heart.
_RATE, _BETAS = 3e-3, (0.8, 0.95)
LEVEL_RATE = 1 / 256  # of the schedule's steps
_BATCH = 2
_JITTER = 3e-5  # on the diagonal of the inner products, of their mean
_RIDGE = 1.0  # dB by which a correction of rms 1 is held back
_AVERAGED = 0.3  # share of the training at its end whose coefficients are averaged
_DIGITS = 7


@dataclass(frozen=True)
class Target:
    """A caption to learn from: its beginning, and the uncached clean latents (chunks, 16, T, H, W)."""

    start: Start
    clean: Tensor


class SolverFit:
    """The coefficients of one pattern in training.

    Args:
        run: sampling runs that gradients pass through.
        pattern: own steps that are computed.
        grams: (2, N, N) mean inner products of the velocities of the first chunk and of a later one, per number.
        damping, correct: the rule that training starts from.
        copies: whether a distilled model's nearly-clean copies are made.
        level_rate: by how much of the schedule an evaluation may move per iteration, at first; 0 keeps the levels.
    """

    def __init__(
        self,
        run: DifferentiableRun,
        pattern: Sequence[int],
        grams: np.ndarray,
        damping: float,
        correct: bool,
        copies: bool,
        level_rate: float = LEVEL_RATE,
    ) -> None:
        self.run, self.pattern, self.copies = run, tuple(pattern), copies
        times, count = run.schedule.times, len(pattern)
        rule = rule_weights(self.pattern, times, damping, correct)
        self._rule = torch.tensor(rule.cumsum(0), dtype=torch.float32)
        self._times = torch.tensor(times)
        self._whitening = [
            [torch.tensor(_whitening(gram, self.pattern[: row + 1])) for row in range(count)] for gram in grams
        ]
        self._states = [[torch.zeros(row + 1, requires_grad=True) for row in range(count)] for _ in grams]
        self._shifts = torch.zeros(count, requires_grad=True)
        flat = [state for states in self._states for state in states]
        self._rates = (_RATE, level_rate * (len(times) - 1))
        groups = [{"params": flat}, {"params": [self._shifts]}]
        self._optimiser = torch.optim.Adam(groups, betas=_BETAS)
        self._sum: list[Tensor] = []
        self._averaged = self.iteration = 0

    def coefficients(self) -> Coefficients:
        """As they are now, with gradients."""
        count = len(self.pattern)
        own = torch.tensor(self.pattern, dtype=torch.float32)
        # The first evaluation sees noise, whatever it is told; the last one must not be told that it is clean.
        place = (own + self._shifts * (torch.arange(count) > 0)).clamp(0, len(self._times) - 1.1)
        below = place.detach().floor().long()
        levels = torch.lerp(self._times[below], self._times[below + 1], place - below)
        tables = []
        for whitening, states in zip(self._whitening, self._states, strict=True):
            rows = [torch.nn.functional.pad(w @ s, (0, count - len(s))) for w, s in zip(whitening, states, strict=True)]
            sums = self._rule + torch.stack(rows)
            tables.append(torch.cat([sums[:1], sums[1:] - sums[:-1]]))
        return Coefficients(levels, torch.stack(tables))

    def train(self, targets: Sequence[Target], iterations: int, done: Callable[[float], None]) -> None:
        """Up to so many iterations in all; ``done`` is given the loss in dB after each."""
        while self.iteration < iterations:
            warmth = 0.5 * (1 + math.cos(math.pi * self.iteration / iterations))
            for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
                group["lr"] = rate * (0.97 * warmth + 0.03)
            self._optimiser.zero_grad()
            first = self.iteration * _BATCH
            loss = sum(self._loss(targets[(first + more) % len(targets)]) for more in range(_BATCH)) / _BATCH
            self._optimiser.step()
            self.iteration += 1
            if self.iteration > iterations * (1 - _AVERAGED):
                self._average()
            done(loss)

    def _loss(self, target: Target) -> float:
        """Backpropagates one caption's share; its mean squared error in dB."""
        clean = self.run.clean(target.start, self.pattern, self.coefficients(), self.copies)
        error = 10 * (clean - target.clean).square().mean().log10()
        held = sum(state.square().sum() for states in self._states for state in states)
        ((error + _RIDGE * held) / _BATCH).backward()
        return float(error.detach())

    def _average(self) -> None:
        now = self.coefficients()
        values = [now.levels.detach(), now.weights.detach()]
        self._sum = values if not self._sum else [a + b for a, b in zip(self._sum, values, strict=True)]
        self._averaged += 1

    def solver(self) -> Solver:
        """The mean over the end of the training."""
        if not self._averaged:
            raise RuntimeError(f"the fit has only done {self.iteration} iterations, none of which is to be averaged")
        levels, weights = (value / self._averaged for value in self._sum)
        tables = [
            [[float(f"{w:.{_DIGITS}g}") for w in row[: number + 1]] for number, row in enumerate(table.tolist())]
            for table in weights
        ]
        rounded = [float(f"{level:.{_DIGITS}g}") for level in levels.tolist()]
        return Solver(levels=rounded, first=tables[0], later=tables[1])

    def save(self, path: Path) -> None:
        """Everything that going on needs."""
        with replacing(path) as part:
            torch.save(self._state(), part)

    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote."""
        kept = torch.load(path, weights_only=True)
        with torch.no_grad():
            for states, values in zip(self._states, kept["states"], strict=True):
                for state, value in zip(states, values, strict=True):
                    state.copy_(value)
            self._shifts.copy_(kept["shifts"])
        self._optimiser.load_state_dict(kept["optimiser"])
        self._sum, self._averaged, self.iteration = kept["sum"], kept["averaged"], kept["iteration"]

    def _state(self) -> dict[str, Any]:
        return {
            "states": [[state.detach() for state in states] for states in self._states],
            "shifts": self._shifts.detach(),
            "optimiser": self._optimiser.state_dict(),
            "sum": self._sum,
            "averaged": self._averaged,
            "iteration": self.iteration,
        }


def _whitening(gram: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """(n, n) float32: coefficients of the velocities at ``steps`` from those of a basis of rms 1."""
    inner = gram[np.ix_(steps, steps)]
    inner = inner + _JITTER * np.eye(len(steps)) * inner.diagonal().mean()
    return np.linalg.inv(np.linalg.cholesky(inner)).T.astype(np.float32)
