"""What a calibration has made so far, a file each, so that it can be stopped and go on (docs/multistep.md,
"Calibration").

A file's name is a digest of all that determines what is in it: after a change of settings nothing old is found, and
nothing old is lost.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.json_files import save_json
from inference.files import read_json, replacing
from inference.pipeline import Sample

_KEY_LENGTH = 16


@dataclass(frozen=True)
class Caption:
    """A prompt by its place in the list, and whether it only checks what the others chose."""

    number: int
    text: str
    held_out: bool

    @property
    def sample(self) -> Sample:
        """With noise of its own: what was learned from one noise would hold for that one."""
        return Sample(self.text, identity=f"calibration/{self.number}")


@dataclass(frozen=True)
class Uncached:
    """An uncached video. `frames` (T, H, W, 3) uint8; `travelled` (chunks, 16, T, H, W) float32, clean latents less
    noise; `grams` (chunks, N, N) float64, inner products of each chunk's velocities; `times` (N + 1,) noise levels;
    `flop` counted operations.
    """

    frames: np.ndarray
    travelled: np.ndarray
    grams: np.ndarray
    times: np.ndarray
    flop: float


@dataclass(frozen=True)
class Measured:
    """A video made with a method: dB against the uncached one, counted operations."""

    psnr: float
    flop: float


class Work:
    """A folder of what was made. `conditions`: what all of it depends on (weights, step count, length, seed, ...)."""

    def __init__(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        self.folder = folder
        self._conditions = dict(conditions)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, caption: Caption, settings: Mapping[str, Any] | None) -> Path:
        """Of a video made with `settings`, or of the uncached one."""
        key = self._key([caption.text, caption.sample.identity, settings])
        return self.folder / f"{caption.number:03d}-{key}{'.npz' if settings is None else '.json'}"

    def fit_path(self, captions: Sequence[Caption], settings: Mapping[str, Any]) -> Path:
        """Of a fit of coefficients to `captions`, so far."""
        return self.folder / f"fit-{self._key([[caption.text for caption in captions], settings])}.pt"

    def _key(self, contents: Sequence[Any]) -> str:
        text = json.dumps([self._conditions, *contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    def uncached(self, caption: Caption, make: Callable[[], Uncached]) -> Uncached:
        """The uncached video, made where it is missing."""
        path = self.path(caption, None)
        if not path.exists():
            with replacing(path) as part, part.open("wb") as file:
                np.savez_compressed(file, **asdict(make()))
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in ("frames", "travelled", "grams", "times")}
            return Uncached(**arrays, flop=float(archive["flop"]))

    def measured(self, caption: Caption, settings: Mapping[str, Any], make: Callable[[], Measured]) -> Measured:
        """What a method reaches, measured where that is missing."""
        path = self.path(caption, settings)
        if not path.exists():
            save_json(path, asdict(make()))
        found = read_json(path)
        return Measured(found["psnr"], found["flop"])
