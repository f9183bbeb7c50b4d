"""harness/replay.py: decisions made again give the same video."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from harness.methods import make_reuse
from harness.replay import Replay, decisions
from inference.record import RunRecord
from inference.reuse import ComputeAll, Reuse
from inference.sampler import Sampler
from multistep.config import MultistepConfig
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 5


def run(reuse: Reuse) -> tuple[list[Tensor], RunRecord]:
    config = tiny_config(num_frames=24 * CHUNKS)
    sampler = Sampler(tiny_dit(config), config, None, reuse)
    return [chunk.latents for chunk in sampler.run(tiny_noise(CHUNKS), TinyCaptions(config))], sampler.record


def replayed_by(reuse: Reuse, record: RunRecord) -> Reuse:
    return replace(reuse, decider=Replay(reuse.decider, decisions(record)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_reuse(FlowCacheConfig(rel_l1_thresh=0.2, warmup_steps=1)),
        lambda: make_reuse(MultistepConfig(computed_share=0.5)),
    ],
)
def test_a_deciders_own_decisions_change_nothing(make: Callable[[], Reuse]) -> None:
    latents, record = run(make())
    assert record.reused > 0
    again, replayed = run(replayed_by(make(), record))
    assert decisions(replayed) == decisions(record)
    assert all(torch.equal(a, b) for a, b in zip(latents, again, strict=True))


def test_others_decisions_are_followed() -> None:
    _, record = run(make_reuse(FlowCacheConfig(rel_l1_thresh=0.2, warmup_steps=1)))
    _, replayed = run(replayed_by(make_reuse(MultistepConfig()), record))
    assert decisions(replayed) == decisions(record)


def test_a_run_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the recorded run has 3 steps, this one \d+"):
        run(Reuse(decider=Replay(ComputeAll(), [(0,)] * 3)))
