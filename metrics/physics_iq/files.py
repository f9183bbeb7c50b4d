"""The files of Physics-IQ: where the real takes lie, and what must hold of generated videos (docs/scores.md,
"Physics-IQ").
"""

import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError

from metrics.physics_iq.motion_masks import BINARY_THRESHOLD, motion_masks, write_masks
from metrics.physics_iq.scores import Take, ViewResult, compare_view
from metrics.physics_iq.table import MOST_SHOWN, VIEWS, ScenarioView, find_benchmark, split_folder

SECONDS = 5
# Generated videos last 5 s, give or take this.
DURATION_TOLERANCE = 0.001
# A rate this near to a whole number is meant to be it: containers round the durations that it is computed from.
WHOLE_RATE_TOLERANCE = 1e-3
# Videos are compared at a quarter of the width and height of take 1.
SHRINK = 4

_REAL_NAME = re.compile(rf"\d{{4}}_[a-z]+-[a-z]+_\d+FPS_({'|'.join(VIEWS)})_take-([12])_(.+)\.mp4")


class Benchmark:
    """The real videos of a benchmark folder, which holds ``split-videos`` and so on, at one frame rate.

    ``data`` may also be the folder around it. Files are known by view, take and name; their leading number is not
    looked at. The folders of a rate that is no whole number are called by the whole number below it, as the official
    code has it. Raises FileNotFoundError where the folders are not there.
    """

    def __init__(self, data: Path, fps: float) -> None:
        self.root, self.fps = find_benchmark(data), fps
        self._folder = split_folder(self.root, "testing", fps)
        if not self._folder.is_dir():
            there = sorted(path.name for path in self._folder.parent.glob("*FPS"))
            raise FileNotFoundError(
                f"no real videos at {fps:g} fps: {self._folder} is missing (there: {', '.join(there) or 'none'}), "
                "generate at a rate that is there, or convert the 30FPS videos with the benchmark's own script"
            )
        self._testing = _index(self._folder)
        self._masks = _index(self.root / "video-masks" / "real" / f"{int(fps)}FPS")

    @property
    def frames(self) -> int:
        """How many frames of each video are compared."""
        return round(SECONDS * self.fps)

    def testing(self, view: ScenarioView, take: int) -> Path:
        """The 5 s that follow the conditioning clip, as they were filmed; FileNotFoundError if it is not there."""
        path = self._testing.get((view.view, take, view.scenario))
        if path is None:
            raise FileNotFoundError(f"the real video of {view.generated_name}, take {take}, is not in {self._folder}")
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


def check_generated(folder: Path, views: Sequence[ScenarioView]) -> float:
    """Frames per second of the videos in ``folder``, which must be exactly those of ``views``, each of 5 s.

    Files are read to the end but not decoded: scoring does that, once. Raises ValueError that names all that is wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of generated videos: {folder}")
    expected = {view.generated_name for view in views}
    there = {path.name for path in folder.glob("*.mp4") if not path.name.startswith(".")}
    problems = [f"{name} is missing" for name in sorted(expected - there)]
    problems += [f"{name} is not one of the benchmark's videos" for name in sorted(there - expected)]
    rates: dict[float, int] = {}
    for name in sorted(expected & there):
        try:
            fps = _check_video(folder / name)
            rates[fps] = rates.get(fps, 0) + 1
        except ValueError as error:
            problems.append(str(error))
    if len(rates) > 1:
        counts = ", ".join(f"{count} at {fps:g}" for fps, count in sorted(rates.items()))
        problems.append(f"the videos have several frame rates ({counts} fps); one is needed")
    refuse_videos(folder, problems, len(expected))
    return next(iter(rates))


def refuse_videos(folder: Path, problems: Sequence[str], needed: int) -> None:
    """ValueError with the first of the problems, where there are any."""
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        shown = "\n  ".join([*problems[:MOST_SHOWN], *more])
        raise ValueError(f"{folder} cannot be scored, {needed} videos are needed:\n  {shown}")


def _check_video(path: Path) -> float:
    """Frames per second of a video of the right length, as a whole number where it is one; ValueError for others."""
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            rate, duration = float(stream.average_rate or 0), (container.duration or 0) / av.time_base
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise ValueError(f"{path} is damaged at frame {count}")
                count += packet.size > 0
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded beyond frame {count}: {error.strerror}") from error
    fps = round(rate) if abs(rate - round(rate)) < WHOLE_RATE_TOLERANCE else rate
    if abs(duration - SECONDS) > DURATION_TOLERANCE or count != round(SECONDS * fps):
        raise ValueError(
            f"{path.name} lasts {duration:.3f} s and has {count} frames at {fps:g} fps; needed are {SECONDS}.000 s, "
            f"{round(SECONDS * fps)} frames, without the conditioning clip"
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
                # Of more threads than one, small pictures need more time than they save.
                yield frame.to_ndarray(format="rgb24", threads=1)
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


def read_take(
    path: Path, fps: float, frames: int, size: tuple[int, int] | None = None, mask: Path | None = None
) -> Take:
    """The first ``frames`` frames of a video at ``size`` (width, height), by default a quarter of its own.

    Where it moves is read from the video ``mask``; without one it is found here, at the video's own size. The video is
    decoded once.
    """
    pictures: list[np.ndarray] = []
    decoded = _shrink_into(pictures, path, _first_frames(path, frames), size)
    if mask is not None:
        deque(decoded, maxlen=0)
        return _take(pictures, mask)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "mask.mp4"
        write_masks(made, motion_masks(decoded), round(fps))
        return _take(pictures, made)


def _shrink_into(
    pictures: list[np.ndarray], path: Path, frames: Iterable[np.ndarray], size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """The frames as they are; each one's small copy is appended to ``pictures``."""
    for frame in frames:
        height, width = frame.shape[:2]
        if min(height, width) < SHRINK:
            raise ValueError(f"{path} is {width}x{height}; nothing is left of that at a quarter of the size")
        pictures.append(cv2.resize(frame, size or (width // SHRINK, height // SHRINK)))
        yield frame


def _take(pictures: Sequence[np.ndarray], mask: Path) -> Take:
    """Pictures with the masks of a video, which are resized to their size and made binary again."""
    size = (pictures[0].shape[1], pictures[0].shape[0])
    # The three channels of a grey video are the same.
    grey = (np.ascontiguousarray(frame[:, :, 0]) for frame in _first_frames(mask, len(pictures)))
    return Take(np.stack(pictures), np.stack([cv2.resize(frame, size) > BINARY_THRESHOLD for frame in grey]))


def score_view(benchmark: Benchmark, view: ScenarioView, generated: Path) -> ViewResult:
    """Compare a generated video with both real takes of its view; ValueError where a video cannot be decoded."""
    fps, frames = benchmark.fps, benchmark.frames
    take_1 = read_take(benchmark.testing(view, 1), fps, frames, mask=benchmark.mask(view, 1))
    size = (take_1.pictures.shape[2], take_1.pictures.shape[1])
    take_2 = read_take(benchmark.testing(view, 2), fps, frames, size, benchmark.mask(view, 2))
    return compare_view(read_take(generated, fps, frames, size), take_1, take_2)


def score_or_problem(benchmark: Benchmark, view: ScenarioView, generated: Path) -> ViewResult | str:
    """What :func:`score_view` gives, or why a video cannot be compared, so that all of those can be named together."""
    try:
        return score_view(benchmark, view, generated)
    except ValueError as error:
        return str(error)
