"""What stays on the device and what does not: the automatic choices, from estimates and the memory that is free.

Source: docs/memory.md, "Automatic choices". Pure arithmetic on ``inference.memory.estimate``'s estimates.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inference.config import SWITCHES, MagiConfig
from inference.kv_cache import KVCache
from inference.memory.dry_run import dry_run, largest_forward
from inference.memory.estimate import MOST_REMEMBERED, MemoryEstimate, estimate
from inference.schedule import Schedule

logger = logging.getLogger(__name__)

# Of the free memory so much is left for what estimates do not know: workspaces of kernels, the allocator's waste.
SPARE_SHARE = 0.05
SPARE_BYTES = 2**28


@dataclass(frozen=True)
class Placement:
    """Which parts are kept off the device, by the names of the configuration."""

    offload_t5: bool = False
    offload_vae: bool = False
    kv_offload: bool = False
    stream_weights: bool = False


# From what costs no time to what costs most; each line is tried as a whole.
LADDER = (
    Placement(),
    Placement(offload_t5=True),
    Placement(offload_t5=True, offload_vae=True),
    Placement(offload_t5=True, offload_vae=True, kv_offload=True),
    Placement(offload_t5=True, offload_vae=True, stream_weights=True),
    Placement(offload_t5=True, offload_vae=True, kv_offload=True, stream_weights=True),
)


@dataclass(frozen=True)
class MemoryPlan:
    """A placement and what it takes: bytes on the device at most, and on the host for what is kept there.

    ``usable``: bytes of the device that may be planned with; None where nothing is known of it.
    """

    placement: Placement
    device_bytes: int
    host_bytes: int
    usable: int | None

    @property
    def fits(self) -> bool:
        return self.usable is None or self.device_bytes <= self.usable

    def to_json_dict(self) -> dict[str, Any]:
        """For the sidecar file."""
        return asdict(self) | {"fits": self.fits}


def usable_bytes(free: int) -> int:
    """How many of ``free`` bytes may be planned with."""
    return max(0, int(free * (1 - SPARE_SHARE)) - SPARE_BYTES)


def device_parts(config: MagiConfig, size: MemoryEstimate, placement: Placement) -> dict[str, int]:
    """Bytes of every part on the device, where ``placement`` leaves it; stages are peaks, of which one counts."""
    t5 = size.text_encoder if on_device(config) else 0
    weights = size.transformer.streamed if placement.stream_weights else size.transformer.bytes
    return {
        "transformer": weights,
        "KV cache": size.kv_tables + (2 * size.kv_layer if placement.kv_offload else size.kv_rows),
        "text encoder": 0 if placement.offload_t5 else t5,
        "autoencoder": 0 if placement.offload_vae else size.vae,
        "captions and latents": size.captions + size.latents,
        "stage: denoising": size.activations.bytes,
        "stage: decoding": size.decode.bytes + (size.vae if placement.offload_vae else 0),
        "stage: text": t5 if placement.offload_t5 else 0,
    }


def device_peak(config: MagiConfig, size: MemoryEstimate, placement: Placement) -> int:
    """Most that the device holds. Decoding beside denoising takes what both take."""
    parts = device_parts(config, size, placement)
    lasting = sum(value for name, value in parts.items() if not name.startswith("stage: "))
    denoising, decoding = parts["stage: denoising"], parts["stage: decoding"]
    together = config.engine.overlap_decode is not False and not placement.offload_vae
    stages = denoising + decoding if together else max(denoising, decoding)
    # The text is encoded before there is a cache.
    text = lasting - parts["KV cache"] + parts["stage: text"]
    return max(lasting + stages, text)


def host_bytes(config: MagiConfig, size: MemoryEstimate, placement: Placement) -> int:
    """What is kept in host memory."""
    held = size.text_encoder if placement.offload_t5 or not on_device(config) else 0
    held += size.vae if placement.offload_vae else 0
    held += size.kv_rows if placement.kv_offload else 0
    return held + (sum(size.transformer.layers) if placement.stream_weights else 0)


def on_device(config: MagiConfig) -> bool:
    """Whether the text encoder computes on a GPU."""
    return config.runtime.t5_device.startswith("cuda")


def plan_memory(config: MagiConfig, size: MemoryEstimate, free: int | None) -> MemoryPlan:
    """The first placement of the ladder that fits, among those that the configuration's own choices allow; the last of
    them where none fits.

    Args:
        config: its fields named in ``SWITCHES`` are true, false, or "auto", which is decided here.
        size: what the run takes.
        free: bytes free on the device before anything is loaded; None (a CPU) leaves everything where it is.
    """
    chosen = {name: getattr(config.engine, name) for name in SWITCHES}
    usable = None if free is None else usable_bytes(free)
    ladder = LADDER[:1] if usable is None else LADDER
    plans = []
    for step in ladder:
        settled = {name: getattr(step, name) if value == "auto" else value for name, value in chosen.items()}
        placement = Placement(**settled)
        needed = device_peak(config, size, placement)
        plans.append(MemoryPlan(placement, needed, host_bytes(config, size, placement), usable))
        if plans[-1].fits:
            return plans[-1]
    return plans[-1]


def fewest_alike(schedule: Schedule) -> int:
    """The least number of steps whose largest forward is that of ``schedule``.

    Which chunks stand in a window does not depend on how many steps a stage has, and the noise level at which the last
    stage begins, where a nearly-clean copy may stand beside the clean pass, is the same with any.
    """
    unit = math.lcm(schedule.window_size, max(1, len(schedule.noise2clean_kvrange)))
    # Steps in threes, and grids of 12, are of another form.
    return unit if unit % 3 and unit < schedule.num_steps else schedule.num_steps


def estimate_run(
    config: MagiConfig,
    schedule: Schedule,
    device: torch.device,
    make_cache: Callable[..., KVCache] = KVCache,
    ranks: int = 1,
) -> MemoryEstimate:
    """Bytes of every part of the video of ``config``, planned, and ``schedule``."""
    prefix = schedule.offset * config.runtime.chunk_width
    # Forwards have every size they will ever have once the window has been full and has moved on.
    chunks = min(schedule.chunk_num, schedule.offset + 2 * schedule.window_size)
    frames = (chunks - schedule.offset) * config.runtime.chunk_width * config.runtime.temporal_downsample_factor
    shorter = config.with_overrides(num_frames=min(frames, config.runtime.num_frames), num_steps=fewest_alike(schedule))
    shape = largest_forward(dry_run(shorter, prefix, make_cache))
    return estimate(
        config, schedule, shape, device=device, make_cache=make_cache, remembered=MOST_REMEMBERED, ranks=ranks
    )


def plan_run(
    config: MagiConfig,
    schedule: Schedule,
    device: torch.device,
    free: int | None,
    make_cache: Callable[..., KVCache] = KVCache,
    ranks: int = 1,
) -> MemoryPlan:
    """The plan for the video of ``config``, planned, and ``schedule``, with every "auto" of ``SWITCHES`` decided. A
    warning where nothing fits.
    """
    size = estimate_run(config, schedule, device, make_cache, ranks)
    plan = plan_memory(config, size, free)
    if not plan.fits:
        logger.warning(
            "the run is expected to need %.1f GB of the device's memory, %.1f can be used; scripts/check_model.py says "
            "what to change",
            *(plan.device_bytes / 1e9, (plan.usable or 0) / 1e9),
        )
    return plan
