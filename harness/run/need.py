"""What a video takes of the machine beside its memory: room on the disk, and time. Asked before anything is loaded.

Nothing is run. The disk is estimated from the number of pixels, operations are counted (docs/flops.md), and a product
of half a second tells the speed of the device, where a run is long enough for that not to matter.
"""

import logging
import shutil
from pathlib import Path

import torch

from harness.methods import Method
from harness.model_check import Request, duration, product_rate
from inference.config import MagiConfig
from inference.memory.dry_run import dry_run
from inference.pipeline import plan
from inference.schedule import Schedule
from inference.video.names import existing_folder
from metrics.flops import TransformerSize, run_flops

logger = logging.getLogger(__name__)

# Bits per pixel: H.264 at the writer's quality, and without loss. A video of the bundled model, 64x64 pixels, took 0.41
# and 10.5 (`multistep_fast`, 240 frames); larger pictures take fewer.
LIKELY_BITS = {False: 0.2, True: 8.0}
# A run is refused where a tenth of the likely size has no room.
SURE_SHARE = 0.1
# From so many operations on the rate of the device is measured before a run.
WORTH_MEASURING = {"cpu": 1e15, "cuda": 1e18}
DAY = 86_400
MOST_DAYS = 10
# Of a chunk's steps a caching method computes at least so many.
LEAST_COMPUTED = 0.05


def video_bytes(config: MagiConfig, lossless: bool) -> int:
    """About how large the video will be."""
    runtime = config.runtime
    return int(runtime.num_frames * runtime.video_size_h * runtime.video_size_w * LIKELY_BITS[lossless] / 8)


def free_disk(path: Path) -> int:
    """Bytes that are free where ``path`` would be written."""
    return shutil.disk_usage(existing_folder(path.parent)).free


def least_flop(config: MagiConfig, method: Method) -> float:
    """Operations that a run takes at the very least: tokens through the layers, without attention and guidance."""
    runtime = config.runtime
    size = TransformerSize.of(config.model.model_dump())
    chunks = runtime.num_frames / (runtime.chunk_width * runtime.temporal_downsample_factor)
    tokens = chunks * config.tokens_per_chunk * runtime.num_steps
    computed = 1.0 if method.settings is None else LEAST_COMPUTED
    return 2.0 * size.num_layers * size.weights_per_token * tokens * computed


def refuse_too_long(config: MagiConfig, method: Method, device: torch.device, video: Path, lossless: bool) -> None:
    """ValueError where the video has no room on the disk, or would take weeks on ``device``; a warning where it may
    have none, or takes more than a day.
    """
    if config.runtime.endless:
        return
    frames = f"{config.runtime.num_frames} frames of {config.runtime.video_size_w}x{config.runtime.video_size_h}"
    needed, free = video_bytes(config, lossless), free_disk(video)
    if needed > free:
        room = f"{frames} take about {needed / 1e9:,.1f} GB in {video}, and {free / 1e9:,.1f} GB are free on that disk"
        if SURE_SHARE * needed > free:
            raise ValueError(f"{room}: lower num_frames or the size, or name an output on another disk")
        logger.warning("%s", room)
    flop = least_flop(config, method)
    if flop < WORTH_MEASURING[device.type]:
        return
    seconds = flop / product_rate(device, config.model.dtype)
    if seconds > MOST_DAYS * DAY:
        raise ValueError(
            f"{frames} in {config.runtime.num_steps} steps would take more than {duration(seconds)} on {device}: lower "
            "num_frames, num_steps or the size (--num_frames endless goes on until you end it)"
        )
    if seconds > DAY:
        logger.warning("%s will take more than %s on %s", frames, duration(seconds), device)


def whole_work(request: Request) -> tuple[int, float]:
    """Forwards and operations of a run in which nothing is reused.

    Those of a long video follow from three shorter ones. Once the window has been full and has moved on, a further
    chunk takes as many forwards as the last, whose keys are as many, or where the whole history is in view grow by the
    same number: a polynomial of the second degree at most.
    """
    config, schedule = plan(request.config, request.prefix_frames)
    first, chunks = _full_from(config, schedule), schedule.chunk_num - schedule.offset
    if chunks <= first + 2:
        return _counted(request, config, schedule.offset)
    found = zip(*(_counted_chunks(request, config, schedule, first + more) for more in range(3)), strict=True)
    forwards, flop = (_continued(*values, chunks - first) for values in found)
    return int(forwards), flop


def work_of_a_chunk(request: Request) -> tuple[int, float]:
    """Forwards and operations that a further chunk takes where nothing is reused and the window is full."""
    config, schedule = plan(request.config, request.prefix_frames)
    first = _full_from(config, schedule)
    before, after = (_counted_chunks(request, config, schedule, first + more) for more in range(2))
    return after[0] - before[0], after[1] - before[1]


def _full_from(config: MagiConfig, schedule: Schedule) -> int:
    """From so many chunks on each further one takes as much work as the one before."""
    runtime = config.runtime
    return schedule.offset + 2 * runtime.window_size + max(runtime.noise2clean_kvrange, default=0) + 1


def _counted_chunks(request: Request, config: MagiConfig, schedule: Schedule, chunks: int) -> tuple[int, float]:
    frames = chunks * config.runtime.chunk_width * config.runtime.temporal_downsample_factor
    return _counted(request, config.with_overrides(num_frames=frames), schedule.offset)


def _counted(request: Request, config: MagiConfig, offset: int) -> tuple[int, float]:
    reuse = request.method.make_reuse()
    passes = {"clean_pass": reuse.clean_pass, "nearly_clean_copy": reuse.nearly_clean_copy}
    record = dry_run(config, config.runtime.chunk_width * offset, request.method.make_cache, **passes)
    return len(record.forwards), run_flops(TransformerSize.of(config.model.model_dump()), record.forwards)


def _continued(zeroth: float, first: float, second: float, steps: int) -> float:
    """The value at ``steps`` of the polynomial of the second degree that has these at 0, 1 and 2."""
    slope, bend = first - zeroth, second - 2 * first + zeroth
    return zeroth + steps * slope + steps * (steps - 1) // 2 * bend
