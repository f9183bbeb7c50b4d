"""FlowCache's decisions, on made-up features whose change is known."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.decider import ChunkwiseDecider
from harness.methods import make_config
from inference.reuse import relative_l1_by_chunk
from inference.schedule import Schedule, Step


def decide(config: FlowCacheConfig, change: float, chunks: int = 1, steps: int = 16, window: int = 4) -> list[str]:
    """Decisions of a video whose features change by ``change`` (relative) at every step: c computed, r reused, per
    chunk.
    """
    schedule = Schedule(chunks, 0, steps, window)
    decider = ChunkwiseDecider(config)
    decider.reset(schedule)
    decisions = [""] * chunks
    for step in schedule.steps:
        todo = decider.select(step, lambda step=step: features(step, change))
        for chunk in step.chunks:
            decisions[chunk] += "c" if chunk in todo else "r"
    return decisions


def features(step: Step, change: float) -> Mapping[int, Tensor]:
    return {entry.chunk: torch.full((4,), (1 + change) ** entry.index) for entry in step.window}


def settings(**values: object) -> FlowCacheConfig:
    return FlowCacheConfig(**{"warmup_steps": 0, "protect_last_step": False, **values})


def test_a_chunk_is_reused_until_the_accumulated_change_reaches_the_threshold() -> None:
    # Changes of 0.1 against 0.25: two reuses (0.1, 0.2), then 0.3 computes and starts over. First and last step
    # computed.
    assert decide(settings(rel_l1_thresh=0.25), 0.1) == ["crrcrrcrrcrrcrrc"]
    assert decide(settings(rel_l1_thresh=0.05), 0.1) == ["c" * 16]
    assert decide(settings(rel_l1_thresh=99), 0.1) == ["c" + "r" * 14 + "c"]


def test_a_threshold_per_unit_of_the_schedule_follows_the_step_count() -> None:
    # Over a step of 16 four times as much changes as over one of 64: 0.0625 for 64 steps is the 0.25 from above.
    assert decide(settings(rel_l1_thresh=0.0625, thresh_steps=64), 0.1) == ["crrcrrcrrcrrcrrc"]
    assert decide(settings(rel_l1_thresh=0.0625), 0.1) == ["c" * 16]
    assert decide(settings(rel_l1_thresh=0.25, thresh_steps=16), 0.1) == ["crrcrrcrrcrrcrrc"]
    # So does the warm-up, rounded up: 5 of 64 steps are 1.25 of 16.
    warm = settings(rel_l1_thresh=99, warmup_steps=5, thresh_steps=64)
    assert decide(warm, 0.1) == ["cc" + "r" * 13 + "c"]
    assert decide(warm, 0.1, steps=64) == ["c" * 5 + "r" * 58 + "c"]
    assert decide(settings(rel_l1_thresh=99, thresh_steps=64), 0.1) == ["c" + "r" * 14 + "c"]


def test_warm_up_counts_each_chunks_own_steps() -> None:
    decisions = decide(settings(rel_l1_thresh=99, warmup_steps=5), 0.1, chunks=3)
    assert decisions == ["c" * 5 + "r" * 11, "c" * 5 + "r" * 11, "c" * 5 + "r" * 10 + "c"]


def test_every_chunks_last_step_can_be_protected() -> None:
    decisions = decide(settings(rel_l1_thresh=99, protect_last_step=True), 0.1, chunks=3)
    assert all(decision[-1] == "c" for decision in decisions)


def test_staleness_can_be_bounded() -> None:
    assert decide(settings(rel_l1_thresh=99, max_consecutive_reuse=3), 0.1) == ["crrrcrrrcrrrcrrc"]


def test_threshold_zero_computes_everything_even_where_nothing_changes() -> None:
    assert decide(settings(rel_l1_thresh=0.0), 0.0, chunks=2) == ["c" * 16] * 2
    assert decide(settings(rel_l1_thresh=1e-9), 0.0) == ["c" + "r" * 14 + "c"]


def test_chunks_decide_for_themselves() -> None:
    schedule = Schedule(4, 0, 16, 4)
    decider = ChunkwiseDecider(settings(rel_l1_thresh=0.15))
    decider.reset(schedule)
    for step in schedule.steps[:14]:
        # Even chunks stand still, odd ones change by 0.2 at every step.
        still = {e.chunk: torch.full((4,), 1.2**e.index if e.chunk % 2 else 1.0) for e in step.window}
        todo = decider.select(step, lambda still=still: still)
        if step.number and step.k:
            assert todo == tuple(chunk for chunk in step.chunks if chunk % 2)


def test_reset_forgets_the_last_video() -> None:
    config = settings(rel_l1_thresh=0.25)
    schedule = Schedule(1, 0, 16, 4)
    decider = ChunkwiseDecider(config)
    runs = []
    for _ in range(2):
        decider.reset(schedule)
        chosen = []
        for step in schedule.steps:
            todo = decider.select(step, lambda step=step: features(step, 0.1))
            chosen.append(todo)
        runs.append(chosen)
    assert runs[0] == runs[1]


def test_relative_l1() -> None:
    a, b = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])
    assert relative_l1_by_chunk({0: a}, {0: torch.zeros(2)})[0] == pytest.approx(2e8)
    now, before = {1: a, 2: a, 3: a}, {0: b, 1: b, 2: a}
    assert relative_l1_by_chunk(now, before) == {1: pytest.approx(0.5), 2: 0.0}
    half = relative_l1_by_chunk({0: a.bfloat16()}, {0: (a * 1.001).bfloat16()})
    assert half[0] >= 0


def test_unknown_and_impossible_parameters_are_named() -> None:
    with pytest.raises(ValueError, match=r"here: unknown parameter 'rel_l1_tresh'; known are .*rel_l1_thresh"):
        make_config(FlowCacheConfig, {"rel_l1_tresh": 0.1}, "here")
    with pytest.raises(ValueError, match=r"rel_l1_thresh = -1"):
        make_config(FlowCacheConfig, {"rel_l1_thresh": -1}, "here")
    with pytest.raises(ValueError, match=r"rel_l1_thresh = True"):
        make_config(FlowCacheConfig, {"rel_l1_thresh": True}, "here")
    with pytest.raises(ValueError, match=r"compress_kv_cache = 1"):
        make_config(FlowCacheConfig, {"compress_kv_cache": 1}, "here")
    assert make_config(FlowCacheConfig, {"rel_l1_thresh": 0, "power": 3}, "here").power == 3.0
    with pytest.raises(ValueError, match=r"mix_lambda = 2"):
        make_config(FlowCacheConfig, {"mix_lambda": 2}, "here")
    with pytest.raises(ValueError, match=r"rel_l1_thresh = nan"):
        make_config(FlowCacheConfig, {"rel_l1_thresh": float("nan")}, "here")


def test_settings_are_checked_against_the_schedule() -> None:
    config = FlowCacheConfig(compress_kv_cache=True, total_cache_chunk_nums=4)
    assert "below window_size + 1 = 5" in next(config.problems(Schedule(10, 0, 8, 4)))
    config = FlowCacheConfig(compress_kv_cache=True, total_cache_chunk_nums=5)
    assert list(config.problems(Schedule(10, 4, 8, 4))) == []
    assert "the prefix fills 5 chunks" in next(config.problems(Schedule(10, 5, 8, 4)))
    assert list(FlowCacheConfig(total_cache_chunk_nums=2).problems(Schedule(10, 5, 8, 4))) == []
