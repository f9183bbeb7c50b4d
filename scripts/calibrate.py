#!/usr/bin/env python
"""Calibrate multi-step reuse for a model and a step count, so that --target_psnr and --target_speedup work.

  calibrate.py --config_file configs/model/nano.json --num_steps 64

Makes uncached videos of half of the prompts, finds from their velocities the best pattern of every length, and
measures each on all prompts: PSNR against the uncached video, floating point operations, seconds. The other half of
the prompts is held out: their PSNR is recorded beside, and chosen by nothing. Writes
configs/calibration/<model>_<steps>.json.
"""

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

from tqdm import tqdm

from harness.arguments import parse
from harness.calibration.files import Calibration, calibration_path, conditions_of
from harness.json_files import commit, save_json
from harness.program import make_parser, run_program
from inference.config import MagiConfig, load_config, resolve_path
from inference.files import read_text

if TYPE_CHECKING:
    import torch

# Shares of the steps that are computed.
_SHARES = (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, run, argv, level=logging.WARNING)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config_file", default="configs/model/nano.json", help="model (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, help="denoising steps (default: the configuration's)")
    parser.add_argument("--num_frames", type=int, default=96, help="frames of a video (default: %(default)s)")
    parser.add_argument(
        "--prompts", default="example/assets/prompts.txt", help="one prompt a line (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=12, help="prompts used, half of them held out (default: 12)")
    parser.add_argument("--lengths", type=int, nargs="+", help="computed steps of each pattern (default: 1/16 .. 1/2)")
    parser.add_argument("--output", type=Path, help="where to write (default: configs/calibration/MODEL_STEPS.json)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as in scripts/generate.py)")
    return parse(parser, argv)


def run(args: argparse.Namespace) -> None:
    overrides = {"num_frames": args.num_frames} | ({} if args.num_steps is None else {"num_steps": args.num_steps})
    config = load_config(args.config_file).with_overrides(**overrides)
    steps = config.runtime.num_steps
    prompts = read_prompts(args.prompts, args.count)
    lengths = args.lengths or sorted({max(1, round(share * steps)) for share in _SHARES})
    if not all(1 <= length <= steps for length in lengths):
        raise ValueError(f"--lengths {lengths} must lie within 1 .. {steps}, the number of steps")
    output = args.output or resolve_path(str(calibration_path(args.config_file, steps)))
    output.parent.mkdir(parents=True, exist_ok=True)
    from harness.calibration.making import calibrate, count_videos
    from harness.device import choose_device, set_threads
    from inference.pipeline import MagiPipeline

    device = choose_device(args.device)
    set_threads(args.threads, config)
    pipeline = MagiPipeline.load(config, device)
    videos = count_videos(config, len(prompts), len(lengths))
    with tqdm(total=videos, unit="video", dynamic_ncols=True) as bar:
        settings, entries = calibrate(pipeline, prompts[::2], prompts[1::2], lengths, bar.update)
    calibration = Calibration(
        about=describe(args, config, device, prompts),
        conditions=conditions_of(config),
        damping=settings.damping,
        correct=settings.correct,
        entries=entries,
    )
    save_json(output, calibration.model_dump(mode="json"))
    print(table(calibration))
    print(output)


def read_prompts(path: str, count: int) -> list[str]:
    lines = [line.strip() for line in read_text(resolve_path(path)).splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line))[:count]
    if len(prompts) < 2:
        raise ValueError(f"{path} gives {len(prompts)} prompts; at least 2 are needed, one to calibrate, one to check")
    return prompts


def describe(args: argparse.Namespace, config: MagiConfig, device: "torch.device", prompts: list[str]) -> dict:
    from harness.sidecar import describe_device

    return {
        "command": " ".join(["scripts/calibrate.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "config_file": args.config_file,
        "device": describe_device(device),
        "num_frames": config.runtime.num_frames,
        "prompts": prompts[::2],
        "held_out_prompts": prompts[1::2],
        "seed": config.runtime.seed,
    }


def table(calibration: Calibration) -> str:
    lines = ["computed  copies  PSNR mean (lowest)  held out      FLOP    seconds"]
    steps = calibration.conditions["num_steps"]
    for entry in calibration.entries:
        held_out = f"{statistics.mean(entry.checked_psnr):5.1f} ({min(entry.checked_psnr):4.1f})"
        copies = "no" if entry.discard_nearly_clean_chunk else "yes"
        found = f"{statistics.mean(entry.psnr):6.1f} ({min(entry.psnr):4.1f})"
        lines.append(
            f"{len(entry.pattern):3d} of {steps:<3d}  {copies:6s} {found}"
            f"      {held_out}  {entry.flop_ratio:5.2f}x  {entry.seconds_ratio.median:5.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
