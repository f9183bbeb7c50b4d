"""Reading of images and videos as frames of the configured size and rate (docs/conditioning.md, "Prefix media").

What is in memory already goes the same way from ``fit_picture``, ``fit_frames`` and ``collect`` on (tensors.py). Frames
are uint8 tensors (T, H, W, 3), RGB. What cannot be read is a FileNotFoundError, an IsADirectoryError or a
ValueError with the path in it.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from inference.video.colour import assumed_matrix, has_alpha, on_white, to_rgb, to_srgb
from inference.video.fitting import Fit, Fitting, fitting

logger = logging.getLogger(__name__)

PrefixRule = Literal["first", "last"]

# MAGI-1 keeps the first 32 frames of a clip, FlowCache its last whole seconds.
FIRST_FRAMES = 32
LAST_SECONDS = 5
# Anything smaller is a mistake: a placeholder, a tracking pixel.
MIN_PICTURE_SIZE = 8
# Containers with pictures and times. Playlists, which make the reader open other files, are not among them, nor are
# bare streams: without times there is no frame rate to convert.
CONTAINERS = (
    "mov",
    "matroska",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "asf",
    "ogg",
    "gif",
    "apng",
    "nut",
    "rm",
    "mxf",
    "yuv4mpegpipe",
)


def _check_readable_file(path: Path, what: str) -> None:
    """``what`` is "image" or "video"."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a {what} file is needed")
    if not path.is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes), not a {what}")


def check_picture_size(name: object, height: int, width: int) -> None:
    """ValueError, with the ``name`` of the picture, where it is too small to be one."""
    if min(height, width) < MIN_PICTURE_SIZE:
        raise ValueError(
            f"{name} is {width}x{height} pixels; pictures below {MIN_PICTURE_SIZE}x{MIN_PICTURE_SIZE} are refused"
        )


def read_image(path: str | Path, height: int, width: int, fit: Fit = "stretch") -> Tensor:
    """An image of any common format as one frame: uint8 (1, height, width, 3), resized bicubically.

    ``fit`` "stretch" is MAGI-1's way; "crop" keeps the aspect ratio and fills the size, "pad" keeps it and puts black
    bars around. A colour profile and EXIF rotation are applied, transparency is shown on white, of an animation the
    first frame is taken.
    """
    path = Path(path)
    _check_readable_file(path, "image")
    try:
        with Image.open(path) as opened:
            check_picture_size(path, opened.height, opened.width)
            image = to_rgb(to_srgb(ImageOps.exif_transpose(opened), path))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return fit_picture(image, path, height, width, fit)


def fit_picture(image: Image.Image, name: object, height: int, width: int, fit: Fit) -> Tensor:
    """An RGB picture as one frame, uint8 (1, height, width, 3); ``name`` is for the log."""
    way = fitting((image.height, image.width), (height, width), fit)
    if said := way.describe(str(name)):
        logger.info(said)
    image = image.resize(way.scaled[::-1], Image.Resampling.BICUBIC)
    rows, columns = way.offset
    # Where this reaches beyond the picture, Pillow fills with black.
    image = image.crop((columns, rows, columns + width, rows + height))
    return torch.from_numpy(np.array(image)).unsqueeze(0)


def picture_size(path: str | Path, kind: Literal["image", "video"]) -> tuple[int, int]:
    """Height and width of an image or of a clip's pictures, as they are shown; errors as when they are read."""
    path = Path(path)
    if kind == "image":
        _check_readable_file(path, "image")
        try:
            with Image.open(path) as opened:
                turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return (opened.width, opened.height) if turned else (opened.height, opened.width)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}") from error
    with _open_video(path) as container:
        for frame in _decode(container, path, _DecodeReport()):
            return _shown_size(frame)
    raise ValueError(f"{path} has no frame that can be decoded (is the file complete?)")


@dataclass
class _DecodeReport:
    """What a container promised and what came of it."""

    promised: int = 0
    decoded: int = 0
    damaged: int = 0

    def warn(self, path: Path) -> None:
        if self.damaged or self.decoded < self.promised:
            logger.warning(
                "%s is damaged or incomplete: %d of %d frames could be read",
                *(path, self.decoded, max(self.promised, self.decoded + self.damaged)),
            )


