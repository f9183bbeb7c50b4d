"""How a video changes while it goes on: figures per second, and their slope (docs/metrics.md, "Drift").

A video that is made chunk after chunk may lose sharpness, gain saturation or come to rest. No other video is needed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metrics.similarity.measures import MIN_SIZE, mean, structural_similarities

matplotlib.use("Agg")

# What is measured of each second, in the order of tables and pictures.
FIGURES = {
    "sharpness": "variance of the Laplacian of luma",
    "contrast": "standard deviation of luma within a frame",
    "saturation": "(largest - smallest channel) / largest, mean over pixels",
    "brightness": "mean luma",
    "motion": "mean absolute difference of luma to the frame before",
    "likeness": "SSIM with the frame at the same place of the first second",
}
LUMA = (0.299, 0.587, 0.114)  # BT.601
# Residuals of a line through fewer points say nothing.
FEWEST_POINTS = 3
LOWEST_RATE = 2


@dataclass(frozen=True)
class Slope:
    """Change per second by least squares; ``error`` is its standard error, None with fewer than three points."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Drift:
    """Figures of every whole second, in order, by the names of ``FIGURES``; ``left_out`` frames came after the last."""

    seconds: dict[str, tuple[float, ...]]
    left_out: int

    def slope(self, name: str) -> Slope | None:
        """Of one figure; None where there are no two points. Likeness begins with the second second: the first is
        compared with itself.
        """
        values = self.seconds[name]
        first = 1 if name == "likeness" else 0
        times = range(first, len(values))
        return fit(list(times), values[first:]) if len(times) > 1 else None


def fit(times: Sequence[float], values: Sequence[float]) -> Slope:
    """The line of least squares through two points or more at different times."""
    middle, level = mean(times), mean(values)
    spread = math.fsum((time - middle) ** 2 for time in times)
    slope = math.fsum((time - middle) * (value - level) for time, value in zip(times, values, strict=True)) / spread
    if len(times) < FEWEST_POINTS:
        return Slope(slope, None)
    squares = math.fsum(
        (value - level - slope * (time - middle)) ** 2 for time, value in zip(times, values, strict=True)
    )
    return Slope(slope, math.sqrt(squares / (len(times) - 2) / spread))


def measure_drift(frames: Iterable[Tensor], fps: float) -> Drift:
    """Figures of every whole second of a video.

    Args:
        frames: uint8 (H, W, 3) RGB each, in order; one second of them is held.
        fps: frame i belongs to second floor(i / fps).

    Raises:
        ValueError: a rate below two, frames too small for SSIM, or less than two seconds.
    """
    if not fps >= LOWEST_RATE:
        raise ValueError(f"{fps:g} frames per second: motion within a second needs at least {LOWEST_RATE}")
    sums: list[dict[str, list[float]]] = []
    first: list[Tensor] = []
    before: np.ndarray | None = None
    count = place = 0
    for frame in frames:
        second = int(count / fps)
        if second == len(sums):
            sums.append({name: [] for name in FIGURES})
            place = 0
        if second == 0:
            _check_size(frame)
            first.append(frame)
        luma = (frame.numpy() / 255.0) @ np.array(LUMA)
        for name, value in _of_frame(frame, luma, before, first[min(place, len(first) - 1)]).items():
            sums[-1][name].append(value)
        before, count, place = luma, count + 1, place + 1
    whole = int(count / fps)
    if whole < 2:
        raise ValueError(f"{count} frames at {fps:g} per second: drift needs at least two whole seconds")
    seconds = {name: tuple(mean(each[name]) for each in sums[:whole]) for name in FIGURES}
    return Drift(seconds, count - math.ceil(whole * fps))


def _of_frame(frame: Tensor, luma: np.ndarray, before: np.ndarray | None, reference: Tensor) -> dict[str, float]:
    """The figures of one frame; the first of a video has no motion."""
    largest, smallest = frame.amax(-1).double(), frame.amin(-1).double()
    found = {
        "sharpness": float(cv2.Laplacian(luma, cv2.CV_64F).var()),
        "contrast": float(luma.std()),
        "saturation": float(((largest - smallest) / largest.clamp(min=1)).mean()),
        "brightness": float(luma.mean()),
        "likeness": structural_similarities(reference[None], frame[None])[0],
    }
    return found if before is None else found | {"motion": float(np.abs(luma - before).mean())}


def _check_size(frame: Tensor) -> None:
    if min(frame.shape[:2]) < MIN_SIZE:
        raise ValueError(f"the frames are {frame.shape[1]}x{frame.shape[0]}; SSIM needs {MIN_SIZE}x{MIN_SIZE}")


def drift_entry(drift: Drift) -> dict[str, object]:
    """As the JSON file has it."""
    slopes = {name: drift.slope(name) for name in FIGURES}
    return {
        "seconds": len(drift.seconds["brightness"]),
        "frames_left_out": drift.left_out,
        "figures": {
            name: {
                "definition": text,
                "per_second": list(drift.seconds[name]),
                "slope": None if (slope := slopes[name]) is None else slope.value,
                "slope_error": None if slope is None else slope.error,
            }
            for name, text in FIGURES.items()
        },
    }


def drift_table(drift: Drift) -> str:
    """Lines for people: the first and the last second, and the change per second with its error."""
    head = f"{'figure':10}  {'first':>9}  {'last':>9}  {'per second':>11}  {'error':>10}"
    lines = [head, "-" * len(head)]
    for name, values in drift.seconds.items():
        slope = drift.slope(name)
        change = "-" if slope is None else f"{slope.value:+.2e}"
        error = "-" if slope is None or slope.error is None else f"{slope.error:.1e}"
        lines.append(f"{name:10}  {values[0]:9.5f}  {values[-1]:9.5f}  {change:>11}  {error:>10}")
    return "\n".join(lines)


def draw_drift(path: Path, drift: Drift, title: str, about: Mapping[str, str] | None = None) -> None:
    """Write ``path`` as PNG: a curve per figure over the seconds, with its line."""
    figure = Figure(figsize=(8, 1.5 * len(FIGURES) + 0.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(FIGURES), 1, sharex=True)
    for axis, (name, values) in zip(axes, drift.seconds.items(), strict=True):
        axis.plot(values, "o-", color="#1f4e79", markersize=3, linewidth=1)
        if (slope := drift.slope(name)) is not None:
            first = 1 if name == "likeness" else 0
            times = np.arange(first, len(values))
            line = mean(values[first:]) + slope.value * (times - times.mean())
            error = "" if slope.error is None else f" ± {slope.error:.1e}"
            axis.plot(times, line, color="#c0504d", linewidth=1, label=f"{slope.value:+.2e}{error} per s")
            axis.legend(loc="upper right", fontsize=7)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("second")
    figure.savefig(path, dpi=110, format="png", metadata=dict(about or {}))
