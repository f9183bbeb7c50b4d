"""Which steps to compute: the pattern of a given length that loses least, found from recorded velocities.

Source: docs/multistep.md, "Calibration". An uncached run gives a chunk's velocities at all of its N steps. Were they
the same in a cached run, its error between two computed steps would be a sum of recorded velocities with known
weights, so that its size follows from their inner products alone (an N x N Gram matrix, averaged over chunks and
prompts). Adding such errors up, the best pattern of every length is a shortest path, found exactly by dynamic
programming over (computed before, computed last). No run of the model is needed.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference.reuse import NoMemory
from inference.schedule import Schedule, Step
from multistep.config import spaced

# What an error that will be corrected counts, against one that stays: until then the model sees latents that are off
# by it. Which weight is right depends on how few steps are computed; closed-loop runs decide (docs/experiments.md).
PASSING = (0.05, 2.0)
# Exponents of the spacings that are tried beside what the dynamic programming finds.
SPACINGS = (1.5, 1.8)


class VelocityRecorder(NoMemory):
    """An advancer of runs that compute everything: it sums up the inner products of each chunk's velocities.

    `gram` (N, N) float64 over the chunks that finished since it was made, `chunks` their number, `times` (N + 1,) the
    noise levels. Of the last video, by chunk: `travelled`, its clean latents less its noise (16, T, H, W), and `grams`,
    its own inner products.
    """

    def __init__(self) -> None:
        self.gram = np.zeros((0, 0))
        self.times = np.zeros(0)
        self.chunks = 0
        self.travelled: dict[int, Tensor] = {}
        self.grams: dict[int, np.ndarray] = {}
        self._velocities: dict[int, list[Tensor]] = {}

    def reset(self, schedule: Schedule) -> None:
        if self.chunks and schedule.num_steps != len(self.gram):
            raise ValueError(f"recorded {len(self.gram)} steps so far, not {schedule.num_steps}; use a new recorder")
        if not self.chunks:
            self.gram = np.zeros((schedule.num_steps, schedule.num_steps))
            self.times = schedule.times.astype(np.float64)
        self._velocities, self.travelled, self.grams = {}, {}, {}

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
        gain = velocity * step.of(chunk).dt
        self.travelled[chunk] = self.travelled[chunk] + gain if chunk in self.travelled else gain
        self._velocities.setdefault(chunk, []).append(velocity.flatten())
        if step.finished == chunk:
            recorded = torch.stack(self._velocities.pop(chunk)).double()
            self.grams[chunk] = (recorded @ recorded.T).cpu().numpy()
            self.gram += self.grams[chunk]
            self.chunks += 1


@dataclass(frozen=True)
class Pattern:
    """Computed steps, ascending from 0, and the squared error of the latents that is expected of them, per chunk."""

    steps: tuple[int, ...]
    error: float


def _prediction_errors(gram: np.ndarray, times: np.ndarray, damping: float) -> np.ndarray:
    """Squared errors (N + 1, N, N + 1) by (computed before, computed last, next computed): of extrapolating from the
    last one up to the next. Row N: nothing was computed before; column N: up to the end. Infinite where there is no
    such order.
    """
    count = len(gram)
    t, dt = times[:count], np.diff(times)
    errors = np.full((count + 1, count, count + 1), np.inf)
    for last in range(count):
        for before in (*range(last), count):
            weights = np.zeros(count)
            errors[before, last, last + 1] = 0.0
            for step in range(last + 1, count):
                slope = 0.0 if before == count else damping * (t[step] - t[last]) / (t[last] - t[before])
                weights[last] += (1 + slope) * dt[step]
                weights[before if before < count else last] -= slope * dt[step]
                weights[step] -= dt[step]
                errors[before, last, step + 1] = weights @ gram @ weights
    return errors


def _correction_errors(gram: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Squared errors (N, N) by (computed last, next computed): of the straight line between the two."""
    count = len(gram)
    t, dt = times[:count], np.diff(times)
    errors = np.full((count, count), np.inf)
    for last in range(count):
        for following in range(last + 1, count):
            skipped = np.arange(last + 1, following)
            share = (t[skipped] - t[last]) / (t[following] - t[last])
            weights = np.zeros(count)
            weights[last] = ((1 - share) * dt[skipped]).sum()
            weights[following] = (share * dt[skipped]).sum()
            weights[skipped] = -dt[skipped]
            errors[last, following] = weights @ gram @ weights
    return errors


def candidates(
    gram: np.ndarray, times: np.ndarray, lengths: Iterable[int], damping: float = 0.8, correct: bool = True
) -> dict[int, dict[str, tuple[int, ...]]]:
    """By length: patterns worth a run in the closed loop, by how they were found; each pattern once.

    Arguments and errors are those of `best_patterns`.
    """
    steps = len(gram)
    found: dict[int, dict[str, tuple[int, ...]]] = {length: {} for length in sorted(set(lengths))}
    for passing in PASSING:
        for length, pattern in best_patterns(gram, times, found, damping, correct, passing).items():
            _add(found[length], f"passing {passing:g}", pattern.steps)
    for length, spacing in itertools.product(found, SPACINGS):
        _add(found[length], f"spacing {spacing:g}", spaced(steps, length / steps, spacing))
    return found


def _add(found: dict[str, tuple[int, ...]], name: str, pattern: tuple[int, ...]) -> None:
    if pattern not in found.values():
        found[name] = pattern


def best_patterns(
    gram: np.ndarray,
    times: np.ndarray,
    lengths: Iterable[int],
    damping: float = 0.8,
    correct: bool = True,
    passing: float = PASSING[0],
) -> dict[int, Pattern]:
    """The best pattern of every length.

    Args:
        gram: (N, N) inner products of the velocities of one chunk's N steps, summed or averaged over chunks.
        times: (N + 1,) noise levels.
        lengths: how many steps are computed, each 1 .. N.
        damping, correct: as in the settings.
        passing: what a squared error that a correction will remove counts, against one that stays.

    Raises:
        ValueError: a length is not within 1 .. N.
    """
    count, wanted = len(gram), sorted(set(lengths))
    if not wanted or wanted[0] < 1 or wanted[-1] > count:
        raise ValueError(f"pattern lengths {wanted} must lie within 1 .. {count}, the number of steps")
    cost = _prediction_errors(gram, times, damping)
    ending = cost[:, :, count].copy()
    if correct:
        cost[:, :, :count] = passing * cost[:, :, :count] + _correction_errors(gram, times)
    # best[before, last]: the least error up to `last`, of patterns of the current length that end so.
    best = np.full((count + 1, count), np.inf)
    best[count, 0] = 0.0
    previous: list[np.ndarray] = []
    found: dict[int, Pattern] = {}
    for length in range(1, wanted[-1] + 1):
        if length in wanted:
            found[length] = _read_back(best, ending, previous)
        extended = best[:, :, None] + cost[:, :, :count]
        previous.append(extended.argmin(0))
        best = np.full((count + 1, count), np.inf)
        best[:count] = extended.min(0)
    return found


def _read_back(best: np.ndarray, ending: np.ndarray, previous: list[np.ndarray]) -> Pattern:
    """Follow the choices back from the best end."""
    total = best + ending
    before, last = (int(place) for place in np.unravel_index(total.argmin(), total.shape))
    steps = [last]
    for choices in reversed(previous):
        last, before = before, int(choices[before, last])
        steps.append(last)
    return Pattern(tuple(reversed(steps)), float(total.min()))
