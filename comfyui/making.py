"""What the nodes do, without ComfyUI: a model is held, prompts are read, a video is made (docs/comfyui.md)."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.device import set_threads
from harness.methods import presets
from harness.run.video_maker import MadeVideo, VideoMaker
from harness.sidecar import describe_prompts, draw_reuse_map, title_of
from inference.config import resolve_path
from inference.session.times import TimedPrompt, timed_lines
from inference.text.cleaning import clean_caption
from inference.video.tensors import Clip
from metrics.flops import TransformerSize, counted_flops

MODELS = "configs/model"
BUNDLED = "nano"
NOTHING = "none"
# In place of a method, what ``target`` is then.
BY_PSNR, BY_SPEEDUP = "target PSNR (dB)", "target speed-up (times)"


def model_names() -> list[str]:
    """The configurations that the checkout brings, the bundled one first."""
    names = sorted(path.stem for path in resolve_path(MODELS).glob("*.json"))
    return sorted(names, key=lambda name: name != BUNDLED)


def method_names() -> list[str]:
    """What a video can be made with: MAGI-1 itself first, then every preset, then the targets."""
    return [*sorted(presets(), key=lambda name: name != NOTHING), BY_PSNR, BY_SPEEDUP]


@dataclass(frozen=True)
class ModelChoice:
    """A model by what it is loaded from: nothing of it is held by this."""

    config_file: str
    device: str

    @classmethod
    def of(cls, name: str, path: str, device: str) -> "ModelChoice":
        """``path`` where one is given, else the configuration called ``name``."""
        return cls(path.strip() or f"{MODELS}/{name}.json", device)

    def stamp(self) -> tuple[int, int]:
        """When the configuration was written and how large it is, so that a changed one is noticed; zeros where there
        is none, which is told when it is loaded.
        """
        path = resolve_path(self.config_file)
        if not path.is_file():
            return 0, 0
        found = path.stat()
        return found.st_mtime_ns, found.st_size


class HeldModel:
    """One model, held from run to run until another is asked for. ``loads``: how often one was loaded.

    Args:
        make_room: called with the device's name before a model is loaded, once the old one has gone.
    """

    def __init__(self, make_room: Callable[[str], None] = lambda device: None) -> None:
        self.loads = 0
        self._make_room = make_room
        self._key: tuple[ModelChoice, tuple[int, int]] | None = None
        self._maker: VideoMaker | None = None

    def maker(self, choice: ModelChoice) -> VideoMaker:
        """The model of ``choice``; ValueError, OSError, WeightsError as ``VideoMaker.load``."""
        key = (choice, choice.stamp())
        if self._maker is not None and self._key == key:
            return self._maker
        # First: both at once may not fit.
        self._maker = self._key = None
        gc.collect()
        self._make_room(choice.device)
        with apart(), one_sentence():
            self._maker = VideoMaker.load(choice.config_file, choice.device)
        self._key, self.loads = key, self.loads + 1
        return self._maker


@contextmanager
def apart() -> Iterator[None]:
    """Without ComfyUI's inference mode, whose tensors nobody could use in another thread or change later, and with the
    process's number of threads put back at the end.
    """
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_sentence() -> Iterator[None]:
    """A list of problems, which a configuration has of its own, in one line: ComfyUI shows it on the node."""
    try:
        yield
    except ValueError as error:
        raise ValueError("; ".join(line.strip().removeprefix("- ") for line in str(error).splitlines())) from error


@dataclass(frozen=True)
class Prompts:
    """What rules from the beginning, None where ``timed`` says it, and what from some time on."""

    first: str | None
    timed: tuple[TimedPrompt, ...] = ()


def read_prompts(first: str, schedule: str) -> Prompts:
    """Prompts over time from two fields of text; ValueError, with the line's number, where they are none."""
    timed = tuple(timed_lines(schedule, "prompts over time"))
    begins = any(not one.chunk if one.seconds is None else not one.seconds for one in timed)
    if not first.strip() and not begins:
        raise ValueError("prompts over time: nothing rules from the beginning; fill in the first prompt")
    if first.strip():
        clean_caption(first)  # refuses what is no text
    return Prompts(first.strip() or None, timed)


def chosen_prompts(text: str, connected: Prompts | None) -> Prompts:
    """The prompts of a video, from its own field or from another node; ValueError where there are none or both."""
    if connected is not None and text.strip():
        raise ValueError("prompt and prompts exclude each other: empty the field, or disconnect the other node")
    if connected is None and not text.strip():
        raise ValueError("there is no prompt: write one, or connect prompts over time")
    return read_prompts(text, "") if connected is None else connected


