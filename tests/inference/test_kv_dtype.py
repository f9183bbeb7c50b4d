"""Videos with keys and values in fewer bits: close to the usual ones, wherever and however the cache is kept."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcache.config import CompressionConfig
from flowcache.kv_cache import CompressedKVCache
from harness.memory.live import LiveMemory
from harness.memory.parts import compare_offloaded, compare_parts, load_models
from harness.methods import read_method
from inference.config import ConfigError, load_config
from inference.kv_cache import KVCache
from inference.sampler import Sampler, kv_geometry, make_schedule
from tests.inference.session.test_resume import SAMPLE, load, options, resumes_everywhere
from tests.paths import CONFIGS, ROOT
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")
COMPRESSED = CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=5)
CACHES: dict[str, Any] = {
    "plain": KVCache,
    "compressed": partial(CompressedKVCache, config=COMPRESSED),
    "merged": partial(CompressedKVCache, config=COMPRESSED.model_copy(update={"merge_dropped": True})),
    "unreachable_dropped": partial(
        CompressedKVCache, config=COMPRESSED.model_copy(update={"drop_unreachable": True, "merge_dropped": True})
    ),
}


def make(kind: str, three_pass: bool = False, **changes: Any) -> tuple[Tensor, KVCache]:
    window = [5, 4, 3, 2] if kind in ("plain", "unreachable_dropped") else []
    config = tiny_config(three_pass, num_frames=192, noise2clean_kvrange=window).with_overrides(**changes)
    cache = CACHES[kind](kv_geometry(config, CPU))
    chunks = Sampler(tiny_dit(config), config, cache).run(tiny_noise(8), TinyCaptions(config))
    return torch.cat([chunk.latents for chunk in chunks], dim=2), cache


@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize("kind", CACHES)
def test_more_bits_come_closer(kind: str, three_pass: bool) -> None:
    usual, whole = make(kind, three_pass)
    errors, sizes = [], []
    for kv_dtype in ("int4", "int8"):
        latents, cache = make(kind, three_pass, kv_dtype=kv_dtype)
        errors.append(float((latents - usual).abs().mean() / usual.abs().mean()))
        sizes.append(cache.bytes)
    assert 0 < errors[1] < errors[0] / 3 and errors[0] < 0.1, errors
    assert sizes[0] < sizes[1] < whole.bytes


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
@pytest.mark.parametrize("kind", CACHES)
def test_host_memory_changes_no_number(kind: str, kv_dtype: str) -> None:
    on_device, _ = make(kind, kv_dtype=kv_dtype)
    on_host, _ = make(kind, kv_dtype=kv_dtype, kv_offload=True)
    assert torch.equal(on_device, on_host)


@pytest.mark.parametrize(
    ("method", "kv_dtype", "offload"),
    [("none", "int8", False), ("none", "int4", True), ("compressed", "int4", False), ("by_importance", "int8", True)],
)
def test_a_run_goes_on_where_it_was_cut(checkpoint: Path, method: str, kv_dtype: str, offload: bool) -> None:
    pipeline = load(checkpoint, "distill", kv_dtype=kv_dtype, kv_offload=offload)

    def session() -> Any:
        return pipeline.session(SAMPLE, **options(method))

    resumes_everywhere(session(), session, (0, 3, 5))


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
@pytest.mark.parametrize("method", [None, str(ROOT / "configs/method/flowcache_slow.yaml")])
def test_estimates_are_what_is_measured(method: str | None, kv_dtype: str) -> None:
    config = load_config(ROOT / "configs/model/nano.json").with_overrides(num_frames=144, num_steps=4)
    settings, models = read_method(method, {}), load_models(config)
    beyond = []
    for chosen in ("model", kv_dtype):
        packed = config.with_overrides(kv_dtype=chosen)
        parts = compare_parts(packed, models, settings, "a red ball") | compare_offloaded(packed, settings)
        sizes = parts["KV cache"], parts["KV cache, offloaded"]
        beyond.append([size.estimated - size.measured for size in sizes])
    # Only the queries to score with, which come and go, are estimated and not seen between two steps.
    assert beyond[0] == beyond[1] and (method is not None or beyond[0] == [0, 0])


@pytest.mark.parametrize(("kv_dtype", "share"), [("int8", 0.55), ("int4", 0.30)])
def test_the_peak_in_the_published_sizes(kv_dtype: str, share: float) -> None:
    """4.5B at a quarter of its area: what reading and writing a layer takes besides is counted too."""
    config = load_config(CONFIGS / "4.5B_distill.json").with_overrides(
        video_size_h=352, video_size_w=352, num_frames=240, kv_offload=False
    )
    peaks = []
    for chosen in ("model", kv_dtype):
        geometry = kv_geometry(config.with_overrides(kv_dtype=chosen), CPU)
        tokens = geometry.chunk_tokens
        fresh = torch.randn(tokens, geometry.groups, 2 * geometry.head_width).to(geometry.dtype)
        with LiveMemory() as memory:
            cache = KVCache(geometry)
            cache.reset(make_schedule(config, 0))
            for chunk in range(5):
                cache.enter(chunk)
                cache.prepare([(0, (chunk + 1) * tokens)], [cache.span(chunk)])
                cache.write(0, chunk, fresh)
                cache.view(0, chunk, 0)
        peaks.append(memory.peak)
    assert peaks[1] <= share * peaks[0], [peak / peaks[0] for peak in peaks]


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_dtype"):
        tiny_config().with_overrides(kv_dtype="int2")
