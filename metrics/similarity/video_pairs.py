"""Which videos are compared with which, whether they can be, and their frames side by side (docs/metrics.md).

Everything is decoded as it is: nothing is resized, cut, repeated or resampled to make two videos fit.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import torch
from av.error import FFmpegError
from torch import Tensor

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
# Rates this close are the same: containers round the durations that they are computed from.
RATE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """Two files that belong together; ``name`` is that of the file, in folders with its path below them."""

    name: str
    original: Path
    generated: Path


@dataclass(frozen=True)
class VideoFacts:
    """What is decoded of a video: pixels, frames per second, number of frames."""

    width: int
    height: int
    fps: Fraction
    frames: int


def pair_up(original: Path, generated: Path) -> list[Pair]:
    """The pair of two files, or those of two folders matched by name, folders below them included.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file and a folder, folders without videos, or videos that one of the folders lacks: each is named.
    """
    for path in (original, generated):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; two video files or two folders of videos are compared")
    if original.is_dir() != generated.is_dir():
        folder, file = (original, generated) if original.is_dir() else (generated, original)
        raise ValueError(f"{folder} is a folder and {file} a file; give two files or two folders")
    if original.is_file():
        return [Pair(generated.name, original, generated)]
    names = {folder: _videos_below(folder) for folder in (original, generated)}
    for folder, found in names.items():
        if not found:
            raise ValueError(f"{folder} holds no videos ({', '.join(SUFFIXES)})")
    problems = [
        f"{folder} lacks {len(missing)}: {', '.join(sorted(missing))}"
        for folder, missing in (
            (original, names[generated] - names[original]),
            (generated, names[original] - names[generated]),
        )
        if missing
    ]
    if problems:
        raise ValueError("the folders do not hold the same videos: " + "; ".join(problems))
    return [Pair(name, original / name, generated / name) for name in sorted(names[original])]


def _videos_below(folder: Path) -> set[str]:
    """Paths relative to ``folder``; hidden files are somebody's unfinished work."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    }


def probe(path: Path) -> VideoFacts:
    """Decode all of ``path`` and say what is in it; ValueError where it cannot be read to the end."""
    rate, size, frames = Fraction(0), (0, 0), 0
    for frame, stream_rate in _decode(path):
        rate, size = stream_rate, size if frames else (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise ValueError(
                f"{path} changes its size at frame {frames}: {size[0]}x{size[1]} to {frame.width}x{frame.height}"
            )
        frames += 1
    if not frames:
        raise ValueError(f"{path} has no frame that can be decoded")
    return VideoFacts(*size, rate, frames)


def differences(original: VideoFacts, generated: VideoFacts) -> list[str]:
    """Why the two cannot be compared frame by frame, with the numbers; empty where they can."""
    found = []
    if (original.width, original.height) != (generated.width, generated.height):
        found.append(f"sizes {original.width}x{original.height} and {generated.width}x{generated.height}")
    if original.frames != generated.frames:
        found.append(f"lengths {original.frames} and {generated.frames} frames")
    if abs(original.fps - generated.fps) > RATE_TOLERANCE * max(original.fps, generated.fps):
        found.append(f"rates {float(original.fps):g} and {float(generated.fps):g} frames per second")
    return found


def read_batches(pair: Pair, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both videos from the beginning, ``size`` frames at a time: two tensors uint8 (n, H, W, 3), RGB.

    Raises:
        ValueError: one of them ends before the other.
    """
    with closing(read_frames(pair.original)) as original, closing(read_frames(pair.generated)) as generated:
        while True:
            first, second = list(islice(original, size)), list(islice(generated, size))
            if len(first) != len(second):
                raise ValueError(f"{pair.original} and {pair.generated} do not have the same number of frames")
            if not first:
                return
            yield torch.stack(first), torch.stack(second)


def read_frames(path: Path) -> Iterator[Tensor]:
    """The frames of a video, each uint8 (H, W, 3) RGB; ValueError where it cannot be read to the end."""
    for frame, _ in _decode(path):
        yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def _decode(path: Path) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Every frame with the rate of its stream. A damaged file is refused: its figures would be of something else."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate or Fraction(0)
            for index, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise ValueError(f"{path} is damaged at frame {index}; make it anew")
                yield frame, rate
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror}); make it anew") from error
