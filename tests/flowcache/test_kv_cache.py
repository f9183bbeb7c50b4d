"""Compaction of the bounded cache on marked tokens: who stays, where the others go."""

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVGeometry
from inference.schedule import Schedule

CHUNK, GROUPS, WIDTH = 12, 2, 4
GEOMETRY = KVGeometry(2, GROUPS, WIDTH, CHUNK, 4, torch.float32, torch.device("cpu"))


def chunk_kv(chunk: int) -> Tensor:
    """Random keys; values that name their token: chunk * 100 + place, the same in all features."""
    keys = torch.randn(CHUNK, GROUPS, WIDTH, generator=torch.Generator().manual_seed(chunk))
    values = (100 * chunk + torch.arange(CHUNK)).float()[:, None, None].expand(-1, GROUPS, WIDTH)
    return torch.cat([keys, values], dim=-1)


def names(cache: CompressedKVCache, layer: int) -> Tensor:
    """(used tokens, G): the token that each place holds."""
    return cache.memory[layer, : cache.ledger.used, :, WIDTH].int()


def fill(**settings: object) -> tuple[CompressedKVCache, Schedule]:
    """A cache of six, full after chunks 0 to 5, of which 0, 1 and 2 are clean at the end of stage 5."""
    config = FlowCacheConfig(compress_kv_cache=True, total_cache_chunk_nums=6, **settings)
    cache, schedule = CompressedKVCache(GEOMETRY, config), Schedule(9, 0, 8, 4)
    cache.reset(schedule)
    for chunk in range(6):
        cache.enter(chunk)
        for layer in range(2):
            cache.write(layer, chunk, chunk_kv(chunk))
    for layer in range(2):
        cache.keep_queries(layer, torch.randn(CHUNK, 4, WIDTH, generator=torch.Generator().manual_seed(99)))
    return cache, schedule


@pytest.mark.parametrize("order", ["position", "score"])
def test_whole_chunks_move_up_and_clean_ones_give_up_a_chunks_room(order: str) -> None:
    cache, schedule = fill(kept_order=order)
    before = cache.memory.data_ptr()
    steps = [step for step in schedule.steps if step.stage == 5]
    assert [cache.compacts_after(step) for step in steps] == [False, True]
    cache.end_step(steps[0])
    assert cache.ledger.used == 6 * CHUNK
    cache.end_step(steps[1])
    assert cache.ledger.used == 5 * CHUNK and cache.memory.data_ptr() == before
    for layer in range(2):
        found = names(cache, layer)
        for i, chunk in enumerate((3, 4, 5)):
            expected = (100 * chunk + torch.arange(CHUNK))[:, None].expand(-1, GROUPS).int()
            assert torch.equal(found[(2 + i) * CHUNK : (3 + i) * CHUNK], expected)
            assert torch.equal(cache.view(layer, chunk, chunk), chunk_kv(chunk))
        for group in range(GROUPS):
            kept = found[: 2 * CHUNK, group].tolist()
            assert len(set(kept)) == 2 * CHUNK and max(kept) < 300
            assert (kept == sorted(kept)) == (order == "position")
            # Keys travelled with their values.
            for place, name in enumerate(kept):
                source = chunk_kv(name // 100)[name % 100, group]
                assert torch.equal(cache.memory[layer, place, group], source)


def test_positions_survive_a_second_compression() -> None:
    cache, schedule = fill(kept_order="position")
    for stage, chunk in ((5, 6), (6, 7)):
        cache.end_step([step for step in schedule.steps if step.stage == stage][-1])
        cache.enter(chunk)
        for layer in range(2):
            cache.write(layer, chunk, chunk_kv(chunk))
            cache.keep_queries(layer, torch.randn(CHUNK, 4, WIDTH, generator=torch.Generator().manual_seed(chunk)))
    for layer in range(2):
        kept = names(cache, layer)[: 2 * CHUNK].T.tolist()
        assert all(column == sorted(column) and max(column) < 400 for column in kept)


def test_the_units_of_strategies_stay_whole_in_the_buffer() -> None:
    cache, schedule = fill(compress_strategy="frame")
    cache.end_step([step for step in schedule.steps if step.stage == 5][-1])
    for column in names(cache, 0)[: 2 * CHUNK].T.tolist():
        frames = [column[i : i + 4] for i in range(0, len(column), 4)]
        assert all(frame == list(range(frame[0], frame[0] + 4)) and frame[0] % 4 == 0 for frame in frames)


def test_queries_are_kept_only_where_a_compression_is_near() -> None:
    config = FlowCacheConfig(compress_kv_cache=True, total_cache_chunk_nums=6)
    cache = CompressedKVCache(GEOMETRY, config)
    with pytest.raises(RuntimeError, match="not reset"):
        cache.keep_queries(0, torch.zeros(CHUNK, 4, WIDTH))
    cache.reset(Schedule(9, 0, 8, 4))
    cache.enter(0)
    cache.keep_queries(0, torch.zeros(CHUNK, 4, WIDTH))
    assert not cache._queries
    full, _ = fill()
    assert sorted(full._queries) == [0, 1]
