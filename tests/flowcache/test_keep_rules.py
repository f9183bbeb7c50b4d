"""Which tokens each rule keeps, on made-up tokens and in whole runs."""

import itertools

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.keep_rules import RULES, Candidates, keep_score, lower_unreachable
from flowcache.kv_cache import CompressedKVCache
from flowcache.scoring import attention_weight, importance, mixed_score, redundancy
from inference.memory.dry_run import dry_run
from inference.sampler import Sampler, kv_geometry
from inference.schedule import Schedule
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

FRAME, LENGTH, GROUPS = 4, 60, 3


def candidates(places: list[int] | None = None, layer: int = 0) -> Candidates:
    """Random keys and queries of tokens at the given places, by default those of five chunks of twelve."""
    generator = torch.Generator().manual_seed(layer)
    positions = torch.tensor(places if places is not None else list(range(LENGTH))).expand(GROUPS, -1)
    keys = torch.randn(positions.shape[1], GROUPS, 8, generator=generator)
    return Candidates(torch.randn(5, 6, 8, generator=generator), keys, positions, layer, FRAME, 0.3)


def best(rule: str, tokens: Candidates, keep: int, shared: bool = False) -> list[list[int]]:
    """Sorted places that each group keeps."""
    chosen = keep_score(rule, tokens, shared).topk(keep, dim=-1).indices
    return tokens.places.gather(1, chosen).sort(dim=-1).values.tolist()


def test_importance_is_the_published_score() -> None:
    tokens = candidates()
    expected = 0.3 * importance(attention_weight(tokens.queries, tokens.keys)) - 0.7 * redundancy(tokens.keys)
    assert torch.allclose(keep_score("importance", tokens, False), expected)
    published = Candidates(tokens.queries, tokens.keys, None, 0, FRAME, 0.3)
    assert torch.equal(keep_score("importance", published, False), mixed_score(tokens.queries, tokens.keys, 0.3))


def test_recent_and_sinks_by_place() -> None:
    assert best("recent", candidates(), 12) == [list(range(48, 60))] * GROUPS
    assert best("sinks", candidates(), 12) == [[0, 1, 2, 3, *range(52, 60)]] * GROUPS


def test_random_tokens_come_evenly_from_the_whole_history_and_are_the_same_each_time() -> None:
    everything = best("random", candidates(list(range(6000))), 2000)
    assert len({tuple(group) for group in everything}) == GROUPS
    for group in everything:
        thirds = [sum(low <= place < low + 2000 for place in group) for low in (0, 2000, 4000)]
        assert all(abs(third - 667) < 100 for third in thirds)
    assert best("random", candidates(list(range(6000))), 2000) == everything
    assert best("random", candidates(list(range(6000)), layer=1), 2000) != everything
    # A longer video gives the places of a shorter one the same lots, so a choice can be made in any order.
    in_two = [group[:2000] for group in best("random", candidates(list(range(3000))), 2000)]
    again = Candidates(None, torch.zeros(5000, GROUPS, 8), torch.tensor(in_two), 0, FRAME, 0.3)
    joined = torch.cat([again.places, torch.arange(3000, 6000).expand(GROUPS, -1)], dim=1)
    assert best("random", Candidates(None, again.keys, joined, 0, FRAME, 0.3), 2000) == everything


@pytest.mark.parametrize("length", [200, 1000, 24000])
def test_spread_tokens_leave_no_large_gap(length: int) -> None:
    for share in (2, 5, 10):
        kept = best("spread", candidates(list(range(length))), length // share)[0]
        gaps = [b - a for a, b in itertools.pairwise([-1, *kept, length])]
        assert max(gaps) <= 3 * share


def test_a_shared_mask_is_one_choice_for_all_groups() -> None:
    tokens = candidates()
    apart, shared = (best("importance", tokens, 20, shared) for shared in (False, True))
    assert len({tuple(group) for group in apart}) == GROUPS and len({tuple(group) for group in shared}) == 1
    mean = keep_score("importance", tokens, False).mean(dim=0)
    assert shared[0] == sorted(mean.topk(20).indices.tolist())


def test_what_no_window_reaches_goes_first() -> None:
    for rule in RULES:
        score = keep_score(rule, candidates(), False)
        lowered = lower_unreachable(score, candidates().places, 36)
        assert (lowered[:, :36].amax(dim=1) < lowered[:, 36:].amin(dim=1)).all()
        assert torch.equal(lowered[:, 36:], score[:, 36:])
        assert torch.equal(lowered[0, :36].argmax(), score[0, :36].argmax())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_rule": "recent", "kept_order": "score"}, "keep_rule recent looks at places in the video"),
        ({"drop_unreachable": True, "kept_order": "score"}, "drop_unreachable looks at places in the video"),
        ({"keep_rule": "spread", "score_weighting_method": "gaussian"}, "score_weighting_method gaussian weighs"),
        ({"keep_rule": "random", "query_chunks": 2}, "query_chunks 2: keep_rule random looks at no queries"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_a_run(settings: dict, message: str) -> None:
    config = FlowCacheConfig(compress_kv_cache=True, **settings)
    assert any(message in problem for problem in config.problems(Schedule(8, 0, 8, 4)))
    assert not list(FlowCacheConfig(compress_kv_cache=False, **settings).problems(Schedule(8, 0, 8, 4)))


def make(window: list[int], settings: dict | None, chunks: int = 8) -> tuple[Tensor, CompressedKVCache | None]:
    """Latents of a tiny video, and its cache where one is compressed."""
    config = tiny_config(num_frames=24 * chunks, noise2clean_kvrange=window)
    cache = None
    if settings is not None:
        flowcache = FlowCacheConfig(compress_kv_cache=True, **settings)
        cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), flowcache)
    sampler = Sampler(tiny_dit(config), config, cache)
    return torch.cat([chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config))]), cache


