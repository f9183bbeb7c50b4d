"""TeaCache's decisions, on made-up features whose change is known."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.methods import TeaCacheSettings, make_config
from inference.schedule import Schedule, Step
from teacache.config import TeaCacheConfig
from teacache.decider import WindowDecider

FeaturesOf = Callable[[Step], Mapping[int, Tensor]]


def growing(change: float) -> FeaturesOf:
    """Every chunk changes by ``change`` (relative) at every step of the video, and starts ten times the one before."""

    def features(step: Step) -> Mapping[int, Tensor]:
        return {chunk: torch.full((4,), 10.0**chunk * (1 + change) ** step.number) for chunk in step.chunks}

    return features


def follow(deciding: WindowDecider, schedule: Schedule, features: FeaturesOf) -> list[tuple[int, ...]]:
    """The chunks computed at every step."""
    deciding.reset(schedule)
    chosen = []
    for step in schedule.steps:
        todo = deciding.select(step, lambda step=step: features(step))
        chosen.append(todo)
    return chosen


def decider(**values: object) -> WindowDecider:
    return WindowDecider(TeaCacheConfig(**{"warmup_steps": 0, "protect_last_step": False, **values}))


def letters(chosen: list[tuple[int, ...]], schedule: Schedule) -> str:
    """A letter a step: C all computed, r none, p some."""
    pairs = zip(chosen, schedule.steps, strict=True)
    return "".join("C" if todo == step.chunks else "p" if todo else "r" for todo, step in pairs)


def test_the_window_is_reused_until_the_accumulated_change_reaches_the_threshold() -> None:
    schedule = Schedule(1, 0, 16, 4)
    # Changes of 0.1 against 0.25: two reuses (0.1, 0.2), then 0.3 computes and starts over. First, last: computed.
    assert letters(follow(decider(rel_l1_thresh=0.25), schedule, growing(0.1)), schedule) == "CrrCrrCrrCrrCrrC"
    assert letters(follow(decider(rel_l1_thresh=0.05), schedule, growing(0.1)), schedule) == "C" * 16
    assert letters(follow(decider(rel_l1_thresh=99), schedule, growing(0.1)), schedule) == "C" + "r" * 14 + "C"


def test_a_threshold_per_unit_of_the_schedule_follows_the_step_count() -> None:
    schedule = Schedule(1, 0, 16, 4)
    per_unit = decider(rel_l1_thresh=0.0625, thresh_steps=64)
    assert letters(follow(per_unit, schedule, growing(0.1)), schedule) == "CrrCrrCrrCrrCrrC"
    warm = decider(rel_l1_thresh=99, warmup_steps=5, thresh_steps=64)
    assert letters(follow(warm, schedule, growing(0.1)), schedule) == "CC" + "r" * 13 + "C"


def test_warm_up_counts_the_steps_of_the_video_and_accumulates_nothing() -> None:
    schedule = Schedule(2, 0, 16, 4)
    chosen = letters(follow(decider(rel_l1_thresh=0.25, warmup_steps=6), schedule, growing(0.1)), schedule)
    # The second chunk enters at step 4, inside the warm-up, and has none of its own.
    assert chosen[:12] == "C" * 6 + "rrCrrC"
    assert letters(follow(decider(rel_l1_thresh=99, warmup_steps=99), schedule, growing(0.1)), schedule) == "C" * 20


def test_a_chunk_that_has_just_entered_is_computed_alone() -> None:
    schedule = Schedule(4, 0, 16, 4)
    chosen = follow(decider(rel_l1_thresh=99), schedule, growing(0.001))
    for step, todo in zip(schedule.steps[1:-1], chosen[1:-1], strict=True):
        entered = step.k == 0 and step.stage < 4
        assert todo == ((step.stage,) if entered else ()), step.number


def test_a_partial_step_does_not_start_the_accumulation_over() -> None:
    schedule = Schedule(2, 0, 16, 4)
    # The second chunk enters at step 4. Changes of 0.1 against 0.45: steps 1 to 4 are reuses, 5 computes.
    assert letters(follow(decider(rel_l1_thresh=0.45), schedule, growing(0.1)), schedule)[:6] == "CrrrpC"


def test_all_chunks_are_measured_together() -> None:
    """The mean is taken over all of them before the division: a large chunk counts for more than a small one."""
    schedule = Schedule(2, 0, 8, 2)

    def features(step: Step) -> Mapping[int, Tensor]:
        # Of 100 and 1, each changes by 1 a step: 1 % and 100 %, together 2 of 101.
        return {chunk: torch.tensor([[100.0, 1.0][chunk] + step.number % 2]) for chunk in step.chunks}

    for threshold, expected in ((0.0199, "r"), (0.0197, "C")):
        reuse = decider(rel_l1_thresh=threshold, warmup_steps=5)
        assert letters(follow(reuse, schedule, features), schedule)[:6] == "C" * 5 + expected


def test_chunks_are_compared_with_themselves_when_the_window_slides() -> None:
    schedule = Schedule(4, 0, 8, 2)
    # Chunks stand still but differ tenfold from each other: compared by position, every slide would be a large change.
    chosen = follow(decider(rel_l1_thresh=1e-6), schedule, growing(0.0))
    slides = [step.number for step in schedule.steps if step.k == 0 and step.stage in (2, 3)]
    assert [chosen[number] for number in slides] == [(2,), (3,)]
    assert sum(len(todo) for todo in chosen) == 5  # each chunk as it enters, and the last step


def test_without_a_common_chunk_all_are_computed() -> None:
    schedule = Schedule(3, 0, 4, 1)  # a window of one chunk: nothing stays when it moves
    chosen = letters(follow(decider(rel_l1_thresh=99), schedule, growing(0.1)), schedule)
    assert chosen == "Crrr" + "Crrr" + "CrrC"


def test_a_chunks_last_step_can_be_protected() -> None:
    schedule = Schedule(4, 0, 16, 4)
    chosen = follow(decider(rel_l1_thresh=99, protect_last_step=True), schedule, growing(0.001))
    for step, todo in zip(schedule.steps[1:-1], chosen[1:-1], strict=True):
        if step.finished is not None:
            assert todo == (step.finished,)
        elif step.k:
            assert todo == ()


def test_threshold_zero_computes_everything_whatever_the_polynomial() -> None:
    schedule = Schedule(2, 0, 8, 2)
    for coefficients in (None, (-5.0,), (0.0,)):
        zero = decider(rel_l1_thresh=0.0, coefficients=coefficients)
        assert letters(follow(zero, schedule, growing(0.0)), schedule) == "C" * 12
    assert "r" in letters(follow(decider(rel_l1_thresh=1e-9), schedule, growing(0.0)), schedule)


def test_coefficients_are_a_polynomial_with_the_highest_power_first() -> None:
    schedule = Schedule(1, 0, 16, 4)
    for coefficients in ([3.0, -0.5, 0.2, 0.01], [0.0, 1.0], [0.07], [-20.0, 0.0, 0.4]):
        reuse = decider(rel_l1_thresh=0.3, coefficients=coefficients)
        reuse.reset(schedule)
        accumulated = 0.0
        for step in schedule.steps[:-1]:
            reuse.select(step, lambda step=step: growing(0.1)(step))
            if step.number:
                accumulated += float(np.polyval(coefficients, 0.1))
            accumulated = accumulated if step.number and accumulated < 0.3 else 0.0
            assert reuse.accumulated == pytest.approx(accumulated, rel=1e-5, abs=1e-9)
    plain = follow(decider(rel_l1_thresh=0.3), schedule, growing(0.1))
    assert follow(decider(rel_l1_thresh=0.3, coefficients=(1.0, 0.0)), schedule, growing(0.1)) == plain


def test_reset_forgets_the_last_video() -> None:
    schedule = Schedule(3, 0, 16, 4)
    used = decider(rel_l1_thresh=0.25)
    first = follow(used, schedule, growing(0.1))
    follow(used, schedule, growing(0.03))
    assert follow(used, schedule, growing(0.1)) == first


def test_parameters_are_checked() -> None:
    def refused(values: dict[str, object]) -> str:
        with pytest.raises(ValueError, match=r"^here: ") as caught:
            make_config(TeaCacheSettings, values, "here")
        return str(caught.value)

    assert "unknown parameter 'max_consecutive_reuse'; known are clean_pass, coefficients" in refused(
        {"max_consecutive_reuse": 2}
    )
    assert "coefficients = ()" in refused({"coefficients": ()})
    assert "coefficients.1 = 'x'" in refused({"coefficients": [1.0, "x"]})
    assert "coefficients.0 = inf" in refused({"coefficients": [float("inf")]})
    assert "coefficients = 0.5" in refused({"coefficients": 0.5})
    assert "warmup_steps = -1" in refused({"warmup_steps": -1})
    assert make_config(TeaCacheSettings, {"coefficients": [1, 2]}, "here").coefficients == (1.0, 2.0)
