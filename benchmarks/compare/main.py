#!/usr/bin/env python
"""Compare caching methods on the bundled model, with what each costs and loses against the uncached video.

Examples:
  compare.py --quick
  compare.py --prompts 4 --methods uncached "multi-step*" TeaCache
  compare.py --comparison my.yaml --output outputs/mine

Makes every method's video of every held-out prompt on the same noise, methods taking turns, and writes results.json,
table.md, report.html, a Pareto plot, reuse maps and a side-by-side video into the output folder. What was made is kept
as it is made: the same command again goes on where it was stopped.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils.logging import disable_progress_bar

from benchmarks.compare.methods import Comparison, base_config, default_output, make_entries, read_comparison
from benchmarks.compare.output import Finished, check_folder, write_outputs
from benchmarks.compare.run import Runner, held_out, planned
from benchmarks.compare.store import Store, weights_digest
from harness.arguments import parse
from harness.device import choose_device, set_threads
from harness.program import make_parser, run_program
from harness.sidecar import describe_device
from inference.config import MagiConfig, resolve_path
from inference.pipeline import MagiPipeline
from metrics.similarity.lpips_distance import LpipsDistance, LpipsUnavailable, load_lpips

logger = logging.getLogger("compare")

QUICK, FULL = "configs/compare/quick.yaml", "configs/compare/full.yaml"
INPUTS = ("comparison", "config_file", "calibration", "lpips_weights")
OVERRIDES = ("config_file", "calibration", "num_frames", "num_steps", "held_out_set", "prompts", "seeds")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    disable_progress_bar()
    again = "stopped; the same command goes on from here"
    return run_program(parse_arguments, lambda args: compare(args, argv), argv, stopped=again)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--comparison", default=FULL, help="what is compared, YAML (default: %(default)s)")
    chosen.add_argument("--quick", action="store_const", const=QUICK, dest="comparison", help=f"short for {QUICK}")
    parser.add_argument("--output", type=Path, help="folder (default: outputs/compare, or outputs/compare_NAME)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods or groups; * for anything")
    group = parser.add_argument_group("settings (each replaces that of the comparison file)")
    group.add_argument("--config_file", help="model configuration")
    group.add_argument("--calibration", help="calibration file")
    for name in ("num_frames", "num_steps", "prompts", "seeds"):
        group.add_argument(f"--{name}", type=int, metavar="N")
    group.add_argument("--held_out_set", choices=("captions", "combinations"))
    parser.add_argument("--lpips_weights", type=Path, help="AlexNet's weights, where they cannot be downloaded")
    parser.add_argument("--no_lpips", action="store_true", help="leave LPIPS out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as in scripts/generate.py)")
    return parse(parser, argv)


def compare(args: argparse.Namespace, argv: list[str]) -> None:
    """Check everything, make what is missing, write the report."""
    overrides = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
    comparison = read_comparison(args.comparison, overrides)
    config = base_config(comparison)
    entries, skipped = make_entries(comparison, config, args.methods)
    for name, reason in skipped.items():
        logger.warning("left out: %s: %s", name, reason)
    folder = args.output or default_output(args.comparison)
    files = {name: getattr(args, name) for name in INPUTS}
    check_folder(folder, {name: None if path is None else resolve_path(str(path)) for name, path in files.items()})
    samples = list(held_out(comparison.held_out_set, comparison.prompts, comparison.seeds))
    device = choose_device(args.device)
    set_threads(args.threads, config)
    conditions = {"weights": weights_digest(config), "device": describe_device(device)}
    store = Store(folder, conditions, entries)
    store.folder.mkdir(parents=True, exist_ok=True)

    videos = sum(len(planned(entries, sample, store, samples[0])) for sample in samples)
    logger.info("%d methods, %d samples: %d videos to make", len(entries), len(samples), videos)
    lpips_missing = None
    if videos:
        lpips, lpips_missing = open_lpips(args, comparison, config)
        runner = Runner(MagiPipeline.load(config, device), entries, samples, store, lpips)
        with tqdm(total=videos + 1, unit="video", dynamic_ncols=True, smoothing=0.05) as bar, logging_redirect_tqdm():
            runner.run(lambda name: advance(bar, name))
    command = shlex.join(["bash", "scripts/compare.sh", *argv])
    finished = Finished(comparison, config, entries, samples, store, skipped, command, device, lpips_missing)
    written = write_outputs(finished)
    print((store.folder / "table.md").read_text(encoding="utf-8"))
    logger.info("written: %s", ", ".join(str(path) for path in written))


def advance(bar: Any, name: str) -> None:
    bar.set_postfix_str(name, refresh=False)
    bar.update()


def open_lpips(
    args: argparse.Namespace, comparison: Comparison, config: MagiConfig
) -> tuple[LpipsDistance | None, str | None]:
    """The LPIPS network, on the CPU where the frames are, or why there is none."""
    if args.no_lpips or not (comparison.lpips or args.lpips_weights):
        return None, "left out (--lpips_weights names AlexNet's weights)"
    try:
        smallest = min(config.runtime.video_size_h, config.runtime.video_size_w)
        return load_lpips(args.lpips_weights, None, smallest), None
    except LpipsUnavailable as error:
        logger.warning("warning: %s. Everything else is computed.", error)
        return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
