"""Pictures and clips that are in memory already, brought to the configured size and rate as files are (reading.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import torch
from PIL import Image
from torch import Tensor

from inference.video.colour import to_rgb
from inference.video.fitting import Fit
from inference.video.reading import PrefixRule, check_picture_size, collect, fit_frames, fit_picture

# As PyAV and Pillow call pictures of so many channels.
FORMATS = {3: "rgb24", 4: "rgba"}
MODES = {3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Clip:
    """``frames``: uint8 (T, H, W, 3), RGB, or (T, H, W, 4) with transparency, which is shown on white; ``fps``: how
    many of them are a second.
    """

    frames: Tensor
    fps: Fraction | float


def fit_image(image: Tensor, height: int, width: int, fit: Fit = "stretch") -> Tensor:
    """A picture, uint8 (H, W, 3) or (H, W, 4), as one frame: uint8 (1, height, width, 3), as ``read_image`` has it of a
    file that keeps every value. ValueError where it is no such picture.
    """
    _check("image", image, 3)
    check_picture_size("the image", *image.shape[:2])
    picture = Image.fromarray(image.cpu().numpy(), MODES[image.shape[-1]])
    return fit_picture(to_rgb(picture), "the image", height, width, fit)


def fit_clip(clip: Clip, fps: int, height: int, width: int, select: PrefixRule, fit: Fit = "stretch") -> Tensor:
    """What ``select`` takes of a clip, at ``fps`` and resized: uint8 (T, height, width, 3), as ``read_video`` has it of
    a file that keeps every value. ValueError where it is no such clip.
    """
    _check("clip", clip.frames, 4)
    if len(clip.frames) == 0:
        raise ValueError("the clip has no frames")
    rate = Fraction(clip.fps).limit_denominator(100_000) if 0 < clip.fps < float("inf") else Fraction(0)
    if not rate:
        raise ValueError(f"the clip's frames per second must be a number above 0, got {clip.fps}")
    frames = fit_frames(_timed(clip.frames, rate), "the clip", 0.0, fps, height, width, fit)
    return collect(frames, "the clip", fps, select)


def _timed(frames: Tensor, rate: Fraction) -> Iterator[av.VideoFrame]:
    """``frames`` one by one, with their times."""
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels.contiguous().cpu().numpy(), format=FORMATS[frames.shape[-1]])
        frame.pts, frame.time_base, frame.duration = number, 1 / rate, 1
        yield frame


def _check(what: str, given: Tensor, dimensions: int) -> None:
    """ValueError where ``given`` is not uint8 with so many dimensions, the last one of colours."""
    if given.dtype != torch.uint8 or given.dim() != dimensions or given.shape[-1] not in FORMATS:
        shape = "(H, W, 3)" if dimensions == 3 else "(T, H, W, 3)"
        raise ValueError(f"the {what} must be uint8 {shape}, got {str(given.dtype)[6:]} {tuple(given.shape)}")
