"""Writing of videos: H.264 in mp4, frames appended while they are made (docs/conditioning.md, "Writing the video")."""

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import av
from torch import Tensor, uint8

logger = logging.getLogger(__name__)

# The same on every machine: the bits that x264 writes depend on the number of its threads.
ENCODER_THREADS = 4
# x264's tree of macroblocks decides on bits by chance where a row of them is no multiple of eight.
REPEATABLE = "mbtree=0"
# RGB is converted with the BT.601 matrix to limited range, as ffmpeg does by default; the file says so.
BT601_MATRIX = 6
LIMITED_RANGE = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _part_path(path: Path) -> Path:
    """Where ``path`` is written until it is complete; the process number keeps two runs apart."""
    return path.with_name(f".~{path.stem}.{os.getpid()}.part.mp4")


def check_output_path(path: str | Path) -> Path:
    """Make sure early that the video can be written later: makes the folder and tries to write in it.

    Raises ValueError if the name does not end in .mp4, and OSError (IsADirectoryError, PermissionError, ...) if the
    path is a folder or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the output is an mp4 video, its name must end in .mp4: {path}")
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder; give the name of a file in it")
    trial = _part_path(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"cannot write to the output folder {path.parent}: it is a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"trial")
    except OSError as error:
        raise OSError(error.errno, f"cannot write to the output folder {path.parent}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            trial.unlink()
    return path


class VideoWriter:
    """Context manager that writes ``path`` as H.264 yuv420p at ``fps``.

    The file appears under its name when it is complete; until then it is a hidden file beside it, and an older file of
    that name stays. If the body ends with an exception, Ctrl-C included, what was appended so far becomes the file
    and ``stopped`` is true; it never takes the place of an older file, but is then called ``NAME.partial.mp4``.
    Without a single frame nothing appears. ``saved_as`` is the path that was written, or None. Equal frames give
    equal files.

    The encoder works in a thread of its own because Ctrl-C interrupts the main thread anywhere, even between two
    packets of one frame; this way an appended batch is either wholly in the file or not at all.

    Raises ValueError for odd sizes, and OSError if the file cannot be written. On a full disk the partial file is
    removed.
    """

    def __init__(self, path: str | Path, fps: int, height: int, width: int, crf: int = 23) -> None:
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"H.264 with yuv420p needs even sizes, got {width}x{height}")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}")
        self.path = check_output_path(path)
        self.fps, self.height, self.width, self.crf = fps, height, width, crf
        self.frames_written = 0
        self.stopped = False
        self.saved_as: Path | None = None
        self._part = _part_path(self.path)
        self._thread: ThreadPoolExecutor | None = None
        self._container: av.container.OutputContainer | None = None

    def __enter__(self) -> "VideoWriter":
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="video-writer")
        try:
            self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def append(self, frames: Tensor) -> None:
        """Add ``frames``, uint8 (T, height, width, 3) RGB on any device."""
        expected = (self.height, self.width, 3)
        if frames.dtype != uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"expected uint8 frames (T, {self.height}, {self.width}, 3), got {tuple(frames.shape)} {frames.dtype}"
            )
        if self._thread is None or self._container is None:
            raise RuntimeError(f"the writer of {self.path} is not open")
        self._thread.submit(self._encode, frames.cpu()).result()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        finished = thread.submit(self._finish, exc_type is not None)
        thread.shutdown()
        finished.result()
        # Said here and not in the encoder's thread: an interrupted main thread may hold the lock of a log handler.
        if exc_type is not None and not self.frames_written:
            logger.warning("stopped before the first frame: nothing was written to %s", self.path)
        elif self.stopped:
            kept = "" if self.saved_as == self.path else f"; the older {self.path.name} is unchanged"
            logger.warning(
                "stopped early: %s has the %d frames made so far%s", self.saved_as, self.frames_written, kept
            )

    # What follows runs in the encoder's thread.

    def _open(self) -> None:
        try:
            self._container = av.open(str(self._part), "w", format="mp4", options={"fflags": "+bitexact"})
            options = {"crf": str(self.crf), "preset": "medium", "x264-params": REPEATABLE}
            self._stream = self._container.add_stream("libx264", rate=self.fps, options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "yuv420p"
            self._stream.codec_context.thread_count = ENCODER_THREADS
            self._stream.codec_context.colorspace = BT601_MATRIX
            self._stream.codec_context.color_range = LIMITED_RANGE
        except OSError as error:
            self._give_up(error)

    def _encode(self, frames: Tensor) -> None:
        if self._container is None:
            return
        try:
            for picture in frames.numpy():
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p", interpolation="BICUBIC")
                frame.pts = self.frames_written
                self._container.mux(self._stream.encode(frame))
                self.frames_written += 1
        except OSError as error:
            self._give_up(error)

    def _finish(self, stopped: bool) -> None:
        """Close the file and give it its name; nothing to do if writing has failed before."""
        if self._container is None:
            return
        if not self.frames_written:
            self._container.close()
            self._container = None
            self._part.unlink(missing_ok=True)
            if not stopped:
                raise ValueError(f"no frames were written to {self.path}")
            return
        destination = self._destination(stopped)
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._part, destination)
        except OSError as error:
            self._give_up(error)
        self._container = None
        self.stopped = stopped
        self.saved_as = destination

    def _destination(self, stopped: bool) -> Path:
        """An unfinished video must not replace an older one, which may be complete."""
        if stopped and self.path.exists():
            return self.path.with_name(f"{self.path.stem}.partial.mp4")
        return self.path

    def _give_up(self, error: OSError) -> None:
        """Remove the partial file and raise an error that says what happened."""
        if self._container is not None:
            with suppress(OSError):
                self._container.close()
        self._container = None
        self._part.unlink(missing_ok=True)
        reason = "the disk is full" if error.errno in _NO_ROOM else f"{error.strerror or error}"
        raise OSError(
            error.errno,
            f"writing {self.path} failed after {self.frames_written} frames: {reason}; the partial file was removed",
        ) from error
