"""Drawing of scenes: where things are at a frame, and the pixels.

Units as in `data`: pixels of a 64 x 64 picture, frames at 24 fps. Motions obey simple physics: constant velocity,
free fall with elastic bounces, rolling without slipping, elastic collisions of equal masses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from example.nano.scenes.data import BACKGROUNDS, COLOURS, SIZES, SPEEDS, WORLD, Body, Scene, caption, sample_scene

WALL_COLOUR = (118, 84, 62)
WALL = (20, 44)  # columns that the wall covers
_MARK_SHADE = 0.35  # of a rolling ball's colour, for the cross that shows its rotation
_PAN_FRAMES = 96  # for one picture width
# A spinning body turns by what it looks the same after in the time in which other motions repeat.
_SPIN = {"square": np.pi / 2, "triangle": 2 * np.pi / 3}


@dataclass(frozen=True)
class Path:
    """Of a body at T frames, each (T,): centre (x, y) in pixels, not wrapped; radius; angle in radians, clockwise."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def radius_of(body: Body) -> float:
    """A rolling ball is sized so that it rolls without slipping and yet fits the torus: a whole number of quarter
    turns, which its marks repeat after, is one picture width.
    """
    radius = SIZES[body.size]
    if not body.motion.startswith("roll"):
        return radius
    quarters = round(WORLD / (2 * np.pi * radius) * 4)
    return WORLD / (2 * np.pi * quarters / 4)


def _triangle_wave(turns: np.ndarray) -> np.ndarray:
    """0 at whole turns, 1 half-way between, straight in between."""
    return 1 - np.abs(2 * (turns % 1) - 1)


def trajectory(body: Body, frames: np.ndarray) -> Path:
    """The body's path at the given frame numbers (T,), the camera at rest."""
    radius = np.full(frames.shape, radius_of(body))
    x, y = np.full(frames.shape, body.centre[0]), np.full(frames.shape, body.centre[1])
    angle = np.zeros(frames.shape)
    turns = frames / SPEEDS[body.speed]
    if body.motion in ("right", "left"):
        x = x + (WORLD if body.motion == "right" else -WORLD) * turns
    elif body.motion in ("down", "up"):
        y = y + (WORLD if body.motion == "down" else -WORLD) * turns
    elif body.motion == "bounce":
        ground = WORLD - 2 - radius
        height = np.minimum(34.0, ground - 1.45 * radius)
        # Two bounces a period; at frame 0 near the highest point.
        y = ground - height * (1 - (2 * ((2 * turns + 0.5 + body.phase) % 1) - 1) ** 2)
    elif body.motion == "pulse":
        radius = radius * (1 + 0.3 * np.sin(2 * np.pi * (turns + body.phase)))
    elif body.motion == "spin":
        angle = _SPIN[body.shape] * turns
    elif body.motion.startswith("roll"):
        forward = 1 if body.motion == "roll right" else -1
        x = x + forward * WORLD * turns
        y = WORLD - 2 - radius
        angle = forward * WORLD * turns / radius
    elif body.motion == "collide":
        # Two equal balls on a torus meet in front and behind: each goes to and fro over half of the free space.
        reach = (WORLD - 4 * radius) / 2
        towards = 1 if body.centre[0] < WORLD / 2 else -1
        x = x + towards * reach * (_triangle_wave(2 * turns + 0.25 + body.phase) - 0.5)
    return Path(x, y, radius, angle)


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; dy grows downwards."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.89) * radius
    # An equilateral triangle of inner radius 0.7 r, its centre of mass in the middle, pointing up.
    side = np.float32(0.8660254) * np.abs(dx) - np.float32(0.5) * dy
    return np.maximum(dy, side) - np.float32(0.7) * radius


