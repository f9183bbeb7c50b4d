"""What the sections of the GPU check share: sizes, a transformer with random weights, a clock (docs/gpu_check.md)."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcache.config import FlowCacheConfig
from inference.config import REPOSITORY_ROOT, MagiConfig, load_config
from inference.kv_cache import KVCache
from inference.model.attention import resolve_backend
from inference.model.context import CachedAttention, Entry
from inference.model.dit import Captions, VideoDiT
from inference.model.fused import resolve_kernels
from inference.record import ForwardRecord
from inference.sampler import kv_geometry, make_schedule
from inference.schedule import Schedule, Step
from metrics.flops import TransformerSize, forward_flops

# As published: frames of an encoder that sees 256 x 256 pixels and 16 frames.
PUBLISHED_VAE = {
    "video_size": 256,
    "video_length": 16,
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "z_chans": 16,
    "qkv_bias": True,
    "ln_in_attn": True,
    "conv_last_layer": True,
    "use_final_proj": True,
}
SMALL_VAE = PUBLISHED_VAE | {"video_size": 32, "embed_dim": 256, "depth": 1, "num_heads": 4}
SMALL_MODEL = {
    "num_layers": 3,
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 16,
    "caption_channels": 64,
    "caption_max_length": 64,
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is. ``sides`` of square frames in pixels; ``run_*``: the whole runs of the sampler."""

    model: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=lambda: PUBLISHED_VAE)
    sides: tuple[int, ...] = (480, 720)
    chunks: int = 10
    matmul: int = 8192
    repeats: int = 5
    run_side: int = 480
    run_chunks: int = 6
    run_steps: int = 16
    repeat_side: int = 256
    repeat_chunks: int = 8
    repeat_layers: int = 6
    repeat_steps: int = 8
    compiler: str = "inductor"


FULL = Sizes()
# Layers are traced and not compiled: C++ would take minutes on a CPU.
SMALL = Sizes(SMALL_MODEL, SMALL_VAE, (32, 64), 10, 256, 2, 32, 6, 16, 32, 8, 3, 8, "eager")


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights under which activations keep their size; norms as they begin. For a module without values, in place."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("rope.bands"):
                count = len(parameter)
                parameter.copy_(10000.0 ** (-torch.arange(count, device=device) / count))
            elif parameter.ndim > 1:
                values = torch.empty(parameter.shape, device=device, dtype=torch.float32)
                parameter.copy_(values.normal_(0, parameter[0].numel() ** -0.5, generator=generator))
            else:
                # A LayerNorm's weight is one; that of the other kind has the one added to it.
                parameter.fill_(1.0 if name.endswith("layer_norm.weight") else 0.0)


