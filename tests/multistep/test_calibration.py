"""Patterns found by dynamic programming, against all patterns tried one by one on explicit vectors."""

import itertools

import numpy as np
import pytest
import torch

from inference.schedule import Schedule
from multistep.calibration import PASSING, VelocityRecorder, best_patterns, candidates
from multistep.config import spaced

STEPS = 9


def velocities(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth made-up velocities (STEPS, 20) and uneven times (STEPS + 1,)."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, STEPS + 1) ** 2
    powers = times[:-1, None] ** np.arange(5)
    return powers @ rng.normal(size=(5, 20)), times


def naive_error(
    pattern: tuple[int, ...], v: np.ndarray, times: np.ndarray, damping: float, correct: bool, passing: float
) -> float:
    """The objective, interval by interval."""
    t, dt = times[:-1], np.diff(times)
    total = 0.0
    for number, last in enumerate(pattern):
        end = pattern[number + 1] if number + 1 < len(pattern) else len(v)
        predicted, line = np.zeros(v.shape[1]), np.zeros(v.shape[1])
        for step in range(last + 1, end):
            slope = 0.0
            if number:
                before = pattern[number - 1]
                slope = damping * (v[last] - v[before]) / (t[last] - t[before])
            predicted += (v[last] + slope * (t[step] - t[last]) - v[step]) * dt[step]
            if end < len(v):
                share = (t[step] - t[last]) / (t[end] - t[last])
                line += ((1 - share) * v[last] + share * v[end] - v[step]) * dt[step]
        if end < len(v) and correct:
            total += passing * predicted @ predicted + line @ line
        else:
            total += predicted @ predicted
    return total


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("damping", "passing"), [(0.6, 2.0), (1.0, 0.05)])
def test_no_pattern_is_better_than_the_one_found(damping: float, passing: float, correct: bool) -> None:
    v, times = velocities()
    found = best_patterns(v @ v.T, times, range(1, STEPS + 1), damping, correct, passing)
    for length, pattern in found.items():
        tried = {
            (0, *rest): naive_error((0, *rest), v, times, damping, correct, passing)
            for rest in itertools.combinations(range(1, STEPS), length - 1)
        }
        assert pattern.error == pytest.approx(min(tried.values()), abs=1e-12)
        assert tried[pattern.steps] == pytest.approx(min(tried.values()), abs=1e-12)


def test_more_steps_lose_less_and_all_lose_nothing() -> None:
    v, times = velocities(1)
    errors = [pattern.error for pattern in best_patterns(v @ v.T, times, range(1, STEPS + 1)).values()]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(0, abs=1e-12)


def test_candidates_are_the_best_of_every_weight_and_the_spacings_each_once() -> None:
    v, times = velocities()
    found = candidates(v @ v.T, times, [3, STEPS, 4])
    assert list(found) == [3, 4, STEPS]
    for length, patterns in found.items():
        assert len(set(patterns.values())) == len(patterns)
        wanted = {best_patterns(v @ v.T, times, [length], passing=weight)[length].steps for weight in PASSING}
        wanted |= {spaced(STEPS, length / STEPS, spacing) for spacing in (1.5, 1.8)}
        assert set(patterns.values()) == wanted
    assert list(found[STEPS].values()) == [tuple(range(STEPS))]


@pytest.mark.parametrize("lengths", [[], [0, 2], [STEPS + 1]])
def test_lengths_out_of_range(lengths: list[int]) -> None:
    v, times = velocities()
    with pytest.raises(ValueError, match=r"1 \.\. 9"):
        best_patterns(v @ v.T, times, lengths)


def test_recorder_sums_the_inner_products_of_every_chunk() -> None:
    schedule = Schedule(3, 0, 8, 4)
    recorder = VelocityRecorder()
    rng = np.random.default_rng(0)
    made = {(chunk, index): rng.normal(size=(2, 3)) for chunk in range(3) for index in range(8)}
    for _ in range(2):
        recorder.reset(schedule)
        for step in schedule.steps:
            for entry in step.window:
                recorder.observe(step, entry.chunk, torch.tensor(made[entry.chunk, entry.index]))
    expected = np.zeros((8, 8))
    for chunk in range(3):
        stacked = np.stack([made[chunk, index].ravel() for index in range(8)])
        expected += 2 * stacked @ stacked.T
    assert recorder.chunks == 6
    np.testing.assert_allclose(recorder.gram, expected)
    np.testing.assert_allclose(recorder.times, schedule.times)
    dt = np.diff(schedule.times.astype(float))
    for chunk in range(3):  # of the last video alone
        travelled = sum(made[chunk, index] * dt[index] for index in range(8))
        np.testing.assert_allclose(recorder.travelled[chunk], travelled, rtol=1e-5)
    with pytest.raises(ValueError, match="recorded 8 steps so far, not 16"):
        recorder.reset(Schedule(3, 0, 16, 4))
