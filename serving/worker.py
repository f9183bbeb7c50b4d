"""The process that holds the models and makes one video after another (docs/serve.md, "The worker").

It talks to the server through a pipe: orders and wishes come in, events go out. Whatever is wrong with one video ends
that video; what kills the process is the server's to notice.
"""

import base64
import io
import logging
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from harness.launch import own_device
from harness.program import configure_logging, expected_errors
from harness.run.video_maker import MadeVideo, VideoMaker
from inference.config import MagiConfig
from inference.parallel.launch import context_parallel
from inference.record import StepRecord
from inference.session.session import VideoChunk
from inference.video.codec import VaeCodec
from serving.likeness import keep_latents, kept_chunks, kept_latents, likeness
from serving.limits import check_clip, check_image
from serving.orders import VideoOrder
from serving.wishes import Task, Wish

logger = logging.getLogger(__name__)

PREVIEW_SIDE = 384
# Well below the time that processes wait for one another (``distributed_timeout_minutes``).
IDLE_SECONDS = 20.0


def work(pipe: Connection | None, config: MagiConfig, config_file: str, device: str) -> None:
    """Load the models, then make videos until the pipe is closed.

    Args:
        pipe: to the server; None in all processes but the first one.
        config, config_file, device: what is loaded, and where.
    """
    configure_logging(logging.WARNING)
    teller = Teller(pipe)
    try:
        try:
            chosen = own_device(device)
            with context_parallel(config, chosen) as parallel:
                maker = VideoMaker.load(config, chosen, config_file=config_file, parallel=parallel)
                teller.tell("", "ready")
                while True:
                    task = parallel.from_first(teller.next_task)
                    if task is not None:
                        Making(teller, maker, task).run()
        except expected_errors() as error:
            # Ranks that lost one another in a video have told of it there.
            if not teller.began:
                teller.tell("", "broken", message=str(error))
    except (EOFError, OSError, KeyboardInterrupt):
        return


class Teller:
    """The server's end of the talk: only the first process has one."""

    def __init__(self, pipe: Connection | None) -> None:
        self.pipe = pipe
        self.began = False

    def tell(self, video: str, kind: str, **contents: Any) -> None:
        if self.pipe is not None:
            self.pipe.send({"video": video, "type": kind, **contents})

    def next_task(self) -> Task | None:
        """The next order, or None after a while without one: other processes do not wait for ever."""
        assert self.pipe is not None
        while self.pipe.poll(IDLE_SECONDS):
            task = self.pipe.recv()
            if isinstance(task, Task):
                self.began = True
                return task
            # Else a wish for a video that has ended meanwhile: nothing to do.
        return None

    def wishes(self, video: str) -> Iterator[Wish]:
        """Those that have come for ``video``."""
        while self.pipe is not None and self.pipe.poll():
            wish = self.pipe.recv()
            if isinstance(wish, Wish) and wish.id == video:
                yield wish


def data_address(picture: Tensor) -> str:
    """A picture, uint8 (H, W, 3), as an address that holds it, at most ``PREVIEW_SIDE`` wide and high."""
    image = Image.fromarray(picture.numpy())
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stored = io.BytesIO()
    image.save(stored, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"


class Making:
    """One video while it is made, in each of the processes; the first one writes it and tells of it."""

    def __init__(self, teller: Teller, maker: VideoMaker, task: Task) -> None:
        self.teller, self.maker, self.task = teller, maker, task
        self.parallel = maker.pipeline.parallel
        self.video: MadeVideo | None = None
        self.ended = False
        # Chunks of the video beside it.
        self.comparable = 0 if task.beside is None else self.parallel.from_first(lambda: kept_chunks(Path(task.beside)))

    def run(self) -> None:
        """From its first event to its last. Of several processes all end where the video fails once it has begun: the
        others may be waiting for what does not come any more.
        """
        try:
            self._make()
        except expected_errors() as error:
            self._tell("failed", message=str(error))
            if self.video is not None and self.parallel.ranks > 1:
                raise
        else:
            self._tell("stopped" if self.ended else "completed")

    def _make(self) -> None:
        order, path = VideoOrder.model_validate(self.task.order), self.task.input_path
        given: dict[str, str] = {}
        if path is not None and self.task.given is not None:
            {"image": check_image, "clip": check_clip}[self.task.given](Path(path))
            given = {self.task.given: path}
        later = [(each.chunk, each.prompt) for each in order.prompts]
        video = self.maker.video(
            order.prompt,
            prompts=later,
            on_step=self._after_step,
            on_preview=self._show,
            **given,
            **order.settings,
        )
        self.video, began = video, time.perf_counter()
        self._tell("begun", chunks=video.chunks)
        for chunk in video.saved_as(self.task.video) if self.parallel.is_first else video:
            self._tell("chunk", number=chunk.number, seconds=round(time.perf_counter() - began, 3))
            if self.parallel.is_first:
                self._keep(chunk)
            if chunk.number < self.comparable:
                self._compare(chunk, video.pipeline.vae)

    def _keep(self, chunk: VideoChunk) -> None:
        try:
            keep_latents(Path(self.task.latents), chunk)
        except OSError as error:  # it can then not be compared; the video itself is another matter
            logger.warning("the latents of chunk %d of %s are not kept: %s", chunk.number, self.task.id, error)

    def _compare(self, chunk: VideoChunk, codec: VaeCodec) -> None:
        # All processes decode, and only one looks whether there is something to.
        other = self.parallel.from_first(lambda: kept_latents(Path(str(self.task.beside)), chunk.number))
        if other is None:  # it was deleted meanwhile
            self.comparable = 0
            return
        found = likeness(other, chunk, codec)
        self._tell("likeness", chunk=chunk.number, psnr=None if found is None else round(found, 2))

    def _after_step(self, step: StepRecord) -> None:
        assert self.video is not None
        progress = self.video.session.progress
        self._tell(
            "step",
            number=step.number,
            computed=list(step.computed),
            reused=list(step.reused),
            cost={"computed": progress.computed, "reused": progress.reused},
        )
        if self.task.ends_with_it and 0 < self.comparable <= progress.open:
            self.video.end()
        for wish in self.teller.wishes(self.task.id):
            self._fulfil(self.video, wish)

    def _show(self, chunk: int, level: float, picture: Tensor) -> None:
        self._tell("preview", chunk=chunk, level=round(level, 3), picture=data_address(picture))

    def _fulfil(self, video: MadeVideo, wish: Wish) -> None:
        if wish.end:
            self.ended = True
            video.end()
            return
        chunk = video.session.progress.open
        try:
            video.set_prompt(str(wish.prompt))
        except ValueError as error:  # too late: no further chunk enters
            self._tell("refused", message=str(error))
        else:
            self._tell("prompt", prompt=wish.prompt, chunk=chunk)

    def _tell(self, kind: str, **contents: Any) -> None:
        self.teller.tell(self.task.id, kind, **contents)
