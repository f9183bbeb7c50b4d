"""The process that holds the models and makes one video after another (docs/serve.md, "The worker").

It talks to the server through a pipe: orders and wishes come in, events go out. Whatever is wrong with one video ends
that video; what kills the process is the server's to notice.
"""

import base64
import io
import logging
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from harness.program import configure_logging, expected_errors
from harness.run.video_maker import MadeVideo, VideoMaker
from inference.config import MagiConfig
from inference.record import StepRecord
from inference.session.session import VideoChunk
from inference.video.codec import VaeCodec
from serving.likeness import keep_latents, kept_chunks, likeness
from serving.limits import check_clip, check_image
from serving.orders import VideoOrder
from serving.wishes import Task, Wish

logger = logging.getLogger(__name__)

PREVIEW_SIDE = 384


def work(pipe: Connection, config: MagiConfig, config_file: str, device: str) -> None:
    """Load the models, then make videos until the pipe is closed."""
    configure_logging(logging.WARNING)
    try:
        try:
            maker = VideoMaker.load(config, device, config_file=config_file)
        except expected_errors() as error:
            pipe.send({"video": "", "type": "broken", "message": str(error)})
            return
        pipe.send({"video": "", "type": "ready"})
        while True:
            task = pipe.recv()
            if isinstance(task, Task):
                Making(pipe, maker, task).run()
            # Else a wish for a video that has ended meanwhile: nothing to do.
    except (EOFError, OSError, KeyboardInterrupt):
        return


def data_address(picture: Tensor) -> str:
    """A picture, uint8 (H, W, 3), as an address that holds it, at most ``PREVIEW_SIDE`` wide and high."""
    image = Image.fromarray(picture.numpy())
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stored = io.BytesIO()
    image.save(stored, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"


class Making:
    """One video while it is made."""

    def __init__(self, pipe: Connection, maker: VideoMaker, task: Task) -> None:
        self.pipe, self.maker, self.task = pipe, maker, task
        self.video: MadeVideo | None = None
        self.ended = False
        # Of the video beside it; this one ends with that.
        self.comparable = 0 if task.beside is None else kept_chunks(Path(task.beside))

    def run(self) -> None:
        """From its first event to its last."""
        try:
            self._make()
        except expected_errors() as error:
            self._tell("failed", message=str(error))
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
        for chunk in video.saved_as(self.task.video):
            self._tell("chunk", number=chunk.number, seconds=round(time.perf_counter() - began, 3))
            try:
                keep_latents(Path(self.task.latents), chunk)
            except OSError as error:  # it can then not be compared; the video itself is another matter
                logger.warning("the latents of chunk %d of %s are not kept: %s", chunk.number, self.task.id, error)
            if chunk.number < self.comparable:
                self._compare(chunk, video.pipeline.vae)

    def _compare(self, chunk: VideoChunk, codec: VaeCodec) -> None:
        try:
            found = likeness(Path(str(self.task.beside)), chunk, codec)
        except FileNotFoundError:  # the other one was deleted meanwhile
            self.comparable = 0
        else:
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
        if self.comparable and progress.chunks is None and progress.open >= self.comparable:
            self.video.end()
        while self.pipe.poll():
            wish = self.pipe.recv()
            if isinstance(wish, Wish) and wish.id == self.task.id:
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
        self.pipe.send({"video": self.task.id, "type": kind, **contents})
