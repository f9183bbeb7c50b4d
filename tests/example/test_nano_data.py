"""The clip generator: a pure function of its seed, whose captions say what the frames show."""

from dataclasses import replace

import numpy as np
import pytest

from example.nano.scenes import data
from example.nano.scenes.drawing import coverage, make_clip, radius_of, render, trajectory
from example.nano.scenes.measure import is_stable, measure, position_error

KINDS = list(data.KINDS)


def scene_of(seed: int, kind: str | None = None) -> data.Scene:
    return data.sample_scene(np.random.default_rng([seed, 5]), None, kind)


def test_same_seed_same_clip() -> None:
    first, second = make_clip(5, 12), make_clip(5, 12)
    assert first.caption == second.caption
    assert first.scene == second.scene
    np.testing.assert_array_equal(first.frames, second.frames)
    assert make_clip(6, 12).scene != first.scene


@pytest.mark.parametrize(("num_frames", "size"), [(1, 64), (7, 64), (24, 32), (3, 256)])
def test_shape_and_range(num_frames: int, size: int) -> None:
    frames = make_clip(1, num_frames, size).frames
    assert frames.shape == (num_frames, size, size, 3)
    assert frames.dtype == np.uint8
    assert frames.max() - frames.min() > 50


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    """A scene is of the kind that was asked for; the first frame is a place in the same clip; all repeats."""
    for seed in range(3):
        scene = scene_of(seed, kind)
        assert scene.kind == kind
        np.testing.assert_array_equal(render(scene, 40)[16:], render(scene, 24, first_frame=16))
        difference = render(scene, 2).astype(int) - render(scene, 2, first_frame=data.PERIOD)
        assert np.abs(difference).max() <= 1  # the last bit of a float32 position


def test_all_kinds_are_drawn() -> None:
    assert sum(data.KINDS.values()) == pytest.approx(1)
    drawn = [scene_of(seed).kind for seed in range(400)]
    assert set(drawn) == set(KINDS)
    assert drawn.count("slide") / len(drawn) == pytest.approx(data.KINDS["slide"], abs=0.08)


def test_caption_determines_the_attributes() -> None:
    """Whoever knows the word tables reads every attribute but the start from the caption."""
    for seed in range(200):
        scene = scene_of(seed)
        if len(scene.bodies) > 1 or scene.pan:
            continue
        said = f" {data.caption(scene, np.random.default_rng(seed))} "
        body = scene.bodies[0]
        assert [name for name in data.COLOURS if f" {name} " in said] == [body.colour]
        assert ("behind a wall" in said) == scene.wall
        for table, truth in (
            (data._SHAPE_WORDS, body.shape),
            (data._SIZE_WORDS, body.size),
            (data._MOTION_WORDS, body.motion),
            (data._BACKGROUND_WORDS, scene.background),
        ):
            assert any(f" {phrase} " in said for phrase in table[truth]), said
            others = [phrase for name, phrases in table.items() if name != truth for phrase in phrases]
            assert not any(f" {phrase} " in said for phrase in others), said
        spoken = any(f" {word} " in said for word in data._SPEED_WORDS[body.speed])
        assert spoken == (body.motion != "still")


def test_captions_of_pairs_name_the_upper_object_first() -> None:
    for seed in range(20):
        scene = scene_of(seed, "pair")
        upper, lower = scene.bodies
        assert upper.centre[1] < lower.centre[1]
        said = data.caption(scene, np.random.default_rng(seed))
        assert said.index(upper.colour) < said.index(lower.colour)


def test_camera_is_named() -> None:
    for seed in range(20):
        scene = scene_of(seed, "pan")
        said = data.caption(scene, np.random.default_rng(seed))
        assert scene.pan in said.split() and ("camera" in said or "view" in said)


def test_open_captions_leave_out_size_and_speed_only() -> None:
    scene = scene_of(1, "slide")
    said = data.caption(scene, np.random.default_rng(2), omit=1.0).split()
    assert scene.bodies[0].colour in said
    left_out = {word for table in (data._SIZE_WORDS, data._SPEED_WORDS) for words in table.values() for word in words}
    assert not left_out & set(said)


def test_vocabulary_covers_the_captions() -> None:
    known = set(data.words())
    for seed in range(300):
        assert set(data.caption(scene_of(seed), np.random.default_rng(seed)).split()) <= known


