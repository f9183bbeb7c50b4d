"""Pictures of one shape in a video of another: stretched, cropped to the middle, or with black bars (``--fit``)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Fit = Literal["stretch", "crop", "pad"]
# Shapes that differ by less than this look alike; they are stretched whatever is asked for.
SEEN_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Fitting:
    """How pictures come to ``target``, (height, width): scaled to ``scaled``, then cut or framed to the target."""

    source: tuple[int, int]
    target: tuple[int, int]
    scaled: tuple[int, int]
    fit: Fit

    @property
    def offset(self) -> tuple[int, int]:
        """Rows and columns in front of the target's first pixel in the scaled picture; negative for bars."""
        return tuple((have - want) // 2 for have, want in zip(self.scaled, self.target, strict=True))

    def describe(self, what: str) -> str | None:
        """One line on what happens to the shape of ``what``; None where nothing that is seen does."""
        if not differs(self.source, self.target):
            return None
        shapes = f"{what} is {_size(self.source)}, the video {_size(self.target)}"
        if self.fit == "stretch":
            return f"{shapes}: it is stretched (or --fit crop, --fit pad, --video_size auto)"
        axis = 0 if self.scaled[0] != self.target[0] else 1
        name = ("height", "width")[axis]
        if self.fit == "pad":
            share = 1 - self.scaled[axis] / self.target[axis]
            return f"{shapes}: black bars take {share:.0%} of the {name} (or --fit crop, --video_size auto)"
        share = 1 - self.target[axis] / self.scaled[axis]
        return f"{shapes}: {share:.0%} of its {name} are cut off (or --fit pad, --video_size auto)"


def fitting(source: tuple[int, int], target: tuple[int, int], fit: Fit) -> Fitting:
    """How a picture of ``source``, (height, width), comes to ``target``; ValueError for an unknown ``fit``."""
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}")
    if fit == "stretch" or not differs(source, target):
        return Fitting(source, target, target, "stretch")
    scales = [want / have for have, want in zip(source, target, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    scaled = tuple(
        want if one == scale else max(1, round(have * scale))
        for one, have, want in zip(scales, source, target, strict=True)
    )
    return Fitting(source, target, scaled, fit)


def differs(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes, (height, width), are of shapes that look different."""
    ratio = first[0] * second[1] / (first[1] * second[0])
    return max(ratio, 1 / ratio) > 1 + SEEN_DIFFERENCE


def size_like(source: tuple[int, int], area: int, step: int) -> tuple[int, int]:
    """Height and width in multiples of ``step``, of about ``area`` pixels and the shape of ``source``."""
    height = math.sqrt(area * source[0] / source[1])
    rows = max(1, round(height / step))
    columns = max(1, round(rows * source[1] / source[0]))
    return rows * step, columns * step


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
