"""The calibrated solver on velocities that are known: against the rule that it generalises, and against plain sums."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.methods import make_reuse
from inference.schedule import Schedule
from multistep.config import MultistepConfig, Solver
from multistep.solver import rule_solver, rule_weights

SCHEDULE = Schedule(3, 0, 16, 4)
PATTERN = (0, 3, 4, 9, 13)


def places(settings: MultistepConfig, v: np.ndarray, schedule: Schedule = SCHEDULE) -> dict[tuple[int, int], float]:
    """By chunk and own step: where the chunk is before that step, beginning at zero; own step N is the end."""
    reuse = make_reuse(settings)
    reuse.reset(schedule)
    place, found = np.zeros(schedule.chunk_num), {}
    for step in schedule.steps:
        todo = reuse.decider.select(step, lambda: {})
        for entry in step.window:
            found[entry.chunk, entry.index] = place[entry.chunk]
            if entry.chunk in todo:
                velocity = torch.tensor([v[entry.index]])
                more = reuse.advancer.observe(step, entry.chunk, velocity)
                place[entry.chunk] += velocity.item() * entry.dt + (0 if more is None else more.item())
            else:
                place[entry.chunk] += reuse.advancer.advance(step, entry.chunk).item()
            found[entry.chunk, entry.index + 1] = place[entry.chunk]
    assert not reuse.advancer.held()
    return found


@pytest.mark.parametrize("damping", [0.0, 0.8])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("pattern", [(0,), (0, 15), PATTERN, tuple(range(16)), (0, 1, 14)])
def test_the_rule_as_a_solver_is_the_rule(pattern: tuple[int, ...], correct: bool, damping: float) -> None:
    v = np.random.default_rng(0).normal(size=16)
    common = {"pattern": pattern, "pattern_steps": 16, "damping": damping, "correct": correct}
    rule = places(MultistepConfig(**common), v)
    solver = rule_solver(pattern, SCHEDULE.times, damping, correct)
    solved = places(MultistepConfig(**common, solver=solver), v)
    for chunk in range(3):
        for step in (*pattern, 16):  # where the model looks, and where the video is
            assert solved[chunk, step] == pytest.approx(rule[chunk, step], abs=1e-6)
    assert rule_weights(pattern, SCHEDULE.times, damping, correct).shape == (len(pattern),) * 2


def test_a_chunk_stays_where_it_is_between_its_computed_steps() -> None:
    v = np.random.default_rng(1).normal(size=16)
    solver = rule_solver(PATTERN, SCHEDULE.times, 0.8, True)
    found = places(MultistepConfig(pattern=PATTERN, pattern_steps=16, solver=solver), v)
    for last, following in pairwise((*PATTERN, 16)):
        assert len({found[1, step] for step in range(last + 1, following + 1)}) == 1


def test_weights_are_those_of_the_first_chunk_and_of_the_later_ones() -> None:
    rng = np.random.default_rng(2)
    v = rng.normal(size=16)
    tables = [tuple(tuple(rng.normal(size=row + 1)) for row in range(5)) for _ in range(2)]
    solver = Solver(levels=(0.0, 0.1, 0.2, 0.5, 0.7), first=tables[0], later=tables[1])
    settings = MultistepConfig(pattern=PATTERN, pattern_steps=16, solver=solver)
    for offset in (0, 2):  # chunks before it are given
        schedule = Schedule(5, offset, 16, 4)
        found = places(settings, v, schedule)
        for chunk in range(offset, 5):
            table = tables[0 if chunk == offset else 1]
            gains = [sum(w * v[PATTERN[j]] for j, w in enumerate(row)) for row in table]
            assert found[chunk, 16] == pytest.approx(sum(gains), abs=1e-5)
            assert found[chunk, PATTERN[3]] == pytest.approx(sum(gains[:3]), abs=1e-5)


def test_the_model_is_asked_at_the_solvers_levels_and_nothing_else_changes() -> None:
    solver = rule_solver(PATTERN, SCHEDULE.times, 0.8, True).model_copy(update={"levels": (0.0, 0.1, 0.2, 0.5, 0.7)})
    reuse = make_reuse(MultistepConfig(pattern=PATTERN, pattern_steps=16, solver=solver))
    for step in SCHEDULE.steps:
        todo = reuse.decider.select(step, lambda: {})
        asked = reuse.asked(step, todo)
        for entry, plain in zip(asked.window, step.window, strict=True):
            level = solver.levels[PATTERN.index(entry.index)] if entry.chunk in todo else plain.t
            assert entry.t == level and entry.key_start == plain.key_start and entry.dt == plain.dt
        assert (asked.number, asked.clean, asked.finished) == (step.number, step.clean, step.finished)


def test_other_methods_ask_at_the_schedules_levels() -> None:
    reuse = make_reuse(MultistepConfig(pattern=PATTERN, pattern_steps=16))
    assert all(reuse.asked(step, step.chunks) is step for step in SCHEDULE.steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [0.0, 0.5, 0.6]}, r"first has rows of \[1, 2\] weights; with 3 levels they are 1 to 3"),
        ({"later": [[1.0], [1.0]]}, r"later has rows of \[1, 1\] weights"),
        ({"levels": [0.0, 1.0]}, r"must lie from 0, which is noise, to below 1"),
    ],
)
def test_coefficients_that_do_not_fit_each_other(changes: dict, message: str) -> None:
    good = {"levels": [0.0, 0.5], "first": [[1.0], [1.0, 2.0]], "later": [[1.0], [1.0, 2.0]]}
    assert Solver(**good).levels == (0.0, 0.5)
    with pytest.raises(ValidationError, match=message):
        Solver(**good | changes)


def test_a_solver_of_another_pattern_is_refused() -> None:
    solver = rule_solver(PATTERN, SCHEDULE.times, 0.8, True)
    settings = MultistepConfig(pattern=(0, 5), pattern_steps=16, solver=solver)
    assert list(settings.problems(SCHEDULE)) == [
        "the solver has 5 evaluations, but the pattern 2 steps; give its own pattern"
    ]
