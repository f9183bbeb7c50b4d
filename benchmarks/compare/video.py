"""Several videos side by side in one file, each with its name above it."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inference.video.writing import VideoWriter

_CELL = 192  # pixels that the longer side of a small video is brought to at least, by a whole factor
_LABEL = 22
_GAP = 6
_COLUMNS = 3
_PAPER, _INK = 24, 230


def write_side_by_side(path: Path, videos: Mapping[str, Tensor], fps: int) -> None:
    """Write an mp4 of `videos`, uint8 (T, H, W, 3) by label, in rows of three, in their order."""
    shapes = {label: tuple(video.shape) for label, video in videos.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"videos side by side must be equally long and large, not {shapes}")
    count, height, width, _ = next(iter(shapes.values()))
    scale = max(1, _CELL // max(height, width))
    columns = min(_COLUMNS, len(videos))
    rows = math.ceil(len(videos) / columns)
    cell_height, cell_width = height * scale + _LABEL + _GAP, width * scale + _GAP
    size = (_even(rows * cell_height + _GAP), _even(columns * cell_width + _GAP))
    canvas = torch.full((count, *size, 3), _PAPER, dtype=torch.uint8)
    for place, (label, video) in enumerate(videos.items()):
        top, left = place // columns * cell_height + _GAP, place % columns * cell_width + _GAP
        canvas[:, top : top + _LABEL, left : left + width * scale] = _label(label, width * scale)
        larger = video.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        canvas[:, top + _LABEL : top + _LABEL + height * scale, left : left + width * scale] = larger
    with VideoWriter(path, fps, *size) as writer:
        writer.append(canvas)


def _even(value: int) -> int:
    return value + value % 2


def _label(text: str, width: int) -> Tensor:
    """(LABEL, width, 3) uint8, in letters as large as fit."""
    image = Image.new("L", (width, _LABEL), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    for size in range(14, 5, -1):
        font = ImageFont.load_default(size)
        if draw.textlength(text, font=font) <= width:
            break
    draw.text((0, 2), text, fill=_INK, font=font)
    return torch.from_numpy(np.array(image))[..., None].expand(-1, -1, 3)
