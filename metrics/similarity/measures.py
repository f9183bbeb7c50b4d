"""How alike two videos are, frame by frame: PSNR, SSIM and LPIPS (docs/metrics.md, "Definitions").

Frames come in batches, and of each a few numbers are kept, so that videos of any length fit into memory.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from metrics.similarity.lpips_distance import LpipsDistance

# The window of SSIM, 11x11, has to fit into a frame.
MIN_SIZE = 11


@dataclass(frozen=True)
class KeptFrame:
    """Frame ``index`` of both videos, uint8 (H, W, 3), for a picture."""

    index: int
    original: Tensor
    generated: Tensor


@dataclass(frozen=True)
class Similarity:
    """The figures of two videos: per frame, in order, and over all frames.

    ``mse`` is that of values from 0 to 1. PSNR is in dB; where nothing differs it is infinite, here None.
    """

    mse: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None = None
    kept: tuple[KeptFrame, ...] = field(default=(), repr=False)

    @property
    def identical(self) -> bool:
        """Every pixel of every frame is the same."""
        return not any(self.mse)

    @property
    def identical_frames(self) -> int:
        return sum(not error for error in self.mse)

    @cached_property
    def psnr_per_frame(self) -> tuple[float | None, ...]:
        return tuple(psnr(error) for error in self.mse)

    @property
    def psnr(self) -> float | None:
        """Of the mean squared error over all frames, as the FlowCache paper has it."""
        return psnr(mean(self.mse))

    @property
    def psnr_frame_mean(self) -> float | None:
        """The mean of the frames' own PSNR, over those that differ; never below ``psnr`` where all do (Jensen)."""
        finite = [value for value in self.psnr_per_frame if value is not None]
        return mean(finite) if finite else None

    @property
    def ssim_mean(self) -> float:
        return mean(self.ssim)

    @property
    def lpips_mean(self) -> float | None:
        return None if self.lpips is None else mean(self.lpips)


def psnr(mse: float) -> float | None:
    """Peak signal-to-noise ratio in dB of values from 0 to 1; None where there is no error."""
    return -10 * math.log10(mse) if mse else None


def mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)


def compare(
    batches: Iterable[tuple[Tensor, Tensor]],
    lpips: LpipsDistance | None = None,
    device: torch.device | None = None,
    keep: Collection[int] = (),
) -> Similarity:
    """The figures of two videos of the same size and length.

    Args:
        batches: frames of both, uint8 (n, H, W, 3) each, in order; batches need not be equally long.
        lpips: the network, on ``device``; without it LPIPS is left out.
        device: where to compute; None is the CPU.
        keep: indices of the frames that :attr:`Similarity.kept` holds.

    Raises:
        ValueError: no frames, or frames too small for SSIM.
    """
    errors: list[float] = []
    ssim: list[float] = []
    distances: list[float] = []
    kept: list[KeptFrame] = []
    for original, generated in batches:
        _check_size(original)
        first = len(errors)
        kept += [
            KeptFrame(index, original[index - first].clone(), generated[index - first].clone())
            for index in sorted(keep)
            if first <= index < first + len(original)
        ]
        original, generated = original.to(device or "cpu"), generated.to(device or "cpu")
        errors += squared_errors(original, generated)
        ssim += structural_similarities(original, generated)
        if lpips is not None:
            distances += lpips(original, generated)
    if not errors:
        raise ValueError("no frames to compare")
    return Similarity(tuple(errors), tuple(ssim), None if lpips is None else tuple(distances), tuple(kept))


def squared_errors(original: Tensor, generated: Tensor) -> list[float]:
    """Mean squared error of every frame, values taken from 0 to 1; inputs uint8 (n, H, W, 3).

    Summed in integers wide enough: differences of uint8 would wrap around, and float32 sums depend on their order.
    """
    difference = original.to(torch.int32) - generated.to(torch.int32)
    sums = (difference * difference).flatten(1).sum(dim=1, dtype=torch.int64)
    return [total / (difference[0].numel() * 255**2) for total in sums.tolist()]


def structural_similarities(original: Tensor, generated: Tensor) -> list[float]:
    """SSIM of every frame, mean over pixels and channels: Gaussian window of 11x11 with sigma 1.5, data range 1, frames
    mirrored at their borders.
    """
    # Here: it brings torchvision, and takes longer to import than all else.
    from torchmetrics.functional.image import structural_similarity_index_measure

    images = [frames.movedim(-1, 1).float() / 255 for frames in (generated, original)]
    values = structural_similarity_index_measure(*images, data_range=1.0, reduction="none")
    return values.reshape(len(original)).tolist()


def _check_size(frames: Tensor) -> None:
    height, width = frames.shape[1:3]
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"the frames are {width}x{height}; SSIM needs at least {MIN_SIZE}x{MIN_SIZE}")
