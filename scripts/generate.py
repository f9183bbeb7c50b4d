#!/usr/bin/env python
"""Make one video with MAGI-1, with or without caching.

Examples:
  generate.py --prompt "a red ball moves left" --method flowcache_fast
  generate.py --mode i2v --prompt "it moves up" --image_path picture.png --num_frames 96
  generate.py --mode v2v --prompt "it goes on" --prefix_video_path clip.mp4 --rel_l1_thresh 0.02

Beside OUTPUT.mp4 stand OUTPUT.json (configuration, seed, versions, times, what was reused and compressed) and
OUTPUT.reuse.png (which chunk was computed at which step). Ctrl-C keeps the chunks that are done as a playable file,
called OUTPUT.partial.mp4 where OUTPUT.mp4 is there from an earlier run. Every flag may be spelled with dashes instead
of underscores.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

# Nothing here imports torch: a typing error is told at once, and not after the seconds that takes.
from harness.arguments import parse
from harness.memory.flags import add_memory_flags, given_switches
from harness.methods import Method, add_method, add_parameters, given_parameters
from harness.outputs import numbered, refuse_foreign_report, refuse_inputs, report_paths, state_path
from harness.program import launched_rank, make_parser, run_program
from harness.run.choosing import settle
from harness.run.flags import add_ending, add_prompts, frame_count, timed_prompts
from harness.signals import stop_like_ctrl_c
from inference.config import VAE_SPATIAL_FACTOR, MagiConfig, load_config, resolve_path
from inference.video.fitting import Fit, size_like
from inference.video.names import check_output_path, partial_path

logger = logging.getLogger("generate")

USAGE = "%(prog)s --prompt PROMPT [--mode {t2v,i2v,v2v}] [--method NAME] [--output_path FILE] [...]"
HELP = {"num_frames": "how many, or endless: until Ctrl-C or --max_seconds"}
RUNTIME_FLAGS = ("seed", "num_frames", "num_steps", "video_size_h", "video_size_w")
FILES = ("config_file", "method_config", "calibration", "prompt_schedule", "image_path", "prefix_video_path")


def main(argv: list[str] | None = None) -> int:
    # Of several processes each gets the arguments that the first was started with.
    argv = sys.argv[1:] if argv is None else argv
    # A terminated run, or one whose connection is lost, ends like an interrupted one: what is finished stays.
    stop_like_ctrl_c()
    return run_program(parse_arguments, lambda args: generate(args, argv), argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, USAGE)
    parser.add_argument(
        "--config_file",
        default="configs/model/nano.json",
        help="model configuration, MAGI-1's JSON format (default: %(default)s, the bundled model)",
    )
    add_method(parser)
    add_targets(parser)
    parser.add_argument(
        "--mode", choices=("t2v", "i2v", "v2v"), default="t2v", help="from text, image or video (default: %(default)s)"
    )
    add_prompts(parser)
    add_ending(parser)
    parser.add_argument("--image_path", help="first frame (mode i2v)")
    parser.add_argument("--prefix_video_path", help="clip to continue (mode v2v)")
    parser.add_argument(
        "--fit", choices=get_args(Fit), default="crop", help="image or clip of another shape (default: %(default)s)"
    )
    parser.add_argument("--include_prefix", action="store_true", help="put the given clip in front (mode v2v)")
    parser.add_argument(
        "--output_path", default="outputs/video.mp4", help="where the video goes (default: %(default)s)"
    )
    parser.add_argument("--no_overwrite", action="store_true", help="number the output where its name is taken")
    parser.add_argument("--lossless", action="store_true", help="keep every RGB value (x264 qp 0): for metrics")
    parser.add_argument(
        "--sample_id",
        default="0",
        help="names the sample: with the seed it determines the noise (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="share the work among N processes, one per GPU, started by torchrun"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: all cores, one for a model as small as the bundled)",
    )
    parser.add_argument("--attention_backend", help="auto, sdpa, ... (docs/backends.md; default: the configuration's)")
    parser.add_argument(
        "--noise2clean_kvrange",
        help='key window in chunks by noise level, as "5,4,3,2", or "full" for all history (default: the method\'s)',
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be made and taken, and make nothing")
    parser.add_argument("--quiet", action="store_true", help="only warnings and errors, no progress bar")
    group = parser.add_argument_group("run settings (each replaces the configuration's value)")
    group.add_argument(
        "--video_size",
        choices=("auto",),
        help="auto: the shape of the image or clip, about as many pixels as configured",
    )
    for name in RUNTIME_FLAGS:
        kind = frame_count if name == "num_frames" else int
        group.add_argument(f"--{name}", type=kind, metavar="N", help=HELP.get(name))
    add_memory_flags(parser)
    add_parameters(parser)
    return parse(parser, argv)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """What a user may wish for in place of settings."""
    parser.add_argument(
        "--target_psnr",
        type=float,
        metavar="DB",
        help="choose the fastest calibrated settings with which 19 of 20 videos stay this close to the uncached one",
    )
    parser.add_argument(
        "--target_speedup", type=float, metavar="X", help="choose the best calibrated settings that are this fast"
    )
    parser.add_argument(
        "--calibration", help="calibration file (default: configs/calibration/MODEL_STEPS.json, scripts/calibrate.sh)"
    )


def generate(args: argparse.Namespace, argv: list[str]) -> int:
    """Check the arguments, the configuration and the method, then make the video, or say what that would take; the
    exit status.
    """
    check_mode(args)
    args.timed = timed_prompts(args)
    method, config = resolve_method(args)
    if not launched_rank():
        check_output(args)
    if args.dry_run:
        return describe(args, method, config)
    from harness.run.making import make_video

    make_video(args, method, config, Path(__file__), argv)
    return 0


def describe(args: argparse.Namespace, method: Method, config: MagiConfig) -> int:
    """Print what the run would make and take; 0 where it would start and has room."""
    from harness.run.preview import preview

    good = True
    for finding in preview(args, method, config):
        mark = "NO" if finding.ok is False else ""
        print(f"{mark:3s}{finding.name:8s} " + finding.detail.replace("\n", f"\n{'':12s}"))
        good = good and finding.ok is not False
    print("nothing was made: this is a dry run" if good else "nothing was made; the run would not start, or not fit")
    return 0 if good else 1


def check_mode(args: argparse.Namespace) -> None:
    """ValueError where the image or the clip that the mode needs was not given, or one was that it does not take."""
    needed = {"t2v": None, "i2v": "image_path", "v2v": "prefix_video_path"}[args.mode]
    for name in ("image_path", "prefix_video_path"):
        if name == needed and getattr(args, name) is None:
            raise ValueError(f"mode {args.mode} needs --{name}")
        if name != needed and getattr(args, name) is not None:
            raise ValueError(f"mode {args.mode} does not take --{name}")
    if args.include_prefix and args.mode != "v2v":
        raise ValueError(f"--include_prefix puts the clip of mode v2v in front; mode {args.mode} has none")


def check_output(args: argparse.Namespace) -> None:
    """Refuse what cannot be written or must not be replaced, and say what will be."""
    if args.resume and args.no_overwrite:
        raise ValueError("--no_overwrite names a new video, and --resume goes on with one; leave one out")
    if args.no_overwrite:
        args.output_path = str(numbered(Path(args.output_path)))
    video = check_output_path(args.output_path, trial=not args.dry_run)
    given = {name: getattr(args, name) for name in FILES}
    inputs = {name: None if path is None else resolve_path(path) for name, path in given.items()}
    for name in (video, partial_path(video)) if not args.dry_run else (video,):
        sidecar, picture = report_paths(name)
        refuse_inputs((name, sidecar, picture), inputs)
        refuse_foreign_report(sidecar, picture)
    state = state_path(video)
    if state.exists() and not args.resume:
        raise ValueError(
            f"{state} is of an unfinished run: --resume goes on with it; remove it to begin anew, or name another "
            "output"
        )
    if video.exists() and not args.dry_run:
        logger.info("%s exists; it stays until the new one is complete, and is replaced then (--no_overwrite)", video)


def resolve_method(args: argparse.Namespace) -> tuple[Method, MagiConfig]:
    """The method and the configuration that it runs with."""
    return settle(
        partial(resolve_config, args),
        args.config_file,
        method=args.method_config,
        parameters=given_parameters(args),
        target_psnr=args.target_psnr,
        target_speedup=args.target_speedup,
        calibration=args.calibration,
        mode=args.mode,
    )


def resolve_config(args: argparse.Namespace, method: Method) -> MagiConfig:
    """The configuration file, then the method's key window, then the flags."""
    config = method.apply_window(load_config(args.config_file))
    overrides: dict[str, Any] = {name: getattr(args, name) for name in RUNTIME_FLAGS if getattr(args, name) is not None}
    overrides |= given_switches(args)
    if args.attention_backend is not None:
        overrides["attention_backend"] = args.attention_backend
    if args.noise2clean_kvrange is not None:
        overrides["noise2clean_kvrange"] = parse_window(args.noise2clean_kvrange)
    config = config.with_overrides(**overrides) if overrides else config
    return config if args.video_size is None else with_shape_of_input(config, args)


def with_shape_of_input(config: MagiConfig, args: argparse.Namespace) -> MagiConfig:
    """About the configured number of pixels in the shape of the image or the clip; ValueError where there is none."""
    if args.mode == "t2v" or {args.video_size_h, args.video_size_w} != {None}:
        raise ValueError("--video_size auto takes the shape of an image or a clip, and excludes --video_size_h and _w")
    given, runtime = (args.image_path if args.mode == "i2v" else args.prefix_video_path), config.runtime
    from inference.video.reading import picture_size

    source = picture_size(resolve_path(given), "image" if args.mode == "i2v" else "video")
    step = VAE_SPATIAL_FACTOR * config.model.patch_size
    height, width = size_like(source, runtime.video_size_h * runtime.video_size_w, step)
    logger.info("%s is %dx%d: the video is %dx%d", given, source[1], source[0], width, height)
    return config.with_overrides(video_size_h=height, video_size_w=width)


def parse_window(text: str) -> list[int]:
    if text.strip() in ("full", "[]", ""):
        return []
    try:
        return [int(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        raise ValueError(f"--noise2clean_kvrange {text!r} is neither numbers such as 5,4,3,2 nor full") from None


if __name__ == "__main__":
    sys.exit(main())