@contextmanager
def _open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a container; what PyAV raises meanwhile becomes a ValueError with the path."""
    _check_readable_file(path, "video")
    try:
        with av.open(str(path), options={"format_whitelist": ",".join(CONTAINERS)}) as container:
            yield container
    except FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as a video ({error.strerror}); complete files of the usual containers can: "
            "mp4, mov, mkv, webm, avi, gif, ..."
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream that is not the cover picture of a piece of music."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    raise ValueError(f"{path} has no video stream (it has: {', '.join(kinds) or 'nothing'})")


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, report: _DecodeReport
) -> Iterator[av.Packet | None]:
    """Intact packets of ``stream``, then an empty one that makes the decoder hand out what it still holds."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            logger.warning("%s: the rest of the file cannot be read: %s", path, error.strerror)
            yield None
            return
        if packet is None:
            return
        if packet.is_discard:
            report.promised -= 1  # before the start of the clip, as its edit list has it
        if packet.is_corrupt:
            report.damaged += 1
        else:
            yield packet


def _decode(container: av.container.InputContainer, path: Path, report: _DecodeReport) -> Iterator[av.VideoFrame]:
    """Intact frames in order of presentation; damaged packets and pictures are left out and counted."""
    stream = _video_stream(container, path)
    stream.thread_type = "AUTO"
    report.promised = stream.frames
    for packet in _read_packets(container, stream, path, report):
        try:
            frames = stream.decode(packet)
        except FFmpegError:
            report.damaged += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                report.damaged += 1
                continue
            report.decoded += 1
            if not frame.duration and stream.guessed_rate:
                # Some containers leave it out; the frame rate filter needs the last one's to see the end of the clip.
                frame.duration = round(1 / (stream.guessed_rate * frame.time_base))
            yield frame


def _shown_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width after the rotation that phones write beside the pictures."""
    turned = round(frame.rotation) % 180 == 90
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _build_graph(frame: av.VideoFrame, start: float, fps: int, way: Fitting, matrix: str) -> Graph:
    """ffmpeg's `fps` and `scale` filters, after the rotation that phones write beside the pictures; cut or framed."""
    graph = Graph()
    filters = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    turned = {90: [("transpose", "cclock")], 180: [("hflip", None), ("vflip", None)], 270: [("transpose", "clock")]}
    for name, argument in turned.get(round(frame.rotation) % 360, []):
        filters.append(graph.add(name, argument))
    filters.append(graph.add("fps", f"fps={fps}:start_time={start:.6f}"))
    (height, width), (rows, columns) = way.scaled, way.offset
    filters.append(graph.add("scale", f"{width}:{height}:flags=bicubic:in_color_matrix={matrix}"))
    filters.append(graph.add("format", f"pix_fmts={'rgba' if has_alpha(frame) else 'rgb24'}"))
    if way.fit == "crop":
        filters.append(graph.add("crop", f"{way.target[1]}:{way.target[0]}:{columns}:{rows}"))
    elif way.fit == "pad":
        filters.append(graph.add("pad", f"{way.target[1]}:{way.target[0]}:{-columns}:{-rows}:black"))
    filters.append(graph.add("buffersink"))
    graph.link_nodes(*filters)
    graph.configure()
    return graph


def _pull(graph: Graph) -> Iterator[Tensor]:
    """The frames that the graph has ready."""
    while True:
        try:
            frame = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        pixels = frame.to_ndarray()
        yield torch.from_numpy(on_white(pixels) if pixels.shape[-1] == 4 else pixels)


def _filtered_frames(path: Path, fps: int, height: int, width: int, fit: Fit) -> Iterator[Tensor]:
    """Frames at ``fps``, resized: each uint8 (height, width, 3)."""
    report = _DecodeReport()
    with _open_video(path) as container:
        start = (container.start_time or 0) / av.time_base
        yield from fit_frames(_decode(container, path, report), path, start, fps, height, width, fit)
    report.warn(path)


