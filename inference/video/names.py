"""The names of a video that is to be written, checked long before it is: torch is not needed for that.

Source: docs/conditioning.md, "Writing the video".
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from inference.files import hidden_beside, longest_name

# What stands beside a video has the longest names.
_LONGEST_ENDING = ".reuse.png"
_PARTIAL = ".partial"


def check_output_path(path: str | Path, *, trial: bool = True) -> Path:
    """Make sure early that the video can be written later: makes the folder and tries to write in it. Without ``trial``
    nothing is made: only the name is looked at.

    Raises ValueError if the name does not end in .mp4, and OSError (IsADirectoryError, PermissionError, ...) if the
    path is a folder, its name is too long, its folder cannot be made or written to, or another run is writing it.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the output is an mp4 video, its name must end in .mp4: {path}")
    _check_name(path.stem, path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder; give the name of a file in it")
    target = real_path(path)
    for place in {path.parent, target.parent}:
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"cannot write to the output folder {place}: it is a file")
        if trial:
            _try_to_write(place, path.name)
        _check_name(path.stem if place == path.parent else target.stem, place)
    if hidden_beside(target, "part.mp4").exists():
        _refuse_a_second_writer(target)
    return path


def existing_folder(folder: Path) -> Path:
    """``folder``, or the first above it that exists: where it would be made."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _try_to_write(folder: Path, name: str) -> None:
    trial = hidden_beside(folder / name, f"{os.getpid()}.trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"trial")
    except OSError as error:
        raise OSError(error.errno, f"cannot write to the output folder {folder}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            trial.unlink()


def _check_name(stem: str, folder: Path) -> None:
    size, most = len(os.fsencode(stem + _LONGEST_ENDING)), longest_name(existing_folder(folder))
    if size > most:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the name {stem}.mp4 is too long: with {_LONGEST_ENDING} for the picture beside it, it has {size} bytes, "
            f"and {folder} takes {most}; shorten it by {size - most}",
        )


def _refuse_a_second_writer(target: Path) -> None:
    from inference.video.unfinished import UnfinishedVideo

    hidden = UnfinishedVideo(target)  # BlockingIOError where it is locked
    hidden.leave()


def real_path(path: Path) -> Path:
    """The file that ``path`` means: a symbolic link is followed, not replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def partial_path(path: Path) -> Path:
    """The name of an unfinished video beside ``path``, with room for the longest ending."""
    stem, room = os.fsencode(path.stem), longest_name(path.parent) - len(_PARTIAL + _LONGEST_ENDING)
    return path.with_name(stem[:room].decode(errors="ignore") + f"{_PARTIAL}.mp4")
