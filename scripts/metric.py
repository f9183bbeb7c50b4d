#!/usr/bin/env python
"""Compare generated videos with their originals: PSNR, SSIM and LPIPS, per frame and over all frames.

Examples:
  metric.py outputs/magi_t2v.mp4 outputs/flowcache_t2v.mp4
  metric.py samples/none samples/flowcache --output_path outputs/metric_flowcache
  metric.py a.mp4 b.mp4 --lpips_weights downloads/alexnet-owt-7be5be79.pth
  metric.py --drift outputs/flowcache_t2v.mp4

Two files, or two folders whose videos have the same names. Sizes, lengths and rates have to be the same. A table goes
to the standard output; metrics.json, videos.csv, frames.csv and a PNG per video (curves, and both videos with their
difference) go into the folder --output_path. --drift looks at one
video alone: how it changes from second to second, as NAME.drift.json and NAME.drift.png.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

from tqdm import tqdm

from harness.arguments import parse
from harness.program import make_parser, run_program

if TYPE_CHECKING:
    import torch

    from metrics.similarity.lpips_distance import LpipsDistance

logger = logging.getLogger("metric")


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, measure, argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("videos", type=Path, nargs="*", metavar="VIDEOS", help="ORIGINAL GENERATED, files or folders")
    parser.add_argument("--original_video", type=Path, metavar="ORIGINAL", help="video file, or folder of videos")
    parser.add_argument("--generated_video", type=Path, metavar="GENERATED", help="video file, or folder of same names")
    parser.add_argument("--drift", type=Path, metavar="VIDEO", help="how one video changes from second to second")
    parser.add_argument(
        "--output_path", type=Path, default=Path("outputs/metric"), help="folder for the files (default: %(default)s)"
    )
    parser.add_argument(
        "--lpips_weights",
        type=Path,
        help="AlexNet's weights as torchvision has them (.pth or .safetensors), where they cannot be downloaded",
    )
    parser.add_argument("--no_lpips", action="store_true", help="leave LPIPS out")
    parser.add_argument("--batch", type=int, default=8, help="frames at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    args = parse(parser, argv)
    named = [args.original_video, args.generated_video]
    given = [*args.videos, *(path for path in named if path is not None)]
    if args.drift is not None:
        if given:
            parser.error("--drift looks at one video alone; leave out the others")
        return args
    if len(given) != 2 or len(args.videos) == 1:
        parser.error("give two videos or folders: ORIGINAL GENERATED, or --original_video and --generated_video")
    args.original, args.generated = given
    return args


def measure(args: argparse.Namespace) -> None:
    """Check everything, compute, print and write."""
    if args.drift is not None:
        measure_one(args.drift, args.output_path)
        return
    if args.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {args.batch}")
    # With torch, which takes seconds to import.
    from harness.device import choose_device
    from harness.similarity import check_pairs, check_results, compare_pair, write_results
    from metrics.bit_depth import deep_note
    from metrics.similarity.report import table
    from metrics.similarity.video_pairs import pair_up

    device = choose_device(args.device)
    pairs = pair_up(args.original, args.generated)
    check_results(args.output_path, pairs, {"lpips_weights": args.lpips_weights})
    facts = check_pairs(pairs)
    if note := deep_note(path for pair in pairs for path in (pair.original, pair.generated)):
        logger.warning("warning: %s", note)
    lpips, missing = open_lpips(args, device, min(min(one.width, one.height) for one in facts.values()))
    compared = []
    for pair in tqdm(pairs, unit="video", disable=len(pairs) == 1, dynamic_ncols=True):
        compared.append(compare_pair(pair, facts[pair], lpips, device, args.batch))
    about = {
        "original": str(args.original),
        "generated": str(args.generated),
        "lpips_weights": None if lpips is None else lpips.weights,
        "lpips_missing": missing,
    }
    written = write_results(args.output_path, compared, about)
    for one in compared:
        for warning in one.warnings:
            logger.warning("warning: %s", warning)
    print(table({one.pair.name: one.result for one in compared}))
    logger.info("written: %s", ", ".join(str(path) for path in written[:5]) + (", ..." if len(written) > 5 else ""))


def measure_one(video: Path, folder: Path) -> None:
    """The drift of one video."""
    from harness.similarity import drift_of
    from metrics.bit_depth import deep_note
    from metrics.drift import drift_table

    drift, written = drift_of(video, folder)
    if note := deep_note([video]):
        logger.warning("warning: %s", note)
    if drift.left_out:
        logger.warning("warning: the last %d frames are less than a second and left out", drift.left_out)
    print(drift_table(drift))
    logger.info("written: %s", ", ".join(map(str, written)))


def open_lpips(
    args: argparse.Namespace, device: "torch.device", smallest: int
) -> "tuple[LpipsDistance | None, str | None]":
    """The LPIPS network, or why there is none; ``smallest`` is the shortest side of any video in pixels."""
    if args.no_lpips:
        return None, "left out with --no_lpips"
    from metrics.similarity.lpips_distance import LpipsUnavailable, load_lpips

    try:
        return load_lpips(args.lpips_weights, device, smallest), None
    except LpipsUnavailable as error:
        logger.warning("warning: %s. Everything else is computed.", error)
        return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
