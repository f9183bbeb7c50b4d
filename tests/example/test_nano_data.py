"""The clip generator: a pure function of its seed, whose captions say what the frames show."""

import numpy as np
import pytest

from example.nano import data
from example.nano.measure import measure


def test_same_seed_same_clip() -> None:
    first, second = data.make_clip(5, 12), data.make_clip(5, 12)
    assert first.caption == second.caption
    assert first.scene == second.scene
    np.testing.assert_array_equal(first.frames, second.frames)
    assert data.make_clip(6, 12).scene != first.scene


@pytest.mark.parametrize(("num_frames", "size"), [(1, 64), (7, 64), (24, 32), (3, 256)])
def test_shape_and_range(num_frames: int, size: int) -> None:
    frames = data.make_clip(1, num_frames, size).frames
    assert frames.shape == (num_frames, size, size, 3)
    assert frames.dtype == np.uint8
    assert frames.max() - frames.min() > 50


def test_first_frame_is_a_place_in_the_same_clip() -> None:
    scene = data.sample_scene(np.random.default_rng(3))
    np.testing.assert_array_equal(data.render(scene, 40)[16:], data.render(scene, 24, first_frame=16))


def test_every_motion_repeats_after_96_frames() -> None:
    for seed in range(20):
        scene = data.sample_scene(np.random.default_rng(seed), None)
        difference = data.render(scene, 2).astype(int) - data.render(scene, 2, first_frame=96)
        assert np.abs(difference).max() <= 1  # the last bit of a float32 position


def test_caption_determines_the_attributes() -> None:
    """Whoever knows the word tables reads every attribute but the start from the caption."""
    for seed in range(200):
        clip = data.make_clip(seed, 1, held_out=None)
        body, said = clip.scene.bodies[0], f" {clip.caption} "
        assert [name for name in data.COLOURS if f" {name} " in said] == [body.colour]
        for table, truth in (
            (data._SHAPE_WORDS, body.shape),
            (data._SIZE_WORDS, body.size),
            (data._MOTION_WORDS, body.motion),
            (data._BACKGROUND_WORDS, clip.scene.background),
        ):
            assert any(f" {phrase} " in said for phrase in table[truth]), clip.caption
            others = [phrase for name, phrases in table.items() if name != truth for phrase in phrases]
            assert not any(f" {phrase} " in said for phrase in others), clip.caption
        spoken = any(f" {word} " in said for word in data._SPEED_WORDS[body.speed])
        assert spoken == (body.motion != "still")


def test_open_captions_leave_out_size_and_speed_only() -> None:
    scene = data.sample_scene(np.random.default_rng(1))
    said = data.caption(scene, np.random.default_rng(2), omit=1.0).split()
    assert scene.bodies[0].colour in said
    left_out = {word for table in (data._SIZE_WORDS, data._SPEED_WORDS) for words in table.values() for word in words}
    assert not left_out & set(said)


def test_vocabulary_covers_the_captions() -> None:
    known = set(data.words())
    for seed in range(300):
        assert set(data.make_clip(seed, 1, held_out=None, two_object_share=0.3).caption.split()) <= known


def test_held_out_combinations_stay_out_of_training() -> None:
    kept, seen = (
        [data.sample_scene(np.random.default_rng(seed), part) for seed in range(150)] for part in (True, False)
    )
    assert all(data.is_held_out(scene.background, scene.bodies[0]) for scene in kept)
    assert not any(data.is_held_out(scene.background, scene.bodies[0]) for scene in seen)


def test_two_objects() -> None:
    scene = data.sample_scene(np.random.default_rng(0), two_object_share=1.0)
    assert len(scene.bodies) == 2
    assert " and " in data.caption(scene, np.random.default_rng(0))


def test_measurement_finds_what_was_drawn_and_misses_what_was_not() -> None:
    for seed in range(12):
        scene = data.sample_scene(np.random.default_rng(seed), None)
        right = measure(data.render(scene, 96), scene)
        assert right.background and right.colour and right.shape and right.motion, (scene, right)
        other = data.sample_scene(np.random.default_rng(seed + 1000), None)
        body, wrong = other.bodies[0], measure(data.render(scene, 96), other)
        if other.background == scene.background and body.colour != scene.bodies[0].colour:
            assert not wrong.colour
        if other.background != scene.background:
            assert not wrong.background


def test_refuses_empty_clips() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        data.make_clip(0, 0)
