"""Prediction and correction on velocities that are known, against sums written out here."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.methods import make_reuse
from inference.schedule import Schedule
from multistep.config import MultistepConfig, spaced

SCHEDULE = Schedule(3, 0, 16, 4)


def settings(**values: object) -> MultistepConfig:
    return MultistepConfig(**{"pattern": (0, 3, 4, 9, 13), "pattern_steps": 16, **values})


def drive(config: MultistepConfig, velocity_at: np.ndarray, schedule: Schedule = SCHEDULE) -> tuple[np.ndarray, list]:
    """Where each chunk gets from zero when the velocity at own step i is `velocity_at[i]`, and what was computed."""
    reuse = make_reuse(config)
    reuse.reset(schedule)
    place, computed = [torch.zeros(1, dtype=torch.float64) for _ in range(schedule.chunk_num)], []
    for step in schedule.steps:
        todo = reuse.decider.select(step, lambda: {})
        for entry in step.window:
            if entry.chunk in todo:
                velocity = torch.tensor([velocity_at[entry.index]])
                correction: Tensor | None = reuse.advancer.observe(step, entry.chunk, velocity)
                place[entry.chunk] += velocity * entry.dt + (0 if correction is None else correction)
                computed.append((entry.chunk, entry.index))
            else:
                place[entry.chunk] += reuse.advancer.advance(step, entry.chunk)
    return np.array([float(value) for value in place]), computed


def written_out(pattern: tuple[int, ...], v: np.ndarray, schedule: Schedule, damping: float, correct: bool) -> float:
    """The same place by sums over intervals: the line between computed steps, or its continuation from before."""
    t, dt = schedule.times.astype(float)[:-1], np.diff(schedule.times).astype(float)
    place = sum(v[step] * dt[step] for step in pattern)
    for number, last in enumerate(pattern):
        following = pattern[number + 1] if number + 1 < len(pattern) else None
        for step in range(last + 1, schedule.num_steps if following is None else following):
            if correct and following is not None:
                share = (t[step] - t[last]) / (t[following] - t[last])
                velocity = (1 - share) * v[last] + share * v[following]
            elif number == 0:
                velocity = v[last]
            else:
                before = pattern[number - 1]
                velocity = v[last] + damping * (v[last] - v[before]) / (t[last] - t[before]) * (t[step] - t[last])
            place += velocity * dt[step]
    return place


@pytest.mark.parametrize("damping", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("pattern", [(0,), (0, 15), (0, 3, 4, 9, 13), tuple(range(16)), (0, 1, 14, 15)])
def test_chunks_get_where_the_sums_say(pattern: tuple[int, ...], correct: bool, damping: float) -> None:
    velocities = np.random.default_rng(0).normal(size=16)
    config = settings(pattern=pattern, damping=damping, correct=correct)
    places, computed = drive(config, velocities)
    np.testing.assert_allclose(places, written_out(pattern, velocities, SCHEDULE, damping, correct), rtol=1e-5)
    assert sorted(computed) == [(chunk, step) for chunk in range(3) for step in pattern]


def test_a_velocity_that_is_linear_in_t_is_followed_exactly_from_two_steps_on() -> None:
    times = SCHEDULE.times.astype(float)
    velocities = 3 - 5 * times[:-1]
    exact = (velocities * np.diff(times)).sum()
    places, _ = drive(settings(pattern=(0, 2), damping=1.0), velocities)
    np.testing.assert_allclose(places, exact, rtol=1e-5)


def test_correction_loses_less_where_velocities_bend() -> None:
    times = SCHEDULE.times.astype(float)
    velocities = np.exp(3 * times[:-1])
    exact = (velocities * np.diff(times)).sum()
    errors = {
        correct: abs(drive(settings(pattern=(0, 5, 10, 14, 15), correct=correct), velocities)[0] - exact).max()
        for correct in (False, True)
    }
    assert errors[True] < 0.7 * errors[False]


def test_nothing_is_kept_of_finished_chunks() -> None:
    for pattern in ((0, 5), (0, 15)):
        reuse = make_reuse(settings(pattern=pattern))
        reuse.reset(SCHEDULE)
        for step in SCHEDULE.steps:
            todo = reuse.decider.select(step, lambda: {})
            for chunk in step.chunks:
                if chunk in todo:
                    reuse.advancer.observe(step, chunk, torch.ones(1))
                else:
                    reuse.advancer.advance(step, chunk)
        assert not reuse.advancer.held()


@pytest.mark.parametrize("steps", [8, 16, 32, 64])
@pytest.mark.parametrize("share", [0.01, 1 / 8, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("spacing", [1.0, 1.8, 3.0, 20.0])
def test_spaced_steps_are_as_many_as_asked_for(steps: int, share: float, spacing: float) -> None:
    pattern = spaced(steps, share, spacing)
    assert len(set(pattern)) == len(pattern) == max(1, round(share * steps))
    assert pattern[0] == 0 and list(pattern) == sorted(pattern) and pattern[-1] < steps
    if share == 1.0:
        assert pattern == tuple(range(steps))
    elif len(pattern) > 2 and spacing > 1:
        # Closer and closer, but for rounding.
        gaps = [b - a for a, b in pairwise(pattern)]
        assert gaps[0] >= gaps[-1] and all(later <= earlier + 1 for earlier, later in pairwise(gaps))


def test_spacing_by_hand() -> None:
    assert spaced(64, 1 / 8, 1.0) == (0, 8, 16, 24, 32, 40, 48, 56)
    assert spaced(64, 1 / 16, 2.0) == (0, 28, 48, 60)  # 64 * (1 - (1, 9/16, 1/4, 1/16))
    schedule = Schedule(5, 0, 64, 4)
    settings = MultistepConfig(computed_share=1 / 16, spacing=2.0)
    assert settings.computed_steps(schedule) == {0, 28, 48, 60} and not list(settings.problems(schedule))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pattern": (0, 3), "pattern_steps": 32}, "calibrated for 32 steps, but num_steps is 16"),
        ({"pattern": (0, 3)}, "needs pattern_steps"),
        ({"pattern": (0, 30), "pattern_steps": 16}, "last step 30 is not below num_steps 16"),
    ],
)
def test_settings_that_do_not_fit_the_schedule(values: dict, message: str) -> None:
    assert any(message in problem for problem in MultistepConfig(**values).problems(SCHEDULE))


@pytest.mark.parametrize("pattern", [(), (1, 2), (0, 5, 3), (0, 3, 3), (0, -1)])
def test_patterns_that_are_none(pattern: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        MultistepConfig(pattern=pattern, pattern_steps=16)


def test_settings_from_files_and_flags() -> None:
    assert MultistepConfig(pattern=[0, 4], pattern_steps=8).pattern == (0, 4)
    assert MultistepConfig(pattern=0, pattern_steps=8).pattern == (0,)
    assert not list(MultistepConfig().problems(SCHEDULE))
