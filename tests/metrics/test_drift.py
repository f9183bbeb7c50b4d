"""Drift: figures per second on videos whose change is known, and the line through them."""

import pytest
import torch
from torch import Tensor

from metrics.drift import FIGURES, fit, measure_drift
from tests.metrics.clips import noise

FPS = 4


def grey(levels: list[int]) -> Tensor:
    """A second of each level: uint8 (T, 16, 16, 3)."""
    frames = torch.tensor(levels, dtype=torch.uint8).repeat_interleave(FPS)
    return frames[:, None, None, None].expand(-1, 16, 16, 3).contiguous()


def test_a_line_gives_its_slope_and_the_error_of_textbooks() -> None:
    exact = fit([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0])
    assert exact.value == pytest.approx(2) and exact.error == pytest.approx(0, abs=1e-12)
    # By hand: residuals of 0, 1, 0 about 1/3 are -1/3, 2/3, -1/3; sqrt(6/9 / 1 / 2).
    bent = fit([0, 1, 2], [0.0, 1.0, 0.0])
    assert bent.value == pytest.approx(0) and bent.error == pytest.approx((1 / 3) ** 0.5)
    assert fit([0, 1], [0.0, 1.0]).error is None


def test_brightness_that_rises_is_seen_and_nothing_else() -> None:
    drift = measure_drift(grey([51, 102, 153]), FPS)
    assert drift.seconds["brightness"] == pytest.approx((0.2, 0.4, 0.6))
    assert drift.slope("brightness").value == pytest.approx(0.2)
    for name in ("sharpness", "contrast", "saturation"):
        assert drift.seconds[name] == pytest.approx((0, 0, 0), abs=1e-9)
    # One step of 0.2 at the first of a second's four frames; the first second has none.
    assert drift.seconds["motion"] == pytest.approx((0, 0.05, 0.05))


def test_blur_takes_sharpness_and_contrast_and_likeness() -> None:
    sharp = noise(1, 32, 32)[0]
    smooth = torch.nn.functional.avg_pool2d(sharp.movedim(-1, 0).float(), 5, 1, 2).movedim(0, -1).to(torch.uint8)
    drift = measure_drift([sharp] * FPS + [smooth] * FPS, FPS)
    for name in ("sharpness", "contrast"):
        assert drift.seconds[name][1] < drift.seconds[name][0] / 2
    assert drift.seconds["likeness"][0] == pytest.approx(1) and drift.seconds["likeness"][1] < 0.5


def test_saturation_is_that_of_hsv() -> None:
    red = torch.tensor([200, 50, 50], dtype=torch.uint8).expand(16, 16, 3)
    drift = measure_drift([red] * 2 * FPS, FPS)
    assert drift.seconds["saturation"] == pytest.approx((0.75, 0.75))


def test_what_is_no_whole_second_is_left_out() -> None:
    drift = measure_drift(torch.cat([grey([10, 20]), grey([200])[:3]]), FPS)
    assert drift.left_out == 3
    assert {name: len(values) for name, values in drift.seconds.items()} == dict.fromkeys(FIGURES, 2)
    assert measure_drift(grey([10, 20, 30])[:10], 2.5).left_out == 0


def test_too_short_too_slow_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="7 frames at 4 per second: drift needs at least two whole seconds"):
        measure_drift(grey([10, 20])[:7], FPS)
    with pytest.raises(ValueError, match="1 frames per second"):
        measure_drift(grey([10]), 1)
    with pytest.raises(ValueError, match="the frames are 8x8"):
        measure_drift(grey([10, 20])[:, :8, :8], FPS)
