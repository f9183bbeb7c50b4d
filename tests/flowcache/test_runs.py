"""FlowCache in whole runs: neutral settings bit by bit, and every mode with every guidance, grouping and window."""

import itertools

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import make_reuse
from inference.config import MagiConfig
from inference.record import RunRecord
from inference.sampler import Sampler, kv_geometry
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 8
NEUTRAL = {"rel_l1_thresh": 0.0}
REUSING = {"rel_l1_thresh": 0.2, "warmup_steps": 1}
COMPRESSING = {"compress_kv_cache": True, "total_cache_chunk_nums": 5}


def run(
    config: MagiConfig, settings: dict | None, prefix: Tensor | None = None, chunks: int = CHUNKS
) -> tuple[list[Tensor], RunRecord, CompressedKVCache | None]:
    """Latents, record and (where compressing) cache of one video."""
    dit, cache, reuse = tiny_dit(config), None, None
    if settings is not None:
        flowcache = FlowCacheConfig(**settings)
        reuse = make_reuse(flowcache)
        if flowcache.compress_kv_cache:
            cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), flowcache)
    sampler = Sampler(dit, config, cache, reuse)
    out = [chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)]
    return out, sampler.record, cache


def video(chunks: int = CHUNKS, **options: object) -> MagiConfig:
    return tiny_config(num_frames=24 * chunks, **options)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize("window", [[], [5, 4, 3, 2]])
def test_threshold_zero_is_magi(three_pass: bool, window: list[int]) -> None:
    config = video(three_pass=three_pass, noise2clean_kvrange=window)
    plain, _, _ = run(config, None)
    cached, record, _ = run(config, NEUTRAL)
    assert record.reused == 0
    assert equal(plain, cached)


@pytest.mark.parametrize(
    ("three_pass", "reuse", "budget"),
    [(False, NEUTRAL, CHUNKS), (False, REUSING, CHUNKS + 3), (True, REUSING, CHUNKS)],
)
def test_a_budget_as_long_as_the_video_is_no_compression(three_pass: bool, reuse: dict, budget: int) -> None:
    config = video(three_pass=three_pass)
    plain, _, _ = run(config, reuse)
    bounded, record, cache = run(config, {**reuse, **COMPRESSING, "total_cache_chunk_nums": budget})
    assert record.compactions == 0
    assert cache is not None and cache.bytes == CHUNKS * 24 * cache.geometry.bytes_per_token
    assert equal(plain, bounded)


# three_pass, prefix latents (0 text, 1 image, 12 video), key window, clean pass: every pair of values occurs.
CASES = [
    (False, 0, [], True),
    (False, 1, [5, 4, 3, 2], True),
    (False, 12, [], False),
    (False, 12, [5, 4, 3, 2], True),
    (True, 0, [5, 4, 3, 2], False),
    (True, 1, [], False),
    (True, 12, [], True),
    (True, 12, [5, 4, 3, 2], False),
]


@pytest.mark.parametrize(("three_pass", "given", "window", "clean_pass"), CASES)
def test_every_mode_reuses_and_compresses(three_pass: bool, given: int, window: list[int], clean_pass: bool) -> None:
    chunks = CHUNKS + (given > 1) * 2
    frames = 24 * CHUNKS - (4 if given == 1 else 0)
    config = tiny_config(three_pass=three_pass, num_frames=frames, noise2clean_kvrange=window)
    prefix = torch.randn(1, 16, given, 4, 4, generator=torch.Generator().manual_seed(3)) if given else None
    settings = {**REUSING, **COMPRESSING, "clean_pass": clean_pass}
    out, record, cache = run(config, settings, prefix, chunks)
    assert len(out) == CHUNKS and all(torch.isfinite(latents).all() for latents in out)
    assert record.reused > 0
    # A buffer of five is full with the fifth chunk; each later one needs room.
    assert record.compactions == chunks - 5
    assert cache is not None and cache.bytes == 5 * 24 * cache.geometry.bytes_per_token
    finished = CHUNKS - 1 if clean_pass else 0
    assert len(set(itertools.chain(*(step.clean for step in record.steps)))) == finished
    # A chunk that a compression squeezes is encoded ahead of it, in a forward of its own.
    ahead = sum(step.compacted and bool(step.clean) for step in record.steps)
    assert sum(forward.kind == "clean" for forward in record.forwards) == ahead
    assert (ahead > 0) == clean_pass


