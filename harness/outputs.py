"""What a program writes is none of what it reads, and replaces nothing that is not ours."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from inference.files import read_json

# In every picture that we draw, so that another one is never taken for ours and replaced.
PICTURE_MARK = {"Source": "reuse map of a run, drawn beside its video"}


def refuse_inputs(outputs: Iterable[Path], inputs: Mapping[str, str | Path | None]) -> None:
    """ValueError where one of ``outputs`` is the same file as one of ``inputs``, which are called by their flags."""
    for output in outputs:
        for flag, given in inputs.items():
            if given is not None and _same(output, Path(given)):
                raise ValueError(f"{output} would be written, but it is the input of --{flag}; name another output")


def state_path(video: Path) -> Path:
    """Where the state of ``video`` is kept while it is made."""
    return video.with_suffix(".state")


def report_paths(video: Path) -> tuple[Path, Path]:
    """Where the sidecar and the picture of ``video`` stand."""
    return video.with_suffix(".json"), video.with_suffix(".reuse.png")


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
    try:
        contents = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(contents, dict) and {"video", "reuse_map", "config"} <= contents.keys()


def is_our_picture(path: Path) -> bool:
    """Whether a PNG carries the mark of our pictures; it stands in the first bytes of the file."""
    try:
        with path.open("rb") as file:
            return PICTURE_MARK["Source"].encode() in file.read(4096)
    except OSError:
        return False


def numbered(path: Path) -> Path:
    """``path``, or the first of NAME_2, NAME_3, ... that does not exist yet."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
