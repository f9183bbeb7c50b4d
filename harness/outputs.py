"""What a program writes is none of what it reads, and replaces nothing that is not ours."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from inference.files import read_json

# Whether a file was left by the program that is about to write it.
Ours = Callable[[Path], bool]
Inputs = Mapping[str, str | Path | Iterable[Path] | None]

# In every picture that we draw, so that another one is never taken for ours and replaced.
PICTURE_MARK = {"Source": "reuse map of a run, drawn beside its video"}
FIGURE_MARK = {"Source": "figure of a comparison of videos, drawn beside its table"}


def refuse_inputs(outputs: Iterable[Path], inputs: Inputs) -> None:
    """ValueError where one of ``outputs`` is the same file as one of ``inputs``, which are called by their flags."""
    written = {file: output for output in outputs if (file := _file_of(output)) is not None}
    if not written:
        return
    for flag, given in inputs.items():
        paths = [given] if isinstance(given, str | Path) else given or ()
        for path in paths:
            if output := written.get(_file_of(Path(path))):
                raise ValueError(f"{output} would be written, but it is the input of --{flag}; name another output")


def state_path(video: Path) -> Path:
    """Where the state of ``video`` is kept while it is made."""
    return video.with_suffix(".state")


def report_paths(video: Path) -> tuple[Path, Path]:
    """Where the sidecar and the picture of ``video`` stand."""
    return video.with_suffix(".json"), video.with_suffix(".reuse.png")


def check_outputs(outputs: Mapping[Path, Ours], inputs: Inputs) -> None:
    """Refuse what must not be written, before anything is loaded.

    Raises ValueError where an output is one of ``inputs``, or a file that is not ours, and OSError for a folder.
    """
    refuse_inputs(outputs, inputs)
    for path, ours in outputs.items():
        if path.is_dir():
            raise IsADirectoryError(f"{path} would be written, but it is a folder; name a file")
        if path.exists() and not ours(path):
            raise ValueError(
                f"{path} would be replaced, but this program has not left it; move it, or name another output"
            )


def json_with(*keys: str) -> Ours:
    """A JSON object that has all of ``keys``."""

    def ours(path: Path) -> bool:
        contents = _json(path)
        return isinstance(contents, dict) and set(keys) <= contents.keys()

    return ours


def beginning_with(*beginnings: str) -> Ours:
    """A text that begins with one of ``beginnings``."""

    def ours(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                first = file.read(max(len(text.encode()) for text in beginnings))
        except OSError:
            return False
        return any(first.startswith(text.encode()) for text in beginnings)

    return ours


def own_json(*keys: str) -> Callable[[str], Path]:
    """For the flag of an output: its path, once ``check_outputs`` has nothing against it."""

    def path(text: str) -> Path:
        try:
            check_outputs({Path(text): json_with(*keys)}, {})
        except (ValueError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return Path(text)

    return path


def refuse_foreign_report(sidecar: Path, picture: Path) -> None:
    """ValueError where what stands in the place of a run's sidecar or picture was not left by a run."""
    if sidecar.is_file() and not is_sidecar(sidecar):
        raise ValueError(
            f"{sidecar} would be replaced by the run's sidecar, but no run has left it; move it, or name another output"
        )
    if picture.is_file() and not (is_our_picture(picture) or is_sidecar(sidecar)):
        raise ValueError(
            f"{picture} would be replaced by the run's picture, but no run has left it; move it, or name another output"
        )


def is_sidecar(path: Path) -> bool:
    """Whether a file is a sidecar of one of our runs."""
    return json_with("video", "reuse_map", "config")(path)


def is_our_picture(path: Path, mark: Mapping[str, str] = PICTURE_MARK) -> bool:
    """Whether a PNG carries the mark of our pictures; it stands in the first bytes of the file."""
    try:
        with path.open("rb") as file:
            return mark["Source"].encode() in file.read(4096)
    except OSError:
        return False


def is_our_figure(path: Path) -> bool:
    return is_our_picture(path, FIGURE_MARK)


def numbered(path: Path) -> Path:
    """``path``, or the first of NAME_2, NAME_3, ... that does not exist yet."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def _file_of(path: Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever it is called (as ``os.path.samefile``); None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _json(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