def test_held_out_combinations_and_sentences_stay_out_of_training() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        kept, seen = (data.sample_scene(rng, part) for part in (True, False))
        assert any(data.is_held_out(kept.background, body) for body in kept.bodies)
        assert not any(data.is_held_out(seen.background, body) for body in seen.bodies)
        assert not data.is_held_out_caption(data.training_caption(seen, rng))
        assert data.is_held_out_caption(data.held_out_caption(seen, rng))


def test_rolling_is_without_slipping() -> None:
    body = scene_of(0, "roll").bodies[0]
    for size in data.SIZES:
        path = trajectory(replace(body, size=size), np.arange(20.0))
        arc = np.diff(path.angle) * radius_of(replace(body, size=size))
        np.testing.assert_allclose(arc, np.diff(path.x))


def test_falling_is_under_constant_gravity() -> None:
    body = replace(scene_of(0, "bounce").bodies[0], speed="slow")
    second = np.diff(trajectory(body, np.arange(96.0)).y, 2)
    falling = second > 0  # but where it hits the ground
    assert falling.mean() > 0.95
    np.testing.assert_allclose(second[falling], np.median(second), rtol=0.8)
    assert np.isclose(second[falling], np.median(second)).mean() > 0.95


def test_collisions_are_elastic_between_equal_masses() -> None:
    """The velocities always cancel, and the balls touch without going into each other."""
    scene = scene_of(1, "collide")
    frames = np.arange(192.0) / 2
    first, second = (trajectory(body, frames) for body in scene.bodies)
    np.testing.assert_allclose(np.diff(first.x), -np.diff(second.x))
    apart = np.abs((first.x - second.x + 32) % 64 - 32)
    radii = first.radius + second.radius
    assert (apart >= radii - 1e-9).all() and (apart < radii + 2).any()


def test_wall_hides_a_whole_object() -> None:
    scene = scene_of(2, "hide")
    numbers = np.arange(96.0)
    covered = coverage(scene, scene.bodies[0], numbers)
    hidden = covered[:, :, slice(20, 44)].sum((1, 2)) / covered.sum((1, 2))
    assert hidden.max() > 0.99 and hidden.min() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_measurement_finds_what_was_drawn(kind: str) -> None:
    for seed in range(2):
        scene = scene_of(seed, kind)
        video = render(scene, 96)
        assert str(measure(video, scene)) == "bcsm", scene
        assert is_stable(render(scene, 216), scene)
        assert position_error(video, video, scene) == 0


@pytest.mark.slow
def test_measurement_misses_what_was_not_drawn() -> None:
    """One attribute of the scene is exchanged at a time; just this one is found wrong."""
    for seed in range(2):
        scene = scene_of(seed, "slide")
        body = scene.bodies[0]
        motion = {"right": "left", "left": "right", "up": "bounce", "down": "up"}[body.motion]
        changed = {
            "colour": replace(body, colour="green" if body.colour != "green" else "red"),
            "shape": replace(body, shape="square" if body.shape != "square" else "circle"),
            "motion": replace(body, motion=motion),
        }
        for attribute, other in changed.items():
            finding = measure(render(replace(scene, bodies=(other,)), 96), scene)
            assert not getattr(finding, attribute)
        background = "grey" if scene.background != "grey" else "white"
        assert not measure(render(replace(scene, background=background), 96), scene).background


@pytest.mark.parametrize(("kind", "change"), [("spin", "still"), ("roll", "right"), ("pulse", "still")])
def test_measurement_tells_similar_motions_apart(kind: str, change: str) -> None:
    scene = scene_of(3, kind)
    other = replace(scene, bodies=(replace(scene.bodies[0], motion=change),))
    assert not measure(render(other, 96), scene).motion
    assert not measure(render(scene, 96), other).motion


def test_an_object_that_changes_is_not_stable() -> None:
    scene = scene_of(4, "slide")
    body = scene.bodies[0]
    for other in (
        replace(body, colour="blue" if body.colour != "blue" else "red"),
        replace(body, size="big" if body.size == "small" else "small"),
    ):
        video = np.concatenate([render(scene, 48), render(replace(scene, bodies=(other,)), 48)])
        assert not is_stable(video, scene)


def test_position_error_is_in_picture_widths() -> None:
    scene = scene_of(4, "slide")
    body = scene.bodies[0]
    moved = replace(scene, bodies=(replace(body, centre=(body.centre[0] + 6.4, body.centre[1])),))
    assert position_error(render(moved, 24), render(scene, 24), scene) == pytest.approx(0.1, abs=0.01)
    empty = render(replace(scene, bodies=()), 24)
    assert position_error(empty, render(scene, 24), scene) == pytest.approx(0.5)


def test_refuses_empty_clips() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        make_clip(0, 0)
