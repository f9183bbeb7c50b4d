"""Pictures and clips in memory: the same pixels as of files that keep every value."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from inference.video.reading import read_image, read_video
from inference.video.tensors import Clip, fit_clip, fit_image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def lossless(path: Path, frames: np.ndarray, rate: Fraction) -> Path:
    """A clip that keeps every RGB value."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.codec_context.time_base = 1 / rate
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_is_that_of_its_file(tmp_path: Path, fit: str, channels: int) -> None:
    pixels = noise(50, 90, channels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png", 64, 64, fit)
    assert torch.equal(fit_image(torch.from_numpy(pixels), 64, 64, fit), expected)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(8)])
def test_a_clip_is_that_of_its_file(tmp_path: Path, fit: str, rate: Fraction) -> None:
    frames = noise(40, 50, 90, 3)
    expected = read_video(lossless(tmp_path / "a.mov", frames, rate), 24, 64, 64, "last", fit)
    for fps in (rate, float(rate)):
        found = fit_clip(Clip(torch.from_numpy(frames), fps), 24, 64, 64, "last", fit)
        assert torch.equal(found, expected)


def test_nothing_is_done_to_what_fits() -> None:
    frames = torch.from_numpy(noise(48, 64, 64, 3))
    assert torch.equal(fit_clip(Clip(frames, 24), 24, 64, 64, "last"), frames)
    assert torch.equal(fit_image(frames[0], 64, 64)[0], frames[0])


def test_transparency_is_shown_on_white() -> None:
    frames = torch.zeros(24, 64, 64, 4, dtype=torch.uint8)
    assert fit_clip(Clip(frames, 24), 24, 64, 64, "last").min() == 255


@pytest.mark.parametrize(
    ("frames", "fps", "said"),
    [
        (torch.zeros(24, 64, 64, 3), 24, r"must be uint8 \(T, H, W, 3\), got float32"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), 24, r"must be uint8 \(T, H, W, 3\)"),
        (torch.zeros(24, 64, 64, 2, dtype=torch.uint8), 24, r"got uint8 \(24, 64, 64, 2\)"),
        (torch.zeros(0, 64, 64, 3, dtype=torch.uint8), 24, "has no frames"),
        (torch.zeros(24, 4, 64, 3, dtype=torch.uint8), 24, "below 8x8 are refused"),
        (torch.zeros(24, 64, 64, 3, dtype=torch.uint8), 0.0, "above 0, got 0"),
        (torch.zeros(24, 64, 64, 3, dtype=torch.uint8), float("nan"), "above 0, got nan"),
    ],
)
def test_what_is_no_clip(frames: torch.Tensor, fps: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_clip(Clip(frames, fps), 24, 64, 64, "last")


def test_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match=r"the image must be uint8 \(H, W, 3\), got uint8 \(1, 64, 64, 3\)"):
        fit_image(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 64, 64)
    with pytest.raises(ValueError, match="the image is 4x64 pixels"):
        fit_image(torch.zeros(64, 4, 3, dtype=torch.uint8), 64, 64)