@pytest.mark.parametrize(
    ("groups", "strategy", "order"),
    [
        (8, "token", "position"),
        (1, "token", "score"),
        (8, "frame", "score"),
        (1, "frame", "position"),
        (4, "chunk", "position"),
        (8, "chunk", "score"),
    ],
)
def test_every_strategy_and_grouping(groups: int, strategy: str, order: str) -> None:
    config = video(groups=groups)
    # A budget of six leaves two clean chunks, so that the unit strategies have something to choose between.
    settings = {**COMPRESSING, "total_cache_chunk_nums": 6, "compress_strategy": strategy, "kept_order": order}
    out, record, cache = run(config, settings)
    assert record.compactions == CHUNKS - 6
    assert cache is not None
    for kept in cache.last_kept:
        assert kept.shape == (48, groups)
        assert all(len(set(column)) == 48 for column in kept.T.tolist())
    assert torch.isfinite(out[-1]).all()


@pytest.mark.parametrize("granularity", ["token", "frame", "chunk"])
def test_compression_changes_something_but_little_before_it_begins(granularity: str) -> None:
    config = video()
    plain, _, _ = run(config, NEUTRAL)
    squeezed, _, _ = run(config, {**COMPRESSING, "query_granularity": granularity})
    # The first compression comes after chunk 1 has finished.
    assert torch.equal(plain[0], squeezed[0]) and torch.allclose(plain[1], squeezed[1], atol=1e-5)
    assert not torch.allclose(plain[-1], squeezed[-1], atol=1e-4)


@pytest.mark.parametrize("mode", ["t2v", "v2v"])
def test_a_second_video_equals_a_fresh_one(mode: str) -> None:
    prefix = torch.randn(1, 16, 6, 4, 4) if mode == "v2v" else None
    config = video(CHUNKS - 1) if prefix is not None else video()
    flowcache = FlowCacheConfig(**{**REUSING, **COMPRESSING})
    dit, captions = tiny_dit(config), TinyCaptions(config)

    def sampler() -> Sampler:
        cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), flowcache)
        return Sampler(dit, config, cache, make_reuse(flowcache))

    used = sampler()
    list(used.run(tiny_noise(CHUNKS, seed=7), captions, prefix))
    second = [chunk.latents for chunk in used.run(tiny_noise(CHUNKS), captions, prefix)]
    fresh = [chunk.latents for chunk in sampler().run(tiny_noise(CHUNKS), captions, prefix)]
    assert equal(second, fresh)


def test_an_abandoned_video_leaves_nothing_behind() -> None:
    config = video()
    flowcache = FlowCacheConfig(**{**REUSING, **COMPRESSING})
    dit, captions = tiny_dit(config), TinyCaptions(config)
    cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), flowcache)
    sampler = Sampler(dit, config, cache, make_reuse(flowcache))
    abandoned = sampler.run(tiny_noise(CHUNKS, seed=7), captions)
    for _ in range(3):
        next(abandoned)
    abandoned.close()
    out = [chunk.latents for chunk in sampler.run(tiny_noise(CHUNKS), captions)]
    assert equal(out, run(config, {**REUSING, **COMPRESSING})[0])


def test_a_cache_too_small_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="total_cache_chunk_nums 4 is below"):
        run(video(), {**COMPRESSING, "total_cache_chunk_nums": 4})
    prefix = torch.randn(1, 16, 30, 4, 4)
    with pytest.raises(ValueError, match="the prefix fills 5 chunks"):
        run(video(3), COMPRESSING, prefix)


def test_reuse_leaves_out_the_extra_copies_that_were_asked_to_go() -> None:
    config = video()
    _, with_copies, _ = run(config, REUSING)
    _, without, _ = run(config, {**REUSING, "discard_nearly_clean_chunk": True})
    assert with_copies.summary()["nearly_clean_copies"] > 0
    assert without.summary()["nearly_clean_copies"] == 0
    copied = [step for step in with_copies.steps if step.nearly_clean is not None]
    assert all(step.nearly_clean in step.computed for step in copied)


def test_a_stage_whose_chunks_are_all_reused_still_makes_the_clean_pass() -> None:
    config = video()
    settings = {"rel_l1_thresh": 99.0, "warmup_steps": 0, "protect_last_step": False}
    _, record, _ = run(config, settings)
    idle = [step for step in record.steps if not step.computed]
    assert idle and len(set(itertools.chain(*(step.clean for step in record.steps)))) == CHUNKS - 1


def test_compression_in_bfloat16_scores_in_either_dtype() -> None:
    config = tiny_config(fp8=True, num_frames=24 * CHUNKS)
    kept = {}
    for dtype in ("float32", "compute"):
        out, _, cache = run(config, {**COMPRESSING, "score_dtype": dtype, "kept_order": "score"})
        assert torch.isfinite(out[-1]).all() and cache is not None
        kept[dtype] = cache.last_kept[0].T.sort().values
    assert not torch.equal(kept["float32"], kept["compute"])
