"""Videos from Python, in a few lines: models once, then one video after another (docs/python.md).

    maker = VideoMaker.load("configs/model/nano.json")
    video = maker.video("a big red ball bounces in the sky", method="multistep", seconds=4)
    for chunk in video:
        show(chunk.frames)  # uint8 (24, 64, 64, 3), a second

The page and the nodes make their videos through this too.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.device import choose_device, set_threads
from harness.methods import Method
from harness.run.choosing import Path_, choose
from harness.run.times import chunk_times
from harness.sidecar import describe_run, leave_report
from inference.config import MagiConfig, load_config
from inference.parallel.group import ALONE, ContextParallel
from inference.pipeline import MagiPipeline, PreviewCallback, RunReport, Sample
from inference.record import StepRecord
from inference.session.session import Session, VideoChunk
from inference.session.times import PromptChange, TimedPrompt, whole_schedule
from inference.video.reading import read_image, read_video
from inference.video.tensors import Clip, fit_clip, fit_image
from inference.video.writing import VideoWriter


class VideoMaker:
    """The models of one configuration, loaded once."""

    def __init__(self, pipeline: MagiPipeline, config_file: Path_) -> None:
        self.pipeline, self.config_file = pipeline, config_file

    @classmethod
    def load(
        cls,
        config: Path_ | MagiConfig,
        device: str | torch.device = "auto",
        *,
        config_file: Path_ = "",
        parallel: ContextParallel = ALONE,
    ) -> "VideoMaker":
        """Load what a configuration names, the file or what was read from it as ``config_file``; ``parallel``: the
        processes that make the videos together, each with a maker.

        Raises:
            ValueError, OSError, WeightsError: as ``MagiPipeline.load``.
        """
        if not isinstance(config, MagiConfig):
            config, config_file = load_config(config), config
        chosen = choose_device(device) if isinstance(device, str) else device
        set_threads(None, config)
        return cls(MagiPipeline.load(config, chosen, parallel), config_file)

    def video(
        self,
        prompt: str | None,
        *,
        image: Path_ | Tensor | None = None,
        clip: Path_ | Clip | None = None,
        prompts: Sequence[tuple[int, str]] = (),
        timed: Sequence[TimedPrompt] = (),
        identity: str = "0",
        on_step: Callable[[StepRecord], None] | None = None,
        on_preview: PreviewCallback | None = None,
        **settings: Any,
    ) -> "MadeVideo":
        """A video to be made by iterating over it.

        Args:
            prompt: what rules from the beginning; ``prompts``: chunks, ascending, and what rules from each on.
            timed: in place of ``prompts``, with times of the video, in any order; one at 0 s takes the place of
                ``prompt``.
            image, clip: what the video begins with, cropped to its size: files, or a uint8 tensor (H, W, 3) and a
                ``Clip`` of such.
            identity: with the seed it determines the noise.
            on_step: called after every step.
            on_preview: called while the first chunk is made, with what is expected of it (``MagiPipeline.session``).
            settings: as ``choose`` takes them.

        Raises:
            ValueError, OSError: settings that do not go together, a file that cannot be read.
        """
        if image is not None and clip is not None:
            raise ValueError("image and clip exclude each other; give one")
        mode = "i2v" if image is not None else "v2v" if clip is not None else "t2v"
        method, config = choose(self.pipeline.config, self.config_file, mode=mode, **settings)
        prefix = _prefix(config, image, clip)
        changes = [PromptChange(chunk, text) for chunk, text in prompts]
        if timed:
            if prompts:
                raise ValueError("prompts and timed exclude each other; give one")
            prompt, changes = whole_schedule(prompt, timed, chunk_times(config, prefix)[1])
        if prompt is None:
            raise ValueError("there is no prompt")
        sample = Sample(prompt, prefix, identity, tuple(changes))
        return MadeVideo(self.pipeline.with_config(config), method, sample, on_step, on_preview)


class MadeVideo:
    """A video while it is made: its chunks come out by iterating, once.

    ``chunks``: how many there will be, None without an end. ``session``: takes prompts and the wish for an end
    meanwhile, also from other threads. ``reuse``: who decides and who advances. ``report``: what it has cost.
    """

    def __init__(
        self,
        pipeline: MagiPipeline,
        method: Method,
        sample: Sample,
        on_step: Callable[[StepRecord], None] | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> None:
        self.pipeline, self.method, self.sample = pipeline, method, sample
        schedule, self.times = chunk_times(pipeline.config, sample.prefix)
        method.check(schedule)
        self.chunks = self.times.chunks
        last = sample.changes[-1].chunk
        if self.chunks is not None and last >= self.chunks:
            raise ValueError(f"a prompt is to begin with chunk {last}, and the video has {self.chunks} chunks")
        self.reuse, self.report = method.make_reuse(), RunReport()
        self.session: Session = pipeline.session(
            sample,
            reuse=self.reuse,
            make_cache=method.make_cache,
            on_step=on_step,
            on_preview=on_preview,
            report=self.report,
        )

    def __iter__(self) -> Iterator[VideoChunk]:
        return iter(self.session)

    def set_prompt(self, prompt: str) -> None:
        """From the next chunk that enters on, ``prompt`` rules."""
        self.session.set_prompt(prompt)

    def end(self) -> None:
        """Let no further chunk enter; those under way are finished."""
        self.session.end()

    def saved_as(self, path: Path_) -> Iterator[VideoChunk]:
        """The chunks, each written to the mp4 ``path`` before it comes out; beside it at the end what describes the run
        (NAME.json, NAME.reuse.png).
        """
        writer = self.writer(path)
        try:
            yield from self.written_by(writer)
        finally:
            if writer.saved_as is not None:
                leave_report(writer.saved_as, self.description(writer), self.report.record)

    def writer(self, path: Path_) -> VideoWriter:
        """Of the size and the rate of the video."""
        runtime = self.pipeline.config.runtime
        return VideoWriter(path, runtime.fps, runtime.video_size_h, runtime.video_size_w)

    def written_by(self, writer: VideoWriter) -> Iterator[VideoChunk]:
        """The chunks, each written before it comes out; the video is complete behind the last."""
        with self.report.timed("total"), writer:
            for chunk in self.session:
                with self.report.timed("write"):
                    writer.append(chunk.frames)
                yield chunk

    def description(self, writer: VideoWriter) -> dict[str, Any]:
        """What the sidecar of the written video says."""
        return describe_run(self.pipeline, self.method, self.sample, self.report, writer, self.times)

    def save(self, path: Path_) -> Path:
        """Make all of it into the mp4 ``path``; ValueError where it was ended before its first chunk."""
        for _ in self.saved_as(path):
            pass
        return Path(path)


def _prefix(config: MagiConfig, image: Path_ | Tensor | None, clip: Path_ | Clip | None) -> Tensor | None:
    """What a video begins with, uint8 (T, H, W, 3) at its size and rate; None where nothing is given."""
    runtime = config.runtime
    size = (runtime.video_size_h, runtime.video_size_w)
    if isinstance(image, Tensor):
        return fit_image(image, *size, "crop")
    if image is not None:
        return read_image(image, *size, "crop")
    if isinstance(clip, Clip):
        return fit_clip(clip, runtime.fps, *size, runtime.prefix_selection, "crop")
    return None if clip is None else read_video(clip, runtime.fps, *size, runtime.prefix_selection, "crop")
