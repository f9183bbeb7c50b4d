"""Sections of the GPU check about the transformer: matmul ceiling, forwards, cache memory, compilation, fp8 layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu_check.bench import Bench, WindowForward, flowcache_settings, randomise
from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVCache
from inference.model.compiling import compile_layers
from inference.model.fp8 import DEQUANTISE, FP8_MAX, SCALED_MM, Fp8Linear, scaled_mm_problem
from inference.sampler import kv_geometry

BUDGET = 5  # chunks, of the published settings


def matmul_rate(bench: Bench) -> float:
    """Operations per second of one large square product in the transformer's dtype: what nothing here can exceed."""
    size = bench.sizes.matmul
    a, b = bench.random(size, size), bench.random(size, size)
    return 2 * size**3 / bench.seconds(lambda: a @ b, repeats=4 * bench.sizes.repeats)


def matmul(bench: Bench) -> dict[str, Any]:
    return {"size": bench.sizes.matmul, "dtype": str(bench.config.model.dtype), "tflops": matmul_rate(bench) / 1e12}


@torch.no_grad()
def forwards(bench: Bench) -> dict[str, Any]:
    """Time, rate and memory of a chunk-forward: in a full window with the whole history, and alone."""
    ceiling = matmul_rate(bench)
    found: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in bench.dit.parameters()),
        "weight_bytes": sum(weight.nbytes for weight in bench.dit.parameters()),
        "attention_backend": bench.dit.backend,
    }
    for side in bench.sizes.sides:
        forward = WindowForward(bench, side, bench.sizes.chunks)
        forward.fill()
        rows = []
        for count in (1, len(forward.step.window)):
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
    return found


@torch.no_grad()
def cache_memory(bench: Bench) -> dict[str, Any]:
    """Memory and time of the last full window of a long video: whole history against a budget of five chunks."""
    side, chunks = bench.sizes.sides[-1], bench.sizes.chunks
    geometry = kv_geometry(bench.sized(side, chunks), bench.device)
    found: dict[str, Any] = {"side": side, "chunks": chunks, "budget": BUDGET}
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
    return found


@torch.no_grad()
def compiled(bench: Bench) -> dict[str, Any]:
    """What compiling the layers gains. Comes last: the layers stay compiled."""
    forward = WindowForward(bench, bench.sizes.sides[0], bench.sizes.chunks)
    forward.fill()
    count = len(forward.step.window)
    eager = bench.seconds(lambda: forward(count))
    # Twice: at the first other number of chunks, that number becomes a variable.
    compile_layers(bench.dit, backend=bench.sizes.compiler)
    first = bench.once(lambda: (forward(count), forward(count - 1)))
    seconds = bench.seconds(lambda: forward(count))
    return {
        "compiler": bench.sizes.compiler,
        "eager_seconds": eager,
        "compiled_seconds": seconds,
        "compilation_seconds": first,
        "ratio": eager / seconds,
    }


@torch.no_grad()
def fp8_layers(bench: Bench) -> dict[str, Any]:
    """A feed-forward layer in bfloat16, and with fp8 weights in both ways."""
    width, inner = bench.config.model.hidden_size, bench.config.model.ffn_hidden_size
    tokens = bench.sized(bench.sizes.sides[-1], 1).tokens_per_chunk
    x = bench.random(tokens, width, dtype=torch.bfloat16)
    plain = nn.Linear(width, inner, bias=False, dtype=torch.bfloat16, device=bench.device)
    randomise(plain)
    found: dict[str, Any] = {"tokens": tokens, "widths": [width, inner]}
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
    return found
