"""The noise that a video begins with: which, and how it is drawn (docs/sampler.md, "Noise")."""

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor


def sample_seed(base_seed: int, identity: str) -> int:
    """Seed of a sample's noise: depends on the base seed and on the sample alone, not on what ran before it.

    (docs/sampler.md, "Noise")
    """
    digest = hashlib.sha256(f"{base_seed}/{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_noise(seed: int, chunks: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Standard normal noise (1, C, chunks * T, H, W), float32, for ``shape`` (C, T, H, W).

    Drawn on the CPU, chunk by chunk: the same on every device, and a longer video begins with the noise of a shorter
    one.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(1, *shape, generator=generator) for _ in range(chunks)], dim=2)


class NoiseSource(Protocol):
    """Where the chunks of a video begin; asked for in ascending order."""

    def chunk(self, number: int) -> Tensor:
        """(C, T, H, W) float32 of chunk ``number``, given chunks counted."""
        ...

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on after the last chunk that was asked for."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class DrawnNoise:
    """``draw_noise`` a chunk at a time, for a video of any length.

    Args:
        seed: as ``sample_seed`` gives it.
        shape: of a chunk, (C, T, H, W).
        device: where the chunks are needed.
    """

    def __init__(self, seed: int, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shape = shape
        self._device = device
        self._drawn = 0

    def chunk(self, number: int) -> Tensor:
        if number < self._drawn:
            raise ValueError(f"the noise of chunk {number} was drawn before; the next is that of chunk {self._drawn}")
        while self._drawn <= number:
            noise = torch.randn(1, *self._shape, generator=self._generator)[0]
            self._drawn += 1
        return noise.to(self._device)

    def state(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]
        self._generator.set_state(state["generator"])


class GivenNoise:
    """Noise (1, C, chunks * T, H, W) that is there as a whole."""

    def __init__(self, noise: Tensor, chunk_width: int) -> None:
        self._chunks = noise[0].split(chunk_width, dim=1)

    def chunk(self, number: int) -> Tensor:
        return self._chunks[number]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return None