@pytest.mark.parametrize(
    ("rule", "merge", "budget"), [("importance", False, 5), ("spread", True, 5), ("spread", True, 6)]
)
def test_a_cache_that_holds_all_the_window_reaches_changes_nothing(rule: str, merge: bool, budget: int) -> None:
    """But for rounding: the clean pass of a chunk that is about to be squeezed is a forward of its own."""
    whole, _ = make([5, 4, 3, 2], None)
    settings = {"keep_rule": rule, "drop_unreachable": True, "merge_dropped": merge, "total_cache_chunk_nums": budget}
    squeezed, cache = make([5, 4, 3, 2], settings)
    assert cache.last_kept and torch.allclose(whole, squeezed, atol=1e-5)
    careless, _ = make([5, 4, 3, 2], settings | {"drop_unreachable": False, "keep_rule": "importance"})
    assert not torch.allclose(whole, careless, atol=1e-2)


@pytest.mark.parametrize("window", [[], [5, 4, 3, 2], [6, 5, 4, 3]])
@pytest.mark.parametrize("budget", [5, 6])
def test_a_dry_run_sees_the_same_keys(window: list[int], budget: int) -> None:
    """It has no layers, and so no places in the video to ask for."""
    config = tiny_config(num_frames=24 * 9, noise2clean_kvrange=window)
    flowcache = FlowCacheConfig(compress_kv_cache=True, drop_unreachable=True, total_cache_chunk_nums=budget)
    cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), flowcache)
    sampler = Sampler(tiny_dit(config), config, cache)
    list(sampler.run(tiny_noise(9), TinyCaptions(config)))
    dry = dry_run(config, 0, lambda geometry: CompressedKVCache(geometry, flowcache), caption_tokens=5)
    assert [(f.kind, f.keys) for f in dry.forwards] == [(f.kind, f.keys) for f in sampler.record.forwards]


@pytest.mark.parametrize("rule", ["sinks", "random", "spread"])
def test_every_rule_runs_merged_or_not_and_repeats_itself(rule: str) -> None:
    settings = {"keep_rule": rule, "merge_dropped": True, "shared_mask": True}
    merged, cache = make([], settings)
    assert torch.isfinite(merged).all() and torch.equal(merged, make([], settings)[0])
    assert (cache._merger.counts[0].sum(dim=0) == 4 * 24).all()  # chunks 0 to 3 were clean at the last compression
    assert not torch.equal(merged, make([], settings | {"merge_dropped": False})[0])


def test_importance_by_the_queries_of_several_chunks() -> None:
    config = tiny_config(num_frames=24 * 8)
    geometry = kv_geometry(config, torch.device("cpu"))
    settings = {"compress_kv_cache": True, "total_cache_chunk_nums": 5, "query_chunks": 3, "mix_lambda": 1.0}
    cache = CompressedKVCache(geometry, FlowCacheConfig(**settings))
    schedule = Schedule(8, 0, 8, 4)
    cache.reset(schedule)
    queries = {chunk: torch.randn(24, 8, 8, generator=torch.Generator().manual_seed(chunk)) for chunk in range(5)}
    keys = torch.randn(5, 24, geometry.groups, 16, generator=torch.Generator().manual_seed(9))
    for chunk in range(5):
        cache.enter(chunk)
        for layer in range(geometry.layers):
            cache.write(layer, chunk, keys[chunk])
            cache.keep_queries(layer, queries[chunk])
    cache.end_step([step for step in schedule.steps if step.stage == 4][-1])
    seen = torch.cat([queries[chunk] for chunk in (2, 3, 4)])
    score = importance(attention_weight(seen, keys[:2].flatten(0, 1)[..., :8]))
    best_first = score.sort(dim=-1, descending=True, stable=True).indices  # pooled scores are equal seven at a time
    assert torch.equal(cache.last_kept[0].T, best_first[:, :24].sort(dim=-1).values)
    assert sorted(cache._queries[0]) == [3, 4]
