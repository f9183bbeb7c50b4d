"""Does a video show what its scene says? Measured on the frames alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from example.nano.scenes.data import COLOURS, PERIOD, SHAPES, WORLD, Body, Scene
from example.nano.scenes.tracking import Backdrop, Track, find_backdrop, fit_shape, object_masks, split_by_colour

_STEP = 4  # frames between two that are looked at
_MOVING = 0.3  # pixels a frame: slow slides do 0.67
_CHUNK = 24


@dataclass(frozen=True)
class Finding:
    """Which attributes are right; of several objects, all of them."""

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


def _shape_of(track: Track, turned: bool) -> str | None:
    """The shape most often fitted in frames where the object is whole."""
    whole = track.whole()
    votes = [fit_shape(track.masks[number], turned=turned)[0] for number in whole[:: max(1, len(whole) // 8)]]
    return max(SHAPES, key=votes.count) if votes else None


def _turning(track: Track, shape: str) -> bool:
    """Whether it stands turned in half of the frames or more."""
    # Neighbouring frames: a stride could meet the same angle again and again.
    angles = [fit_shape(track.masks[number], (shape,))[1] for number in track.whole()[:12]]
    return bool(np.mean([angle != 0 for angle in angles]) > 0.5)


def _marked(video: np.ndarray, track: Track, colour: str) -> bool:
    """Whether the middle of the object is darker than its colour, as the cross of a rolling ball is."""
    votes = []
    for number in track.whole():
        x, y = track.centres[number]
        rows, columns = ((int(place) + np.arange(-2, 3)) % WORLD for place in (y, x))
        middle = video[number][np.ix_(rows, columns)].astype(np.float32).mean()
        votes.append(middle < 0.75 * np.mean(COLOURS[colour]))
    return bool(votes) and float(np.mean(votes)) > 0.5


def movement(track: Track, shape: str) -> str:
    """The kind of motion of one object, rolling told from sliding by its marks elsewhere."""
    steps = track.steps() / _STEP
    if len(steps) < 3:
        return "unseen"
    mean, spread = np.median(steps, 0), steps.std(0)
    if abs(mean[0]) > _MOVING or abs(mean[1]) > _MOVING:
        if spread[1] > 0.75 and abs(mean[0]) < _MOVING:
            return "bounce"
        if abs(mean[0]) > abs(mean[1]):
            return "right" if mean[0] > 0 else "left"
        return "down" if mean[1] > 0 else "up"
    if spread[1] > 0.45:
        return "bounce"
    areas = track.areas[track.seen]
    if areas.std() / areas.mean() > 0.18:
        return "pulse"
    return "spin" if shape != "circle" and _turning(track, shape) else "still"


def _camera(backdrop: Backdrop, period: int = 16) -> str | None:
    """Where the camera moves: against the movement of the background."""
    steps = (np.diff(backdrop.shifts) + period / 2) % period - period / 2
    mean = float(np.mean(steps)) / _STEP
    return None if abs(mean) < _MOVING else "left" if mean > 0 else "right"


def _collide(first: Track, second: Track) -> bool:
    """Whether two objects come close and turn round, both, and neither goes on through the other."""
    apart = np.abs((first.centres[:, 0] - second.centres[:, 0] + WORLD / 2) % WORLD - WORLD / 2)
    if np.isfinite(apart).mean() < 0.7:
        return False
    swings = [np.nanmax(steps := track.steps()[:, 0]) > 0.6 and np.nanmin(steps) < -0.6 for track in (first, second)]
    return bool(all(swings) and np.nanmin(apart) < 26 and np.nanmin(apart) > 12)


def _moves_right(video: np.ndarray, scene: Scene, backdrop: Backdrop, tracks: list[Track]) -> bool:
    """Whether every object moves as its caption says, and so does the camera."""
    if scene.kind == "collide":
        return _collide(*tracks)
    if scene.pan is not None:
        # The object rests in the world: it moves with the background, against the camera.
        return (
            _camera(backdrop) == scene.pan
            and movement(tracks[0], "circle") == {"left": "right", "right": "left"}[scene.pan]
        )
    return _camera(backdrop) is None and all(
        _body_moves_right(video, body, track) for body, track in zip(scene.bodies, tracks, strict=True)
    )


def _body_moves_right(video: np.ndarray, body: Body, track: Track) -> bool:
    motion = movement(track, body.shape)
    if motion in ("left", "right") and _marked(video, track, body.colour):
        motion = f"roll {motion}"
    return motion == body.motion


def tracks_of(video: np.ndarray, scene: Scene, backdrop: Backdrop) -> list[Track]:
    """One track per body: of a single one whatever is in the picture, of several the pixels of each one's colour."""
    masks = object_masks(video, backdrop)
    if len(scene.bodies) == 1:
        return [Track.of(masks)]
    coloured = split_by_colour(video, masks)
    return [Track.of(coloured[body.colour]) for body in scene.bodies]


