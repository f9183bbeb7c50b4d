"""Draw the example media, `image.png` and `clip.mp4` in `example/assets/`: `python -m example.nano.make_assets`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from example.nano.scenes.data import FPS, Body, Scene
from example.nano.scenes.drawing import render

ASSETS = Path(__file__).parents[1] / "assets"
IMAGE_SIZE = 256
CLIP_FRAMES = 72
IMAGE = Scene("sky", (Body("circle", "red", "big", "still", "slow", (30.0, 34.0), 0.0),))
CLIP = Scene("sunset", (Body("square", "yellow", "big", "right", "slow", (10.0, 34.0), 0.0),))


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
    for file in ("image.png", "clip.mp4"):
        print(f"{(folder / file).stat().st_size:>8,} {folder / file}")


if __name__ == "__main__":
    main()
