"""One video made as the arguments of scripts/generate.py say: what is given is read, the models are loaded, and beside
the video stands what describes it.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from harness.device import set_threads
from harness.launch import own_device, share_among, undisturbed_end
from harness.methods import Method
from harness.program import launched_rank
from harness.run.need import refuse_too_long
from harness.sidecar import describe_run, leave_report
from harness.signals import undisturbed
from inference.config import MagiConfig, resolve_path
from inference.parallel.launch import context_parallel
from inference.pipeline import MagiPipeline, RunReport, Sample, plan, usable_prefix
from inference.schedule import Schedule
from inference.text.cleaning import clean_caption
from inference.video.reading import read_image, read_video
from inference.video.writing import VideoWriter

logger = logging.getLogger(__name__)

INPUTS = ("mode", "config_file", "method_config", "image_path", "prefix_video_path", "fit", "include_prefix")
# Its thread would wait for ever for the bar's lock where Ctrl-C interrupts the main thread while it holds it.
tqdm.monitor_interval = 0


def make_video(args: argparse.Namespace, method: Method, config: MagiConfig, script: Path, argv: Sequence[str]) -> None:
    """Check what is left to check, start further processes of ``script`` if there are to be any, make the video."""
    device = own_device(args.device)
    set_threads(args.threads, config)
    sample, schedule = read_sample(args, method, config)
    if not launched_rank():
        refuse_too_long(config, method, device, Path(args.output_path), args.lossless)
    share_among(args.gpus, args.device, config, script, argv)

    report = RunReport()
    with context_parallel(config, device) as parallel:
        with report.timed("load"):
            pipeline = MagiPipeline.load(config, device, parallel, method.make_cache)
        if parallel.is_first:
            announce(pipeline, method, schedule)
            leave_video(args, pipeline, method, sample, report, schedule.total_steps)
        else:
            for _ in pipeline.frames(sample, reuse=method.make_reuse(), make_cache=method.make_cache):
                pass  # the first rank writes them


def read_sample(args: argparse.Namespace, method: Method, config: MagiConfig) -> tuple[Sample, Schedule]:
    """What is to be made, with its image or clip, and its schedule; ValueError where the method does not fit it."""
    clean_caption(args.prompt)  # refuses what is no text
    sample = Sample(args.prompt, read_prefix(args, config), args.sample_id)
    prefix_frames = 0 if sample.prefix is None else len(usable_prefix(config, sample.prefix))
    _, schedule = plan(config, prefix_frames)
    method.check(schedule)
    return sample, schedule


def announce(pipeline: MagiPipeline, method: Method, schedule: Schedule) -> None:
    runtime, ranks = pipeline.config.runtime, pipeline.parallel.ranks
    logger.info(
        "%d frames of %dx%d in %d chunks, %d steps each, method %s, on %s%s",
        *(runtime.num_frames, runtime.video_size_w, runtime.video_size_h, schedule.chunk_num - schedule.offset),
        *(runtime.num_steps, method.name, pipeline.device, f" and {ranks - 1} more" if ranks > 1 else ""),
    )


def leave_video(
    args: argparse.Namespace, pipeline: MagiPipeline, method: Method, sample: Sample, report: RunReport, steps: int
) -> None:
    """The video, and beside it what describes the run."""
    runtime = pipeline.config.runtime
    size = (runtime.video_size_h, runtime.video_size_w)
    writer = VideoWriter(args.output_path, runtime.fps, *size, lossless=args.lossless)
    try:
        in_front = usable_prefix(pipeline.config, sample.prefix) if args.include_prefix else None
        write_video(pipeline, method, sample, report, writer, steps, args.quiet, in_front)
    finally:
        # A run that was stopped or failed is described as well, as far as it came.
        with undisturbed():
            leave_description(args, pipeline, method, sample, report, writer)


def leave_description(
    args: argparse.Namespace,
    pipeline: MagiPipeline,
    method: Method,
    sample: Sample,
    report: RunReport,
    writer: VideoWriter,
) -> None:
    """The sidecar and the picture of what was written, if anything was."""
    if writer.saved_as is not None:
        inputs = {name: getattr(args, name) for name in INPUTS}
        contents = {"inputs": inputs} | describe_run(pipeline, method, sample, report, writer)
        leave_report(writer.saved_as, contents, report.record)
        summarise(writer.saved_as, contents)


def write_video(
    pipeline: MagiPipeline,
    method: Method,
    sample: Sample,
    report: RunReport,
    writer: VideoWriter,
    steps: int,
    quiet: bool,
    in_front: torch.Tensor | None,
) -> None:
    """Make the frames and write them as they come, after those ``in_front``, with a progress bar over ``steps`` unless
    ``quiet``.
    """
    began = time.perf_counter()
    bar = tqdm(total=steps, unit="step", disable=quiet, dynamic_ncols=True)
    try:
        with bar, logging_redirect_tqdm(), writer, undisturbed_end():
            if in_front is not None:
                writer.append(in_front)
            reuse = method.make_reuse()
            frames = pipeline.frames(
                sample,
                reuse=reuse,
                make_cache=method.make_cache,
                on_step=lambda step: bar.update(),
                report=report,
            )
            for chunk in frames:
                with report.timed("write"):
                    writer.append(chunk)
            if reason := method.why_nothing_was_reused(reuse, report.record):
                logger.warning(reason)
    finally:
        report.seconds["total"] = report.seconds.get("load", 0.0) + time.perf_counter() - began


def read_prefix(args: argparse.Namespace, config: MagiConfig) -> torch.Tensor | None:
    """The frames of the image or the clip that the mode begins with."""
    runtime = config.runtime
    height, width = runtime.video_size_h, runtime.video_size_w
    if args.mode == "i2v":
        return read_image(resolve_path(args.image_path), height, width, args.fit)
    if args.mode == "v2v":
        path = resolve_path(args.prefix_video_path)
        return read_video(path, runtime.fps, height, width, runtime.prefix_selection, args.fit)
    return None


def summarise(output: Path, contents: dict[str, Any]) -> None:
    work, seconds = contents["work"], contents["seconds"]
    logger.info(
        "%s: %d frames in %.1f s (denoising %.1f s); %d of %d chunk-forwards reused (%.0f %%), %d cache compressions",
        *(output, contents["frames"]["written"], seconds["total"], seconds["denoise"], work["chunk_forwards_reused"]),
        *(work["chunk_forwards_reused"] + work["chunk_forwards_computed"], 100 * work["share_reused"]),
        work["kv_compactions"],
    )
