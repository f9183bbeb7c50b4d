"""Captioned clips drawn by a program: what the bundled small model is trained on.

A `Scene` says everything a clip shows; `caption` puts it into plain English and `render` draws it. All three are
pure functions of a seed. The world is a torus: what leaves the picture at one side enters it at the other, so that
motions never end, any frame may be the first one, and a video of any length is well defined.

Units: positions and radii in pixels of a 64 x 64 picture, times in frames at 24 fps.

To extend: a new motion is one entry of `MOTIONS` with its branch in `trajectory`, a new shape one branch of
`_signed_distance`, a new background one entry of `BACKGROUNDS`; `words` collects the vocabulary from the tables by
itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WORLD = 64  # side of the picture that positions refer to
FPS = 24

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (36, 165, 62),
    "blue": (38, 78, 224),
    "yellow": (246, 212, 36),
    "purple": (148, 48, 188),
    "orange": (250, 130, 24),
}
# Colour of the top and of the bottom row.
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((242, 242, 242), (242, 242, 242)),
    "grey": ((128, 128, 128), (128, 128, 128)),
    "black": ((16, 16, 16), (16, 16, 16)),
    "sky": ((110, 178, 246), (226, 240, 255)),
    "sunset": ((52, 24, 96), (238, 142, 112)),
}
SHAPES = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 8.0, "big": 14.0}  # radius of the circle; the other shapes have about its area
MOTIONS = ("right", "left", "up", "down", "bounce", "pulse", "still")
SPEEDS: dict[str, float] = {"slow": 96.0, "quick": 48.0}  # frames until a motion repeats

_SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle",),
}
_SIZE_WORDS = {"small": ("small", "little"), "big": ("big", "large")}
_SPEED_WORDS = {"slow": ("slowly",), "quick": ("quickly", "fast")}
_MOTION_WORDS = {
    **{
        way: (f"moves {way}", f"slides {way}", f"drifts {way}", f"goes {way}")
        + ((f"moves to the {way}", f"slides to the {way}") if way in ("left", "right") else ())
        for way in ("right", "left", "up", "down")
    },
    "bounce": ("bounces", "bounces up and down", "bounces on the ground"),
    "pulse": ("grows and shrinks", "pulses", "changes its size"),
    "still": ("stays still", "does not move", "rests", "stands still"),
}
_BACKGROUND_WORDS = {
    **{
        tone: (f"on a {tone} background", f"in front of a {tone} wall", f"against {tone}")
        for tone in ("white", "grey", "black")
    },
    "sky": ("in the sky", "in a bright sky", "in front of the sky"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening sun"),
}
_OPENINGS = ("", "", "a video of ", "here ", "we see ")


@dataclass(frozen=True)
class Body:
    """One object: its looks, and its place at frame 0 (`centre` (x, y) in pixels, `phase` in 0..1 of its motion)."""

    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    centre: tuple[float, float]
    phase: float


@dataclass(frozen=True)
class Scene:
    """All that a clip shows; later bodies hide earlier ones."""

    background: str
    bodies: tuple[Body, ...]


@dataclass(frozen=True)
class Clip:
    """A scene, one of the captions that describe it, and its frames (T, H, W, 3) uint8."""

    scene: Scene
    caption: str
    frames: np.ndarray


def is_held_out(background: str, body: Body) -> bool:
    """Whether this combination of looks and motion is kept out of training (about one in eight)."""
    number = list(COLOURS).index(body.colour) + 2 * SHAPES.index(body.shape) + 3 * MOTIONS.index(body.motion)
    return (number + 5 * list(BACKGROUNDS).index(background)) % 8 == 0


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _sample_body(rng: np.random.Generator) -> Body:
    motion = _pick(rng, MOTIONS)
    # Only the coordinate that the motion sweeps is spread over the whole picture: the rest stays near the middle, so
    # that an object is never cut by the border for a whole clip.
    centre = [WORLD / 2 + float(rng.uniform(-10, 10)), WORLD / 2 + float(rng.uniform(-10, 10))]
    if motion in ("left", "right"):
        centre[0] = float(rng.uniform(0, WORLD))
    if motion in ("up", "down"):
        centre[1] = float(rng.uniform(0, WORLD))
    return Body(
        shape=_pick(rng, SHAPES),
        colour=_pick(rng, list(COLOURS)),
        size=_pick(rng, list(SIZES)),
        motion=motion,
        speed=_pick(rng, list(SPEEDS)),
        centre=(centre[0], centre[1]),
        phase=float(rng.uniform()),
    )


def sample_scene(rng: np.random.Generator, held_out: bool | None = False, two_object_share: float = 0.0) -> Scene:
    """Draw a scene. `held_out`: False gives only combinations for training, True only the others, None any."""
    while True:
        background = _pick(rng, list(BACKGROUNDS))
        bodies = tuple(_sample_body(rng) for _ in range(2 if rng.uniform() < two_object_share else 1))
        if held_out is None or any(is_held_out(background, body) for body in bodies) == held_out:
            return Scene(background, bodies)


def _describe(body: Body, rng: np.random.Generator, omit: float) -> tuple[str, str]:
    """Noun phrase and verb phrase of one body."""
    noun = f"{body.colour} {_pick(rng, _SHAPE_WORDS[body.shape])}"
    if rng.uniform() >= omit:
        noun = f"{_pick(rng, _SIZE_WORDS[body.size])} {noun}"
    noun = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    verb = _pick(rng, _MOTION_WORDS[body.motion])
    if body.motion == "still" or rng.uniform() < omit:
        return noun, verb
    adverb = _pick(rng, _SPEED_WORDS[body.speed])
    return noun, (f"{adverb} {verb}" if adverb != "fast" and rng.uniform() < 0.3 else f"{verb} {adverb}")


def caption(scene: Scene, rng: np.random.Generator, omit: float = 0.0) -> str:
    """One of many captions that say all of `scene` but where its bodies start.

    `omit` is the probability with which size and speed are left open, each: captions to train with, so that a prompt
    need not name them.
    """
    place = _pick(rng, _BACKGROUND_WORDS[scene.background])
    parts = [_describe(body, rng, omit) for body in scene.bodies]
    opening = _pick(rng, _OPENINGS)
    joiner = " that " if opening.startswith(("a video", "we see")) else " "
    action = " and ".join(noun + joiner + verb for noun, verb in parts)
    return f"{place} {opening}{action}" if rng.uniform() < 0.25 else f"{opening}{action} {place}"


def words() -> list[str]:
    """Every word a caption can have, in a fixed order."""
    tables: list[Iterator[str]] = [
        itertools.chain.from_iterable(table.values())
        for table in (_SHAPE_WORDS, _SIZE_WORDS, _SPEED_WORDS, _MOTION_WORDS, _BACKGROUND_WORDS)
    ]
    phrases = itertools.chain(COLOURS, *tables, _OPENINGS, ("a", "and", "that", "the", "an"))
    return sorted({word for phrase in phrases for word in phrase.split()})


def trajectory(body: Body, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, centre y (not wrapped) and radius, in pixels, at the given frame numbers (T,)."""
    radius = np.full(frames.shape, SIZES[body.size])
    x, y = np.full(frames.shape, body.centre[0]), np.full(frames.shape, body.centre[1])
    turns = frames / SPEEDS[body.speed]
    if body.motion in ("right", "left"):
        x = x + (WORLD if body.motion == "right" else -WORLD) * turns
    elif body.motion in ("down", "up"):
        y = y + (WORLD if body.motion == "down" else -WORLD) * turns
    elif body.motion == "bounce":
        ground = WORLD - 2 - radius
        height = np.minimum(34.0, ground - radius)
        y = ground - height * (1 - (2 * ((2 * turns + body.phase) % 1) - 1) ** 2)
    elif body.motion == "pulse":
        radius = radius * (1 + 0.4 * np.sin(2 * np.pi * (turns + body.phase)))
    return x, y, radius


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; dy grows downwards."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.89 * radius
    # An equilateral triangle of inner radius 0.7 r, its centre of mass in the middle, pointing up.
    return np.maximum(dy, 0.8660254 * np.abs(dx) - 0.5 * dy) - 0.7 * radius


