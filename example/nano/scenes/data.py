"""Captioned scenes: what the bundled small model is trained on.

A `Scene` says everything a clip shows; `caption` puts it into plain English and `drawing.render` draws it. All are
pure functions of a seed. The world is a torus: what leaves the picture at one side enters it at the other, and every
motion repeats after 96 frames, so that motions never end and a video of any length is well defined. Frame 0 shows the
object near the middle, at the beginning of its motion: with the place known, what a first chunk looks like depends on
every word of the caption from the first denoising step on, or a short training would not learn the words.

Units: positions and radii in pixels of a 64 x 64 picture, times in frames at 24 fps.

To extend: a new motion is one entry of `_MOTION_WORDS` with its branch in `drawing.trajectory` and its share in
`KINDS`, a new background one entry of `BACKGROUNDS` and its words; `words` collects the vocabulary from the tables.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WORLD = 64  # side of the picture that positions refer to
FPS = 24
PERIOD = 96  # frames after which every scene repeats

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (222, 38, 38),
    "green": (36, 165, 62),
    "blue": (38, 78, 224),
    "yellow": (246, 212, 36),
    "purple": (148, 48, 188),
    "orange": (250, 130, 24),
}
# How two colours share the picture: from the top row to the bottom row, in squares, in upright stripes.
BACKGROUNDS: dict[str, tuple[str, Colour, Colour]] = {
    "white": ("graded", (242, 242, 242), (242, 242, 242)),
    "grey": ("graded", (128, 128, 128), (128, 128, 128)),
    "black": ("graded", (16, 16, 16), (16, 16, 16)),
    "sky": ("graded", (110, 178, 246), (226, 240, 255)),
    "sunset": ("graded", (52, 24, 96), (238, 142, 112)),
    "checks": ("squares", (214, 214, 206), (170, 170, 162)),
    "stripes": ("stripes", (196, 214, 214), (146, 170, 176)),
}
TEXTURED = ("checks", "stripes")
SHAPES = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 9.5, "big": 14.5}  # radius of the circle; the other shapes have about its area
SPEEDS: dict[str, float] = {"slow": 96.0, "quick": 48.0}  # frames until a motion repeats
SLIDES = ("right", "left", "up", "down")
MOTIONS = (*SLIDES, "bounce", "pulse", "still", "spin", "roll right", "roll left", "collide")

# What kinds of scenes there are, and how often each is drawn. `hide` passes behind a wall; in `pan` the camera moves;
# `pair` shows two objects, the first named above the other.
KINDS: dict[str, float] = {
    "slide": 0.36,
    "bounce": 0.10,
    "pulse": 0.08,
    "still": 0.06,
    "spin": 0.08,
    "roll": 0.10,
    "hide": 0.06,
    "pan": 0.04,
    "pair": 0.08,
    "collide": 0.04,
}
# The same for the clips of the transformer's training: what is hard to draw or rare is practised more.
PRACTISED: dict[str, float] = {
    "slide": 0.15,
    "bounce": 0.07,
    "pulse": 0.09,
    "still": 0.03,
    "spin": 0.25,
    "roll": 0.05,
    "hide": 0.04,
    "pan": 0.04,
    "pair": 0.22,
    "collide": 0.06,
}

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
        for way in SLIDES
    },
    "bounce": ("bounces", "bounces up and down", "falls and bounces", "bounces on the ground"),
    "pulse": ("grows and shrinks", "pulses", "changes its size"),
    "still": ("stays still", "does not move", "rests", "stands still"),
    "spin": ("spins", "rotates", "turns round"),
    "roll right": ("rolls right", "rolls to the right"),
    "roll left": ("rolls left", "rolls to the left"),
    "collide": ("bounce off each other", "collide", "hit each other"),
}
_WALL_WORDS = ("behind a wall", "and passes behind a wall")
_CAMERA_WORDS = ("the camera pans {way}", "the camera moves {way}", "the view pans to the {way}")
_BACKGROUND_WORDS = {
    **{
        tone: (f"on a {tone} background", f"in front of a {tone} wall", f"against {tone}")
        for tone in ("white", "grey", "black")
    },
    "sky": ("in the sky", "in a bright sky", "in front of the sky"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening sun"),
    "checks": ("on a checked background", "in front of a checked wall", "against checks"),
    "stripes": ("on a striped background", "in front of a striped wall", "against stripes"),
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
    """All that a clip shows; later bodies hide earlier ones, the wall hides all. `pan`: where the camera moves."""

    background: str
    bodies: tuple[Body, ...]
    wall: bool = False
    pan: str | None = None

    @property
    def kind(self) -> str:
        """Its entry of KINDS."""
        if len(self.bodies) > 1:
            return "collide" if self.bodies[0].motion == "collide" else "pair"
        if self.wall or self.pan:
            return "hide" if self.wall else "pan"
        motion = self.bodies[0].motion
        return "slide" if motion in SLIDES else motion.split()[0]


def is_held_out(background: str, body: Body) -> bool:
    """Whether this combination of looks and motion is kept out of training (about one in eight)."""
    number = list(COLOURS).index(body.colour) + 2 * SHAPES.index(body.shape) + 3 * MOTIONS.index(body.motion)
    return (number + 5 * list(BACKGROUNDS).index(background)) % 8 == 0


def is_held_out_caption(text: str) -> bool:
    """Whether this very sentence is kept out of training (one in ten)."""
    return zlib.crc32(text.encode()) % 10 == 0


def _pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _sample_body(rng: np.random.Generator, motion: str, **fixed: object) -> Body:
    """A body near the middle; `fixed` are fields that are not drawn."""
    shapes = {"spin": ("square", "triangle"), "roll": ("circle",), "collide": ("circle",)}
    drawn: dict[str, object] = {
        "shape": _pick(rng, shapes.get(motion.split()[0], SHAPES)),
        "colour": _pick(rng, list(COLOURS)),
        "size": _pick(rng, list(SIZES)),
        "motion": motion,
        "speed": _pick(rng, list(SPEEDS)),
        "centre": (WORLD / 2 + float(rng.uniform(-8, 8)), WORLD / 2 + float(rng.uniform(-8, 8))),
        "phase": float(rng.uniform(-0.08, 0.08)),
    }
    return Body(**(drawn | fixed))  # type: ignore[arg-type]


def _sample_bodies(rng: np.random.Generator, kind: str) -> tuple[Body, ...]:
    if kind in ("pair", "collide"):
        first, second = (str(colour) for colour in rng.permutation(list(COLOURS))[:2])
        if kind == "collide":
            speed, height = _pick(rng, list(SPEEDS)), WORLD / 2 + float(rng.uniform(-14, 14))
            both = {"size": "small", "speed": speed, "phase": float(rng.uniform(-0.08, 0.08))}
            places = zip((first, second), (16.0, 48.0), strict=True)
            return tuple(_sample_body(rng, "collide", colour=c, centre=(x, height), **both) for c, x in places)
        ways = ("right", "left", "still", "pulse")
        places = zip((first, second), (17.0, 47.0), strict=True)
        return tuple(
            _sample_body(rng, _pick(rng, ways), colour=c, size="small", centre=(32 + float(rng.uniform(-8, 8)), y))
            for c, y in places
        )
    if kind == "hide":
        way = _pick(rng, ("right", "left"))
        place = (10.0 if way == "right" else WORLD - 10.0) + float(rng.uniform(-3, 3))
        return (_sample_body(rng, way, size="small", centre=(place, 32 + float(rng.uniform(-8, 8)))),)
    motion = {"slide": _pick(rng, SLIDES), "roll": _pick(rng, ("roll right", "roll left")), "pan": "still"}
    return (_sample_body(rng, motion.get(kind, kind)),)


def sample_scene(
    rng: np.random.Generator,
    held_out: bool | None = False,
    kind: str | None = None,
    shares: dict[str, float] = KINDS,
) -> Scene:
    """Draw a scene, of one kind if given, else of each as often as `shares` says. `held_out`: False gives only
    combinations for training, True only the others, None any.
    """
    while True:
        chosen = kind or str(rng.choice(list(shares), p=list(shares.values())))
        background = _pick(rng, TEXTURED if chosen == "pan" else list(BACKGROUNDS))
        bodies = _sample_bodies(rng, chosen)
        if held_out is None or any(is_held_out(background, body) for body in bodies) == held_out:
            pan = _pick(rng, ("left", "right")) if chosen == "pan" else None
            return Scene(background, bodies, wall=chosen == "hide", pan=pan)


def _noun(body: Body, rng: np.random.Generator, omit: float) -> str:
    noun = f"{body.colour} {_pick(rng, _SHAPE_WORDS[body.shape])}"
    if rng.uniform() >= omit:
        noun = f"{_pick(rng, _SIZE_WORDS[body.size])} {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _verb(body: Body, rng: np.random.Generator, omit: float) -> str:
    verb = _pick(rng, _MOTION_WORDS[body.motion])
    if body.motion == "still" or rng.uniform() < omit:
        return verb
    adverb = _pick(rng, _SPEED_WORDS[body.speed])
    return f"{adverb} {verb}" if adverb != "fast" and rng.uniform() < 0.3 else f"{verb} {adverb}"


def caption(scene: Scene, rng: np.random.Generator, omit: float = 0.0) -> str:
    """One of many captions that say all of `scene` but exactly where its bodies start.

    `omit` is the probability with which size and speed are left open, each: captions to train with, so that a prompt
    need not name them.
    """
    place = _pick(rng, _BACKGROUND_WORDS[scene.background])
    opening = _pick(rng, _OPENINGS)
    joiner = " that " if opening.startswith(("a video", "we see")) else " "
    if scene.kind == "collide":
        nouns = " and ".join(_noun(body, rng, omit) for body in scene.bodies)
        action = f"{nouns}{joiner}{_verb(scene.bodies[0], rng, omit)}"
    else:
        action = " and ".join(_noun(body, rng, omit) + joiner + _verb(body, rng, omit) for body in scene.bodies)
    if scene.wall:
        action = f"{action} {_pick(rng, _WALL_WORDS)}"
    sentence = f"{place} {opening}{action}" if rng.uniform() < 0.25 else f"{opening}{action} {place}"
    if scene.pan is None:
        return sentence
    return f"{sentence} {_pick(rng, ('while', 'and'))} {_pick(rng, _CAMERA_WORDS).format(way=scene.pan)}"


def training_caption(scene: Scene, rng: np.random.Generator, omit: float = 0.15) -> str:
    """A caption that is not held out."""
    while is_held_out_caption(text := caption(scene, rng, omit)):
        pass
    return text


def held_out_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that training never saw."""
    while not is_held_out_caption(text := caption(scene, rng)):
        pass
    return text


def words() -> list[str]:
    """Every word a caption can have, in a fixed order."""
    tables: list[Iterator[str]] = [
        itertools.chain.from_iterable(table.values())
        for table in (_SHAPE_WORDS, _SIZE_WORDS, _SPEED_WORDS, _MOTION_WORDS, _BACKGROUND_WORDS)
    ]
    camera = (phrase.format(way=way) for phrase in _CAMERA_WORDS for way in ("left", "right"))
    phrases = itertools.chain(COLOURS, *tables, _WALL_WORDS, camera, _OPENINGS, ("a an and that the while",))
    return sorted({word for phrase in phrases for word in phrase.split()})
