#!/usr/bin/env python
"""Say whether a configuration can run here, before anything is loaded.

Examples:
  check_model.py configs/model/4.5B_distill.json
  check_model.py configs/model/4.5B_distill.json --memory_gb 24 --num_frames 240
  check_model.py configs/model/24B_base.json --memory_gb 80 --method flowcache_slow

Looked at: files and the tensors in them (headers only), the device, attention back ends, memory by part, floating point
operations. The exit status is 0 where a run would start and fit, otherwise 1. `--memory_gb` asks about a GPU of that
size that need not be here.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

from harness.arguments import parse
from harness.memory.flags import add_memory_flags, given_switches
from harness.methods import add_method, add_parameters, given_parameters, read_method
from harness.program import make_parser, run_program
from inference.config import load_config

if TYPE_CHECKING:
    from harness.model_check import Finding, Request

SIZES = ("num_frames", "num_steps", "video_size_h", "video_size_w")
MARKS = {True: "ok", False: "NO", None: ""}


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, lambda args: 0 if report(args) else 1, argv, level=logging.WARNING)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, "%(prog)s CONFIG [--memory_gb GB] [--method NAME] [...]")
    parser.add_argument("config", help="model configuration, MAGI-1's JSON format")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--memory_gb", type=float, metavar="GB", help="as if a GPU with so much free memory were here")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="processes that share the work")
    parser.add_argument("--prefix_frames", type=int, default=0, metavar="N", help="frames of the clip to continue")
    add_method(parser)
    parser.add_argument("--skip_files", action="store_true", help="do not look for the files")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, metavar="N")
    add_memory_flags(parser)
    add_parameters(parser)
    return parse(parser, argv)


def report(args: argparse.Namespace) -> bool:
    """Print the table; whether the run would start and fit."""
    request = read_request(args)
    import torch

    from harness.device import choose_device
    from harness.model_check import check_files, check_machine, describe_memory, describe_work, suggestions
    from inference.placement.residency import free_bytes

    device, free = choose_device(args.device), None
    if args.memory_gb is not None:
        planned, free = torch.device("cuda"), int(args.memory_gb * 2**30)
    else:
        planned, free = device, free_bytes(device)
    findings = [] if args.skip_files else show("Files", check_files(request.config))
    if any(finding.ok is False for finding in findings):
        from harness.download import models

        if (name := Path(args.config).stem) in models():
            print(f"  the published files: bash scripts/download.sh {name}")
    findings += show(f"Machine ({device})", check_machine(request, device))
    findings += show(f"Memory of the device ({planned})", describe_memory(request, planned, free))
    findings += show("Work", describe_work(request, device if planned.type == device.type else None))
    good = all(finding.ok is not False for finding in findings)
    if free is not None and (changes := list(suggestions(request, planned, free))):
        print("\nIt would fit with any of these:")
        for change in changes:
            print(f"  {change}")
    print("\n" + ("A run would start." if good else "A run would not start, or not fit: see the lines marked NO."))
    return good


def read_request(args: argparse.Namespace) -> "Request":
    method = read_method(args.method_config, given_parameters(args))
    config = method.apply_window(load_config(args.config))
    overrides: dict[str, Any] = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    overrides |= given_switches(args)
    if args.gpus < 1 or args.prefix_frames < 0:
        raise ValueError("--gpus must be at least 1 and --prefix_frames at least 0")
    config = config.with_overrides(**overrides)
    from harness.model_check import Request  # with torch: what can be refused without it has been

    return Request(config, method, args.prefix_frames, args.gpus)


def show(title: str, findings: Iterable["Finding"]) -> list["Finding"]:
    shown = []
    print(f"\n{title}")
    for finding in findings:
        first, *rest = finding.detail.splitlines() or [""]
        print(f"  {MARKS[finding.ok]:3s}{finding.name:22s} {first}".rstrip())
        for line in rest:
            print(f"{'':28s}{line}")
        shown.append(finding)
    return shown


if __name__ == "__main__":
    sys.exit(main())
