"""A sample is looked at, not only counted: a video without a picture is damaged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.video.writing import VideoWriter
from sampling.verify import damage, file_digest

FRAMES, SIZE = 24, 32


def problem_of(path: Path, frames: torch.Tensor) -> str | None:
    with VideoWriter(path, 24, SIZE, SIZE) as writer:
        writer.append(frames)
    runtime = SimpleNamespace(num_frames=FRAMES, fps=24, video_size_h=SIZE, video_size_w=SIZE)
    job: Any = SimpleNamespace(model=SimpleNamespace(runtime=runtime))
    return damage(path, file_digest(path), job)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_value_everywhere_is_no_picture(tmp_path: Path, value: int) -> None:
    frames = torch.full((FRAMES, SIZE, SIZE, 3), value, dtype=torch.uint8)
    assert "same brightness" in str(problem_of(tmp_path / "video.mp4", frames))


def test_a_dark_video_with_something_in_it_is_one(tmp_path: Path) -> None:
    frames = torch.zeros(FRAMES, SIZE, SIZE, 3, dtype=torch.uint8)
    frames[20, 8:16, 8:16] = 40
    assert problem_of(tmp_path / "video.mp4", frames) is None
