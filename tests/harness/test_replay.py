"""harness/replay.py: decisions made again give the same video."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.policy import ChunkwiseReuse
from harness.replay import Replay, decisions
from inference.record import RunRecord
from inference.reuse import ReusePolicy
from inference.sampler import Sampler
from multistep.config import MultistepConfig
from multistep.policy import MultistepReuse
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 5


def run(policy: ReusePolicy) -> tuple[list[Tensor], RunRecord]:
    config = tiny_config(num_frames=24 * CHUNKS)
    sampler = Sampler(tiny_dit(config), config, None, policy)
    return [chunk.latents for chunk in sampler.run(tiny_noise(CHUNKS), TinyCaptions(config))], sampler.record


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChunkwiseReuse(FlowCacheConfig(rel_l1_thresh=0.2, warmup_steps=1)),
        lambda: MultistepReuse(MultistepConfig(computed_share=0.5)),
    ],
)
def test_a_policys_own_decisions_change_nothing(make: Callable[[], ReusePolicy]) -> None:
    latents, record = run(make())
    assert record.reused > 0
    again, replayed = run(Replay(make(), decisions(record)))
    assert decisions(replayed) == decisions(record)
    assert all(torch.equal(a, b) for a, b in zip(latents, again, strict=True))


def test_others_decisions_are_followed() -> None:
    _, record = run(ChunkwiseReuse(FlowCacheConfig(rel_l1_thresh=0.2, warmup_steps=1)))
    _, replayed = run(Replay(MultistepReuse(MultistepConfig()), decisions(record)))
    assert decisions(replayed) == decisions(record)


def test_a_run_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the recorded run has 3 steps, this one \d+"):
        run(Replay(ChunkwiseReuse(FlowCacheConfig()), [(0,)] * 3))
