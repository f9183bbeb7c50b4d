#!/usr/bin/env python
"""Memory of every part of a run, measured and estimated: python benchmarks/memory.py --output FILE

Runs on the CPU, with the bundled model by default, at a few sizes. Measured are the weights, cache and latents as they
are stored, and the live tensors during one forward of the transformer and the decoding of one chunk; then what is left
on the device of a streamed transformer and an offloaded cache.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers.utils.logging import disable_progress_bar

from harness.device import set_threads
from harness.json_files import commit, save_json
from harness.memory.parts import compare_offloaded, compare_parts, load_models
from harness.methods import read_method
from harness.outputs import own_json
from harness.sidecar import describe_device
from inference.config import load_config

PROMPT = "a red ball bounces on a grey floor"
# Frames, height and width in pixels.
SIZES = ((96, 64, 64), (240, 64, 64), (168, 96, 128))
METHODS = ("configs/method/none.yaml", "configs/method/flowcache_slow.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="configs/model/nano.json", help="(default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=8, help="memory does not depend on it (default: %(default)s)")
    parser.add_argument("--output", type=own_json("rows", "worst"), help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    disable_progress_bar()
    result = measure(args.config_file, args.num_steps)
    if args.output:
        save_json(args.output, result)
    print(describe(result))
    print(json.dumps(result["worst"]))  # the last line is for machines
    return 0


def measure(config_file: str, num_steps: int) -> dict[str, Any]:
    config = load_config(config_file).with_overrides(num_steps=num_steps)
    set_threads(None, config)
    rows = []
    for frames, height, width in SIZES:
        config = config.with_overrides(num_frames=frames, video_size_h=height, video_size_w=width)
        models = load_models(config)  # the tiles of the autoencoder depend on the size
        for name in METHODS:
            method = read_method(name, {})
            parts = compare_parts(config, models, method, PROMPT) | compare_offloaded(config, method)
            rows.append(
                {
                    "frames": frames,
                    "size": [height, width],
                    "method": name,
                    "parts": {part: {**vars(size), "ratio": round(size.ratio, 4)} for part, size in parts.items()},
                }
            )
    ratios = [part["ratio"] for row in rows for part in row["parts"].values()]
    return {
        "what": "bytes of every part of a run: measured, estimated from the configuration, and their ratio",
        "command": " ".join(["benchmarks/memory.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": describe_device(torch.device("cpu")),
        "torch": torch.__version__,
        "config": config_file,
        "rows": rows,
        "worst": {"lowest": min(ratios), "highest": max(ratios)},
    }


def describe(result: dict[str, Any]) -> str:
    """A table for people."""
    lines = []
    for row in result["rows"]:
        lines.append(f"{row['frames']} frames of {row['size'][1]}x{row['size'][0]}, {Path(row['method']).stem}")
        for name, part in row["parts"].items():
            sizes = f"{part['measured']:12,} measured, {part['estimated']:12,} estimated"
            lines.append(f"  {name:22s} {sizes}, ratio {part['ratio']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