def _colours_right(video: np.ndarray, scene: Scene, backdrop: Backdrop) -> bool:
    """Whether the objects' colours, and no other, fill the masks."""
    masks = object_masks(video, backdrop)
    if masks.sum() < 12 * len(masks):
        return False
    if len(scene.bodies) == 1:
        middle = np.median(video[masks].astype(np.float32), axis=0)
        distances = {name: float(np.linalg.norm(middle - colour)) for name, colour in COLOURS.items()}
        return min(distances, key=distances.__getitem__) == scene.bodies[0].colour
    shares = {name: mask.sum() / masks.sum() for name, mask in split_by_colour(video, masks).items()}
    wanted = [body.colour for body in scene.bodies]
    return all(shares[name] > 0.2 for name in wanted) and sum(shares[name] for name in wanted) > 0.7


def measure(video: np.ndarray, scene: Scene) -> Finding:
    """Compare a video (T, 64, 64, 3) uint8 with the scene that its caption describes."""
    frames = video[::_STEP]
    backdrop = find_backdrop(frames)
    background = backdrop.name == scene.background and backdrop.wall == scene.wall
    tracks = tracks_of(frames, scene, backdrop)
    if any(track.seen.mean() < (0.4 if scene.wall else 0.7) for track in tracks):
        return Finding(background, False, False, False)
    turned = any(body.motion == "spin" for body in scene.bodies)
    shapes = [_shape_of(track, turned) for track in tracks]
    return Finding(
        background=background,
        colour=bool(_colours_right(frames, scene, backdrop)),
        shape=shapes == [body.shape for body in scene.bodies],
        motion=bool(_moves_right(frames, scene, backdrop, tracks)),
    )


def is_stable(video: np.ndarray, scene: Scene) -> bool:
    """Whether the end of a long video shows every object in the colour and size of its beginning, on its background.

    A chunk is compared with a chunk; where sizes change by themselves or objects hide, a whole period with a period,
    so that there only videos longer than that say anything.
    """
    changing = scene.wall or any(body.motion == "pulse" for body in scene.bodies)
    span = min(len(video), PERIOD if changing else _CHUNK)
    parts = [video[:span:_STEP], video[len(video) - span :: _STEP]]
    backdrops = [find_backdrop(part) for part in parts]
    if backdrops[0].name != backdrops[1].name or backdrops[0].wall != backdrops[1].wall:
        return False
    both = [tracks_of(part, scene, backdrop) for part, backdrop in zip(parts, backdrops, strict=True)]
    return all(_same_object(parts, pair) for pair in zip(*both, strict=True))


def _same_object(parts: list[np.ndarray], tracks: tuple[Track, Track]) -> bool:
    """Whether an object has about the same colour and size in two parts of a video."""
    if not all(track.seen.any() for track in tracks):
        return False
    colours = [
        np.median(part[track.masks].astype(np.float32), axis=0) for part, track in zip(parts, tracks, strict=True)
    ]
    sizes = [float(np.percentile(track.areas, 90)) for track in tracks]
    return bool(np.linalg.norm(colours[0] - colours[1]) < 45 and 0.7 < sizes[1] / sizes[0] < 1.43)


def position_error(video: np.ndarray, truth: np.ndarray, scene: Scene) -> float:
    """Mean distance between the objects' centres in two videos, on the torus, in picture widths.

    An object that is missing counts as half a width, as far away as the torus allows along an axis; frames in which
    the true one is hidden count not at all.
    """
    both = [tracks_of(frames, scene, find_backdrop(frames)) for frames in (video, truth)]
    distances = []
    for found, true in zip(*both, strict=True):
        for number in np.flatnonzero(true.seen):
            apart = (found.centres[number] - true.centres[number] + WORLD / 2) % WORLD - WORLD / 2
            distances.append(float(np.hypot(*apart)) if np.isfinite(apart).all() else WORLD / 2)
    return float(np.mean(distances)) / WORLD
