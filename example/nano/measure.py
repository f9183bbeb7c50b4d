"""Does a video show what its scene says? Measured on the frames of one-object scenes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from example.nano.data import BACKGROUNDS, COLOURS, SHAPES, WORLD, Scene, draw_background, stamp

_DIFFERENT = 60.0  # distance in RGB from the background at which a pixel belongs to an object
_STEP = 4  # frames between two measurements


@dataclass(frozen=True)
class Finding:
    """Which attributes are right."""

    background: bool
    colour: bool
    shape: bool
    motion: bool

    def __str__(self) -> str:
        return "".join(field.name[0] if getattr(self, field.name) else "-" for field in fields(self))

    @staticmethod
    def summary(findings: list[Finding]) -> str:
        parts = [f"{f.name} {np.mean([getattr(x, f.name) for x in findings]):.0%}" for f in fields(Finding)]
        return ", ".join(parts) + f" of {len(findings)}"


def nearest_background(video: np.ndarray) -> str:
    """By the median picture over time and columns, which a moving object leaves alone."""
    profile = np.median(video.astype(np.float32), axis=(0, 2))
    return min(BACKGROUNDS, key=lambda name: float(np.abs(draw_background(name)[:, 0] - profile).mean()))


def object_masks(video: np.ndarray, background: str) -> np.ndarray:
    """(T, H, W) bool: pixels unlike the background."""
    return np.linalg.norm(video.astype(np.float32) - draw_background(background), axis=-1) > _DIFFERENT


def nearest_colour(video: np.ndarray, masks: np.ndarray) -> str | None:
    if masks.sum() < 20 * len(masks):
        return None
    mean = np.median(video[masks].astype(np.float32), axis=0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(np.array(COLOURS[name]) - mean)))


def circular_centre(mask: np.ndarray) -> tuple[float, float] | None:
    """Centre (x, y) of a mask on the torus, in pixels."""
    if mask.sum() < 12:
        return None
    grid = np.exp(2j * np.pi * (np.arange(WORLD) + 0.5) / WORLD)
    x, y = (np.angle((mask.sum(axis) * grid).sum()) * WORLD / (2 * np.pi) % WORLD for axis in (0, 1))
    return float(x), float(y)


def best_shape(mask: np.ndarray, centre: tuple[float, float]) -> str:
    """The shape whose outline of the same area covers the mask best."""

    def overlap(shape: str) -> float:
        best = 0.0
        areas = {"circle": np.pi, "square": 4 * 0.89**2, "triangle": 3 * np.sqrt(3) * 0.7**2}
        radius = np.sqrt(mask.sum() / areas[shape])
        for dy in np.linspace(-3, 3, 7):
            drawn = _draw(shape, (centre[0], centre[1] + dy), radius)
            best = max(best, (mask & drawn).sum() / (mask | drawn).sum())
        return best

    return max(SHAPES, key=overlap)


def _draw(shape: str, centre: tuple[float, float], radius: float) -> np.ndarray:
    x, y, r = (np.array([value]) for value in (*centre, radius))
    return stamp(shape, x, y, r)[0] > 0.5


def movement(centres: np.ndarray, areas: np.ndarray) -> str:
    """The kind of motion of a path (T, 2), in pixels every `_STEP` frames, on the torus."""
    steps = (np.diff(centres, axis=0) + WORLD / 2) % WORLD - WORLD / 2
    mean, spread = steps.mean(0) / _STEP, steps.std(0) / _STEP
    if abs(mean[0]) > 0.3 or abs(mean[1]) > 0.3:
        if abs(mean[0]) > abs(mean[1]):
            return "right" if mean[0] > 0 else "left"
        return "down" if mean[1] > 0 else "up"
    if spread[1] > 0.45:
        return "bounce"
    return "pulse" if areas.std() / areas.mean() > 0.18 else "still"


def measure(video: np.ndarray, scene: Scene) -> Finding:
    """Compare a video (T, 64, 64, 3) uint8 with the one-object scene its caption describes."""
    body = scene.bodies[0]
    frames = video[::_STEP]
    background = nearest_background(frames)
    masks = object_masks(frames, scene.background)
    found = [(circular_centre(mask), mask) for mask in masks]
    seen = [(centre, mask) for centre, mask in found if centre is not None]
    if len(seen) < 0.7 * len(found):
        return Finding(background == scene.background, False, False, False)
    votes = [best_shape(mask, centre) for centre, mask in seen[::3]]
    centres = np.array([centre for centre, _ in seen])
    areas = np.array([mask.sum() for _, mask in seen], np.float64)
    return Finding(
        background=background == scene.background,
        colour=nearest_colour(frames, masks) == body.colour,
        shape=max(SHAPES, key=votes.count) == body.shape,
        motion=movement(centres, areas) == body.motion,
    )


def position_error(video: np.ndarray, truth: np.ndarray, scene: Scene) -> float:
    """Mean distance between the object's centres in two videos, on the torus, in picture widths.

    A frame without an object counts as half a width, as far away as the torus allows along an axis.
    """
    distances = []
    for mask, true_mask in zip(
        object_masks(video, scene.background), object_masks(truth, scene.background), strict=True
    ):
        found, true = circular_centre(mask), circular_centre(true_mask)
        if true is None:
            continue
        if found is None:
            distances.append(WORLD / 2)
            continue
        apart = (np.array(found) - true + WORLD / 2) % WORLD - WORLD / 2
        distances.append(float(np.hypot(*apart)))
    return float(np.mean(distances)) / WORLD
