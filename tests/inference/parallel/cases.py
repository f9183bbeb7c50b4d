"""What the ranks of tests/inference/test_parallel*.py do. Each function is called by every rank."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import make_reuse
from inference.advance import MemoryAdvancer
from inference.config import REPOSITORY_ROOT, MagiConfig, load_config
from inference.kv_cache import KVCache
from inference.parallel.group import ContextParallel
from inference.parallel.launch import context_parallel
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.record import StepRecord
from inference.reuse import NoMemory, Reuse
from inference.sampler import Sampler, kv_geometry
from inference.schedule import Step
from inference.settings import AdvanceSettings
from inference.video.codec import VaeCodec
from inference.video.reading import read_video
from inference.video.vae import ViTVAE
from tests.tiny import TinyCaptions, tiny_config, tiny_dit
from tests.tiny_checkpoint import VAE

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run of the tiny model: ``prefix`` latent frames are given, ``changes`` replaces fields of the configuration."""

    three_pass: bool = False
    prefix: int = 0
    flowcache: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What one rank saw of a case. ``kept`` are the tokens of every compression and layer, this rank's groups."""

    chunks: list[Tensor]
    reuse_map: list[list[int]]
    forwards: list[Any]
    kept: list[Tensor]
    cache_bytes: int


# 16x48 pixels are 18 tokens a chunk, which four ranks share as 5, 5, 4, 4; 32x32 are 24.
UNEVEN = {"video_size_h": 16, "video_size_w": 48}
REUSE = {"rel_l1_thresh": 0.3, "warmup_steps": 2}
COMPRESS = {"compress_kv_cache": True, "total_cache_chunk_nums": 5}
WINDOW = [5, 4, 3, 2]
CASES = {
    "t2v": Case(changes={"num_frames": 96} | UNEVEN),
    "t2v_window_even": Case(changes={"num_frames": 96, "noise2clean_kvrange": WINDOW}),
    "i2v": Case(prefix=1, changes={"num_frames": 68} | UNEVEN),
    "v2v_window": Case(prefix=14, changes={"num_frames": 64, "noise2clean_kvrange": WINDOW} | UNEVEN),
    "window_moves_offloaded": Case(
        flowcache=REUSE, changes={"num_frames": 192, "noise2clean_kvrange": WINDOW, "kv_offload": True} | UNEVEN
    ),
    "three_pass": Case(three_pass=True, changes={"num_frames": 72} | UNEVEN),
    "three_pass_v2v": Case(three_pass=True, prefix=8, changes={"num_frames": 64, "noise2clean_kvrange": WINDOW}),
    "reuse": Case(flowcache=REUSE, changes={"num_frames": 96} | UNEVEN),
    "reuse_published": Case(
        flowcache=REUSE | {"reuse_form": "gain", "clean_pass": False, "discard_nearly_clean_chunk": True},
        changes={"num_frames": 96} | UNEVEN,
    ),
    "compressed": Case(flowcache=REUSE | COMPRESS, changes={"num_frames": 168} | UNEVEN),
    "compressed_frames_three_pass_v2v": Case(
        three_pass=True,
        prefix=8,
        flowcache=REUSE | COMPRESS | {"compress_strategy": "frame", "query_granularity": "frame"},
        changes={"num_frames": 120},
    ),
    "compressed_weighted_window": Case(
        flowcache=COMPRESS | {"score_weighting_method": "gaussian", "query_granularity": "token"},
        changes={"num_frames": 168, "noise2clean_kvrange": WINDOW} | UNEVEN,
    ),
    "compressed_merged_offloaded_v2v": Case(
        prefix=8,
        flowcache=REUSE | COMPRESS | {"merge_dropped": True},
        changes={"num_frames": 144, "kv_offload": True, "stream_weights": True} | UNEVEN,
    ),
    "three_pass_offloaded": Case(
        three_pass=True, changes={"num_frames": 72, "kv_offload": True, "stream_weights": True} | UNEVEN
    ),
}


def run_case(case: Case, parallel: ContextParallel) -> Outcome:
    config = tiny_config(case.three_pass).with_overrides(**case.changes)
    geometry = kv_geometry(config, CPU, parallel.ranks)
    settings = FlowCacheConfig(**case.flowcache)
    cache = CompressedKVCache(geometry, settings) if settings.compress_kv_cache else KVCache(geometry)
    reuse = make_reuse(settings) if case.flowcache else Reuse()
    kept: list[Tensor] = []

    def after_step(step: StepRecord) -> None:
        if step.compacted and isinstance(cache, CompressedKVCache):
            kept.extend(layer.clone() for layer in cache.last_kept)

    noise, prefix = inputs(config, case.prefix)
    dit = tiny_dit(config)
    if config.engine.stream_weights is True:
        dit.stream_layers(CPU)
    sampler = Sampler(dit, config, cache, reuse, parallel)
    chunks = [chunk.latents for chunk in sampler.run(noise, TinyCaptions(config), prefix, after_step)]
    return Outcome(chunks, sampler.record.reuse_map(), sampler.record.forwards, kept, cache.bytes)


