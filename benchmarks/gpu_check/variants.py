"""Sections of the GPU check that compare: the same forward with one thing changed, in turn, in one run."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from benchmarks.gpu_check.bench import Bench, Findings, WindowForward, randomise
from inference.kv_cache import KVCache
from inference.model.compiling import compile_layers
from inference.model.dit import VideoDiT
from inference.model.fp8 import DEQUANTISE, FP8_MAX, SCALED_MM, Fp8Linear, scaled_mm_problem
from inference.model.fused import resolve_kernels
from inference.model.layers import UpcastLinear
from inference.sampler import kv_geometry


class WidenedLinear(nn.Module):
    """The projection as it is published: both factors made float32, and multiplied as such."""

    def __init__(self, linear: UpcastLinear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


def without_kernels(dit: VideoDiT) -> VideoDiT:
    """The same weights, elementwise work by PyTorch's operators."""
    plain = copy.copy(dit)
    plain.kernels = None
    return plain


def with_widened_projection(dit: VideoDiT) -> VideoDiT:
    """The same weights, PyTorch's operators, and the projection of the attentions from float32 factors."""
    shared = {id(weight): weight for weight in dit.parameters()}
    plain = without_kernels(copy.deepcopy(dit, shared))
    for layer in plain.videodit_blocks.layers:
        layer.self_attention.linear_proj = WidenedLinear(layer.self_attention.linear_proj)
    return plain


def compiled(dit: VideoDiT, backend: str) -> VideoDiT:
    shared = {id(weight): weight for weight in dit.parameters()}
    return compile_layers(copy.deepcopy(dit, shared), backend=backend)


@torch.no_grad()
def variants(bench: Bench, found: Findings) -> None:
    """A forward as it is, without fused kernels, compiled, and with the published arithmetic of the projection."""
    dit, chunks = bench.dit, bench.sizes.chunks
    made = {
        "as_it_is": dit,
        "operators": without_kernels(dit),
        "compiled": compiled(dit, bench.sizes.compiler),
        "published_projection": with_widened_projection(dit),
    }
    found["fused_kernels"] = dit.kernels is not None
    for side in bench.sizes.sides:
        first = WindowForward(bench, side, chunks)
        first.fill()
        forwards = {name: WindowForward(bench, side, chunks, first.cache, dit=one) for name, one in made.items()}
        window = len(first.step.window)
        if side != bench.sizes.sides[0]:
            forwards.pop("compiled")  # once is enough: it takes long
        for count in (window, 1):
            calls: dict[str, Callable[[], Any]] = {
                name: lambda forward=forward, count=count: forward(count) for name, forward in forwards.items()
            }
            if "compiled" in calls:
                found[f"compilation_seconds, chunks {count}"] = bench.once(calls["compiled"])
            rows = bench.compared(calls, rounds=3 if side == bench.sizes.sides[0] else 2)
            for row in rows.values():
                row["ratio"] = row["seconds"] / rows["as_it_is"]["seconds"]
            found[f"{side}x{side}, chunks {count}"] = rows


@torch.no_grad()
def placements(bench: Bench, found: Findings) -> None:
    """What keys in host memory and streamed weights cost in a forward."""
    side, chunks = bench.sizes.sides[0], bench.sizes.chunks
    config = bench.sized(side, chunks)
    streamed = copy.deepcopy(bench.dit).to("cpu").stream_layers(bench.device)
    forwards = {}
    for name, offload, dit in (
        ("on_the_device", False, bench.dit),
        ("kv_offload", True, bench.dit),
        ("stream_weights", False, streamed),
        ("both", True, streamed),
    ):
        geometry = kv_geometry(config.with_overrides(kv_offload=offload), bench.device)
        forwards[name] = WindowForward(bench, side, chunks, KVCache(geometry), dit=dit)
        forwards[name].fill()
    found["side"] = side
    for count in (1, len(forwards["both"].step.window)):
        calls: dict[str, Callable[[], Any]] = {
            name: lambda forward=forward, count=count: forward(count) for name, forward in forwards.items()
        }
        rows = bench.compared(calls, rounds=3)
        for row in rows.values():
            row["ratio"] = row["seconds"] / rows["on_the_device"]["seconds"]
        found[f"chunks_{count}"] = rows


