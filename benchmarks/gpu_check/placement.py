"""Sections of the GPU check about the device itself: where a forward's time goes, copies, and whether runs repeat."""

from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.gpu_check.bench import Bench, Findings, RunCaptions, WindowForward, flowcache_settings, randomise
from benchmarks.gpu_check.parts import even_reuse
from flowcache.decider import ChunkwiseDecider
from flowcache.kv_cache import CompressedKVCache
from harness.replay import Replay
from inference.advance import MemoryAdvancer
from inference.config import MagiConfig
from inference.model.attention import resolve_backend
from inference.model.dit import VideoDiT
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule

COPIED_BYTES = 1 << 31  # far more than a GPU's cache holds
TOLD_KERNELS = 24
REUSED = 0.25


@torch.no_grad()
def copies(bench: Bench, found: Findings) -> None:
    """Bytes per second of a copy on the device (read and written both count), and to and from locked host memory."""
    count = COPIED_BYTES if bench.device.type == "cuda" else 1 << 24
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found["bytes"] = count
    found["on_device_bytes_per_second"] = 2 * count / bench.seconds(lambda: target.copy_(source))
    if bench.device.type == "cuda":
        host = torch.empty(count // 4, dtype=torch.uint8, pin_memory=True)
        piece = target[: len(host)]
        to_device = bench.seconds(lambda: piece.copy_(host, non_blocking=True))
        to_host = bench.seconds(lambda: host.copy_(piece, non_blocking=True))
        found["to_device_bytes_per_second"] = len(host) / to_device
        found["to_host_bytes_per_second"] = len(host) / to_host


@torch.no_grad()
def profile(bench: Bench, found: Findings) -> None:
    """Kernel by kernel, the time of a forward of one chunk and of a window, behind the whole history."""
    side, chunks = bench.sizes.sides[-1], bench.sizes.chunks
    forward = WindowForward(bench, side, chunks)
    forward.fill()
    on_gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    found["side"] = side
    for count in (1, len(forward.step.window)):
        seconds = bench.seconds(lambda count=count: forward(count), repeats=2)
        with torch.profiler.profile(activities=activities) as profiler:
            forward(count)
            bench.synchronize()
        events = [event for event in profiler.key_averages() if (event.device_type == DeviceType.CUDA) == on_gpu]
        times = {event.key: _self_seconds(event, on_gpu) for event in events}
        calls = {event.key: event.count for event in events}
        longest = sorted(times, key=times.__getitem__, reverse=True)[:TOLD_KERNELS]
        found[f"chunks_{count}"] = {
            "seconds": seconds,
            "busy_seconds": sum(times.values()),
            "launches": sum(calls.values()),
            "kernels": [{"name": name[:140], "calls": calls[name], "seconds": times[name]} for name in longest],
        }


def _self_seconds(event: Any, on_gpu: bool) -> float:
    return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6


@torch.no_grad()
def repeatable(bench: Bench, found: Findings) -> None:
    """A run with compression and merging, made again, with its cache in host memory, with streamed weights: the same
    bits each time.
    """
    sizes = bench.sizes
    config = bench.sized(sizes.repeat_side, sizes.repeat_chunks, sizes.repeat_steps)
    config = config.with_overrides(num_layers=sizes.repeat_layers, noise2clean_kvrange=[5, 4, 3, 2])
    frames, side = sizes.repeat_chunks * config.runtime.chunk_width, sizes.repeat_side // 8
    noise = bench.random(1, config.model.latent_channels, frames, side, side, dtype=torch.float32)
    captions = RunCaptions(bench)
    found.update(side=sizes.repeat_side, layers=sizes.repeat_layers, num_steps=sizes.repeat_steps)
    expected = None
    for name, switches in _PLACEMENTS.items():
        placed = config.with_overrides(kv_offload=switches["kv_offload"])
        dit = _transformer(placed, bench.device, streamed=switches["stream_weights"])
        sampler = _compressed_sampler(dit, placed, bench.device)
        latents: list[torch.Tensor] = []
        seconds = bench.once(lambda s=sampler, to=latents: to.extend(c.latents.cpu() for c in s.run(noise, captions)))
        video = torch.cat(latents, dim=2)
        expected = video if expected is None else expected
        different = (video - expected).abs().max().item()
        found[name] = {"seconds": seconds, "largest_difference": different, "finite": bool(video.isfinite().all())}


_PLACEMENTS = {
    "first": {"kv_offload": False, "stream_weights": False},
    "again": {"kv_offload": False, "stream_weights": False},
    "kv_offload": {"kv_offload": True, "stream_weights": False},
    "stream_weights": {"kv_offload": False, "stream_weights": True},
    "both": {"kv_offload": True, "stream_weights": True},
}


def _transformer(config: MagiConfig, device: torch.device, *, streamed: bool) -> VideoDiT:
    backend = resolve_backend("auto", device, config.model.dtype, config.model.kv_channels)
    with torch.device("meta"):
        dit = VideoDiT(config.model, distill=True, backend=backend)
    dit = dit.to_empty(device=device).eval()
    randomise(dit)
    return dit.to("cpu").stream_layers(device) if streamed else dit


def _compressed_sampler(dit: VideoDiT, config: MagiConfig, device: torch.device) -> Sampler:
    """With merging, and some chunk-steps reused, so that forwards of every size occur."""
    settings = flowcache_settings(5, merge_dropped=True)
    schedule = make_schedule(config, 0)
    decider = Replay(ChunkwiseDecider(settings), even_reuse(schedule, REUSED, warmup=2))
    reuse = Reuse(decider, MemoryAdvancer(settings), settings.clean_pass, not settings.discard_nearly_clean_chunk)
    return Sampler(dit, config, CompressedKVCache(kv_geometry(config, device), settings), reuse)
