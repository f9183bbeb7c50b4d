"""Where the objects of a video are: backgrounds told apart, masks of the objects, centres, angles.

Works on videos (T, 64, 64, 3) uint8 of the world of `data`, drawn or generated. Distances between colours are
Euclidean in RGB 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from example.nano.scenes.data import BACKGROUNDS, COLOURS, SHAPES, TEXTURED, WORLD
from example.nano.scenes.drawing import WALL, WALL_COLOUR, Path, draw_background, stamp

_DIFFERENT = 60.0  # from the background's colour: a pixel of an object
_SAME = 40.0  # to the background's colour: a pixel of the background
_SMALLEST = 12  # pixels of a mask that count as an object
_ROW_STEP = 4  # every fourth row is enough to tell backgrounds apart
_TEXTURE_PERIOD = {"stripes": 16, "checks": 32}
# Degrees after which a turned shape looks the same.
_SYMMETRY = {"circle": 0, "square": 90, "triangle": 120}
_TURN_STEP = 15


@dataclass(frozen=True)
class Backdrop:
    """What is behind the objects: the background's name, by how many pixels it is moved to the right in each frame
    (T,), modulo its texture's period, and whether there is a wall.
    """

    name: str
    shifts: np.ndarray
    wall: bool


def _distance(picture: np.ndarray, colour: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    return np.linalg.norm(picture.astype(np.float32) - np.asarray(colour, np.float32), axis=-1)


def _wall_seen(video: np.ndarray) -> bool:
    columns = np.median(video[:, :, slice(*WALL)].astype(np.float32), axis=(0, 1))
    return bool((_distance(columns, WALL_COLOUR) < _SAME).mean() > 0.8)


def _likeness(video: np.ndarray, empty: np.ndarray) -> np.ndarray:
    distance = _distance(video, empty)
    return (distance < _SAME).mean((1, 2)) - distance.clip(max=_SAME).mean((1, 2)) / 255


def find_backdrop(video: np.ndarray) -> Backdrop:
    """The background that explains the most pixels."""
    wall = _wall_seen(video)
    columns = np.ones(WORLD, bool)
    columns[slice(*WALL)] = not wall
    best: tuple[float, Backdrop] | None = None
    rows = slice(None, None, _ROW_STEP)
    for name in BACKGROUNDS:
        empty = draw_background(name)
        shifts = range(_TEXTURE_PERIOD[name]) if name in TEXTURED else (0,)
        # Per shift and frame: the share that looks like the background, so much moved, less how far it is from it.
        same = np.stack([_likeness(video[:, rows, columns], np.roll(empty, n, 1)[rows, columns]) for n in shifts])
        score = float(same.max(0).mean())
        if best is None or score > best[0]:
            best = score, Backdrop(name, same.argmax(0), wall)
    assert best is not None
    return best[1]


def object_masks(video: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """(T, H, W) bool: pixels unlike what is behind the objects."""
    empty = draw_background(backdrop.name)
    behind = np.stack([np.roll(empty, int(shift), 1) for shift in backdrop.shifts])
    masks = _distance(video, behind) > _DIFFERENT
    if backdrop.wall:
        masks[:, :, slice(*WALL)] = False
    return masks


def split_by_colour(video: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """The masks' pixels by the nearest colour of COLOURS: name to (T, H, W) bool."""
    distances = np.stack([_distance(video, colour) for colour in COLOURS.values()])
    nearest = distances.argmin(0)
    return {name: masks & (nearest == number) for number, name in enumerate(COLOURS)}


def circular_centre(mask: np.ndarray) -> tuple[float, float] | None:
    """Centre (x, y) of a mask on the torus, in pixels; None where next to nothing is seen."""
    if mask.sum() < _SMALLEST:
        return None
    grid = np.exp(2j * np.pi * (np.arange(WORLD) + 0.5) / WORLD)
    x, y = (np.angle((mask.sum(axis) * grid).sum()) * WORLD / (2 * np.pi) % WORLD for axis in (0, 1))
    return float(x), float(y)


def _drawn(shape: str, centre: tuple[float, float], area: float, degrees: float) -> np.ndarray:
    areas = {"circle": np.pi, "square": 4 * 0.89**2, "triangle": 3 * np.sqrt(3) * 0.7**2}
    radius = np.sqrt(area / areas[shape])
    path = Path(*(np.array([value]) for value in (*centre, radius, np.radians(degrees))))
    return stamp(shape, path)[0] > 0.5


def fit_shape(mask: np.ndarray, shapes: tuple[str, ...] = SHAPES, turned: bool = True) -> tuple[str, float]:
    """The shape, of the mask's area and at its centre, that covers it best, and how far it is turned, in degrees."""
    centre = circular_centre(mask)
    assert centre is not None
    best = (-1.0, shapes[0], 0.0)
    for shape in shapes:
        for degrees in range(0, _SYMMETRY[shape] if turned and _SYMMETRY[shape] else 1, _TURN_STEP):
            # The middle of a mask's pixels may lie a little beside the shape's own: small moves are tried.
            for dx, dy in ((0, 0), (0, -1.5), (0, 1.5), (-1.5, 0), (1.5, 0)):
                drawn = _drawn(shape, (centre[0] + dx, centre[1] + dy), float(mask.sum()), degrees)
                overlap = (mask & drawn).sum() / (mask | drawn).sum()
                best = max(best, (float(overlap), shape, float(degrees)))
    return best[1], best[2]


@dataclass(frozen=True)
class Track:
    """An object over the frames that were looked at. `seen` (T,) bool; `centres` (T, 2), NaN where it is not seen;
    `areas` (T,) in pixels; `masks` (T, H, W).
    """

    seen: np.ndarray
    centres: np.ndarray
    areas: np.ndarray
    masks: np.ndarray

    @classmethod
    def of(cls, masks: np.ndarray) -> Track:
        centres = [circular_centre(mask) or (np.nan, np.nan) for mask in masks]
        areas = masks.sum((1, 2)).astype(np.float64)
        return cls(areas >= _SMALLEST, np.array(centres), areas, masks)

    def steps(self) -> np.ndarray:
        """Movement between neighbouring frames in which it is seen, (n, 2) pixels, the short way round the torus."""
        steps = (np.diff(self.centres, axis=0) + WORLD / 2) % WORLD - WORLD / 2
        return steps[np.isfinite(steps).all(1)]

    def whole(self) -> np.ndarray:
        """Numbers of the frames in which it is not hidden in part."""
        if not self.seen.any():
            return np.array([], int)
        return np.flatnonzero(self.areas >= 0.85 * np.percentile(self.areas[self.seen], 80))
