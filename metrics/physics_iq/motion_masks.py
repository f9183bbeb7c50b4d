"""Motion masks of Physics-IQ: where in the picture something moves (docs/scores.md, "Motion masks").

The steps are those of the official pipeline, done by the same library (OpenCV), down to the file: masks are written as
lossy ``mp4v`` video and read back, because that is how the masks of the real takes are shipped.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

BLUR_SIZE = (5, 5)
# Weight of a new frame in the running average.
NEW_FRAME_WEIGHT = 0.3
THRESHOLD = 10
MORPHOLOGY_KERNEL = np.ones((5, 5), np.uint8)
MOVING = 255
# Above which a pixel of a mask that was coded, or resized, counts as moving.
BINARY_THRESHOLD = 127


def motion_masks(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The mask of each frame of a video: frames (H, W, 3) uint8 RGB, masks (H, W) uint8 of 0 and 255.

    A pixel moves where its blurred grey value differs by more than 10 from the running average of the frames up to and
    with this one; opening, then closing, removes specks and fills holes. The first mask is empty.
    """
    average: np.ndarray | None = None
    for frame in frames:
        # Sigma 0 lets OpenCV derive it from the size of the kernel.
        blurred = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), BLUR_SIZE, 0)
        if average is None:
            average = blurred.astype(np.float64)
            yield np.zeros_like(blurred)
            continue
        cv2.accumulateWeighted(blurred, average, NEW_FRAME_WEIGHT)
        # convertScaleAbs rounds to uint8, half to even.
        difference = cv2.absdiff(blurred, cv2.convertScaleAbs(average))
        _, moving = cv2.threshold(difference, THRESHOLD, MOVING, cv2.THRESH_BINARY)
        opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, MORPHOLOGY_KERNEL)
        yield cv2.morphologyEx(opened, cv2.MORPH_CLOSE, MORPHOLOGY_KERNEL)


def write_masks(path: Path, masks: Iterable[np.ndarray], fps: int) -> None:
    """Masks, each (H, W) uint8, as a grey ``mp4v`` video: MPEG-4 part 2, lossy, at OpenCV's settings.

    Of an odd width or height the last column or row is left out, as in the official pipeline. Raises OSError where
    nothing can be written to ``path``.
    """
    writer = None
    for mask in masks:
        height, width = (side - side % 2 for side in mask.shape)
        if writer is None:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height), isColor=False)
            if not writer.isOpened():
                raise OSError(f"cannot write motion masks of {width}x{height} at {fps} fps to {path}")
        writer.write(np.ascontiguousarray(mask[:height, :width]))
    if writer is not None:
        writer.release()
