"""What skipped chunks gain and how it is corrected, on velocities that are known; any decider with any advancer."""

from collections.abc import Mapping
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from harness.methods import TeaCacheSettings, make_reuse
from inference.advance import ChunkMemory, Computed, MemoryAdvancer
from inference.reuse import Reuse
from inference.sampler import Sampler
from inference.schedule import ChunkStep, Schedule, Step
from inference.settings import AdvanceSettings
from multistep.config import MultistepConfig
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

SCHEDULE = Schedule(3, 0, 16, 4)
FORMS = ("gain", "velocity", "linear")


def changing(step: Step) -> Mapping[int, Tensor]:
    return {entry.chunk: torch.full((4,), 1.1**entry.index) for entry in step.window}


def drive(reuse: Reuse, velocity_at: Mapping[float, float] | None = None) -> tuple[list[float], int]:
    """Where each chunk gets from zero, in float64, and how many chunk-steps were skipped.

    The velocity at noise level t is 2 + 3 t, or what ``velocity_at`` says of it.
    """
    reuse.reset(SCHEDULE)
    place, skipped = [torch.zeros(1, dtype=torch.float64) for _ in range(SCHEDULE.chunk_num)], 0
    for step in SCHEDULE.steps:
        todo = reuse.decider.select(step, lambda step=step: changing(step))
        for entry in step.window:
            if entry.chunk in todo:
                velocity = torch.tensor([2.0 + 3.0 * entry.t if velocity_at is None else velocity_at[entry.t]]).double()
                place[entry.chunk] += velocity * entry.dt
                correction = reuse.advancer.observe(step, entry.chunk, velocity)
                place[entry.chunk] += 0 if correction is None else correction
            else:
                place[entry.chunk] += reuse.advancer.advance(step, entry.chunk)
                skipped += 1
    return [float(value) for value in place], skipped


def whole(velocity: Mapping[float, float] | None = None) -> float:
    times = SCHEDULE.times.tolist()
    return sum((2 + 3 * t if velocity is None else velocity[t]) * (after - t) for t, after in pairwise(times))


def memory(*velocities: float) -> ChunkMemory:
    """Velocities computed at t = 0.1 and 0.2 (dt alike)."""
    at = [Computed(torch.tensor(v), t, t) for v, t in zip(velocities, (0.1, 0.2)[-len(velocities) :], strict=True)]
    return ChunkMemory(at[-1], at[0] if len(at) == 2 else None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"reuse_form": "gain"}, 5.0 * 0.2),
        ({"reuse_form": "velocity"}, 5.0 * 0.1),
        ({"reuse_form": "linear"}, 8.0 * 0.1),
        ({"reuse_form": "linear", "damping": 0.5}, 6.5 * 0.1),
        ({"reuse_form": "linear", "damping": 0.0}, 5.0 * 0.1),
    ],
)
def test_what_a_skipped_chunk_gains(values: dict[str, object], expected: float) -> None:
    # Velocity 3 at t = 0.1 and 5 at t = 0.2: at t = 0.35 the line is at 8.
    gained = memory(3.0, 5.0).predict(AdvanceSettings(**values), ChunkStep(0, 3, 0.35, 0.1, 0))
    assert gained.item() == pytest.approx(expected, rel=1e-5)


def test_one_velocity_is_held() -> None:
    assert memory(5.0).predict(AdvanceSettings(), ChunkStep(0, 1, 0.4, 0.1, 0)).item() == pytest.approx(0.5)


def every_decider(**values: object) -> list[Reuse]:
    """Each method's decider, skipping some steps, with the advancer that ``values`` ask for."""
    change = {"rel_l1_thresh": 0.25, "warmup_steps": 2, **values}
    pattern = {"pattern": (0, 1, 5, 9, 12, 15), "pattern_steps": 16}
    settings = (FlowCacheConfig(**change), TeaCacheSettings(**change), MultistepConfig(**pattern, **values))
    return [make_reuse(each) for each in settings]


@pytest.mark.parametrize("correct", [False, True])
def test_a_line_is_followed_exactly_whoever_decides(correct: bool) -> None:
    for reuse in every_decider(reuse_form="linear", damping=1.0, correct=correct):
        places, skipped = drive(reuse)
        assert skipped > 9
        # TeaCache skips a chunk's second step where its first velocity is all there is, and is held.
        assert places == pytest.approx([whole()] * 3, rel=1e-5 if correct else 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_correction_makes_good_whatever_was_gained(form: str) -> None:
    """On a line nothing is left of any form's error; without the correction something is."""
    for reuse, loose in zip(
        every_decider(reuse_form=form, damping=0.0, correct=True),
        every_decider(reuse_form=form, damping=0.0, correct=False),
        strict=True,
    ):
        # A chunk's last step is computed by all three, so that every skipped step is corrected.
        assert drive(reuse)[0] == pytest.approx([whole()] * 3, rel=1e-5)
        assert drive(loose)[0] != pytest.approx([whole()] * 3, rel=1e-3)


def test_a_correction_is_the_line_between_two_velocities() -> None:
    """Bent velocities: what is gained between two computed steps is the integral of the line between them."""
    times = SCHEDULE.times.tolist()
    bent = {t: t**3 for t in times}
    pattern = (0, 3, 4, 9, 15)
    found, _ = drive(make_reuse(MultistepConfig(pattern=pattern, pattern_steps=16)), bent)
    on_lines = {t: bent[t] for t in times}
    for last, following in pairwise(pattern):
        for step in range(last + 1, following):
            share = (times[step] - times[last]) / (times[following] - times[last])
            on_lines[times[step]] = (1 - share) * bent[times[last]] + share * bent[times[following]]
    assert found == pytest.approx([whole(on_lines)] * 3, rel=1e-5)


def test_nothing_is_kept_of_finished_chunks_nor_of_the_last_video() -> None:
    for form, correct in product(FORMS, (False, True)):
        for reuse in every_decider(reuse_form=form, correct=correct):
            first = drive(reuse)
            assert isinstance(reuse.advancer, MemoryAdvancer) and not reuse.advancer.held()
            assert drive(reuse) == first


def test_a_chunk_that_was_never_computed_cannot_advance() -> None:
    advancer = MemoryAdvancer(AdvanceSettings())
    advancer.reset(SCHEDULE)
    with pytest.raises(RuntimeError, match=r"chunk 0 is skipped at step 0 before it was ever computed"):
        advancer.advance(SCHEDULE.steps[0], 0)


@pytest.mark.parametrize(("form", "correct"), list(product(FORMS, (False, True))))
def test_any_decider_with_any_advancer_makes_a_video(form: str, correct: bool) -> None:
    config = tiny_config(num_frames=72, num_steps=16)
    for reuse in every_decider(reuse_form=form, correct=correct):
        sampler = Sampler(tiny_dit(config), config, None, reuse)
        chunks = list(sampler.run(tiny_noise(3), TinyCaptions(config)))
        assert sampler.record.reused > 0
        assert all(torch.isfinite(chunk.latents).all() for chunk in chunks)
