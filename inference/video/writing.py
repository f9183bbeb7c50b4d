"""Writing of videos: H.264 in mp4, frames appended while they are made (docs/conditioning.md, "Writing the video")."""

import errno
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import av
from torch import Tensor, uint8

from inference.files import hidden_beside
from inference.model.finite import NotFiniteError
from inference.video.fragments import FragmentEncoder, VideoForm
from inference.video.names import check_output_path, partial_path, real_path
from inference.video.unfinished import UnfinishedVideo, make_plain

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Written:
    """How far an unfinished video is: ``frames`` in ``fragments``, ``size`` bytes together."""

    frames: int
    fragments: int
    size: int


class VideoWriter:
    """Context manager that writes ``path`` as H.264 yuv420p at ``fps``; ``lossless`` keeps every RGB value instead.

    The file appears under its name when it is complete; until then it is a hidden file beside it, and an older file of
    that name stays. Every appended batch is a fragment of the hidden file, which is on the disk when ``append``
    returns: a process that is killed leaves a video of what it had finished, and the next writer of the name keeps it
    as ``NAME.partial.mp4``. If the body ends with an exception, Ctrl-C included, what was appended so far becomes the
    file and ``stopped`` is true; it never takes the place of an older file, but is then called ``NAME.partial.mp4``, as
    it always is where numbers were no numbers any more (``NotFiniteError``).
    Without a single frame nothing appears. ``saved_as`` is the path that was written, or None. Equal batches give
    equal files.

    A writer that is to ``go_on_from`` what ``written`` gave in an earlier one, which was killed, or ended while it was
    ``resumable``, gives the file that the earlier one would have. What a ``resumable`` one leaves is there until
    ``forget``.

    The encoder works in a thread of its own because Ctrl-C interrupts the main thread anywhere, even between two
    packets of one frame; this way an appended batch is either wholly in the file or not at all.

    Raises ValueError for odd sizes, and OSError if the file cannot be written or another process writes it. On a full
    disk what was finished is kept as if the run had been stopped.
    """

    def __init__(
        self,
        path: str | Path,
        fps: int,
        height: int,
        width: int,
        crf: int = 23,
        lossless: bool = False,
        go_on_from: Written | None = None,
    ) -> None:
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"H.264 with yuv420p needs even sizes, got {width}x{height}")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}")
        self.path = check_output_path(path)
        self.form = VideoForm(fps, height, width, crf, lossless)
        self.frames_written = 0 if go_on_from is None else go_on_from.frames
        self.stopped = False
        self.saved_as: Path | None = None
        self.resumable = False
        self._go_on_from = go_on_from
        fragments = 0 if go_on_from is None else go_on_from.fragments
        self._encoder = FragmentEncoder(self.form, self.frames_written, fragments)
        self._thread: ThreadPoolExecutor | None = None
        self._unfinished: UnfinishedVideo | None = None
        self._plain_failed: Exception | None = None

    def __enter__(self) -> "VideoWriter":
        partial, unfinished, rescued = partial_path(self.path), None, 0
        try:
            unfinished = UnfinishedVideo(real_path(self.path))
            if self._go_on_from is None:
                rescued = unfinished.rescue(partial)
            else:
                unfinished.go_on(self._go_on_from.size)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            if unfinished is not None:
                unfinished.leave()
            raise (error if isinstance(error, ValueError) else self._failure(error)) from error
        self._unfinished = unfinished
        if rescued:
            logger.warning("an earlier run onto %s was killed: its %d frames are %s", self.path.name, rescued, partial)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="video-writer")
        return self

    def append(self, frames: Tensor) -> None:
        """Add ``frames``, uint8 (T, height, width, 3) RGB on any device; they are on the disk on return."""
        expected = (self.form.height, self.form.width, 3)
        if frames.dtype != uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"expected uint8 frames (T, {expected[0]}, {expected[1]}, 3), got {tuple(frames.shape)} {frames.dtype}"
            )
        if self._thread is None or self._unfinished is None:
            raise RuntimeError(f"the writer of {self.path} is not open")
        if len(frames):
            self._thread.submit(self._add, frames.cpu()).result()

    @property
    def written(self) -> Written:
        """What is on the disk; between two calls of ``append``."""
        if self._unfinished is None:
            raise RuntimeError(f"the writer of {self.path} is not open")
        return Written(self.frames_written, self._encoder.fragments, self._unfinished.size)

    def forget(self) -> None:
        """Remove what is left for going on; nothing happens where nothing is."""
        target = real_path(self.path)
        if hidden_beside(target, "part.mp4").exists():
            UnfinishedVideo(target).close()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        finished = thread.submit(self._finish, exc_type)
        interrupted = _wait_for(finished)
        thread.shutdown()
        finished.result()
        # Said here and not in the encoder's thread: an interrupted main thread may hold the lock of a log handler.
        if self._plain_failed is not None:
            logger.warning("%s is in fragments: a plain copy failed, %s", self.saved_as, self._plain_failed)
        if exc_type is not None and not self.frames_written:
            logger.warning("stopped before the first frame: nothing was written to %s", self.path)
        elif self.stopped:
            kept = (
                f"; the older {self.path.name} is unchanged"
                if self.path != self.saved_as and self.path.exists()
                else ""
            )
            logger.warning(
                "stopped early: %s has the %d frames made so far%s", self.saved_as, self.frames_written, kept
            )
        if interrupted and exc_type is None:
            raise KeyboardInterrupt

    # What follows runs in the encoder's thread.

    def _add(self, frames: Tensor) -> None:
        try:
            self._unfinished.add(self._encoder.encode(frames))
            self.frames_written += len(frames)
        except (OSError, av.error.FFmpegError) as error:
            raise self._failure(error) from error

    def _finish(self, ended_by: type[BaseException] | None) -> None:
        """Give the file its name."""
        unfinished, self._unfinished = self._unfinished, None
        stopped, broken = ended_by is not None, ended_by is not None and issubclass(ended_by, NotFiniteError)
        try:
            if self.frames_written:
                partial = broken or (stopped and self.path.exists())
                destination = partial_path(self.path) if partial else self.path
                self._plain_failed = self._name(unfinished, real_path(destination))
                self.stopped, self.saved_as = stopped, destination
        except OSError as error:
            unfinished.leave()
            failure = self._failure(error)
            kept = f"; the {self.frames_written} frames are in {unfinished.path}"
            raise OSError(failure.errno, f"{failure.strerror}{kept}") from error
        if self.resumable:
            unfinished.leave()
        else:
            unfinished.close()
        if not self.frames_written and not stopped:
            raise ValueError(f"no frames were written to {self.path}")

    def _name(self, unfinished: UnfinishedVideo, destination: Path) -> Exception | None:
        """Make the plain video; why the fragments, which are a video as well, have its name instead, if they do."""
        try:
            make_plain(unfinished.path, destination)
        except (OSError, av.error.FFmpegError) as error:  # no room for a second copy
            unfinished.become(destination)
            return error
        return None

    def _failure(self, error: OSError | av.error.FFmpegError) -> OSError:
        """What happened, in one sentence."""
        if isinstance(error, BlockingIOError):
            return error
        reason = "the disk is full" if error.errno in _NO_ROOM else f"{error.strerror or error}"
        return OSError(error.errno, f"writing {self.path} failed after {self.frames_written} frames: {reason}")


def _wait_for(finished: Future[None]) -> bool:
    """Wait to the end, whatever the user presses; whether they did."""
    interrupted = False
    while True:
        try:
            finished.exception()
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
