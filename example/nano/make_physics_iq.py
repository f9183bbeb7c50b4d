"""Draw a small benchmark in the folder layout of Physics-IQ: `python -m example.nano.make_physics_iq`.

Every scenario is drawn twice, as if filmed twice: the second take begins a frame later, with everything one pixel
further right and down, so that there is a physical variance. 3 s of conditioning and 5 s to be generated, at 24 frames
per second, from one side; the switch frame is the last one of the conditioning.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from example.nano.make_assets import ASSETS, write_clip
from example.nano.scenes.data import FPS, Body, Scene
from example.nano.scenes.drawing import render

CONDITIONING_FRAMES = 3 * FPS
TESTING_FRAMES = 5 * FPS
VIEW = "perspective-center"
TAKES = (1, 2)
COLUMNS = ("scenario", "description", "category", "generated_video_name")


@dataclass(frozen=True)
class Scenario:
    """What happens, in words and as a scene; `name` is the last part of its files' names."""

    name: str
    category: str
    description: str
    scene: Scene


def _one(background: str, *looks: str, x: float = 32.0, y: float = 32.0, wall: bool = False) -> Scene:
    """A scene of one body: shape, colour, size, motion, speed."""
    shape, colour, size, motion, speed = looks
    return Scene(background, (Body(shape, colour, size, motion, speed, (x, y), 0.0),), wall=wall)


def _two_balls(background: str, left: str, right: str, speed: str, y: float) -> Scene:
    places = ((left, 16.0), (right, 48.0))
    return Scene(background, tuple(Body("circle", c, "small", "collide", speed, (x, y), 0.0) for c, x in places))


# Of enough contrast and speed for motion masks, which know nothing of colour and lose what is thinner than 5 pixels.
SCENARIOS = (
    Scenario(
        "trimmed-ball-falls",
        "Gravity",
        "a big red ball falls and bounces quickly in the sky",
        _one("sky", "circle", "red", "big", "bounce", "quick"),
    ),
    Scenario(
        "trimmed-block-bounces",
        "Gravity",
        "a small blue block bounces up and down slowly on a white background",
        _one("white", "square", "blue", "small", "bounce", "slow", x=28.0),
    ),
    Scenario(
        "trimmed-ball-rolls-right",
        "Rolling",
        "a big orange ball rolls right slowly on a black background",
        _one("black", "circle", "orange", "big", "roll right", "slow"),
    ),
    Scenario(
        "trimmed-ball-rolls-left",
        "Rolling",
        "a small green ball rolls left quickly in front of a striped wall",
        _one("stripes", "circle", "green", "small", "roll left", "quick"),
    ),
    Scenario(
        "trimmed-balls-collide",
        "Collision",
        "a small red ball and a small yellow ball collide slowly on a black background",
        _two_balls("black", "red", "yellow", "slow", y=30.0),
    ),
    Scenario(
        "trimmed-balls-bounce-off",
        "Collision",
        "a small purple ball and a small green ball bounce off each other quickly on a white background",
        _two_balls("white", "purple", "green", "quick", y=24.0),
    ),
    Scenario(
        "trimmed-ball-passes-wall",
        "Occlusion",
        "a small red ball moves right quickly and passes behind a wall in the sky",
        _one("sky", "circle", "red", "small", "right", "quick", x=10.0, wall=True),
    ),
    Scenario(
        "trimmed-block-passes-wall",
        "Occlusion",
        "a small purple block moves left quickly behind a wall on a white background",
        _one("white", "square", "purple", "small", "left", "quick", x=54.0, y=36.0, wall=True),
    ),
)


def filmed(scene: Scene, take: int) -> np.ndarray:
    """Conditioning and testing of one take in one piece: (192, 64, 64, 3) uint8."""
    later = take - 1
    bodies = tuple(replace(body, centre=(body.centre[0] + later, body.centre[1] + later)) for body in scene.bodies)
    return render(replace(scene, bodies=bodies), CONDITIONING_FRAMES + TESTING_FRAMES, first_frame=later)


def rows() -> list[tuple[str, str, str, str]]:
    """The lines of `descriptions.csv`: all first takes, then all second ones."""
    lines = []
    for take in TAKES:
        for number, scenario in enumerate(SCENARIOS, 1):
            take_number = number + (take - 1) * len(SCENARIOS)
            own = f"{take_number:04}_{VIEW}_take-{take}_{scenario.name}.mp4"
            generated = f"{number:04}_{VIEW}_{scenario.name}.mp4"
            lines.append((own, scenario.description, scenario.category, generated))
    return lines


def write_benchmark(folder: Path) -> None:
    """Write all files below `folder`."""
    for kind in ("conditioning", "testing"):
        (folder / "split-videos" / kind / f"{FPS}FPS").mkdir(parents=True, exist_ok=True)
    (folder / "switch-frames").mkdir(exist_ok=True)
    (folder / "descriptions").mkdir(exist_ok=True)
    for take in TAKES:
        for number, scenario in enumerate(SCENARIOS, 1 + (take - 1) * len(SCENARIOS)):
            frames = filmed(scenario.scene, take)
            before, after = frames[:CONDITIONING_FRAMES], frames[CONDITIONING_FRAMES:]
            for kind, part in (("conditioning", before), ("testing", after)):
                name = f"{number:04}_{kind}-videos_{FPS}FPS_{VIEW}_take-{take}_{scenario.name}.mp4"
                write_clip(folder / "split-videos" / kind / f"{FPS}FPS" / name, part)
            if take == 1:
                name = f"{number:04}_switch-frames_anyFPS_{VIEW}_{scenario.name}.jpg"
                Image.fromarray(before[-1]).save(folder / "switch-frames" / name, quality=95)
    with (folder / "descriptions" / "descriptions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows()])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS / "physics_iq", help="where to write (%(default)s)")
    folder = parser.parse_args(argv).folder
    write_benchmark(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes in {folder}")


if __name__ == "__main__":
    main()
