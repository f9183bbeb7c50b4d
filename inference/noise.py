"""The noise that a video begins with: which, and how it is drawn (docs/sampler.md, "Noise")."""

import hashlib

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
