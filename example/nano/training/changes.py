"""Rows whose caption changes on the way: what a prompt over time asks of a video.

From some chunk on a row shows another clip, under that clip's caption. Half of the time the second scene has the
looks of the first and moves in another way, else it is any other. It goes on where the object is: of the places at
which its clip can begin, at the one nearest to where the first clip has come. So a chunk whose caption says something
else than its history shows learns that the caption wins, and the place stays.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from example.nano.scenes.data import PERIOD as PERIOD_FRAMES
from example.nano.scenes.data import WORLD, Scene
from example.nano.scenes.drawing import path_in_picture

_LATENT_FRAMES = 4
_TILE_LATENTS = 3  # clips can begin where a time tile of the autoencoder does
_SAME_LOOKS = 0.5


@dataclass(frozen=True)
class Change:
    """From chunk `chunk` of a row on, clip `clip` is shown, from its latent frame `start` on."""

    chunk: int
    clip: int
    start: int


def _looks(scene: Scene) -> tuple[str, ...]:
    body = scene.bodies[0]
    return (scene.background, body.shape, body.colour, body.size, str(len(scene.bodies)))


class ChangePartners:
    """Which clip may follow which."""

    def __init__(self, scenes: tuple[Scene, ...]) -> None:
        self._scenes = scenes
        self._alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, scene in enumerate(scenes):
            self._alike[_looks(scene)].append(number)

    def draw(self, clip: int, frame: int, chunk: int, rng: np.random.Generator) -> Change:
        """A scene to follow `clip`, which has come to `frame` of its period, from chunk `chunk` of the row on."""
        scene = self._scenes[clip]
        alike = [
            other
            for other in self._alike[_looks(scene)]
            if self._scenes[other].bodies[0].motion != scene.bodies[0].motion
        ]
        second = (
            int(rng.choice(alike)) if alike and rng.uniform() < _SAME_LOOKS else int(rng.integers(len(self._scenes)))
        )
        return Change(chunk, second, nearest_start(scene, frame, self._scenes[second]))


def nearest_start(first: Scene, frame: int, second: Scene) -> int:
    """The latent frame of `second`, at the beginning of a time tile, at which its first object is nearest to where that
    of `first` is at `frame`, on the torus.
    """
    frames = np.arange(0, PERIOD_FRAMES, _TILE_LATENTS * _LATENT_FRAMES, dtype=np.float64)
    there = path_in_picture(first, first.bodies[0], np.array([float(frame % PERIOD_FRAMES)]))
    places = path_in_picture(second, second.bodies[0], frames)
    away = [(a - b + WORLD / 2) % WORLD - WORLD / 2 for a, b in ((places.x, there.x), (places.y, there.y))]
    return int(np.argmin(np.hypot(*away))) * _TILE_LATENTS