@torch.no_grad()
def attention_layouts(bench: Bench, found: Findings) -> None:
    """PyTorch's attention on the same numbers, laid out in memory in several ways."""
    model, side = bench.config.model, bench.sizes.sides[-1]
    tokens = bench.sized(side, 1).tokens_per_chunk
    keys, head = bench.sizes.chunks * tokens, model.kv_channels
    groups, heads = model.num_query_groups, model.num_attention_heads
    q = bench.random(1, tokens, heads, head)
    kv = bench.random(1, keys, groups, 2 * head)
    k, v = kv.chunk(2, dim=-1)
    flop = 4 * tokens * keys * heads * head
    sdpa = F.scaled_dot_product_attention
    first = [x.transpose(1, 2) for x in (q, k, v)]
    apart = [first[0], *(x.contiguous().transpose(1, 2) for x in (k, v))]
    by_head = [x.contiguous() for x in first]
    whole = [by_head[0], *(repeat(x, "b g m d -> b (g r) m d", r=heads // groups).contiguous() for x in by_head[1:])]
    round_keys = [first[0], *(x[:, :, : keys // 128 * 128] for x in first[1:])]
    ways = {
        "as_the_cache_keeps_them": lambda: sdpa(*first, enable_gqa=True),
        "keys_and_values_apart": lambda: sdpa(*apart, enable_gqa=True),
        "by_head": lambda: sdpa(*by_head, enable_gqa=True),
        "keys_repeated": lambda: sdpa(*whole),
        "multiple_of_128_keys": lambda: sdpa(*round_keys, enable_gqa=True),
    }
    with _as_preferred(bench):
        for name, row in bench.compared(ways, rounds=5).items():
            found[name] = row | {"tflops": flop / row["seconds"] / 1e12}


@contextmanager
def _as_preferred(bench: Bench) -> Iterator[None]:
    from inference.model.attention import CUDNN_FIRST, prefers_cudnn, sdpa_kernel

    if bench.device.type != "cuda" or not prefers_cudnn(bench.device):
        yield
        return
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        yield


@torch.no_grad()
def fp8_layers(bench: Bench, found: Findings) -> None:
    """The matrix products of a layer in bfloat16, and with fp8 weights in every way there is."""
    model = bench.config.model
    width, inner = model.hidden_size, model.ffn_hidden_size
    kv = model.num_query_groups * model.kv_channels
    tokens = bench.config.runtime.window_size * bench.sized(bench.sizes.sides[-1], 1).tokens_per_chunk
    problem, kernels = scaled_mm_problem(bench.device), resolve_kernels("auto", bench.device)
    ways = {"dequantise": (DEQUANTISE, None)}
    if problem is None:
        ways["scaled_mm_operators"] = (SCALED_MM, None)
        ways |= {} if kernels is None else {"scaled_mm": (SCALED_MM, kernels)}
    found.update(tokens=tokens, scaled_mm_problem=problem)
    shapes = {"q": (width, width), "k": (width, kv), "proj": (2 * width, width), "fc1": (width, inner)}
    for name, (inputs, outputs) in (shapes | {"fc2": (inner, width)}).items():
        x = bench.random(tokens, inputs, dtype=torch.bfloat16)
        plain = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device=bench.device)
        randomise(plain)
        calls: dict[str, Callable[[], Any]] = {"bfloat16": lambda x=x, plain=plain: F.linear(x, plain.weight)}
        for way, (matmul, chosen) in ways.items():
            layer = _fp8_of(plain, x, per_channel=name in ("proj", "fc2"), matmul=matmul, kernels=chosen)
            calls[way] = lambda layer=layer, x=x: layer(x)
        row = {way: timed["seconds"] for way, timed in bench.compared(calls, rounds=3).items()}
        exact = calls["dequantise"]().float()
        fast = calls[next(reversed(calls))]().float()
        found[name] = row | {"relative_difference": ((fast - exact).abs().max() / exact.abs().max()).item()}


def _fp8_of(plain: nn.Linear, x: Tensor, **options: Any) -> Fp8Linear:
    """``plain`` with fp8 weights, scaled for inputs like ``x``."""
    layer = Fp8Linear(plain.in_features, plain.out_features, **options).to(x.device)
    layer.weight_scale.copy_(plain.weight.abs().max().float() / FP8_MAX)
    layer.weight.copy_(plain.weight.float()[None] / layer.weight_scale)
    scale = x.abs().max().item() / FP8_MAX
    layer.input_scale.fill_(scale)
    if layer.smooth_scale is not None:
        layer.smooth_scale.fill_(scale)
    return layer
