"""Motion masks against a version written with loops over pixels, and what the lossy file does to them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from metrics.physics_iq.files import read_frames
from metrics.physics_iq.motion_masks import motion_masks, write_masks

KERNEL = np.array([1, 4, 6, 4, 1])


def naive_grey(frame: np.ndarray) -> np.ndarray:
    return np.floor(frame @ np.array([0.299, 0.587, 0.114]) + 0.5)


def naive_blur(grey: np.ndarray) -> np.ndarray:
    """Binomial weights, mirrored borders without the border pixel itself, rounded once."""
    height, width = grey.shape
    padded = np.pad(grey, 2, mode="reflect")
    weights = np.outer(KERNEL, KERNEL)
    blurred = np.zeros_like(grey)
    for row in range(height):
        for column in range(width):
            blurred[row, column] = np.floor((padded[row : row + 5, column : column + 5] * weights).sum() / 256 + 0.5)
    return blurred


def naive_extremes(mask: np.ndarray, largest: bool) -> np.ndarray:
    """Dilation (largest) or erosion by 5x5, where nothing beyond the border counts."""
    result = np.zeros_like(mask)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            window = mask[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            result[row, column] = window.any() if largest else window.all()
    return result


def naive_masks(frames: np.ndarray) -> list[np.ndarray]:
    average, masks = naive_blur(naive_grey(frames[0])), [np.zeros(frames.shape[1:3], bool)]
    for frame in frames[1:]:
        blurred = naive_blur(naive_grey(frame))
        average = 0.7 * average + 0.3 * blurred
        mask = np.abs(blurred - np.round(average)) > 10
        for largest in (False, True, True, False):  # opening, then closing
            mask = naive_extremes(mask, largest)
        masks.append(mask)
    return masks


def moving_blobs(count: int) -> np.ndarray:
    """Two coloured rectangles that move over a noisy ground: (count, 24, 32, 3) uint8."""
    rng = np.random.default_rng(3)
    frames = rng.integers(60, 90, (count, 24, 32, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[4:13, number * 3 : number * 3 + 9] = (220, 40, 90)
        frame[15 - number // 2 : 23 - number // 2, 18:26] = (30, 180, 240)
    return frames


def test_masks_equal_the_naive_ones() -> None:
    frames = moving_blobs(7)
    expected = naive_masks(frames)
    assert 0.02 < np.mean(expected) < 0.5 and not expected[0].any()
    for mask, naive in zip(motion_masks(frames), expected, strict=True):
        assert set(np.unique(mask)) <= {0, 255} and mask.dtype == np.uint8
        assert np.array_equal(mask == 255, naive)


def test_nothing_moves_where_no_change_exceeds_the_threshold() -> None:
    # After one frame of change c, the distance to the average is 0.7 c: 14.3 gives 10, 16 gives 11.2.
    for change, moves in ((14, False), (16, True)):
        frames = np.full((2, 16, 16, 3), 100, np.uint8)
        frames[1] += change
        assert list(motion_masks(frames))[1].any() == moves


def test_the_average_forgets() -> None:
    frames = np.full((12, 16, 16, 3), 50, np.uint8)
    frames[1:] = 150
    moving = [bool(mask.any()) for mask in motion_masks(frames)]
    # 100 * 0.7^t falls below 10 after the sixth frame: 11.8, then 8.2.
    assert moving == [False] + [True] * 6 + [False] * 5


def test_masks_through_the_lossy_file(tmp_path: Path) -> None:
    masks = np.zeros((40, 48, 64), np.uint8)
    for number, mask in enumerate(masks):
        mask[10:30, number : number + 12] = 255
    write_masks(tmp_path / "mask.mp4", masks, 8)
    read = np.stack(list(read_frames(tmp_path / "mask.mp4")))
    assert read.shape == (*masks.shape, 3) and np.array_equal(read[..., 0], read[..., 2])
    assert np.mean((read[..., 0] > 127) != (masks > 127)) < 0.002
    capture = cv2.VideoCapture(str(tmp_path / "mask.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 8
    assert int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"mp4v", b"FMP4")


@pytest.mark.parametrize(("width", "height"), [(65, 63), (64, 63), (65, 64)])
def test_masks_of_odd_size_lose_their_last_column_and_row(tmp_path: Path, width: int, height: int) -> None:
    masks = np.zeros((10, height, width), np.uint8)
    for number, mask in enumerate(masks):
        mask[8:40, number * 5 : number * 5 + 20] = 255
    masks[:, -1], masks[:, :, -1] = 0, 0
    write_masks(tmp_path / "whole.mp4", masks, 8)
    write_masks(tmp_path / "cropped.mp4", masks[:, : height // 2 * 2, : width // 2 * 2], 8)
    read = np.stack(list(read_frames(tmp_path / "whole.mp4")))[..., 0]
    assert read.shape == (10, height // 2 * 2, width // 2 * 2)
    assert np.array_equal(read, np.stack(list(read_frames(tmp_path / "cropped.mp4")))[..., 0])
    assert np.mean((read > 127) != (masks[:, : height // 2 * 2, : width // 2 * 2] > 127)) < 0.01
    # What the official code does: it opens the file with the even size and writes masks of the odd one.
    writer = cv2.VideoWriter(
        *(str(tmp_path / "official.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 8),
        *((width // 2 * 2, height // 2 * 2), False),
    )
    for mask in masks:
        writer.write(mask)
    writer.release()
    assert np.array_equal(read, np.stack(list(read_frames(tmp_path / "official.mp4")))[..., 0])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write motion masks of 64x64 at 8 fps"):
        write_masks(tmp_path / "no" / "mask.mp4", np.zeros((2, 64, 64), np.uint8), 8)
