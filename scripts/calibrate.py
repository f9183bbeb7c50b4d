#!/usr/bin/env python
"""Calibrate multi-step reuse for a model and a step count, so that --target_psnr and --target_speedup work.

  calibrate.py --config_file configs/model/nano.json --num_steps 64

Makes an uncached video of every prompt, each from noise of its own, and finds from the velocities several patterns of
every length. They are run on two thirds of the prompts, and the best of each length is measured on all: PSNR against
the uncached video, floating point operations, seconds. Every third prompt is held out: their PSNR is recorded beside,
and chooses nothing but whether a fitted solver (--solver) is kept. Writes configs/calibration/<model>_<steps>.json.
What was made is kept as it is made: the same command again goes on where it was stopped.
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
from harness.outputs import check_outputs, json_with
from harness.program import make_parser, run_program
from inference.config import MagiConfig, load_config, resolve_path
from inference.files import read_text
from metrics.tail import low_end

if TYPE_CHECKING:
    import torch

# Shares of the steps that are computed.
_SHARES = (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)


def main(argv: list[str] | None = None) -> int:
    again = "stopped; the same command goes on from here"
    return run_program(parse_arguments, run, argv, level=logging.WARNING, stopped=again)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config_file", default="configs/model/nano.json", help="model (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, help="denoising steps (default: the configuration's)")
    parser.add_argument("--num_frames", type=int, default=96, help="frames of a video (default: %(default)s)")
    parser.add_argument(
        "--prompts", default="example/assets/calibration_prompts.txt", help="one prompt a line (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=60, help="prompts used, every third held out (default: 60)")
    parser.add_argument("--lengths", type=int, nargs="+", help="computed steps of each pattern (default: 1/16 .. 1/2)")
    for name, how in (("solver", ""), ("solver_no_copies", ", without a distilled model's nearly-clean copies")):
        said = f"fit a solver too, to patterns of so many steps{how}"
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[], metavar="LENGTH", help=said)
    parser.add_argument(
        "--iterations", type=int, default=120, help="of the fit, two prompts each (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where to write (default: configs/calibration/MODEL_STEPS.json)")
    parser.add_argument("--work", type=Path, help="folder of what was made so far (default: outputs/calibration)")
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
    if not {*args.solver, *args.solver_no_copies} <= set(lengths):
        asked = sorted({*args.solver, *args.solver_no_copies})
        raise ValueError(f"a solver of {asked} steps: its length must be among the lengths {lengths}")
    if args.iterations < 1:
        raise ValueError(f"--iterations must be at least 1, got {args.iterations}")
    output = args.output or resolve_path(str(calibration_path(args.config_file, steps)))
    inputs = {"config_file": resolve_path(args.config_file), "prompts": resolve_path(args.prompts)}
    check_outputs({output: json_with("about", "conditions", "entries")}, inputs)
    output.parent.mkdir(parents=True, exist_ok=True)
    from harness.calibration.making import Calibrator, Fitting, Progress
    from harness.calibration.work import Caption, Work
    from harness.device import choose_device, set_threads
    from inference.pipeline import MagiPipeline

    device = choose_device(args.device)
    set_threads(args.threads, config)
    conditions = conditions_of(config) | {"config": config.to_json_dict(full=True), "device": device.type}
    work = Work(args.work or Path("outputs/calibration"), conditions)
    captions = [Caption(number, text, is_held_out(number)) for number, text in enumerate(prompts)]
    pipeline = MagiPipeline.load(config, device)
    with tqdm(total=0, unit="video", dynamic_ncols=True) as bar:
        calibrator = Calibrator(pipeline, captions, work, Progress(lambda more: expect(bar, more), bar.update))
        entries = calibrator.run(lengths, Fitting(args.solver, args.solver_no_copies, args.iterations))
    calibration = Calibration(
        about=describe(args, config, device, prompts),
        conditions=conditions_of(config),
        damping=calibrator.settings.damping,
        correct=calibrator.settings.correct,
        entries=entries,
    )
    save_json(output, calibration.model_dump(mode="json"))
    print(table(calibration))
    print(output)


def is_held_out(number: int) -> bool:
    """Every third prompt."""
    return number % 3 == 2


def expect(bar: tqdm, more: int) -> None:
    bar.total += more
    bar.refresh()


def read_prompts(path: str, count: int) -> list[str]:
    lines = [line.strip() for line in read_text(resolve_path(path)).splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line))[:count]
    if len(prompts) < 3:
        raise ValueError(f"{path} gives {len(prompts)} prompts; at least 3 are needed, two to calibrate, one to check")
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
        "prompts": [text for number, text in enumerate(prompts) if not is_held_out(number)],
        "held_out_prompts": [text for number, text in enumerate(prompts) if is_held_out(number)],
        "seed": config.runtime.seed,
        "noise": "each prompt's own",
    }


def table(calibration: Calibration) -> str:
    """PSNR over the calibration prompts and over the held-out ones: mean, 5th percentile, lowest."""
    lines = ["computed   copies  found by      PSNR mean, 5 %, lowest  held out             FLOP    seconds"]
    steps = calibration.conditions["num_steps"]
    for entry in calibration.entries:
        copies = "no" if entry.discard_nearly_clean_chunk else "yes"
        lines.append(
            f"{len(entry.pattern):3d} of {steps:<3d} {copies:7s} {entry.found_by or '':13s} {three(entry.psnr)}"
            f"       {three(entry.checked_psnr)}  {entry.flop_ratio:5.2f}x  {entry.seconds_ratio.median:5.2f}x"
        )
    return "\n".join(lines)


def three(psnr: list[float]) -> str:
    return f"{statistics.mean(psnr):5.1f} {low_end(psnr):5.1f} {min(psnr):5.1f}"


if __name__ == "__main__":
    sys.exit(main())
