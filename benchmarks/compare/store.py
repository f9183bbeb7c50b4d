"""Where results lie, so that a comparison can be stopped, resumed and extended (docs/compare.md, "Resuming").

Every video has a key: the digest of everything that determines it, its reference included. The key is part of the
file's name, so that after a change of settings nothing old is found, and nothing old is lost.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.compare.methods import Entry
from benchmarks.compare.summary import Result
from harness.json_files import save_json
from inference.config import MagiConfig, require_path
from inference.files import replacing

_KEY_LENGTH = 10


@dataclass(frozen=True)
class HeldOut:
    """A prompt of the held-out set and a seed; `identity` gives it its noise, the same for every method."""

    held_out_set: str
    number: int
    seed: int
    prompt: str

    @property
    def name(self) -> str:
        return f"{self.held_out_set}-{self.number}-{self.seed}"

    @property
    def identity(self) -> str:
        """That of example/nano/evaluate.py for the first seed: the same videos."""
        return str(self.number) if self.seed == 0 else f"{self.number}/{self.seed}"


class Store:
    """A folder of results. `conditions`: what all of them depend on (weights, device)."""

    def __init__(self, folder: Path, conditions: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        self.folder = folder
        self._conditions = dict(conditions)
        self._entries = {entry.name: entry for entry in entries}

    def key(self, entry: Entry, sample: HeldOut) -> str:
        reference = None if entry.reference is None else self._entries[entry.reference].describe()
        contents = [self._conditions, entry.describe(), reference, sample.prompt, sample.identity]
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]

    def path(self, entry: Entry, sample: HeldOut, kind: str = "results", suffix: str = ".json") -> Path:
        slug = re.sub(r"[^a-z0-9]+", "_", entry.name.lower()).strip("_")
        return self.folder / kind / slug / f"{sample.name}.{self.key(entry, sample)}{suffix}"

    def load(self, entry: Entry, sample: HeldOut) -> Result | None:
        """The result, or None where there is none; ValueError names a file that is damaged."""
        path = self.path(entry, sample)
        try:
            return Result.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValidationError, ValueError) as error:
            raise ValueError(f"{path} cannot be read; remove it to make it anew: {error}") from error

    def save(self, entry: Entry, sample: HeldOut, result: Result) -> None:
        path = self.path(entry, sample)
        save_json(path, result.model_dump(mode="json"))

    def frames_path(self, entry: Entry, sample: HeldOut) -> Path:
        return self.path(entry, sample, "frames", ".npz")

    def load_frames(self, entry: Entry, sample: HeldOut) -> Tensor:
        """(T, H, W, 3) uint8; FileNotFoundError where they were not kept."""
        with np.load(self.frames_path(entry, sample)) as archive:
            return torch.from_numpy(archive["frames"])

    def save_frames(self, entry: Entry, sample: HeldOut, frames: Tensor) -> None:
        path = self.frames_path(entry, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, frames=frames.numpy())

    def changes_path(self, entry: Entry, sample: HeldOut) -> Path:
        return self.path(entry, sample, "changes")

    def save_changes(self, entry: Entry, sample: HeldOut, changes: list[dict[str, Any]]) -> None:
        path = self.changes_path(entry, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(changes) + "\n", encoding="utf-8")

    def load_changes(self, entry: Entry, sample: HeldOut) -> list[dict[str, Any]] | None:
        path = self.changes_path(entry, sample)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def weights_digest(config: MagiConfig) -> str:
    """Of every file that the configuration names as weights, in order of their names."""
    runtime, digest = config.runtime, hashlib.sha256()
    for setting in ("load", "t5_pretrained", "vae_pretrained", "special_token_path"):
        named = getattr(runtime, setting)
        if named is None and setting == "special_token_path":
            continue
        root = require_path(named, f"runtime_config.{setting}")
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.is_file():
                digest.update(file.relative_to(root).as_posix().encode())
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
