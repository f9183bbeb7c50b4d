"""The captions that calibrate: as they are drawn, all different, and not those that evaluations are made of."""

from example.nano.evaluate import prompt_of
from example.nano.make_assets import ASSETS, CALIBRATION_CAPTIONS, calibration_prompts
from example.nano.scenes.data import KINDS


def test_the_file_is_what_is_drawn() -> None:
    lines = (ASSETS / "calibration_prompts.txt").read_text(encoding="utf-8").splitlines()
    assert lines == calibration_prompts() and len(set(lines)) == CALIBRATION_CAPTIONS == 60


def test_every_kind_of_scene_calibrates_and_is_checked() -> None:
    kinds = [number % len(KINDS) for number in range(CALIBRATION_CAPTIONS)]
    for held_out, count in ((True, 2), (False, 4)):  # scripts/calibrate.py holds every third out
        chosen = [kind for number, kind in enumerate(kinds) if (number % 3 == 2) == held_out]
        assert all(chosen.count(kind) == count for kind in range(len(KINDS)))


def test_no_caption_of_an_evaluation_is_among_them() -> None:
    assert not set(calibration_prompts()) & {prompt_of(number, "captions")[1] for number in range(200)}
