"""The files of Physics-IQ: where the real takes lie, and what must hold of generated videos (docs/scores.md,
"Physics-IQ").
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError

from metrics.physics_iq.motion_masks import BINARY_THRESHOLD, motion_masks, write_masks
from metrics.physics_iq.scores import Take, ViewResult, compare_view
from metrics.physics_iq.table import VIEWS, ScenarioView, find_benchmark

SECONDS = 5
# Generated videos last 5 s, give or take this.
DURATION_TOLERANCE = 0.001
# Videos are compared at a quarter of the width and height of take 1.
SHRINK = 4

_REAL_NAME = re.compile(rf"\d{{4}}_[a-z]+-[a-z]+_\d+FPS_({'|'.join(VIEWS)})_take-([12])_(.+)\.mp4")


class Benchmark:
    """The real videos of a benchmark folder, which holds ``split-videos`` and so on, at one frame rate.

    ``data`` may also be the folder around it. Files are known by view, take and name; their leading number is not
    looked at. Raises FileNotFoundError where the folders are not there.
    """

    def __init__(self, data: Path, fps: int) -> None:
        self.root, self.fps = find_benchmark(data), fps
        folder = self.root / "split-videos" / "testing" / f"{fps}FPS"
        if not folder.is_dir():
            there = sorted(path.name for path in folder.parent.glob("*FPS"))
            raise FileNotFoundError(
                f"no real videos at {fps} fps: {folder} is missing (there: {', '.join(there) or 'none'}), "
                "generate at a rate that is there, or convert the 30FPS videos with the benchmark's own script"
            )
        self._testing = _index(folder)
        self._masks = _index(self.root / "video-masks" / "real" / f"{fps}FPS")

    def testing(self, view: ScenarioView, take: int) -> Path:
        """The 5 s that follow the conditioning clip, as they were filmed; FileNotFoundError if it is not there."""
        path = self._testing.get((view.view, take, view.scenario))
        if path is None:
            raise FileNotFoundError(
                f"the real video of {view.generated_name}, take {take}, is not in "
                f"{self.root / 'split-videos' / 'testing' / f'{self.fps}FPS'}"
            )
        return path

    def mask(self, view: ScenarioView, take: int) -> Path | None:
        """The motion mask that comes with the data, if it does."""
        return self._masks.get((view.view, take, view.scenario))


def _index(folder: Path) -> dict[tuple[str, int, str], Path]:
    found: dict[tuple[str, int, str], Path] = {}
    for path in sorted(folder.glob("*.mp4")):
        match = _REAL_NAME.fullmatch(path.name)
        if match is None:
            continue
        key = (match.group(1), int(match.group(2)), match.group(3))
        if key in found:
            raise ValueError(f"{found[key]} and {path.name} are both take {key[1]} of {key[2]} from {key[0]}")
        found[key] = path
    return found


def check_generated(folder: Path, views: Sequence[ScenarioView]) -> int:
    """Frames per second of the videos in ``folder``, which must be exactly those of ``views``, each decodable and 5 s.

    Decodes every file once. Raises ValueError that names all that is wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of generated videos: {folder}")
    expected = {view.generated_name for view in views}
    there = {path.name for path in folder.glob("*.mp4") if not path.name.startswith(".")}
    problems = [f"{name} is missing" for name in sorted(expected - there)]
    problems += [f"{name} is not one of the benchmark's videos" for name in sorted(there - expected)]
    rates: dict[int, int] = {}
    for name in sorted(expected & there):
        try:
            fps = _check_video(folder / name)
            rates[fps] = rates.get(fps, 0) + 1
        except ValueError as error:
            problems.append(str(error))
    if len(rates) > 1:
        counts = ", ".join(f"{count} at {fps}" for fps, count in sorted(rates.items()))
        problems.append(f"the videos have several frame rates ({counts} fps); one is needed")
    if problems:
        shown = "\n  ".join([*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])])
        raise ValueError(f"{folder} cannot be scored, {len(expected)} videos are needed:\n  {shown}")
    return next(iter(rates))


def _check_video(path: Path) -> int:
    """Frames per second of a video of the right length; ValueError for any other."""
    count = sum(1 for _ in read_frames(path))
    with av.open(str(path)) as container:
        fps = round(float(container.streams.video[0].average_rate or 0))
        duration = (container.duration or 0) / av.time_base
    if abs(duration - SECONDS) > DURATION_TOLERANCE or count != SECONDS * fps:
        raise ValueError(
            f"{path.name} lasts {duration:.3f} s and has {count} frames at {fps} fps; needed are {SECONDS}.000 s, "
            f"{SECONDS * fps} frames, without the conditioning clip"
        )
    return fps


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, each (H, W, 3) uint8 RGB; ValueError where one cannot be decoded."""
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise ValueError(f"{path} is damaged at frame {number}")
                yield frame.to_ndarray(format="rgb24")
                number += 1
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded beyond frame {number}: {error.strerror}") from error
    if not number:
        raise ValueError(f"{path} has no frames")


def _first_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    """The first ``count`` frames; ValueError if there are fewer."""
    number = 0
    for frame in read_frames(path):
        if number == count:
            return
        yield frame
        number += 1
    if number < count:
        raise ValueError(f"{path} has {number} frames, {count} are needed")


def read_take(path: Path, fps: int, frames: int, size: tuple[int, int] | None = None, mask: Path | None = None) -> Take:
    """The first ``frames`` frames of a video at ``size`` (width, height), by default a quarter of its own.

    Where it moves is read from the video ``mask``; without one it is found here, at the video's own size.
    """
    pictures = _read_pictures(path, frames, size)
    size = (pictures.shape[2], pictures.shape[1])
    if mask is not None:
        return Take(pictures, _read_masks(mask, frames, size))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "mask.mp4"
        write_masks(made, motion_masks(_first_frames(path, frames)), fps)
        return Take(pictures, _read_masks(made, frames, size))


def _read_pictures(path: Path, frames: int, size: tuple[int, int] | None) -> np.ndarray:
    """(frames, h, w, 3) uint8 RGB."""
    pictures = []
    for frame in _first_frames(path, frames):
        height, width = frame.shape[:2]
        if min(height, width) < SHRINK:
            raise ValueError(f"{path} is {width}x{height}; nothing is left of that at a quarter of the size")
        pictures.append(cv2.resize(frame, size or (width // SHRINK, height // SHRINK)))
    return np.stack(pictures)


def _read_masks(path: Path, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Masks of a video, resized and made binary again: (frames, h, w) bool."""
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in _first_frames(path, frames))
    return np.stack([cv2.resize(frame, size) > BINARY_THRESHOLD for frame in grey])


def score_view(benchmark: Benchmark, view: ScenarioView, generated: Path) -> ViewResult:
    """Compare a generated video with both real takes of its view."""
    frames = SECONDS * benchmark.fps
    take_1 = read_take(benchmark.testing(view, 1), benchmark.fps, frames, mask=benchmark.mask(view, 1))
    size = (take_1.pictures.shape[2], take_1.pictures.shape[1])
    take_2 = read_take(benchmark.testing(view, 2), benchmark.fps, frames, size, benchmark.mask(view, 2))
    return compare_view(read_take(generated, benchmark.fps, frames, size), take_1, take_2)