def fit_frames(
    frames: Iterable[av.VideoFrame], name: object, start: float, fps: int, height: int, width: int, fit: Fit
) -> Iterator[Tensor]:
    """``frames``, which have times and begin at ``start`` seconds, at ``fps`` and resized: each uint8 (height, width,
    3). ``name`` is for the log and for errors.
    """
    graph = None
    for frame in frames:
        if graph is None:
            check_picture_size(name, frame.height, frame.width)
            way = fitting(_shown_size(frame), (height, width), fit)
            if said := way.describe(str(name)):
                logger.info(said)
            graph = _build_graph(frame, start, fps, way, assumed_matrix(frame, name))
        graph.vpush(frame)
        yield from _pull(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pull(graph)


def read_video(
    path: str | Path,
    fps: int,
    height: int,
    width: int,
    select: PrefixRule | Literal["all"] = "all",
    fit: Fit = "stretch",
) -> Tensor:
    """A video at ``fps`` frames per second, resized to the size: uint8 (T, height, width, 3).

    Rate and size are converted by ffmpeg's `fps` and `scale` (bicubic) filters, as MAGI-1 does; ``fit`` as for
    :func:`read_image`. Transparency is shown on white. ``select`` "first" or "last" gives the prefix of that rule
    (:func:`select_prefix_frames`) and holds no more frames than it can need. Of a damaged or cut-off file the intact
    frames are used, with a warning.
    """
    path = Path(path)
    if min(fps, height, width) < 1:
        raise ValueError(f"fps and size must be positive, got {fps} fps and {width}x{height}")
    return collect(_filtered_frames(path, fps, height, width, fit), path, fps, select)


def collect(found: Iterable[Tensor], name: object, fps: int, select: PrefixRule | Literal["all"]) -> Tensor:
    """What ``select`` takes of frames at ``fps``, (H, W, 3) each: (T, H, W, 3); ValueError where there are none."""
    count = _Counted(found)
    frames: Iterable[Tensor] = count
    if select == "first":
        frames = islice(frames, FIRST_FRAMES)
    elif select == "last":
        frames = deque(frames, maxlen=LAST_SECONDS * fps)
    kept = list(frames)
    if not kept:
        raise ValueError(f"{name} has no frame that can be decoded (is the file complete?)")
    video = torch.stack(kept)
    if select == "all":
        return video
    chosen = select_prefix_frames(video, fps, select)
    _tell_chosen(name, len(chosen), count.number, fps, select)
    return chosen


class _Counted:
    """``frames``, counted as they pass."""

    def __init__(self, frames: Iterable[Tensor]) -> None:
        self.frames = frames
        self.number = 0

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self.frames:
            self.number += 1
            yield frame


def _tell_chosen(name: object, chosen: int, count: int, fps: int, rule: PrefixRule) -> None:
    if chosen == 1:
        logger.warning(
            "%s is shorter than a second (%d frames at %d a second): its last frame is used, as an image is",
            *(name, count, fps),
        )
    elif rule == "last":
        logger.info("%s: the last %d of %d frames (at %d a second) continue", name, chosen, count, fps)
    else:
        logger.info("%s: the first %d frames (at %d a second) continue", name, chosen, fps)


def select_prefix_frames(frames: Tensor, fps: int, rule: PrefixRule) -> Tensor:
    """The frames (T, ...) of a clip that a video continues from.

    "first" is MAGI-1's rule: the first 32 frames. "last" is FlowCache's: the end of the clip in whole seconds, 5 at
    most, so that no chunk is given in part; of a clip shorter than a second the very last frame, as an image.
    """
    count = frames.shape[0]
    if count == 0:
        raise ValueError("no frames to select from")
    if rule == "first":
        return frames[:FIRST_FRAMES]
    if rule == "last":
        kept = min(count // fps, LAST_SECONDS) * fps
        return frames[-max(kept, 1) :]
    raise ValueError(f"the prefix rule must be 'first' or 'last', got {rule!r}")


@dataclass(frozen=True)
class VideoInfo:
    """Decoded facts of a video: ``duration`` in seconds is that of its video stream; ``darkest`` and ``brightest`` of
    all pixels of all frames, 0 to 255.
    """

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    darkest: int
    brightest: int


def probe_video(path: str | Path) -> VideoInfo:
    """Decode the whole video and say what is in it; the errors are those of :func:`read_video`."""
    path = Path(path)
    report = _DecodeReport()
    size, darkest, brightest = None, 255, 0
    with _open_video(path) as container:
        for frame in _decode(container, path, report):
            size = size or (frame.width, frame.height)
            grey = frame.to_ndarray(format="gray")
            darkest, brightest = min(darkest, int(grey.min())), max(brightest, int(grey.max()))
        if size is None:
            raise ValueError(f"{path} has no frame that can be decoded (is the file complete?)")
        stream = _video_stream(container, path)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = (container.duration or 0) / av.time_base
    report.warn(path)
    return VideoInfo(report.decoded, fps, duration, *size, darkest, brightest)
