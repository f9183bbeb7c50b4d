"""One video made as the arguments of scripts/generate.py say: what is given is read, the models are loaded, and beside
the video stands what describes it.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from harness.device import set_threads
from harness.launch import own_device, share_among, undisturbed_end
from harness.methods import Method
from harness.program import launched_rank
from harness.run.going_on import Keeper, found_state, identity_of_run, platform_of_run, written_before
from harness.run.need import refuse_too_long
from harness.run.state import StateFolder
from harness.run.times import chunk_times
from harness.sidecar import describe_run, leave_report
from harness.signals import first_ctrl_c, undisturbed
from inference.config import MagiConfig, resolve_path
from inference.parallel.launch import context_parallel
from inference.pipeline import MagiPipeline, RunReport, Sample, usable_prefix
from inference.record import StepRecord
from inference.schedule import Schedule
from inference.session.session import Session
from inference.session.times import ChunkTimes, whole_schedule
from inference.text.cleaning import clean_caption
from inference.video.reading import read_image, read_video
from inference.video.writing import VideoWriter

logger = logging.getLogger(__name__)

WISHES = {"auto": None, "true": True, "false": False}
INPUTS = ("mode", "config_file", "method_config", "image_path", "prefix_video_path", "fit", "include_prefix")
# Its thread would wait for ever for the bar's lock where Ctrl-C interrupts the main thread while it holds it.
tqdm.monitor_interval = 0


@dataclass
class VideoRun:
    """One video on one rank: what it is made of, and what was asked for. ``resumed``: what an earlier process kept."""

    args: argparse.Namespace
    pipeline: MagiPipeline
    method: Method
    sample: Sample
    times: ChunkTimes
    report: RunReport
    keeper: Keeper
    resumed: dict[str, Any] | None


def make_video(args: argparse.Namespace, method: Method, config: MagiConfig, script: Path, argv: Sequence[str]) -> None:
    """Check what is left to check, start further processes of ``script`` if there are to be any, make the video."""
    device = own_device(args.device)
    set_threads(args.threads, config)
    sample, schedule, times = read_sample(args, method, config)
    if not launched_rank():
        refuse_too_long(config, method, device, Path(args.output_path), args.lossless)
        find_state(args, method, config, sample, device, 0, args.gpus or 1)
    share_among(args.gpus, args.device, config, script, argv)

    report = RunReport()
    with context_parallel(config, device) as parallel:
        rank, ranks = parallel.rank, parallel.ranks
        folder, identity, resumed = find_state(args, method, config, sample, device, rank, ranks)
        with report.timed("load"):
            pipeline = MagiPipeline.load(config, device, parallel, method.make_cache)
        keeper = Keeper(WISHES[args.save_state], folder, identity, parallel, kept=resumed is not None)
        run = VideoRun(args, pipeline, method, sample, times, report, keeper, resumed)
        if parallel.is_first:
            announce(run, schedule)
            writer = leave_video(run)
            folder.remove()
            writer.forget()
        else:
            draw(run, None)
            folder.remove()


def find_state(
    args: argparse.Namespace,
    method: Method,
    config: MagiConfig,
    sample: Sample,
    device: torch.device,
    rank: int,
    ranks: int,
) -> tuple[StateFolder, dict[str, Any], dict[str, Any] | None]:
    """Where the state of the run is kept, what identifies the run, and what was kept of it, if it is to be resumed."""
    folder = StateFolder(Path(args.output_path), rank, ranks)
    if args.save_state == "false" and not args.resume:
        return folder, {}, None
    identity = identity_of_run(args, method, config, sample, ranks) | {"platform": platform_of_run(device)}
    return folder, identity, found_state(folder, identity) if args.resume else None


def read_sample(args: argparse.Namespace, method: Method, config: MagiConfig) -> tuple[Sample, Schedule, ChunkTimes]:
    """What is to be made, with its image or clip and its prompts, its schedule, and when its chunks begin; ValueError
    where the method or a prompt does not fit it.
    """
    if args.prompt is not None:
        clean_caption(args.prompt)  # refuses what is no text
    prefix = read_prefix(args, config)
    schedule, times = chunk_times(config, prefix)
    method.check(schedule)
    prompt, later = whole_schedule(args.prompt, args.timed, times)
    return Sample(prompt, prefix, args.sample_id, tuple(later)), schedule, times


def announce(run: VideoRun, schedule: Schedule) -> None:
    pipeline, method = run.pipeline, run.method
    runtime, ranks = pipeline.config.runtime, pipeline.parallel.ranks
    chunks = schedule.chunk_num - schedule.offset
    length = "frames without end" if runtime.endless else f"{runtime.num_frames} frames"
    count = "" if runtime.endless else f" in {chunks} chunks"
    logger.info(
        "%s of %dx%d%s, %d steps each, method %s, on %s%s",
        *(length, runtime.video_size_w, runtime.video_size_h, count),
        *(runtime.num_steps, method.name, pipeline.device, f" and {ranks - 1} more" if ranks > 1 else ""),
    )
    if run.sample.later:
        at = ", ".join(f"{run.times.begin(change.chunk):g}s" for change in run.sample.later)
        logger.info("other prompts take over at %s", at)


def leave_video(run: VideoRun) -> VideoWriter:
    """The video, and beside it what describes the run; what going on needs is left."""
    args, runtime = run.args, run.pipeline.config.runtime
    size = (runtime.video_size_h, runtime.video_size_w)
    go_on = None if run.resumed is None else written_before(run.resumed)
    writer = VideoWriter(args.output_path, runtime.fps, *size, lossless=args.lossless, go_on_from=go_on)
    writer.resumable = run.keeper.kept
    if run.resumed is not None:
        logger.info("going on behind %d frames that are there", writer.frames_written)
    try:
        with logging_redirect_tqdm(), writer, undisturbed_end():
            if args.include_prefix and go_on is None:
                writer.append(usable_prefix(run.pipeline.config, run.sample.prefix))
            draw(run, writer)
    finally:
        # A run that was stopped or failed is described as well, as far as it came.
        with undisturbed():
            leave_description(run, writer)
            if writer.stopped and run.keeper.kept:
                logger.info("the same command with --resume goes on from here")
    return writer


def leave_description(run: VideoRun, writer: VideoWriter) -> None:
    """The sidecar and the picture of what was written, if anything was."""
    if writer.saved_as is not None:
        inputs = {name: getattr(run.args, name) for name in INPUTS}
        described = describe_run(run.pipeline, run.method, run.sample, run.report, writer, run.times)
        contents = {"inputs": inputs} | described
        leave_report(writer.saved_as, contents, run.report.record)
        summarise(writer.saved_as, contents)


class Ending:
    """Who ends a video before its time: after ``most`` seconds, or at the first Ctrl-C where that is ``by_hand``.

    The chunks under way are finished.
    """

    def __init__(self, most: float | None, by_hand: bool) -> None:
        self.most = most
        self.by_hand = by_hand
        self._began = time.perf_counter()
        self._ended = self._told = False

    def waiting(self) -> AbstractContextManager[None]:
        """A context in which Ctrl-C is waited for."""
        return first_ctrl_c(self._end) if self.by_hand else nullcontext()

    def after_step(self, session: Session) -> None:
        if self.most is not None and time.perf_counter() - self._began > self.most:
            self._end()
        if self._ended and not self._told:
            # Not where the signal came: it may have interrupted a line of the log.
            self._told = True
            session.end()
            logger.info("ending: the chunks under way are finished%s", "; Ctrl-C drops them" if self.by_hand else "")

    def _end(self) -> None:
        self._ended = True


def draw(run: VideoRun, writer: VideoWriter | None) -> None:
    """Make the frames and write them as they come, with a progress bar unless that is not wanted.

    Args:
        run: what is made.
        writer: on the first rank.
    """
    args, report, reuse = run.args, run.report, run.method.make_reuse()
    began, loading = time.perf_counter(), report.seconds.get("load", 0.0)
    parallel = run.pipeline.parallel
    # torchrun stops its processes at the first Ctrl-C.
    ending = Ending(args.max_seconds, run.pipeline.config.runtime.endless and parallel.ranks == 1)

    def watch(step: StepRecord) -> None:
        bar.update()
        ending.after_step(session)

    session = run.pipeline.session(
        run.sample, reuse=reuse, make_cache=run.method.make_cache, on_step=watch, report=report
    )
    session.begin(None if run.resumed is None else run.resumed["session"])
    # Of a run that was resumed, the time of the processes before.
    before = report.seconds.get("total", 0.0) + loading
    silent, progress = args.quiet or writer is None, session.progress
    bar = tqdm(unit="step", total=progress.steps, initial=progress.steps_done, disable=silent, dynamic_ncols=True)
    try:
        with bar, ending.waiting():
            for chunk in session:
                if writer is not None:
                    with report.timed("write"):
                        writer.append(chunk.frames)
                report.seconds["total"] = before + time.perf_counter() - began
                run.keeper.after(chunk.number, session, writer)
        if reason := run.method.why_nothing_was_reused(reuse, report.record):
            logger.warning(reason)
    finally:
        report.seconds["total"] = before + time.perf_counter() - began


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