def _from_centre(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel, right and down from the body's centre on the torus, turned with the body, (T, size, size); and the
    radius (T, 1, 1); in pixels of the picture.
    """
    scale = np.float32(size / WORLD)
    x, y, radius = (np.asarray(value, np.float32)[:, None, None] * scale for value in (path.x, path.y, path.radius))
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dx = (grid[None, None, :] - x + size / 2) % size - size / 2
    dy = (grid[None, :, None] - y + size / 2) % size - size / 2
    cos, sin = (np.asarray(f(path.angle), np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * dx + sin * dy, cos * dy - sin * dx, radius


def stamp(shape: str, path: Path, size: int = WORLD) -> np.ndarray:
    """Share of every pixel that a shape covers, (T, size, size) float32 in 0..1: anti-aliased, wrapped round the
    borders.
    """
    return np.clip(np.float32(0.5) - _signed_distance(shape, *_from_centre(path, size)), 0, 1).astype(np.float32)


def _marks(path: Path, size: int) -> np.ndarray:
    """Share of every pixel covered by the cross on a rolling ball, (T, size, size)."""
    across, along, radius = _from_centre(path, size)
    arm = np.minimum(np.abs(across), np.abs(along)) - np.float32(0.16) * radius
    inside = np.sqrt(across**2 + along**2) - np.float32(0.8) * radius
    return np.clip(np.float32(0.5) - np.maximum(arm, inside), 0, 1)


def draw_background(name: str, size: int = WORLD) -> np.ndarray:
    """The empty background, (size, size, 3) float32 in 0..255."""
    pattern, first, second = BACKGROUNDS[name]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size
    odd = np.floor(place * WORLD / 8) % 2  # stripes of 8 pixels
    if pattern == "graded":
        share = np.broadcast_to(place[:, None], (size, size))
    elif pattern == "stripes":
        share = np.broadcast_to(odd[None], (size, size))
    else:
        wide = np.floor(place * WORLD / 16) % 2
        share = (wide[:, None] + wide[None]) % 2
    low, high = np.array(first, np.float32), np.array(second, np.float32)
    return (low + (high - low) * share[..., None]).astype(np.float32)


def _camera_shift(scene: Scene, frames: np.ndarray) -> np.ndarray:
    """By how many pixels the world is moved to the right in the picture at each frame."""
    if scene.pan is None:
        return np.zeros(frames.shape)
    return (WORLD if scene.pan == "left" else -WORLD) * frames / _PAN_FRAMES


def path_in_picture(scene: Scene, body: Body, frames: np.ndarray) -> Path:
    """The body's path as the camera sees it."""
    path = trajectory(body, frames)
    return Path(path.x + _camera_shift(scene, frames), path.y, path.radius, path.angle)


def _moved_background(scene: Scene, frames: np.ndarray, size: int) -> np.ndarray:
    """The background at each frame (T, size, size, 3), shifted by fractions of a pixel where the camera moves."""
    still = draw_background(scene.background, size)
    if scene.pan is None:
        return np.broadcast_to(still, (len(frames), *still.shape)).copy()
    shift = _camera_shift(scene, frames) * size / WORLD
    whole = np.floor(shift).astype(int)
    part = (shift - whole).astype(np.float32)
    moved = [np.roll(still, n, 1) * (1 - p) + np.roll(still, n + 1, 1) * p for n, p in zip(whole, part, strict=True)]
    return np.stack(moved)


def coverage(scene: Scene, body: Body, frames: np.ndarray, size: int = WORLD) -> np.ndarray:
    """Share of every pixel that the body covers, seen or hidden, (T, size, size) float32 in 0..1."""
    return stamp(body.shape, path_in_picture(scene, body, frames), size)


def render(scene: Scene, num_frames: int, size: int = WORLD, first_frame: int = 0) -> np.ndarray:
    """Draw frames `first_frame ..` of a scene: (num_frames, size, size, 3) uint8 RGB."""
    if num_frames < 1 or size < 8:
        raise ValueError(
            f"cannot draw {num_frames} frames of {size} x {size}: at least 1 frame and 8 pixels are needed"
        )
    frames = np.arange(first_frame, first_frame + num_frames, dtype=np.float64)
    picture = _moved_background(scene, frames, size)
    for body in scene.bodies:
        colour = np.array(COLOURS[body.colour], np.float32)
        path = path_in_picture(scene, body, frames)
        paint = np.broadcast_to(colour, picture.shape)
        if body.motion.startswith("roll"):
            paint = colour * (1 - (1 - np.float32(_MARK_SHADE)) * _marks(path, size)[..., None])
        picture += stamp(body.shape, path, size)[..., None] * (paint - picture)
    if scene.wall:
        left, right = (round(column * size / WORLD) for column in WALL)
        picture[:, :, left:right] = WALL_COLOUR
    return np.rint(picture).astype(np.uint8)


@dataclass(frozen=True)
class Clip:
    """A scene, one of the captions that describe it, and its frames (T, H, W, 3) uint8."""

    scene: Scene
    caption: str
    frames: np.ndarray


def make_clip(
    seed: int, num_frames: int, size: int = WORLD, held_out: bool | None = False, kind: str | None = None
) -> Clip:
    """The clip of a seed. The same arguments give the same clip on every machine; frames start at frame 0."""
    rng = np.random.default_rng([2026, seed])
    scene = sample_scene(rng, held_out, kind)
    return Clip(scene, caption(scene, rng), render(scene, num_frames, size))
