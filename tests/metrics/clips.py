"""Clips for the tests of metrics: tensors, and files that hold exactly those pixels."""

from pathlib import Path

import av
import torch
from torch import Tensor


def noise(frames: int, height: int = 24, width: int = 32, seed: int = 0) -> Tensor:
    """Independent uniform pixels: uint8 (frames, height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)


def moving(frames: int, height: int = 40, width: int = 48) -> Tensor:
    """A smooth pattern that moves and changes its colour: uint8 (frames, height, width, 3)."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    channels = [torch.sin(0.3 * (x + (2 + c) * t)) + torch.cos(0.2 * (y - c * t)) for c in range(3)]
    return ((torch.stack(channels, dim=-1) + 2) * 63.75).to(torch.uint8)


def write_lossless(path: Path, frames: Tensor, fps: int = 24) -> Path:
    """A file (Matroska, FFV1 in RGB) whose decoded frames are ``frames``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for picture in frames.numpy():
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


def write_deep(path: Path, frames: Tensor, fps: int = 24) -> Path:
    """The same pictures as a file of 10 bits per value (FFV1, yuv444p10)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p10le"
        for picture in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
