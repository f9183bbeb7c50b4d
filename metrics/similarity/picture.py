"""A picture of how alike two videos are: curves over the frames, and some frames of both with their difference."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metrics.similarity.measures import KeptFrame, Similarity
from metrics.similarity.report import per_frame

matplotlib.use("Agg")

STRIP_FRAMES = 8
MAX_PICTURE = 320  # pixels of a frame's longer side in the strip
CURVES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}


def strip_indices(frames: int) -> list[int]:
    """Frames of the strip: evenly spaced, the first and the last included."""
    return sorted({round(index) for index in np.linspace(0, frames - 1, STRIP_FRAMES)})


def draw(path: Path, result: Similarity, title: str, notes: Mapping[str, str] | None = None) -> None:
    """Write ``path`` as PNG, which carries ``notes``; ``result`` holds the frames of the strip."""
    curves = {name: values for name, values in per_frame(result).items() if values is not None}
    height, width = result.kept[0].original.shape[:2] if result.kept else (1, 1)
    columns = max(len(result.kept), 1)
    cell = 12 / columns
    figure = Figure(figsize=(12.5, 1.6 * len(curves) + 3 * cell * height / width + 0.9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.6 * len(curves) + 0.4, 3 * cell * height / width + 0.4])
    figure.suptitle(title)
    _draw_curves(upper.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0], curves)
    if result.kept:
        _draw_strip(lower.subplots(3, columns, squeeze=False), result.kept)
    figure.savefig(path, dpi=110, format="png", metadata=None if notes is None else dict(notes))


def _draw_curves(axes: Sequence[Axes], curves: dict[str, list[float | None]]) -> None:
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        # Gaps where frames are identical and PSNR is infinite.
        axis.plot([math.nan if value is None else value for value in values], color="#1f4e79", linewidth=1.2)
        axis.set_ylabel(CURVES[name])
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("frame")
    axes[-1].set_xlim(0, max(len(next(iter(curves.values()))) - 1, 1))


def _draw_strip(axes: np.ndarray, kept: Sequence[KeptFrame]) -> None:
    """Rows: original, generated, their difference made brighter by the same power of two everywhere."""
    step = -(-max(kept[0].original.shape[:2]) // MAX_PICTURE)
    pairs = [(frame.original.numpy().astype(int), frame.generated.numpy().astype(int)) for frame in kept]
    largest = max(int(np.abs(first - second).max()) for first, second in pairs)
    gain = 2 ** int(math.log2(255 / largest)) if largest else 1
    for column, (frame, (first, second)) in enumerate(zip(kept, pairs, strict=True)):
        difference = np.minimum(np.abs(first - second) * gain, 255)
        for row, picture in enumerate((first, second, difference)):
            axis = axes[row, column]
            axis.imshow(picture[::step, ::step].astype(np.uint8))
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"frame {frame.index}", fontsize=8)
    for row, label in enumerate(("original", "generated", f"difference x{gain}" if gain > 1 else "difference")):
        axes[row, 0].set_ylabel(label, fontsize=8)