class Findings(dict[str, Any]):
    """What a section has found so far; whoever started it is told of each result at once."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.tell = tell

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.tell(name, value)


class Bench:
    """The device with what is measured on it.

    Args:
        device: where everything runs.
        sizes: of everything.
        golden: folder of reference data.
        deadline: ``time.monotonic()`` after which runs stop.
    """

    def __init__(self, device: torch.device, sizes: Sizes, golden: Path, deadline: float) -> None:
        self.device, self.sizes, self.golden, self.deadline = device, sizes, golden, deadline
        config = load_config(REPOSITORY_ROOT / "configs/model/4.5B_distill.json")
        self.config = config.with_overrides(**sizes.model, noise2clean_kvrange=[])

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @cached_property
    def dit(self) -> VideoDiT:
        """The transformer, built on the device with random weights."""
        model = self.config.model
        backend = resolve_backend("auto", self.device, model.dtype, model.kv_channels)
        kernels = resolve_kernels("auto", self.device)
        with torch.device("meta"):
            dit = VideoDiT(model, distill=True, backend=backend, kernels=kernels)
        dit = dit.to_empty(device=self.device).eval()
        randomise(dit)
        return dit

    def sized(self, side: int, chunks: int, num_steps: int = 64) -> MagiConfig:
        """The configuration of square frames and a number of chunks, the whole history as keys."""
        return self.config.with_overrides(
            video_size_h=side, video_size_w=side, num_frames=24 * chunks, num_steps=num_steps
        )

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.synchronize()
        began = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - began

    def compared(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
        """Seconds of each of ``calls``, made in turn ``rounds`` times after one each that is not counted: the median,
        and by how much of it the slowest and the fastest differ.
        """
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(self.once(call))
        middles = {name: statistics.median(values) for name, values in times.items()}
        return {
            name: {"seconds": middles[name], "spread": (max(values) - min(values)) / middles[name]}
            for name, values in times.items()
        }

    def seconds(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Median time of ``call``, once run before it is timed."""
        call()
        first = self.once(call)
        # Long calls vary little, and time is short.
        more = min(repeats or self.sizes.repeats, 3) if first > 1 else repeats or self.sizes.repeats
        return statistics.median([first, *(self.once(call) for _ in range(more - 1))])

    @contextmanager
    def peak_memory(self, found: dict[str, Any]) -> Iterator[None]:
        """Adds to ``found`` the bytes of the device before the block and at its peak; nothing on a CPU."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.empty_cache()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        found["bytes_before"] = torch.cuda.memory_allocated(self.device)
        yield
        self.synchronize()
        found["bytes_peak"] = torch.cuda.max_memory_allocated(self.device)

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype or self.config.model.dtype)


def full_window(schedule: Schedule) -> Step:
    """The first step of the last full window: the most chunks, the longest history."""
    return next(step for step in reversed(schedule.steps) if len(step.window) == schedule.window_size and step.k == 0)


class WindowForward:
    """Forwards of a window's newest chunks behind a cache that holds the whole history, as the sampler makes them."""

    def __init__(
        self, bench: Bench, side: int, chunks: int, cache: KVCache | None = None, dit: VideoDiT | None = None
    ) -> None:
        self.bench, self.dit = bench, bench.dit if dit is None else dit
        config = bench.sized(side, chunks)
        schedule = make_schedule(config, 0)
        self.step = full_window(schedule)
        self.cache = cache if cache is not None else KVCache(kv_geometry(config, bench.device))
        self.cache.reset(schedule)
        self.config, self.schedule = config, schedule

    @torch.no_grad()
    def fill(self) -> list[float]:
        """Bring the cache with random keys to where the window's step finds it; gives the seconds of compressions."""
        geometry, model, seconds = self.cache.geometry, self.config.model, []
        kv = self.bench.random(geometry.chunk_tokens, geometry.groups, 2 * geometry.head_width)
        for step in self.schedule.steps[: self.step.number + 1]:
            if step.k == 0:
                newest = step.chunks[-1]
                self.cache.enter(newest)
                for layer in range(geometry.layers):
                    self.cache.write(layer, newest, kv)
            if step is self.step:
                break
            if self.cache.compacts_after(step):
                q = self.bench.random(geometry.chunk_tokens, model.num_attention_heads, geometry.head_width)
                for layer in range(geometry.layers):
                    self.cache.keep_queries(layer, q)
                seconds.append(self.bench.once(lambda step=step: self.cache.end_step(step)))
            else:
                self.cache.end_step(step)
        return seconds

    @torch.no_grad()
    def __call__(self, count: int) -> ForwardRecord:
        """One forward of ``count`` chunks; gives its sizes."""
        window, runtime = self.step.window[-count:], self.config.runtime
        side = runtime.video_size_h // 8
        latents = self.bench.random(
            count, self.config.model.latent_channels, runtime.chunk_width, side, side, dtype=torch.float32
        )
        width = self.config.model.caption_channels
        captions = Captions.of([self.bench.random(40 + 9 * i, width, dtype=torch.float32) for i in range(count)])
        entries = [Entry(entry.chunk, entry.key_start) for entry in window]
        context = CachedAttention(self.cache, entries, self.dit.backend)
        t = torch.tensor([entry.t for entry in window], device=self.bench.device)
        frames = [entry.chunk * runtime.chunk_width for entry in window]
        out = self.dit(latents, t, captions, context, first_frames=frames, step_scalar=self.schedule.step_scalar(0))
        if not bool(out.isfinite().all()):
            raise RuntimeError("the random weights gave numbers that are not finite: timing them means nothing")
        tokens = self.cache.geometry.chunk_tokens
        return ForwardRecord("text", tokens, context.key_counts(), captions.lengths)

    def flops(self, record: ForwardRecord) -> int:
        return forward_flops(TransformerSize.of(self.config.model.model_dump()), record)


class RunCaptions:
    """Captions of a usual length, for a run of the sampler."""

    def __init__(self, bench: Bench) -> None:
        self.tokens = bench.random(50, bench.config.model.caption_channels, dtype=torch.float32)

    def packed_cond(self, chunk: int) -> Tensor:
        return self.tokens

    def packed_null(self) -> Tensor:
        return self.tokens


def flowcache_settings(budget: int | None, threshold: float = 0.01, **given: Any) -> FlowCacheConfig:
    """FlowCache with a cache of ``budget`` chunks, None for an unlimited one; ``given`` besides."""
    compression = {"compress_kv_cache": budget is not None, "total_cache_chunk_nums": budget or 5}
    return FlowCacheConfig(
        rel_l1_thresh=threshold, query_granularity="frame", discard_nearly_clean_chunk=True, **compression, **given
    )