def inputs(config: MagiConfig, given: int) -> tuple[Tensor, Tensor | None]:
    runtime = config.runtime
    generator = torch.Generator().manual_seed(2)
    height, width = runtime.video_size_h // 8, runtime.video_size_w // 8
    chunks = -(-(runtime.num_frames // 4 + given) // 6)
    noise = torch.randn(1, 16, chunks * 6, height, width, generator=generator)
    return noise, torch.randn(1, 16, given, height, width, generator=generator) if given else None


@contextmanager
def joined(**engine: Any) -> Iterator[ContextParallel]:
    with context_parallel(tiny_config().with_overrides(**engine), CPU) as parallel:
        yield parallel


def run_all_cases() -> dict[str, Outcome]:
    with joined() as parallel:
        return {name: run_case(case, parallel) for name, case in CASES.items()}


class Recording(MemoryAdvancer):
    """Keeps every velocity that was computed."""

    def __init__(self, settings: AdvanceSettings) -> None:
        super().__init__(settings)
        self.velocities: list[Tensor] = []

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        self.velocities.append(velocity.clone())
        return super().observe(step, chunk, velocity)


def run_bundled(parallel: ContextParallel) -> dict[str, Any]:
    """Two videos of the bundled model with reuse and compression, the second continuing the clip of the examples."""
    config = load_config("configs/model/nano.json").with_overrides(num_steps=16, num_frames=144)
    settings = FlowCacheConfig(**REUSE | COMPRESS | {"rel_l1_thresh": 0.1, "merge_dropped": True})
    pipeline = MagiPipeline.load(config, CPU, parallel)
    clip = read_video(REPOSITORY_ROOT / "example" / "assets" / "clip.mp4", 24, 64, 64)
    outcomes = {}
    for name, prefix in {"t2v": None, "v2v": clip[-32:]}.items():
        recording, report = Recording(settings), RunReport()
        reuse = replace(make_reuse(settings), advancer=recording)
        sample = Sample("a big red ball bounces up and down in the sky", prefix=prefix)
        frames = torch.cat(
            list(
                pipeline.frames(sample, reuse=reuse, make_cache=lambda g: CompressedKVCache(g, settings), report=report)
            )
        )
        outcomes[name] = (recording.velocities, report.record.reuse_map(), frames)
    return outcomes


def share_bundled() -> dict[str, Any]:
    with joined() as parallel:
        return run_bundled(parallel)


def exchange() -> dict[str, Any]:
    """Every operation of the group, on tensors that all ranks know whole."""
    results: dict[str, Any] = {}
    with joined() as parallel:
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
            q, kv = numbers(2, 7, 8, 3).to(dtype), numbers(2, 7, 4, 6).to(dtype)
            heads = parallel.to_heads(parallel.shard(q), parallel.shard(kv), 7)
            back = parallel.to_tokens(heads[0].flatten(2))
            arrived = [*heads, back, parallel.shard(q), parallel.gather(parallel.shard(q[..., 0]), 7)]
            assert all(tensor.dtype == dtype for tensor in arrived)
            results[str(dtype)] = [tensor.float() for tensor in arrived]  # float8 tensors cannot be pickled
        pieces = [numbers(1, size) for size in (3, 1, 5, 2, 4)]
        results["map"] = parallel.map(lambda piece: piece.double() * 2, pieces)
        results["map_one"] = parallel.map(lambda piece: piece + 1, pieces[:1])
        results["first"] = parallel.from_first(lambda: {"rank": os.environ["RANK"], "tensor": numbers(3)})
        results["about"] = parallel.describe() | {"first": parallel.is_first}
    return results


def numbers(*shape: int) -> Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


class Stubborn(NoMemory):
    """Decider and advancer: every rank would compute something else; what all of them do is returned by ``seen``."""

    def __init__(self) -> None:
        self.asked = 0

    def select(self, step: Step, features: Any) -> tuple[int, ...]:
        self.asked += 1
        if step.is_first or step.number % 3 != int(os.environ["RANK"]):
            return step.chunks
        return step.chunks[1:]

    def advance(self, step: Step, chunk: int) -> Tensor:
        return torch.zeros(16, 6, 4, 4)


def disagree() -> tuple[int, list[list[int]], Tensor]:
    stubborn, config = Stubborn(), tiny_config(num_frames=48)
    with joined() as parallel:
        sampler = Sampler(tiny_dit(config), config, None, Reuse(stubborn, stubborn), parallel)
        latents = [chunk.latents for chunk in sampler.run(inputs(config, 0)[0], TinyCaptions(config))]
    return stubborn.asked, sampler.record.reuse_map(), torch.cat(latents, dim=2)


def code_tiles(parallel: ContextParallel) -> tuple[Tensor, Tensor]:
    """A video of 48x96 encoded and a chunk of another decoded; tiles of 32x32 pixels and 12 frames."""
    torch.manual_seed(1)
    vae = ViTVAE(ddconfig=VAE | {"video_size": 32}).eval()
    codec = VaeCodec(vae, 0.18215, fps=24, map_tiles=parallel.map)
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (25, 48, 96, 3), generator=generator, dtype=torch.uint8)
    return codec.encode_video(frames), codec.decode_chunk(torch.randn(1, 16, 6, 6, 12, generator=generator))


def share_tiles() -> tuple[Tensor, Tensor]:
    with joined() as parallel:
        return code_tiles(parallel)


def lose(victim: int, how: str) -> None:
    """One rank kills itself, fails or hangs after two chunks."""
    config = tiny_config(num_frames=240)
    with joined() as parallel:
        sampler = Sampler(tiny_dit(config), config, parallel=parallel)
        for chunk in sampler.run(inputs(config, 0)[0], TinyCaptions(config)):
            if how == "hang":
                dist.group.WORLD.set_timeout(timedelta(seconds=2))
            if chunk.number == 1 and parallel.rank == victim:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hang":
                    time.sleep(8)
                raise ZeroDivisionError("the victim fails")
