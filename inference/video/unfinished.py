"""The file that a video is until it is complete: beside it, hidden, locked by whoever writes it.

It holds whole fragments only, each of them on the disk before the next one is made, so that whatever ends the process
leaves a video of the chunks that were finished. The next run onto the same name finds it.
"""

import os
from contextlib import suppress
from pathlib import Path

from inference.files import hidden_beside, open_locked
from inference.video.fragments import to_plain, whole_fragments


class UnfinishedVideo:
    """Opened for ``path``; empty, and ours alone until ``close``.

    Raises BlockingIOError where another process is writing the same video.
    """

    def __init__(self, path: Path) -> None:
        self.path = hidden_beside(path, "part.mp4")
        self._file = open_locked(
            self.path, f"another run is writing {path} at this moment; wait for it, or name another output"
        )

    def rescue(self, destination: Path) -> int:
        """Keep what a dead process left as ``destination``, and begin anew; gives the number of frames kept.

        Where it cannot be kept, what is left stays as it is, and the error says why.
        """
        self._file.truncate(whole_fragments(self._file))
        frames = make_plain(self.path, destination) if os.fstat(self._file.fileno()).st_size else 0
        self._file.truncate(0)
        self._file.seek(0)
        return frames

    @property
    def size(self) -> int:
        """Bytes of whole fragments."""
        return self._file.tell()

    def go_on(self, size: int) -> None:
        """Forget all but the first ``size`` bytes; ValueError where there are fewer."""
        there = os.fstat(self._file.fileno()).st_size
        if there < size:
            raise ValueError(f"{self.path} has {there} bytes of the {size} that were written")
        self._file.truncate(size)
        self._file.seek(size)

    def add(self, fragment: bytes) -> None:
        """Append a fragment and wait until the disk has it; where that fails, what was there before stays whole."""
        start = self._file.tell()
        try:
            left = memoryview(fragment)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise

    def become(self, destination: Path) -> None:
        """Give the file its name as it is."""
        os.replace(self.path, destination)

    def leave(self) -> None:
        """Let go of the file, as it is."""
        self._file.close()

    def close(self) -> None:
        """Let go of the file, and remove it where it has not got its name."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                self.path.unlink()
        self._file.close()


def make_plain(source: Path, destination: Path) -> int:
    """Write the packets of ``source`` to a plain mp4 that appears as ``destination``; gives the number of frames."""
    whole = hidden_beside(destination, "whole.mp4")
    try:
        frames = to_plain(source, whole)
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(whole, destination)
    finally:
        whole.unlink(missing_ok=True)
    return frames
