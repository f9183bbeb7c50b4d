#!/usr/bin/env python
"""What reuse gains on the clock where compute dominates: python benchmarks/wall_clock.py

The bundled model is so small that much of a step is not computing. Here a wider transformer with random weights takes
its place, and every method computes the chunks that it computed with the bundled model: a method's decisions are
recorded there and replayed, its own measuring, remembering, correcting and compressing included. Methods take turns;
the figure is the speed-up by the clock as a share of that by counted operations, in all and per pair of runs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from harness.device import choose_device, set_threads
from harness.json_files import commit, save_json
from harness.methods import Method, read_method
from harness.outputs import own_json
from harness.replay import Replay, decisions
from harness.sidecar import describe_device
from inference.config import MagiConfig, load_config
from inference.model.dit import VideoDiT
from inference.noise import draw_noise
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.text.captions import ChunkCaptions, PromptFlags, assemble_captions
from metrics.flops import TransformerSize, run_flops

PROMPT = "a big red ball bounces up and down in the sky"
METHODS = [f"configs/method/{name}.yaml" for name in ("multistep", "flowcache_slow", "flowcache_fast", "teacache_fast")]
HEAD_WIDTH = 64


def widened(config: MagiConfig, width: int, layers: int, size: int) -> MagiConfig:
    """The bundled model's configuration with another transformer, for a larger picture."""
    return config.with_overrides(
        hidden_size=width,
        ffn_hidden_size=4 * width,
        num_attention_heads=width // HEAD_WIDTH,
        num_query_groups=4,
        kv_channels=HEAD_WIDTH,
        num_layers=layers,
        video_size_h=size,
        video_size_w=size,
    )


def recorded(config: MagiConfig, methods: Sequence[Method], device: torch.device) -> list[list[tuple[int, ...]]]:
    """What every method computes with the bundled model, step by step."""
    pipeline = MagiPipeline.load(config, device)
    found = []
    for method in tqdm(methods, desc="decisions with the bundled model"):
        report = RunReport()
        reuse, cache = method.make_reuse(), method.make_cache
        for _ in pipeline.frames(Sample(PROMPT), reuse=reuse, make_cache=cache, report=report):
            pass
        found.append(decisions(report.record))
    return found


class RandomModel:
    """A transformer with random weights, and inputs for it: what it makes means nothing, its work is real."""

    def __init__(self, config: MagiConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.dit = VideoDiT(config.model, distill=config.engine.distill).to(device).eval()
        schedule = make_schedule(config, 0)
        runtime = config.runtime
        sides = (runtime.video_size_h // 8, runtime.video_size_w // 8)
        shape = (config.model.latent_channels, runtime.chunk_width, *sides)
        self.noise = draw_noise(0, schedule.chunk_num, shape).to(device)
        self.captions = self._captions(schedule.chunk_num)

    def _captions(self, chunks: int) -> ChunkCaptions:
        length, width = self.config.model.caption_max_length, self.config.model.caption_channels
        mask = (torch.arange(length) < min(20, length))[None].to(self.device)
        flags = PromptFlags(**dict.fromkeys(PromptFlags.__dataclass_fields__, False))
        features = torch.randn(1, 1, length, width, device=self.device)
        null = self.dit.y_embedder.null_caption_embedding
        return assemble_captions(features, mask, null, None, flags, chunks, 0)

    def run(self, method: Method, computed: list[tuple[int, ...]] | None) -> dict[str, float]:
        """Seconds and operations of one video's denoising."""
        reuse = method.make_reuse()
        if computed is not None:
            reuse = replace(reuse, decider=Replay(reuse.decider, computed))
        cache = method.make_cache(kv_geometry(self.config, self.device))
        sampler = Sampler(self.dit, self.config, cache, reuse)
        began = time.perf_counter()
        last: Tensor | None = None
        for chunk in sampler.run(self.noise, self.captions):
            last = chunk.latents
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        if last is None or not bool(last.isfinite().all()):
            raise RuntimeError("the random weights gave latents that are not finite; their timing would mean nothing")
        size = TransformerSize.of(self.config.model.model_dump())
        return {
            "seconds": seconds,
            "flop": float(run_flops(size, sampler.record.forwards)),
            "share_reused": sampler.record.share_reused,
        }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    base = load_config("configs/model/nano.json").with_overrides(num_frames=args.num_frames, num_steps=args.num_steps)
    device = choose_device(args.device)
    set_threads(args.threads or 1, base)
    methods = [read_method(path, {}) for path in args.methods]
    maps = recorded(base, methods, torch.device("cpu"))
    config = widened(base, args.width, args.layers, args.size)
    model = RandomModel(config, device)
    none = read_method("configs/method/none.yaml", {})
    runs: dict[str, list[dict[str, float]]] = {"none": [], **{path: [] for path in args.methods}}
    with tqdm(total=1 + args.repeats * len(runs), desc="wide model", mininterval=5) as bar:
        model.run(methods[0], maps[0])  # warms up
        bar.update()
        for _ in range(args.repeats):
            for name, method, computed in zip(runs, [none, *methods], [None, *maps], strict=True):
                runs[name].append(model.run(method, computed))
                bar.update()
    return {
        "what": "denoising by the clock and by counted operations, methods alternating, decisions replayed",
        "command": " ".join(["benchmarks/wall_clock.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": describe_device(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(weight.numel() for weight in model.dit.parameters()),
        "config": config.to_json_dict(full=True),
        "methods": {path: method.to_json_dict() for path, method in zip(args.methods, methods, strict=True)},
        "runs": runs,
        "summary": {path: summary(runs["none"], runs[path]) for path in args.methods},
    }


def summary(none: list[dict[str, float]], method: list[dict[str, float]]) -> dict[str, float]:
    """Speed-up by operations, by the clock (median, lowest, highest of the pairs), and the share reached."""
    seconds = [a["seconds"] / b["seconds"] for a, b in zip(none, method, strict=True)]
    allowed = none[0]["flop"] / method[0]["flop"]
    return {
        "share_reused": method[0]["share_reused"],
        "by_operations": allowed,
        "by_clock": statistics.median(seconds),
        "by_clock_min": min(seconds),
        "by_clock_max": max(seconds),
        "reached": statistics.median(seconds) / allowed,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="method files (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, help=f"hidden size, a multiple of {4 * HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=128, help="side of the picture in pixels, a multiple of 16")
    parser.add_argument("--num_frames", type=int, default=96)
    parser.add_argument("--num_steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="runs of every method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 1)")
    parser.add_argument(
        "--output", type=own_json("methods", "runs", "summary"), help="write the result as JSON to this file"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    if args.width % (4 * HEAD_WIDTH) or args.width < 1:
        parser.error(f"--width must be a multiple of {4 * HEAD_WIDTH}, got {args.width}")
    disable_progress_bar()
    result = measure(args)
    if args.output:
        save_json(args.output, result)
    for path, row in result["summary"].items():
        print(
            f"{path:40s} {row['share_reused']:4.0%} reused, operations {row['by_operations']:5.2f}x fewer, clock "
            f"{row['by_clock']:5.2f}x ({row['by_clock_min']:.2f} to {row['by_clock_max']:.2f}): {row['reached']:.0%}"
        )
    print(json.dumps(result["summary"]))  # the last line is for machines
    return 0


if __name__ == "__main__":
    sys.exit(main())
