"""Large files over HTTP, each continued at its byte after whatever ended the process before (docs/download.md).

Until it is complete and has been compared with its checksum, a file is ``NAME.VERSION.incomplete`` beside its place.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Literal

from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from inference.files import open_locked

SUFFIX = ".incomplete"
TIMEOUT = 30  # s without a byte
TRIES = 8  # that bring nothing, in a row: about two minutes
AT_ONCE = 4  # files
# Answers that another try may not get.
PASSING = (408, 425, 429)

OnBytes = Callable[[int], object]


@dataclass(frozen=True)
class Checksum:
    """Of a file's contents: "sha256", or "git", its name as an object of git."""

    kind: Literal["sha256", "git"]
    digest: str


@dataclass(frozen=True)
class Remote:
    """A file to be had at ``url``. ``version`` tells its contents from others that the same name may have."""

    url: str
    size: int
    version: str
    checksum: Checksum | None = None

    def part(self, place: Path) -> Path:
        """What it is called until it is complete at ``place``."""
        return place.with_name(f"{place.name}.{self.version[:12]}{SUFFIX}")

    def received(self, place: Path) -> int:
        """Bytes that are there already, of a file that is not complete."""
        part = self.part(place)
        return min(part.stat().st_size, self.size) if part.is_file() else 0


class _Broken(Exception):
    """The connection failed; another one may do better."""


class _Stopped(Exception):
    """Another file failed, or the user stopped."""


def receive_all(wanted: Sequence[tuple[Remote, Path]], on_bytes: OnBytes = lambda count: None) -> None:
    """Bring every file to its place, several at a time; ``on_bytes`` hears of what was received.

    Whatever ends this, what was received stays and is continued by the next call. Ctrl-C ends it at once: a connection
    that is silent is not waited for.

    Raises OSError where a file cannot be had or written, or is not what it should be; the others are then stopped.
    """
    # Large ones first: they decide how long it takes.
    left, stop, lock = deque(sorted(wanted, key=lambda one: -one[0].size)), Event(), Lock()
    errors: list[Exception] = []

    def count(received: int) -> None:
        with lock:
            on_bytes(received)

    def work() -> None:
        with suppress(IndexError):
            while not stop.is_set():
                remote, place = left.popleft()
                try:
                    receive(remote, place, count, stop)
                except _Stopped:
                    return
                except Exception as error:  # noqa: BLE001 - raised again below, in the thread that asked
                    errors.append(error)
                    stop.set()

    threads = [Thread(target=work, name="download", daemon=True) for _ in range(min(AT_ONCE, len(left)))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.05)
            if errors:
                break
    finally:
        stop.set()
        ended = time.monotonic() + 0.1
        for thread in threads:
            thread.join(max(0.0, ended - time.monotonic()))
    if errors:
        raise errors[0]


def receive(remote: Remote, place: Path, on_bytes: OnBytes, stop: Event) -> None:
    """Bring one file to ``place``, going on with what is there of it.

    Raises OSError, and ``_Stopped`` soon after ``stop`` is set.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    part = remote.part(place)
    with open_locked(part, f"another download is fetching {place} at this moment; wait for it") as file:
        if os.fstat(file.fileno()).st_size > remote.size:
            file.truncate(0)
        _fill(remote, file, place, on_bytes, stop)
        os.fsync(file.fileno())
        if remote.checksum is not None and (found := _digest(remote, file)) != remote.checksum.digest:
            part.unlink()
            raise OSError(
                f"{place.name} arrived with other contents ({remote.checksum.kind} {found[:12]} instead of "
                f"{remote.checksum.digest[:12]}) and was removed; the same command fetches it anew"
            )
        os.replace(part, place)
    _remove_other_versions(place)


def _fill(remote: Remote, file: IO[bytes], place: Path, on_bytes: OnBytes, stop: Event) -> None:
    """Append what is missing; a connection that breaks is followed by another one."""
    vain = 0
    while (there := file.seek(0, os.SEEK_END)) < remote.size:
        reason = "the connection ended"
        try:
            for piece, start in _pieces(remote.url, there):
                if stop.is_set():
                    raise _Stopped
                if file.tell() != start:  # the server began anew
                    on_bytes(start - file.tell())
                    file.truncate(start)
                    file.seek(start)
                _write(file, piece[: remote.size - start])
                on_bytes(file.tell() - start)
                if start + len(piece) > remote.size:
                    raise OSError(f"{remote.url} is longer than its {remote.size} bytes")
        except _Broken as error:
            reason = str(error)
        vain = 0 if file.tell() > there else vain + 1
        if vain >= TRIES:
            raise OSError(
                f"{place.name}: stopped at byte {file.tell()} of {remote.size} ({reason}); the same command goes on "
                "with it"
            )
        if stop.wait(min(2.0**vain, 30) - 1):
            raise _Stopped


def _pieces(url: str, first: int) -> Iterator[tuple[bytes, int]]:
    """The bytes of ``url`` from ``first`` on in pieces, and where each begins: from 0 where a server knows no ranges.

    Raises ``_Broken`` where another try may help, OSError where not.
    """
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    try:
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
            status = response.status_code
            if status >= 500 or status in PASSING:
                raise _Broken(f"the server answered {status}")
            if status >= 400:
                response.read()
                hf_raise_for_status(response)
            start = first if status == 206 else 0
            for piece in response.iter_bytes():  # as they come: what is gathered first is lost
                yield piece, start
                start += len(piece)
    except (_Broken, OSError):
        raise
    except Exception as error:  # those of the HTTP library, which depends on the hub client's version
        raise _Broken(f"{type(error).__name__}: {error}") from error


def _write(file: IO[bytes], piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


def _digest(remote: Remote, file: IO[bytes]) -> str:
    """The checksum of what is there, of the kind that is expected."""
    git = remote.checksum.kind == "git"
    hasher = hashlib.sha1(f"blob {remote.size}\0".encode()) if git else hashlib.sha256()
    file.seek(0)
    while piece := file.read(2**24):
        hasher.update(piece)
    return hasher.hexdigest()


def _remove_other_versions(place: Path) -> None:
    """What was begun of other contents under this name is of no use any more, unless somebody is at it."""
    for part in place.parent.iterdir():
        if part.name.startswith(f"{place.name}.") and part.suffix == SUFFIX:
            with suppress(OSError), open_locked(part, "in use"):
                part.unlink()
