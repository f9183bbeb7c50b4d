"""PSNR and SSIM: values that are known, scikit-image's, and batches of any size."""

import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from metrics.similarity.measures import Similarity, compare
from metrics.similarity.report import figures, per_frame, summary, table, videos_csv
from tests.metrics.clips import moving, noise


def batches(original: Tensor, generated: Tensor, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(original.split(size), generated.split(size), strict=True)


def similarity(original: Tensor, generated: Tensor, size: int = 8) -> Similarity:
    return compare(batches(original, generated, size))


def check_against_skimage(original: Tensor, generated: Tensor) -> Similarity:
    """All figures of one pair of clips as scikit-image has them, in float64.

    Its SSIM leaves out a border of half a window; mirrored frames make that the border which torchmetrics adds.
    """
    result = similarity(original, generated)
    a, b = original.numpy(), generated.numpy()
    assert result.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    for frame in range(len(a)):
        psnr = peak_signal_noise_ratio(a[frame], b[frame], data_range=255)
        assert result.psnr_per_frame[frame] == pytest.approx(psnr, abs=1e-9)
        mirrored = [np.pad(clip[frame] / 255.0, ((5, 5), (5, 5), (0, 0)), mode="reflect") for clip in (a, b)]
        ssim = structural_similarity(
            *mirrored,
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert result.ssim[frame] == pytest.approx(ssim, abs=2e-5)
    assert result.ssim_mean == pytest.approx(np.mean(result.ssim), abs=1e-12)
    return result


def test_two_noise_clips() -> None:
    """Independent uniform bytes differ by 2 (256² - 1) / 12 on average, squared; uint8 that wraps would say 28 dB."""
    result = check_against_skimage(noise(6, 96, 96), noise(6, 96, 96, seed=1))
    expected = 10 * math.log10(255**2 / (2 * (256**2 - 1) / 12))
    assert expected == pytest.approx(7.75, abs=0.01)
    assert result.psnr == pytest.approx(expected, abs=0.05)
    assert result.psnr_frame_mean == pytest.approx(expected, abs=0.05)
    assert abs(result.ssim_mean) < 0.05


def test_one_shifted_by_a_frame() -> None:
    clip = moving(9)
    shifted = check_against_skimage(clip[:-1], clip[1:])
    assert similarity(clip, clip).identical
    assert shifted.psnr is not None and shifted.psnr < 25
    assert shifted.ssim_mean < 0.9


def test_figures_are_symmetric_and_see_every_channel_and_frame() -> None:
    clip = moving(4)
    for frame, channel in ((0, 0), (3, 2)):
        other = clip.clone()
        other[frame, 5, 7, channel] ^= 255
        result = similarity(clip, other)
        assert [error > 0 for error in result.mse] == [index == frame for index in range(4)]
        assert result.identical_frames == 3 and not result.identical
        assert result.mse == similarity(other, clip).mse
        assert result.ssim == pytest.approx(similarity(other, clip).ssim, abs=1e-6)


def test_global_error_and_mean_of_frames_are_two_figures() -> None:
    """Jensen: the mean of the frames' PSNR is never the smaller one, and with drift it is much larger."""
    clip = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    other = clip.clone()
    other[0] += 1
    other[1] += 25
    result = similarity(clip, other)
    each = [20 * math.log10(255 / difference) for difference in (1, 25)]
    assert result.psnr_per_frame == pytest.approx(each)
    assert result.psnr_frame_mean == pytest.approx(sum(each) / 2)
    assert result.psnr == pytest.approx(10 * math.log10(255**2 / ((1 + 625) / 2)))
    assert result.psnr_frame_mean - result.psnr > 10
    equal = clip + 4
    assert similarity(clip, equal).psnr == pytest.approx(similarity(clip, equal).psnr_frame_mean)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_of_any_size_give_the_same(size: int) -> None:
    original, generated = moving(41), (moving(42)[1:] // 2 + 20)
    whole, parts = similarity(original, generated, 41), similarity(original, generated, size)
    assert parts.mse == whole.mse and parts.psnr == whole.psnr and parts.psnr_frame_mean == whole.psnr_frame_mean
    assert parts.ssim == pytest.approx(whole.ssim, abs=1e-5)


def test_batches_are_not_kept() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def fresh() -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(5):
            # The batch before this one may still be somebody's variable, the one before that may not.
            assert all(old() is None for old in seen[:-1])
            pair = noise(2, seed=seed), noise(2, seed=seed + 9)
            seen.append(weakref.ref(pair[0]))
            yield pair

    result = compare(fresh(), keep=[0, 9])
    assert len(result.mse) == 10 and len(seen) == 5
    assert [frame.index for frame in result.kept] == [0, 9]
    assert torch.equal(result.kept[1].original, noise(2, seed=4)[1])
    assert torch.equal(result.kept[1].generated, noise(2, seed=13)[1])


def test_identical_videos_are_left_out_of_the_means() -> None:
    clip = moving(3)
    results = {
        "same.mp4": similarity(clip, clip.clone()),
        "noisy.mp4": similarity(clip, noise(3, 40, 48)),
        "dimmed.mp4": similarity(clip, clip // 2),
    }
    same = results["same.mp4"]
    assert same.identical and same.psnr is None and same.psnr_frame_mean is None and same.ssim_mean > 0.9999
    overall = summary(results)
    assert (overall["videos"], overall["identical"]) == (3, 1)
    others = [figures(results[name]) for name in ("noisy.mp4", "dimmed.mp4")]
    for name in ("psnr", "psnr_frame_mean", "ssim"):
        values = [row[name] for row in others]
        assert overall[name]["mean"] == pytest.approx(sum(values) / 2)
        assert overall[name]["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert overall["lpips"] == {"mean": None, "std": None}
    lines = table(results).splitlines()
    assert next(line for line in lines if line.startswith("same")).endswith("identical, left out of the mean")
    assert any(line.startswith("mean of the others") for line in lines)
    assert videos_csv(results).splitlines()[1] == f"same.mp4,3,True,3,,,{same.ssim_mean}"
    assert per_frame(same)["psnr"] == [None] * 3
    assert len(table({"same.mp4": same}).splitlines()) == 3


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no frames"):
        compare([])
    with pytest.raises(ValueError, match=r"frames are 10x20; SSIM needs at least 11x11"):
        similarity(noise(1, 20, 10), noise(1, 20, 10))
