"""The schedule: windows, indices, noise levels and key windows, against plain counting."""

import itertools

import numpy as np
import pytest
import torch

from inference.schedule import Schedule, chunk_count, step_intervals, time_grid


def walk(chunk_num: int, offset: int, num_steps: int, window: int) -> list[dict[int, int]]:
    """Chunk -> index at every step, by simulation: a chunk enters at each stage, each chunk leaves after its steps."""
    done: dict[int, int] = {}
    steps, next_chunk = [], offset
    while next_chunk < chunk_num or done:
        if next_chunk < chunk_num:
            done[next_chunk] = 0
            next_chunk += 1
        for _ in range(num_steps // window):
            steps.append(dict(done))
            done = {chunk: index + 1 for chunk, index in done.items()}
        done = {chunk: index for chunk, index in done.items() if index < num_steps}
    return steps


@pytest.mark.parametrize(
    ("chunk_num", "offset", "num_steps", "window"),
    [(1, 0, 8, 4), (4, 0, 8, 4), (10, 0, 64, 4), (7, 2, 16, 4), (5, 4, 8, 4), (3, 0, 4, 1), (6, 1, 12, 3)],
)
def test_window_agrees_with_a_simulation(chunk_num: int, offset: int, num_steps: int, window: int) -> None:
    schedule = Schedule(chunk_num, offset, num_steps, window)
    expected = walk(chunk_num, offset, num_steps, window)
    assert [{e.chunk: e.index for e in step.window} for step in schedule.steps] == expected
    assert len(schedule.steps) == schedule.total_steps
    assert [step.finished for step in schedule.steps if step.finished is not None] == list(range(offset, chunk_num))
    assert [step.is_first for step in schedule.steps].index(True) == 0
    assert [step.number for step in schedule.steps if step.is_last] == [schedule.total_steps - 1]


def test_the_steps_of_a_chunk_add_up_to_one() -> None:
    schedule = Schedule(5, 0, 16, 4)
    for chunk in range(5):
        steps = [step.of(chunk) for step in schedule.steps if chunk in step.chunks]
        assert [entry.index for entry in steps] == list(range(16))
        assert sum(entry.dt for entry in steps) == pytest.approx(1.0, abs=1e-6)
        assert all(later.t > entry.t for entry, later in itertools.pairwise(steps))


def test_a_clean_chunk_stands_in_front_once_after_it_finished() -> None:
    schedule = Schedule(6, 1, 8, 4)
    clean = {step.number: step.clean for step in schedule.steps if step.clean is not None}
    # Chunk 1 finishes with stage 3 (steps 6 and 7); the last chunk is never a context for anyone.
    assert clean == {8: 1, 10: 2, 12: 3, 14: 4}
    for number, chunk in clean.items():
        assert schedule.steps[number - 1].finished == chunk


@pytest.mark.parametrize("num_steps", [4, 8, 16, 32, 64])
def test_noise_levels_agree_with_torch(num_steps: int) -> None:
    u = torch.linspace(0, 1, num_steps + 1) ** 2
    expected = (1 / 3) * u / (1 + (1 / 3 - 1) * u)
    assert np.array_equal(time_grid(num_steps, "8,16,16"), expected.numpy())


@pytest.mark.parametrize("num_steps", [4, 8, 16, 32, 64])
def test_three_quarters_of_the_way_count_as_past_the_nearly_clean_threshold(num_steps: int) -> None:
    assert float(time_grid(num_steps, "8,16,16")[num_steps * 3 // 4]) > 0.3


def test_twelve_steps_use_their_own_grid() -> None:
    for mode, triple in (("8,16,16", (0, 2, 3)), ("16,16,8", (0, 1, 2))):
        u = np.array([(quarter + part / 4) / 4 for quarter in range(4) for part in triple] + [1.0])
        expected = (u**2 / 3) / (1 - u**2 * 2 / 3)
        assert np.allclose(time_grid(12, mode), expected, atol=1e-6)
    assert step_intervals(12, "8,16,16") == (2, 1, 1) * 4
    assert step_intervals(12, "16,16,8") == (1, 1, 2) * 4
    assert step_intervals(8, "8,16,16") == (1,) * 8
    assert [Schedule(2, 0, 12, 4).step_scalar(k) for k in range(3)] == [4.0, 8.0, 8.0]
    assert Schedule(2, 0, 64, 4).step_scalar(5) == 32.0


def test_key_windows() -> None:
    full = Schedule(8, 0, 8, 4)
    assert all(entry.key_start == 0 for step in full.steps for entry in step.window)
    assert full.clean_key_start(5) == 0 and full.prefix_key_start(5) == 5
    windowed = Schedule(8, 0, 8, 4, (5, 4, 3, 2), clean_chunk_kvrange=1)
    assert [windowed.noisy_key_start(7, index) for index in range(8)] == [3, 3, 4, 4, 5, 5, 6, 6]
    assert windowed.noisy_key_start(1, 0) == 0
    assert windowed.clean_key_start(5) == 5
    automatic = Schedule(8, 0, 8, 4, (3, 2), clean_chunk_kvrange=-1)
    assert automatic.clean_key_start(5) == 4 and automatic.prefix_key_start(5) == 4
    assert Schedule(12, 0, 8, 4, (), clean_chunk_kvrange=-1).prefix_key_start(10) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0, 10, 4), "num_steps 10 is not divisible by window_size 4"),
        ((4, 0, 8, 4, (3, 2, 1)), "not divisible by the 3 entries"),
        ((4, 4, 8, 4), "4 of 4 chunks"),
    ],
)
def test_impossible_schedules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


def test_chunk_count() -> None:
    assert [chunk_count(frames, 0, 6) for frames in (24, 25, 28, 48, 240)] == [1, 1, 2, 2, 10]
    assert chunk_count(96, 1, 6) == 5
    assert chunk_count(96, 8, 6) == 6


def test_asking_for_a_chunk_outside_the_window() -> None:
    with pytest.raises(KeyError, match="not in the window"):
        Schedule(4, 0, 8, 4).steps[0].of(3)
