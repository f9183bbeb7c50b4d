"""Whether the machine's own memory holds a run: asked before anything is loaded or computed (docs/memory.md)."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from inference.config import VAE_SPATIAL_FACTOR, MagiConfig
from inference.kv_cache import KVCache
from inference.memory.plan import estimate_run, plan_memory
from inference.schedule import Schedule

# Python, PyTorch and the codecs, before a model is there.
PROCESS_BYTES = 700_000_000
MEMINFO = Path("/proc/meminfo")
# Of the container that the process may be in: its limit, and what is in use.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


def free_host_bytes(meminfo: Path = MEMINFO, limits: tuple[Path, Path] = LIMITS) -> int:
    """Bytes that can be had: what Linux calls available, elsewhere all there is; what a container is left, if less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    most, used = (path.read_text(encoding="ascii").strip() if path.is_file() else "max" for path in limits)
    if most != "max" and used != "max":
        free = min(free, max(0, int(most) - int(used)))
    return free


def refuse_too_large(config: MagiConfig, free: int | None = None) -> None:
    """ValueError for sizes whose latents alone, or the tokens of one chunk, do not fit; costs nothing to ask."""
    runtime, model = config.runtime, config.model
    free = free_host_bytes() if free is None else free
    side = VAE_SPATIAL_FACTOR**2
    # With the whole history in view keys are kept of all of them, and those are more; of an endless video none can be.
    held = 1 if runtime.noise2clean_kvrange or runtime.endless else runtime.num_frames
    latents = -(-held // runtime.temporal_downsample_factor) * model.latent_channels
    noise = latents * runtime.video_size_h * runtime.video_size_w // side * 4
    tokens = config.tokens_per_chunk * model.hidden_size * model.dtype.itemsize
    for needed, what, cure in (
        (noise, f"the latents of {runtime.num_frames} frames", "lower num_frames or the size"),
        (4 * tokens, "the tokens of one chunk", "lower video_size_h and video_size_w"),
    ):
        if needed > free:
            raise ValueError(
                f"{what} of {runtime.video_size_w}x{runtime.video_size_h} need {needed / 1e9:,.1f} GB, and "
                f"{free / 1e9:.1f} GB of memory are free: {cure}"
            )


def check_host(
    config: MagiConfig,
    schedule: Schedule,
    make_cache: Callable[..., KVCache] = KVCache,
    ranks: int = 1,
    free: int | None = None,
) -> None:
    """ValueError where a run on this machine's processor is estimated to need more memory than is free.

    Args:
        config, schedule: of the video, planned.
        make_cache, ranks: as for ``MagiPipeline.load``.
    """
    free = free_host_bytes() if free is None else free
    size = estimate_run(config, schedule, torch.device("cpu"), make_cache, ranks)
    if config.runtime.text_cache is not None:
        size = replace(size, text_encoder=0)  # not loaded where the prompt is known
    plan = plan_memory(config, size, None)
    needed = PROCESS_BYTES + ranks * (plan.device_bytes + plan.host_bytes)
    if needed > free:
        runtime = config.runtime
        raise ValueError(
            f"{runtime.num_frames} frames of {runtime.video_size_w}x{runtime.video_size_h} by this model need about "
            f"{needed / 1e9:.1f} GB of memory on a CPU, and {free / 1e9:.1f} GB are free: lower the size or num_frames "
            "(scripts/check_model.py says what takes how much)"
        )