def coverage(body: Body, frames: np.ndarray, size: int = WORLD) -> np.ndarray:
    """Share of every pixel that the body covers, (T, size, size) float32 in 0..1: anti-aliased, wrapped round the
    borders.
    """
    return stamp(body.shape, *trajectory(body, frames), size)


def stamp(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: int = WORLD) -> np.ndarray:
    """Coverage of a shape at given centres and radii, in pixels of the world: (T, size, size) float32."""
    scale = np.float32(size / WORLD)
    x, y, radius = (np.asarray(value, np.float32)[:, None, None] * scale for value in (x, y, radius))
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dx = (grid[None, None, :] - x + size / 2) % size - size / 2
    dy = (grid[None, :, None] - y + size / 2) % size - size / 2
    return np.clip(np.float32(0.5) - _signed_distance(shape, dx, dy, radius), 0, 1).astype(np.float32)


def draw_background(name: str, size: int = WORLD) -> np.ndarray:
    """The empty background, (size, size, 3) float32 in 0..255."""
    top, bottom = (np.array(tone, np.float32) for tone in BACKGROUNDS[name])
    share = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None, None]
    return np.broadcast_to(top + (bottom - top) * share, (size, size, 3)).astype(np.float32)


def render(scene: Scene, num_frames: int, size: int = WORLD, first_frame: int = 0) -> np.ndarray:
    """Draw frames `first_frame ..` of a scene: (num_frames, size, size, 3) uint8 RGB."""
    if num_frames < 1 or size < 8:
        raise ValueError(
            f"cannot draw {num_frames} frames of {size} x {size}: at least 1 frame and 8 pixels are needed"
        )
    numbers = np.arange(first_frame, first_frame + num_frames, dtype=np.float64)
    picture = np.broadcast_to(draw_background(scene.background, size), (num_frames, size, size, 3)).copy()
    for body in scene.bodies:
        cover = coverage(body, numbers, size)[..., None]
        picture += cover * (np.array(COLOURS[body.colour], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def make_clip(
    seed: int, num_frames: int, size: int = WORLD, held_out: bool | None = False, two_object_share: float = 0.0
) -> Clip:
    """The clip of a seed. The same arguments give the same clip on every machine; frames start at frame 0 of the
    scene.
    """
    rng = np.random.default_rng([2026, seed])
    scene = sample_scene(rng, held_out, two_object_share)
    return Clip(scene, caption(scene, rng), render(scene, num_frames, size))
