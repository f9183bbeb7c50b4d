"""Draw the example media, `image.png` and `clip.mp4` in `example/assets/`, and write the captions that calibrate,
`calibration_prompts.txt`: `python -m example.nano.make_assets`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from example.nano.scenes.data import FPS, KINDS, Body, Scene, held_out_caption, sample_scene
from example.nano.scenes.drawing import render

ASSETS = Path(__file__).parents[1] / "assets"
IMAGE_SIZE = 256
CLIP_FRAMES = 72
IMAGE = Scene("sky", (Body("circle", "red", "big", "still", "slow", (30.0, 34.0), 0.0),))
CLIP = Scene("sunset", (Body("square", "yellow", "big", "right", "slow", (10.0, 34.0), 0.0),))

CALIBRATION_CAPTIONS = 60


def calibration_prompts() -> list[str]:
    """Captions that training never saw. Kinds of scenes take turns, ten of them, so that every third caption, which is
    held out, is of every kind as often.
    """
    kinds, captions = list(KINDS), []
    for number in range(CALIBRATION_CAPTIONS):
        rng = np.random.default_rng([11, number])
        captions.append(held_out_caption(sample_scene(rng, kind=kinds[number % len(kinds)]), rng))
    return captions


def write_clip(path: Path, frames: np.ndarray) -> None:
    """H.264 at 24 fps of frames (T, H, W, 3) uint8, near lossless: the clip is tiny."""
    beside = path.with_name(f".part-{path.name}")
    with av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "14", "preset": "slow"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    beside.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where to write (default example/assets)")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(IMAGE, 1, IMAGE_SIZE)[0]).save(folder / "image.png", optimize=True)
    write_clip(folder / "clip.mp4", render(CLIP, CLIP_FRAMES))
    (folder / "calibration_prompts.txt").write_text("\n".join(calibration_prompts()) + "\n", encoding="utf-8")
    for file in ("image.png", "clip.mp4", "calibration_prompts.txt"):
        print(f"{(folder / file).stat().st_size:>8,} {folder / file}")


if __name__ == "__main__":
    main()