def pixels(images: Tensor, what: str) -> Tensor:
    """ComfyUI's pictures, floats (B, H, W, C) from 0 to 1, as uint8 (B, H, W, C); ValueError where they are none."""
    if images.dim() != 4 or images.shape[-1] not in (3, 4) or len(images) == 0:
        raise ValueError(f"{what} must be pictures (B, H, W, 3), got {tuple(images.shape)}")
    values = images.detach().cpu().float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{what} has values that are no numbers")
    # To the nearest: k / 255 comes back as k. Cutting off, as is done elsewhere, may lose one.
    return torch.from_numpy((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy().copy())


def pictures(frames: Tensor) -> Tensor:
    """uint8 (T, H, W, 3) as ComfyUI's pictures, float32 from 0 to 1."""
    return frames.float() / 255


def beginning(
    image: Tensor | None, frames: Tensor | None, video: tuple[Tensor, Fraction | float] | None, fps: float
) -> dict[str, Tensor | Clip]:
    """What ``VideoMaker.video`` takes as image or clip of what is connected: nothing, a picture (1, H, W, C), frames
    (T, H, W, C) of ``fps``, or frames with their own. ValueError where it is more than one of them, or no picture.
    """
    given = {"image": image, "clip": frames, "video": video}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} exclude each other; connect one")
    if image is not None:
        if image.dim() == 4 and len(image) > 1:
            raise ValueError(f"image holds {len(image)} pictures; connect one, or all of them as clip")
        return {"image": pixels(image, "image")[0]}
    if frames is not None:
        return {"clip": Clip(pixels(frames, "clip"), fps)}
    return {} if video is None else {"clip": Clip(pixels(video[0], "video"), video[1])}


def settings(method: str, target: float, seconds: float, steps: int, seed: int) -> dict[str, Any]:
    """What ``choose`` takes of the fields; ``steps`` 0 are the configuration's. ValueError where one is no number that
    it can be.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a number above 0, got {seconds:g}")
    by_target = {BY_PSNR: "target_psnr", BY_SPEEDUP: "target_speedup"}.get(method)
    if by_target is not None and not 0 < target < math.inf:
        raise ValueError(f"{method} must be a number above 0, got {target:g}")
    wish = {"method": None if method == NOTHING else method} if by_target is None else {by_target: target}
    return {**wish, "seconds": seconds, "num_steps": steps or None, "seed": seed}


class Watch(Protocol):
    """Who is told how far a video is. Whatever it raises ends the video."""

    def step(self, done: int, of: int) -> None: ...

    def chunk(self, done: int, of: int, picture: Image.Image) -> None:
        """``picture``: the last frame of a chunk that is finished."""
        ...


@dataclass(frozen=True)
class Made:
    """``frames``: uint8 (T, H, W, 3) at ``fps``; ``reuse_map``: uint8 (1, H, W, 3), which chunk was computed at which
    step; ``report``: in words what it has cost.
    """

    frames: Tensor
    fps: int
    reuse_map: Tensor
    report: str


def make(
    maker: VideoMaker, prompts: Prompts, given: dict[str, Tensor | Clip], wish: dict[str, Any], watch: Watch
) -> Made:
    """A whole video. ``given``: of ``beginning``; ``wish``: of ``settings``.

    Raises:
        ValueError: settings that do not go together, or do not fit the model.
        Exception: what ``watch`` raised; the model can make the next video then.
    """
    with apart():
        set_threads(None, maker.pipeline.config)
        with one_sentence():
            video = maker.video(
                prompts.first,
                timed=prompts.timed,
                on_step=lambda step: watch.step(*progress(video)),
                **given,
                **wish,
            )
        chunks = []
        with video.report.timed("total"):
            for chunk in video:
                chunks.append(chunk.frames)
                watch.chunk(*progress(video), Image.fromarray(chunk.frames[-1].numpy()))
        frames = torch.cat(chunks)
        return Made(frames, video.pipeline.config.runtime.fps, reuse_map(video), report(video, frames))


def progress(video: MadeVideo) -> tuple[int, int]:
    """Steps that are done, and of how many."""
    found = video.session.progress
    return found.steps_done, found.steps or 1


def reuse_map(video: MadeVideo) -> Tensor:
    """uint8 (1, H, W, 3): the picture that ``scripts/generate.py`` leaves beside a video."""
    record, file = video.report.record, BytesIO()
    title = title_of(video.method.source, record)
    draw_reuse_map(file, record, title, describe_prompts(video.report, video.times))
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).unsqueeze(0)


def report(video: MadeVideo, frames: Tensor) -> str:
    """A few lines: what was made, how much of it was reused, seconds, operations, prompts, and what was odd."""
    record, runtime, method = video.report.record, video.pipeline.config.runtime, video.method
    total = video.report.seconds["total"]
    stages = [f"{stage} {value:.2f}" for stage, value in video.report.seconds.items() if stage != "total"]
    size = TransformerSize.of(video.pipeline.config.model.model_dump())
    name = method.name if method.settings is None or method.chosen is not None else Path(method.source).stem
    lines = [
        f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}, {len(frames) / runtime.fps:g} s at "
        f"{runtime.fps} a second; {runtime.num_steps} steps, seed {runtime.seed}",
        f"method {name}: {record.share_reused:.1%} reused ({record.reused} of {record.computed + record.reused} "
        "steps of chunks advanced from memory)",
        f"{total:.2f} s: {', '.join(stages)}",
        f"{counted_flops(size, record.forward_counts()):.3g} operations of the transformer",
    ]
    for at in describe_prompts(video.report, video.times):
        lines.append(f"from {at['second']:g} s (chunk {at['chunk']}): {at['prompt']}")
    if method.chosen is not None:
        expected = ", ".join(f"{key} {value}" for key, value in method.chosen.items())
        lines.append(f"chosen by the calibration: {expected}")
    odd = [method.why_nothing_was_reused(video.reuse, record)]
    odd += [] if video.report.prompt is None else video.report.prompt.warnings()
    return "\n".join([*lines, *(f"note: {line}" for line in odd if line)])
