"""Sections of the GPU check about the rest: reference data, attention, FlowCache's own work, runs, the VAE."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.bench import Bench, Findings, RunCaptions, WindowForward, flowcache_settings
from flowcache.decider import ChunkwiseDecider
from flowcache.kv_cache import CompressedKVCache
from harness.replay import Replay
from inference.advance import MemoryAdvancer
from inference.config import REPOSITORY_ROOT
from inference.model.attention import attend, available_backends, cross_attend
from inference.record import StepRecord
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.schedule import ChunkStep, Schedule, Step

PARITY_SECONDS = 150
REFERENCE_QUERIES = 64  # compared with the reference arithmetic, whose logits would not fit for all
# Shares of chunk-steps reused that give the published 1.27 and 1.47 times fewer operations by reuse alone.
PUBLISHED_SHARES = {"slow": 1 - 1 / 1.27, "fast": 1 - 1 / 1.47}


def parity(bench: Bench, found: Findings) -> None:
    """scripts/check_parity.py on the device: the transformer's forwards in bfloat16, then everything in float32."""
    runs = {"bfloat16": ["--dtype", "bfloat16", "--attention_backend", "auto"], "float32": []}
    for name, flags in runs.items():
        found[name] = _check_parity(bench, flags)


def _check_parity(bench: Bench, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "parity.json"
        command = [sys.executable, str(REPOSITORY_ROOT / "scripts/check_parity.py"), str(bench.golden)]
        command += ["--device", str(bench.device), "--json", str(output), *flags]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, min(PARITY_SECONDS, bench.left)), check=False
        )
        if not output.is_file():
            raise RuntimeError(f"check_parity.py ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
        results = json.loads(output.read_text(encoding="utf-8"))
    families = sorted({result["family"] for result in results})
    misses = [result for result in results if not result["passed"]]
    return {
        "quantities": len(results),
        "missed": len(misses),
        # The largest error of what is compared with a tolerance, as a multiple of it; exact comparisons have none.
        "largest_over_tolerance": {
            family: max(
                (r["error"] / r["tolerance"] for r in results if r["family"] == family and r["tolerance"]), default=None
            )
            for family in families
        },
        "first_misses": misses[:20],
    }


@torch.no_grad()
def attention(bench: Bench, found: Findings) -> None:
    """Every back end on the keys of a long video and on packed captions; PyTorch's kernels one by one."""
    model, side = bench.config.model, bench.sizes.sides[-1]
    tokens = bench.sized(side, 1).tokens_per_chunk
    keys = bench.sizes.chunks * tokens
    q = bench.random(1, tokens, model.num_attention_heads, model.kv_channels)
    kv = bench.random(1, keys, model.num_query_groups, 2 * model.kv_channels)
    lengths = (40, 0, 55, 76)
    queries = bench.random(len(lengths), tokens, model.num_attention_heads, model.kv_channels)
    k, v = bench.random(sum(lengths), model.num_query_groups, 2 * model.kv_channels).chunk(2, dim=-1)
    expected = attend(q[:, :REFERENCE_QUERIES], kv, "eager").float()
    expected_cross = cross_attend(queries[:, :REFERENCE_QUERIES], k, v, lengths, "eager").float()
    flop = 4 * tokens * keys * model.num_attention_heads * model.kv_channels
    found.update(queries=tokens, keys=keys, caption_tokens=lengths)
    for name, reason in available_backends(bench.device, model.dtype, model.kv_channels).items():
        if reason is not None or name == "eager":
            found[name] = {"not_measured": reason or "the reference; its logits would not fit"}
            continue
        seconds = bench.seconds(lambda name=name: attend(q, kv, name))
        out = attend(q, kv, name)[:, :REFERENCE_QUERIES].float()
        cross = cross_attend(queries, k, v, lengths, name)[:, :REFERENCE_QUERIES].float()
        found[name] = {
            "self_seconds": seconds,
            "self_tflops": flop / seconds / 1e12,
            "self_error": (out - expected).abs().max().item(),
            "cross_seconds": bench.seconds(lambda name=name: cross_attend(queries, k, v, lengths, name)),
            "cross_error": (cross - expected_cross).abs().max().item(),
        }
    found["sdpa_kernels"] = {kernel.name: _with_kernel(bench, kernel, q, kv) for kernel in _KERNELS}


_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def _with_kernel(bench: Bench, kernel: SDPBackend, q: torch.Tensor, kv: torch.Tensor) -> float | str:
    try:
        with sdpa_kernel(kernel):
            return bench.seconds(lambda: attend(q, kv, "sdpa"))
    except RuntimeError as error:
        return str(error).splitlines()[0]


@torch.no_grad()
def flowcache_work(bench: Bench, found: Findings) -> None:
    """What FlowCache does besides the forwards it saves: deciding, remembering, compressing."""
    side, chunks = bench.sizes.sides[-1], bench.sizes.chunks
    config = bench.sized(side, chunks)
    geometry = kv_geometry(config, bench.device)
    settings = flowcache_settings(5)
    forward = WindowForward(bench, side, chunks, CompressedKVCache(geometry, settings))
    compressions = forward.fill()
    found.update(compressions=len(compressions))
    found["compression_seconds"] = compressions
    found["chunk_forward_seconds"] = bench.seconds(lambda: forward(1))

    reuse, schedule = Reuse(ChunkwiseDecider(settings), MemoryAdvancer(settings)), forward.schedule
    first, second, third = schedule.steps[forward.step.number :][:3]
    side_latent = side // 8
    latent = bench.random(config.model.latent_channels, config.runtime.chunk_width, side_latent, side_latent).float()

    def features() -> dict[int, torch.Tensor]:
        embedded = bench.dit.embed(torch.stack([latent] * len(third.chunks)))
        return dict(zip(third.chunks, embedded, strict=True))

    def bookkeeping() -> None:
        reuse.decider.select(third, features)
        for chunk in third.chunks:
            reuse.advancer.advance(third, chunk)

    reuse.reset(schedule)
    for step in (first, second):
        for chunk in step.chunks:
            reuse.advancer.observe(step, chunk, latent)
    found["bookkeeping_seconds_per_step"] = bench.seconds(bookkeeping)
    found.update(side=side, bookkeeping_chunks=len(third.chunks), steps=len(schedule.steps))


def even_reuse(schedule: Schedule, share: float, warmup: int) -> list[tuple[int, ...]]:
    """Chunks to compute at every step such that ``share`` of all chunk-steps is reused, evenly after ``warmup``."""
    total = sum(len(step.window) for step in schedule.steps)
    free = [
        (step.number, entry.chunk)
        for step in schedule.steps
        for entry in step.window
        if _may_reuse(schedule, step, entry, warmup)
    ]
    wanted = round(share * total)
    if wanted > len(free):
        raise ValueError(f"{wanted} of {total} chunk-steps are to be reused, but only {len(free)} may be")
    # Every chunk has its own count, so that reuses are spread over its steps and not over the window.
    free.sort(key=lambda place: (place[1], place[0]))
    reused = {place for i, place in enumerate(free) if (i + 1) * wanted // len(free) > i * wanted // len(free)}
    return [tuple(chunk for chunk in step.chunks if (step.number, chunk) not in reused) for step in schedule.steps]


def _may_reuse(schedule: Schedule, step: Step, entry: ChunkStep, warmup: int) -> bool:
    return warmup <= entry.index < schedule.num_steps - 1 and not step.is_first and not step.is_last


def runs(bench: Bench, found: Findings) -> None:
    """Whole runs of the sampler: as MAGI-1 ships, and with FlowCache and a reuse map of the published shares."""
    sizes = bench.sizes
    config = bench.sized(sizes.run_side, sizes.run_chunks, sizes.run_steps).with_overrides(
        noise2clean_kvrange=[5, 4, 3, 2]
    )
    schedule = make_schedule(config, 0)
    geometry = kv_geometry(config, bench.device)
    side = sizes.run_side // 8
    frames = sizes.run_chunks * config.runtime.chunk_width
    noise = bench.random(1, config.model.latent_channels, frames, side, side, dtype=torch.float32)
    found.update(side=sizes.run_side, chunks=sizes.run_chunks, num_steps=sizes.run_steps)

    def stop_when_late(record: StepRecord) -> None:
        if bench.left < 0:
            raise TimeoutError(f"no time left at step {record.number} of {len(schedule.steps)}")

    def run(sampler: Sampler) -> dict[str, Any]:
        began = time.perf_counter()
        for _ in sampler.run(noise, RunCaptions(bench), on_step=stop_when_late):
            pass
        bench.synchronize()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "seconds_per_step": seconds / len(schedule.steps)} | sampler.record.summary()

    found["none"] = run(Sampler(bench.dit, config))
    for name, share in PUBLISHED_SHARES.items():
        settings = flowcache_settings(5)
        decider = Replay(ChunkwiseDecider(settings), even_reuse(schedule, share, settings.warmup_steps))
        reuse = Reuse(decider, MemoryAdvancer(settings), settings.clean_pass, not settings.discard_nearly_clean_chunk)
        sampler = Sampler(bench.dit, config, CompressedKVCache(geometry, settings), reuse)
        row = run(sampler)
        found[name] = row | {"speedup": found["none"]["seconds"] / row["seconds"]}


@torch.no_grad()
def vae(bench: Bench, found: Findings) -> None:
    """Frames per second of decoding finished chunks, in bfloat16, tile by tile as the pipeline does."""
    from inference.video.codec import VaeCodec
    from inference.video.vae import ViTVAE

    with bench.device:
        model = ViTVAE(ddconfig=bench.sizes.vae).eval()
    model.to(torch.bfloat16)
    runtime = bench.config.runtime
    codec = VaeCodec(model, runtime.scale_factor, runtime.fps)
    found.update(parameters=sum(weight.numel() for weight in model.parameters()))
    for side in bench.sizes.sides:
        latents = bench.random(1, 16, runtime.chunk_width, side // 8, side // 8, dtype=torch.float32)
        row: dict[str, Any] = {}
        with bench.peak_memory(row):
            frames = codec.decode_chunk(latents).shape[0]
        seconds = bench.seconds(lambda latents=latents: codec.decode_chunk(latents), repeats=3)
        found[f"{side}x{side}"] = row | {"seconds_per_chunk": seconds, "frames_per_second": frames / seconds}
