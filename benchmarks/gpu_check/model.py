"""Sections of the GPU check about the transformer: matmul ceiling, forwards, projection, cache memory."""

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_check.bench import Bench, Findings, WindowForward, flowcache_settings
from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVCache
from inference.model.products import widened_linear
from inference.sampler import kv_geometry

BUDGET = 5  # chunks, of the published settings


def matmul_rate(bench: Bench) -> float:
    """Operations per second of one large square product in the transformer's dtype: what nothing here can exceed."""
    size = bench.sizes.matmul
    a, b = bench.random(size, size), bench.random(size, size)
    return 2 * size**3 / bench.seconds(lambda: a @ b, repeats=4 * bench.sizes.repeats)


def matmul(bench: Bench, found: Findings) -> None:
    found.update(size=bench.sizes.matmul, dtype=str(bench.config.model.dtype))
    found["tflops"] = matmul_rate(bench) / 1e12


@torch.no_grad()
def forwards(bench: Bench, found: Findings) -> None:
    """Time, rate and memory of a chunk-forward: alone, by two, and in a full window, behind the whole history."""
    ceiling = matmul_rate(bench)
    found.update(
        parameters=sum(weight.numel() for weight in bench.dit.parameters()),
        weight_bytes=sum(weight.nbytes for weight in bench.dit.parameters()),
        attention_backend=bench.dit.backend,
    )
    for side in bench.sizes.sides:
        forward = WindowForward(bench, side, bench.sizes.chunks)
        forward.fill()
        rows = []
        for count in counts(forward):
            row: dict[str, Any] = {"chunks": count, "kv_cache_bytes": forward.cache.bytes}
            with bench.peak_memory(row):
                record = forward(count)
            seconds = bench.seconds(lambda count=count, forward=forward: forward(count))
            rate = forward.flops(record) / seconds
            row |= {"tokens_per_chunk": record.chunk_tokens, "keys": record.keys}
            row |= {"seconds_per_chunk_forward": seconds / count, "tflops": rate / 1e12}
            row |= {"share_of_matmul_ceiling": rate / ceiling}
            rows.append(row)
            found[f"{side}x{side}"] = rows
        del forward


def counts(forward: WindowForward) -> tuple[int, ...]:
    """Chunks of a forward that are measured."""
    return 1, 2, len(forward.step.window)


@torch.no_grad()
def projection(bench: Bench, found: Findings) -> None:
    """The projection of both attentions, whose result is float32: as it is, and with its factors made float32."""
    width, tokens = bench.config.model.hidden_size, bench.sized(bench.sizes.sides[-1], 1).tokens_per_chunk
    x, weight = bench.random(tokens, 2 * width), bench.random(width, 2 * width)
    seconds = bench.seconds(lambda: widened_linear(x, weight))
    widened = bench.seconds(lambda: F.linear(x.float(), weight.float()))
    exact = F.linear(x.float(), weight.float())
    found["relative_difference"] = ((widened_linear(x, weight) - exact).abs().max() / exact.abs().max()).item()
    found.update(seconds=seconds, factors_in_float32_seconds=widened)
    found["ratio"] = widened / seconds


@torch.no_grad()
def cache_memory(bench: Bench, found: Findings) -> None:
    """Memory and time of the last full window of a long video: whole history against a budget of five chunks."""
    side, chunks = bench.sizes.sides[-1], bench.sizes.chunks
    geometry = kv_geometry(bench.sized(side, chunks), bench.device)
    found.update(side=side, chunks=chunks, budget=BUDGET)
    caches = {"full_history": KVCache, "compressed": lambda g: CompressedKVCache(g, flowcache_settings(BUDGET))}
    for name, make_cache in caches.items():
        cache = make_cache(geometry)
        forward, row = WindowForward(bench, side, chunks, cache), {}
        with bench.peak_memory(row):
            compressions = forward.fill()
            count = len(forward.step.window)
            record = forward(count)
        seconds = bench.seconds(lambda forward=forward, count=count: forward(count))
        row |= {"kv_cache_bytes": cache.bytes, "keys": record.keys, "seconds_per_chunk_forward": seconds / count}
        found[name] = row | {"compressions": len(compressions)}
        del forward, cache
