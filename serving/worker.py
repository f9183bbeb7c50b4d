"""The process that holds the models and makes one video after another (docs/serve.md, "The worker").

It talks to the server through a pipe: orders and wishes come in, events go out. Whatever is wrong with one video ends
that video; what kills the process is the server's to notice.
"""

import logging
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.device import choose_device, set_threads
from harness.program import configure_logging, expected_errors
from harness.sidecar import describe_run, leave_report
from inference.config import MagiConfig
from inference.pipeline import MagiPipeline, RunReport, Sample, plan, usable_prefix
from inference.record import StepRecord
from inference.session.session import Session
from inference.session.times import ChunkTimes, PromptChange
from inference.video.reading import read_image, read_video
from inference.video.writing import VideoWriter
from serving.limits import check_clip, check_image
from serving.orders import VideoOrder
from serving.wishes import Task, Wish

logger = logging.getLogger(__name__)


def work(pipe: Connection, config: MagiConfig, config_file: str, device_name: str) -> None:
    """Load the models, then make videos until the pipe is closed."""
    configure_logging(logging.WARNING)
    try:
        worker = Worker(pipe, config, config_file, device_name)
        while True:
            task = pipe.recv()
            if isinstance(task, Task):
                worker.make(task)
            # A wish for a video that has ended meanwhile: nothing to do.
    except (EOFError, OSError, KeyboardInterrupt):
        return


class Worker:
    """The models, once."""

    def __init__(self, pipe: Connection, config: MagiConfig, config_file: str, device_name: str) -> None:
        self.pipe, self.config_file = pipe, config_file
        device = choose_device(device_name)
        set_threads(None, config)
        try:
            self.pipeline = MagiPipeline.load(config, device)
        except expected_errors() as error:
            self._tell("", "broken", message=str(error))
            raise EOFError from error
        self._tell("", "ready", device=str(device))

    def make(self, task: Task) -> None:
        """Make a video, from its first event to its last."""
        try:
            stopped = Making(self.pipe, self.pipeline, self.config_file, task).run()
        except expected_errors() as error:
            self._tell(task.id, "failed", message=str(error))
        else:
            self._tell(task.id, "stopped" if stopped else "completed")

    def _tell(self, video: str, kind: str, **contents: Any) -> None:
        self.pipe.send({"video": video, "type": kind, **contents})


class Making:
    """One video while it is made."""

    def __init__(self, pipe: Connection, pipeline: MagiPipeline, config_file: str, task: Task) -> None:
        self.pipe, self.task = pipe, task
        order = VideoOrder.model_validate(task.order)
        self.method, config = order.resolve(pipeline.config, config_file, task.given)
        # The models as they were loaded; only what belongs to one video is this order's.
        parts = (pipeline.dit, pipeline.vae, pipeline.t5, pipeline.tokens, pipeline.device)
        self.pipeline = MagiPipeline(config, *parts, pipeline.parallel, pipeline.memory)
        later = tuple(PromptChange(each.chunk, each.prompt) for each in order.prompts)
        self.sample = Sample(order.prompt, self._read_input(config), later=later)
        self.times, self.chunks = self._times(config)
        self.ended = False

    def run(self) -> bool:
        """Whether a viewer ended it before its time."""
        report, runtime = RunReport(), self.pipeline.config.runtime
        session = self.pipeline.session(
            self.sample,
            reuse=self.method.make_reuse(),
            make_cache=self.method.make_cache,
            on_step=lambda step: self._after_step(session, step),
            report=report,
        )
        began = time.perf_counter()
        writer = VideoWriter(self.task.video, runtime.fps, runtime.video_size_h, runtime.video_size_w)
        with report.timed("total"), writer:
            session.begin()
            self._tell("begun", chunks=self.chunks, steps=session.progress.steps, fps=runtime.fps)
            for chunk in session:
                writer.append(chunk.frames)
                self._tell("chunk", number=chunk.number, seconds=round(time.perf_counter() - began, 3))
        contents = describe_run(self.pipeline, self.method, self.sample, report, writer, self.times)
        leave_report(Path(self.task.video), contents, report.record)
        return self.ended

    def _after_step(self, session: Session, step: StepRecord) -> None:
        progress = session.progress
        self._tell(
            "step",
            number=step.number,
            computed=list(step.computed),
            reused=list(step.reused),
            open=progress.open,
            chunks_done=progress.chunks_done,
            cost={"computed": progress.computed, "reused": progress.reused},
        )
        while self.pipe.poll():
            wish = self.pipe.recv()
            if isinstance(wish, Wish) and wish.id == self.task.id:
                self._fulfil(session, wish)

    def _fulfil(self, session: Session, wish: Wish) -> None:
        if wish.end:
            self.ended = True
            session.end()
            return
        try:
            session.set_prompt(str(wish.prompt))
        except ValueError as error:  # too late: no further chunk enters
            self._tell("refused", message=str(error))
        else:
            self._tell("prompt", prompt=wish.prompt, chunk=session.progress.open)

    def _read_input(self, config: MagiConfig) -> Tensor | None:
        runtime, path = config.runtime, self.task.input_path
        if path is None:
            return None
        if self.task.given == "image":
            check_image(Path(path))
            return read_image(path, runtime.video_size_h, runtime.video_size_w, "crop")
        check_clip(Path(path))
        size = (runtime.video_size_h, runtime.video_size_w)
        return read_video(path, runtime.fps, *size, runtime.prefix_selection, "crop")

    def _times(self, config: MagiConfig) -> tuple[ChunkTimes, int | None]:
        """When chunks begin, and how many there will be, None without an end; ValueError where the method does not
        fit.
        """
        prefix = self.sample.prefix
        given = 0 if prefix is None else len(usable_prefix(config, prefix))
        _, schedule = plan(config, given)
        self.method.check(schedule)
        runtime = config.runtime
        frames = runtime.chunk_width * runtime.temporal_downsample_factor
        chunks = None if runtime.endless else schedule.chunk_num - schedule.offset
        last = self.sample.changes[-1].chunk
        if chunks is not None and last >= chunks:
            raise ValueError(f"a prompt is to begin with chunk {last}, and the video has {chunks} chunks")
        return ChunkTimes(runtime.fps, frames, given % frames if given > 1 else 0, chunks), chunks

    def _tell(self, kind: str, **contents: Any) -> None:
        self.pipe.send({"video": self.task.id, "type": kind, **contents})
