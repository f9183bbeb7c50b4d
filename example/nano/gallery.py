"""The moving picture of the main README: `python -m example.nano.gallery`.

The first held-out captions of `evaluate`, not selected, made by the shipped weights: a grid of videos as an animated
WebP, `docs/images/gallery.webp`, and the captions in its order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from example.nano.evaluate import Settings, load_pipeline, run_prompt
from example.nano.model import magi_config

OUTPUT = Path(__file__).parents[2] / "docs" / "images" / "gallery.webp"
_GAP = 2  # white pixels between videos
_EVERY = 2  # frames of the videos per frame of the picture: 12 a second


def grid(videos: list[np.ndarray], columns: int) -> np.ndarray:
    """Videos (T, H, W, 3) side by side, row by row: (T, H', W', 3)."""
    framed = [np.pad(video, ((0, 0), (_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255) for video in videos]
    rows = [np.concatenate(framed[first : first + columns], 2) for first in range(0, len(framed), columns)]
    return np.concatenate(rows, 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="videos, a multiple of --columns (default 20)")
    parser.add_argument("--columns", type=int, default=10, help="videos side by side (default 10)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    if args.count < 1 or args.count % args.columns:
        parser.error(f"--count {args.count} is no multiple of --columns {args.columns}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = Settings("t2v", "captions", 96, 64)
    pipeline = load_pipeline(magi_config(), settings.frames, settings.steps)
    results = [run_prompt(pipeline, settings, number) for number in tqdm(range(args.count), unit="video")]
    pictures = [Image.fromarray(frame) for frame in grid([video for _, video in results], args.columns)[::_EVERY]]
    beside = args.output.with_suffix(".part")
    duration = round(1000 * _EVERY / 24)
    pictures[0].save(
        beside, "WEBP", save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=80, method=6
    )
    beside.replace(args.output)
    for number, (result, _) in enumerate(results, 1):
        print(f"{number:3} {result.finding} {result.prompt}")
    print(f"{args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
