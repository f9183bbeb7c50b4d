"""What is kept beside a video so that its making can go on after the process has ended (docs/long_video.md, "Resume").

A folder NAME.state: of the chunk behind which to go on one file per rank, CHUNK.RANK.pt. A file appears when it is
complete, and those of an earlier chunk go when it has. Ranks write one after the other, so several keep two chunks:
one of them is there from all.
"""

import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.outputs import state_path
from inference.files import replacing
from inference.reuse import State

FORMAT = 1
_NAME = re.compile(r"(\d+)\.(\d+)\.pt")


class StateFolder:
    """The states of one video, for one of the ranks that make it."""

    def __init__(self, video: Path, rank: int = 0, ranks: int = 1) -> None:
        self.path = state_path(video)
        self.rank = rank
        self.ranks = ranks

    def newest(self) -> int | None:
        """The last chunk of which every rank has a state; None without any. ValueError where it is no such folder."""
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise ValueError(f"{self.path} would hold the state of the run, but it is a file; move it")
        found = self._files()
        whole = [chunk for chunk, rank in found if all((chunk, other) in found for other in range(self.ranks))]
        return max(whole, default=None)

    def load(self, chunk: int) -> dict[str, Any]:
        """What this rank saved of ``chunk``; ValueError where that is damaged or of another kind of program."""
        path = self._file(chunk)
        try:
            # Numbers, text and tensors only: nothing in it is run.
            contents = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, OSError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} is damaged ({(str(error) or type(error).__name__).splitlines()[0]}); {self.way_out}"
            ) from error
        if not isinstance(contents, dict) or contents.get("format") != FORMAT:
            raise ValueError(f"{path} was not left by this version of the program; {self.way_out}")
        return contents

    def save(self, chunk: int, contents: Mapping[str, Any]) -> None:
        """Keep ``contents`` for going on behind ``chunk``, in the place of what is older; OSError where it fails."""
        self.path.mkdir(exist_ok=True)
        with replacing(self._file(chunk)) as part, part.open("wb") as file:
            torch.save({"format": FORMAT, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
        mine = sorted((other for other, rank in self._files() if rank == self.rank), reverse=True)
        for other in mine[1 if self.ranks == 1 else 2 :]:
            self._file(other).unlink()

    def tidy(self) -> None:
        """Remove files that a process had begun when it was killed; before any rank saves."""
        for file in self.path.glob(".~*") if self.path.is_dir() else ():
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget what this rank has saved; another one may be saving at this moment. Files that are not ours stay."""
        if not self.path.is_dir():
            return
        for chunk, rank in self._files():
            if rank == self.rank:
                self._file(chunk).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    @property
    def way_out(self) -> str:
        """What to do where a state cannot be used."""
        return f"remove {self.path} to begin anew, or name another output"

    def _file(self, chunk: int) -> Path:
        return self.path / f"{chunk}.{self.rank}.pt"

    def _files(self) -> set[tuple[int, int]]:
        """Chunks and ranks."""
        names = (_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return {(int(name[1]), int(name[2])) for name in names if name}


def state_bytes(state: Any) -> int:
    """What the tensors of ``state`` take."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(state_bytes(part) for part in state.values())
    if isinstance(state, (list, tuple)):
        return sum(state_bytes(part) for part in state)
    return 0


def differences(saved: State, now: State, path: str = "") -> list[str]:
    """In words, where two nested dictionaries differ."""
    found = []
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{path}{name}.")
        elif before != after:
            found.append(f"{path}{name} was {_short(before)} and is {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
