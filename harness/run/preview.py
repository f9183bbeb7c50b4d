"""What a run of scripts/generate.py would make and take, where it is not made (`--dry_run`)."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from harness.launch import own_device
from harness.methods import Method
from harness.model_check import Finding, Request, check_files, duration, gib, product_rate
from harness.run.making import read_sample
from harness.run.need import free_disk, video_bytes, whole_work, work_of_a_chunk
from inference.config import MagiConfig
from inference.memory.host import PROCESS_BYTES, free_host_bytes
from inference.memory.plan import estimate_run, plan_memory
from inference.parallel.launch import check_ranks
from inference.pipeline import plan, usable_prefix
from inference.placement.residency import free_bytes


def preview(args: argparse.Namespace, method: Method, config: MagiConfig) -> Iterator[Finding]:
    """A line each on the video, the method, files, memory, disk, operations and time; ``ok`` is false where the run
    would not start. Raises what the run itself would raise before it loads anything.
    """
    device, ranks = own_device(args.device), args.gpus or 1
    sample, schedule, times = read_sample(args, method, config)
    check_ranks(config, ranks)
    prefix = 0 if sample.prefix is None else len(usable_prefix(config, sample.prefix))
    request = Request(config, method, prefix, ranks)
    runtime, video = config.runtime, Path(args.output_path)
    length = f"{runtime.num_frames / runtime.fps:.1f} s at {runtime.fps} a second"
    size = f"{runtime.num_frames} frames of {runtime.video_size_w}x{runtime.video_size_h}"
    if runtime.endless:
        length, size = "until it is ended", f"frames of {runtime.video_size_w}x{runtime.video_size_h}"
    there = ", in the place of the one that is there" if video.exists() else ""
    yield Finding("video", None, f"{video}: {size}, {length}{there}")
    chunks = schedule.chunk_num - schedule.offset
    given = f", after {prefix} given frames" if prefix else ""
    count = "without end" if runtime.endless else str(chunks)
    yield Finding("chunks", None, f"{count}, {runtime.num_steps} steps each{given}")
    if sample.later:
        changes = (f'{times.begin(change.chunk):g}s "{change.prompt}"' for change in sample.changes)
        yield Finding("prompts", None, "\n".join(changes))
    yield Finding("method", None, f"{method.name}, from {method.source}" if method.settings else "none: nothing reused")
    missing = [f"{finding.name}: {finding.detail}" for finding in check_files(config) if finding.ok is False]
    yield Finding("files", not missing, "\n".join(missing) or "all there")
    yield memory(request, device)
    one = config.with_overrides(num_frames=60 * runtime.fps) if runtime.endless else config
    needed, free = video_bytes(one, args.lossless), free_disk(video)
    each = "each minute of the video" if runtime.endless else "the video"
    yield Finding("disk", needed <= free, f"about {needed / 1e6:,.1f} MB for {each}, {gib(free)} are free")
    yield from work(request, device)


def memory(request: Request, device: torch.device) -> Finding:
    """What the run needs of the device's memory, and what is free."""
    config, schedule = plan(request.config, request.prefix_frames)
    size = estimate_run(config, schedule, device, request.method.make_cache, request.ranks)
    if device.type == "cuda":
        found = plan_memory(config, size, free_bytes(device))
        off = [name for name, chosen in vars(found.placement).items() if chosen]
        placed = f"; off the device: {', '.join(off)}" if off else ""
        detail = f"{gib(found.device_bytes)} at most on {device}, {gib(found.usable or 0)} can be planned with{placed}"
        return Finding("memory", found.fits, detail)
    found = plan_memory(config, size, None)
    needed, free = PROCESS_BYTES + request.ranks * (found.device_bytes + found.host_bytes), free_host_bytes()
    return Finding("memory", needed <= free, f"{gib(needed)} at most with the process, {gib(free)} are free")


def work(request: Request, device: torch.device) -> Iterator[Finding]:
    """Operations of each process if nothing were reused, and how long they take at least on ``device``; of a video
    without end those of one chunk.
    """
    endless = request.config.runtime.endless
    forwards, flop = work_of_a_chunk(request) if endless else whole_work(request)
    flop /= request.ranks
    each = " by each process" if request.ranks > 1 else ""
    reused = "" if request.method.settings is None else "; fewer by what is reused"
    forwards = f"{forwards} forwards" + (" a chunk" if endless else "")
    yield Finding("work", None, f"{forwards}, {flop / 1e12:,.3g} TFLOP{each}{reused}")
    rate = product_rate(device, request.config.model.dtype)
    at = f"at the {rate / 1e12:.3g} TFLOP/s of a large product on {device}"
    yield Finding("time", None, f"{duration(flop / rate)} or more, {at}")
