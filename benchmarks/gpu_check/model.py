"""Sections of the GPU check about the transformer: matmul ceiling, forwards, cache memory, compilation, fp8 layers."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu_check.bench import Bench, Findings, WindowForward, flowcache_settings, randomise
from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVCache
from inference.model.compiling import compile_layers
from inference.model.fp8 import DEQUANTISE, FP8_MAX, SCALED_MM, Fp8Linear, scaled_mm_problem
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


@torch.no_grad()
def compiled(bench: Bench, found: Findings) -> None:
    """What compiling the layers gains, for each number of chunks that FlowCache leaves, and how long it takes."""
    dit = compile_layers(copy.deepcopy(bench.dit), backend=bench.sizes.compiler)
    side, chunks = bench.sizes.sides[0], bench.sizes.chunks
    eager = WindowForward(bench, side, chunks)
    eager.fill()
    # Both attend to the same keys.
    fast = WindowForward(bench, side, chunks, eager.cache, dit)
    found.update(compiler=bench.sizes.compiler, side=side)
    rows: dict[str, Any] = {}
    # The window first: at the first other number of chunks, that number becomes a variable.
    for count in sorted(counts(eager), reverse=True):
        row = {"compilation_seconds": bench.once(lambda count=count: fast(count))}
        row["eager_seconds"] = bench.seconds(lambda count=count: eager(count))
        row["compiled_seconds"] = bench.seconds(lambda count=count: fast(count))
        rows[str(count)] = row | {"ratio": row["eager_seconds"] / row["compiled_seconds"]}
        found["chunks"] = rows


@torch.no_grad()
def fp8_layers(bench: Bench, found: Findings) -> None:
    """A feed-forward layer in bfloat16, and with fp8 weights in both ways."""
    width, inner = bench.config.model.hidden_size, bench.config.model.ffn_hidden_size
    tokens = bench.sized(bench.sizes.sides[-1], 1).tokens_per_chunk
    x = bench.random(tokens, width, dtype=torch.bfloat16)
    plain = nn.Linear(width, inner, bias=False, dtype=torch.bfloat16, device=bench.device)
    randomise(plain)
    found.update(tokens=tokens, widths=[width, inner])
    found["bfloat16_seconds"] = bench.seconds(lambda: F.linear(x, plain.weight))
    found["scaled_mm_problem"] = scaled_mm_problem(bench.device)
    outputs = {}
    for matmul in (DEQUANTISE, SCALED_MM) if found["scaled_mm_problem"] is None else (DEQUANTISE,):
        layer = Fp8Linear(width, inner, per_channel=False, matmul=matmul).to(bench.device)
        largest = plain.weight.abs().max().float()
        layer.weight_scale.copy_(largest / FP8_MAX)
        layer.weight.copy_(plain.weight.float()[None] / layer.weight_scale)
        layer.input_scale.fill_(x.abs().max().item() / FP8_MAX)
        outputs[matmul] = layer(x).float()
        found[f"{matmul}_seconds"] = bench.seconds(lambda layer=layer: layer(x))
    if SCALED_MM in outputs:
        error = (outputs[SCALED_MM] - outputs[DEQUANTISE]).abs().max() / outputs[DEQUANTISE].abs().max()
        found["relative_difference"] = error.item()
