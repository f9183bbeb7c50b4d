#!/usr/bin/env python
"""Compare the speed of two methods on the same video, alternating in one process: python benchmarks/speed.py

Wall-clock time on a shared machine is noisy, so the two methods take turns and the figure is the median of the ratios
of neighbouring runs, with their range. Beside it stands what the counted work allows: the ratio of floating point
operations.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers.utils.logging import disable_progress_bar

from harness.arguments import parse
from harness.device import choose_device, set_threads
from harness.json_files import commit, save_json
from harness.methods import Method, method_path, read_method
from harness.outputs import check_outputs, json_with
from harness.program import make_parser, run_program
from harness.sidecar import describe_device
from inference.config import load_config, resolve_path
from inference.pipeline import MagiPipeline, RunReport, Sample
from metrics.flops import TransformerSize, run_flops

# Fewer operations may be done a little faster each: less memory is read.
MARGIN = 1.15
PROMPT = "a big red ball bounces up and down in the sky"


def main(argv: list[str] | None = None) -> int:
    disable_progress_bar()
    return run_program(parse_arguments, measure, argv, level=logging.WARNING)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config_file", default="configs/model/nano.json")
    parser.add_argument("--baseline", default="configs/method/none.yaml", help="method file (default: %(default)s)")
    parser.add_argument(
        "--method", default="configs/method/flowcache_fast.yaml", help="method file (default: %(default)s)"
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, after one that is not counted")
    parser.add_argument("--num_frames", type=int)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as in scripts/generate.py)")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parse(parser, argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    return args


def measure(args: argparse.Namespace) -> None:
    """Compare, write and print."""
    result = compare(args)
    if args.output:
        save_json(args.output, result)
    print(describe(result))
    print(json.dumps(result))  # the last line is for machines


def compare(args: argparse.Namespace) -> dict[str, Any]:
    overrides = {name: getattr(args, name) for name in ("num_frames", "num_steps") if getattr(args, name) is not None}
    config = load_config(args.config_file).with_overrides(**overrides)
    methods = {"baseline": read_method(args.baseline, {}), "method": read_method(args.method, {})}
    if args.output is not None:
        files = {name: getattr(args, name) for name in ("config_file", "baseline", "method")}
        inputs = {name: resolve_path(method_path(given)) for name, given in files.items()}
        check_outputs({args.output: json_with("what", "methods", "runs", "speedup")}, inputs)
    device = choose_device(args.device)
    set_threads(args.threads, config)
    pipeline = MagiPipeline.load(config, device)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for repeat in range(args.repeats + 1):
        for name, method in methods.items():
            measured = run_once(pipeline, method, args.prompt)
            if repeat:  # the first pair warms up
                runs[name].append(measured)
    return {
        "what": "seconds of denoising and of the whole video, methods alternating",
        "command": " ".join(["benchmarks/speed.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": describe_device(device),
        "torch": torch.__version__,
        "config": {
            "file": args.config_file,
            "num_frames": config.runtime.num_frames,
            "num_steps": config.runtime.num_steps,
            "size": [config.runtime.video_size_h, config.runtime.video_size_w],
            "noise2clean_kvrange": list(config.runtime.noise2clean_kvrange),
        },
        "methods": {name: method.to_json_dict() for name, method in methods.items()},
        "runs": runs,
        "speedup": {kind: ratios(runs, kind) for kind in ("denoise", "total", "flop")},
    }


def run_once(pipeline: MagiPipeline, method: Method, prompt: str) -> dict[str, Any]:
    """One video: seconds of denoising, seconds in all, floating point operations, share of chunk-forwards reused."""
    if method.window is not None:
        raise ValueError(f"{method.source} sets its own key window; compare methods of the same window")
    report = RunReport()
    began = time.perf_counter()
    frames = pipeline.frames(Sample(prompt), reuse=method.make_reuse(), make_cache=method.make_cache, report=report)
    for _ in frames:
        pass
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize(pipeline.device)
    size = TransformerSize.of(pipeline.config.model.model_dump())
    return {
        "total": time.perf_counter() - began,
        "denoise": report.seconds["denoise"],
        "flop": run_flops(size, report.record.forwards),
        "share_reused": report.record.share_reused,
        "kv_cache_bytes": report.kv_cache_bytes,
    }


def ratios(runs: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, float]:
    """Baseline over method, pair by pair: median, smallest, largest."""
    pairs = zip(runs["baseline"], runs["method"], strict=True)
    values = [baseline[kind] / method[kind] for baseline, method in pairs]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def describe(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = []
    for name, runs in result["runs"].items():
        seconds = statistics.median(run["denoise"] for run in runs)
        total = statistics.median(run["total"] for run in runs)
        source = result["methods"][name]["source"]
        lines.append(
            f"{name:8s} {source}: denoising {seconds:.2f} s, whole video {total:.2f} s, "
            f"{runs[0]['share_reused']:.0%} of the chunk-forwards reused, "
            f"KV cache {runs[0]['kv_cache_bytes'] / 2**20:.1f} MiB"
        )
    pairs, doubt = len(result["runs"]["method"]), disagreement(result["speedup"])
    name = "speed-up" if pairs > 1 else "ratio of one pair, which is no speed-up,"
    for kind, ratio in result["speedup"].items():
        called = name if doubt is None or kind == "flop" else "ratio, which is no speed-up,"
        lines.append(f"{called} by {kind}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return "\n".join([*lines, *([] if doubt is None else [doubt])])


def disagreement(speedup: dict[str, dict[str, float]]) -> str | None:
    """What speaks against the seconds: every pair is further above what the counted work allows than ``MARGIN``, or
    slower although there was less to do.
    """
    counted, measured = speedup["flop"]["median"], speedup["denoise"]
    if measured["min"] > counted * MARGIN:
        found = f"{measured['min']:.2f} times as fast or more where {counted:.2f} times fewer operations were counted"
    elif measured["max"] < 1 and counted > MARGIN:
        found = f"slower in every pair although {counted:.2f} times fewer operations were counted"
    else:
        return None
    return (
        f"not to be trusted: denoising was {found}; is the machine busy, or were the two not run under the same "
        "conditions?"
    )


if __name__ == "__main__":
    sys.exit(main())
