"""Keys and values in host memory: the same numbers, two layers on the device, only what is needed on the way."""

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.memory.live import storage_bytes
from harness.methods import make_reuse
from inference.config import MagiConfig
from inference.kv_cache import KVCache
from inference.placement.kv_rows import HostRows, without
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")
COMPRESSED = {"rel_l1_thresh": 0.2, "warmup_steps": 1, "compress_kv_cache": True, "total_cache_chunk_nums": 5}


def make(config: MagiConfig, settings: dict | None, prefix: Tensor | None) -> tuple[list[Tensor], KVCache]:
    flowcache = None if settings is None else FlowCacheConfig(**settings)
    geometry = kv_geometry(config, CPU)
    cache = KVCache(geometry) if flowcache is None else CompressedKVCache(geometry, flowcache)
    reuse = Reuse() if flowcache is None else make_reuse(flowcache)
    sampler = Sampler(tiny_dit(config), config, cache, reuse)
    chunks = -(-(config.runtime.num_frames // 4 + (0 if prefix is None else prefix.shape[2])) // 6)
    return [chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)], cache


@pytest.mark.parametrize(
    ("layers", "three_pass", "settings", "window", "given"),
    [
        (1, False, None, [], 0),
        (2, False, COMPRESSED, [], 0),
        (3, True, None, [5, 4, 3, 2], 8),
        (3, False, COMPRESSED, [5, 4, 3, 2], 8),
        (2, True, COMPRESSED | {"kept_order": "score"}, [], 0),
    ],
)
def test_host_memory_changes_no_number(
    layers: int, three_pass: bool, settings: dict | None, window: list[int], given: int
) -> None:
    config = tiny_config(three_pass, num_frames=168, num_steps=4, noise2clean_kvrange=window)
    config = config.with_overrides(num_layers=layers)
    prefix = tiny_noise(2, seed=5)[:, :, :given] if given else None
    usual, on_device = make(config, settings, prefix)
    offloaded, on_host = make(config.with_overrides(kv_offload=True), settings, prefix)
    assert len(usual) == len(offloaded) > 0
    assert all(torch.equal(a, b) for a, b in zip(usual, offloaded, strict=True))
    assert isinstance(on_host.rows, HostRows) and not isinstance(on_device.rows, HostRows)
    assert on_host.bytes == on_device.bytes
    # On the device are two layers, however many the model has.
    held = storage_bytes(slot.rows for slot in on_host.rows.slots)
    assert held == 2 * on_device.bytes // layers


def test_only_what_a_forward_reads_is_fetched() -> None:
    rows = HostRows(torch.float32, CPU)
    rows.allocate((3, 12, 1, 2))
    rows.memory.copy_(torch.arange(72.0).view(3, 12, 1, 2))
    for slot in rows.slots:
        slot.rows.fill_(-1)
    rows.prepare([(2, 4)])
    assert [slot.layer for slot in rows.slots] == [0, 1]
    first = rows.layer(0)
    assert torch.equal(first[2:4], rows.memory[0, 2:4])
    assert (first[:2] == -1).all() and (first[4:] == -1).all()
    rows.write(0, 6, torch.full((2, 1, 2), 7.0))
    assert (first[6:8] == 7).all() and (rows.memory[0, 6:8] == 7).all()
    # The second layer was there already; asking for it fetches the third into the place of the first.
    rows.layer(1)
    assert [slot.layer for slot in rows.slots] == [2, 1]
    assert torch.equal(rows.layer(2)[2:4], rows.memory[2, 2:4])
    with rows.edit(1, 5) as part:
        assert torch.equal(part, rows.memory[1, :5])
        part.zero_()
    assert (rows.memory[1, :5] == 0).all() and (rows.memory[1, 5:] != 0).all()
    assert torch.equal(rows.layer(1)[2:4], torch.zeros(2, 1, 2))


@pytest.mark.parametrize(
    ("ranges", "taken", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(4, 6)], [(0, 4), (6, 10)]),
        ([(0, 4), (2, 8)], [(6, 8)], [(0, 6)]),
        ([(2, 4)], [(0, 8)], []),
        ([], [(0, 1)], []),
    ],
)
def test_ranges_without_others(
    ranges: list[tuple[int, int]], taken: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert without(ranges, taken) == left
