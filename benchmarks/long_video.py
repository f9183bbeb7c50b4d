#!/usr/bin/env python
"""Does a long video take more memory or time the longer it gets, and does it follow its prompts? Minutes of it.

  long_video.py --minutes 10 --methods none flowcache_fast multistep_fast --output_path RECORD.json

Each method makes one video of the bundled model, a held-out caption ruling for half a minute. What the video shows of
each is measured from two seconds after the change on, and again in its last four seconds; how sharpness, contrast and
others drift under one prompt, from the fifth second on. Memory is what tensors and
what the process hold between two chunks, from the tenth on; time per chunk is the median of the last full minute
against that of the first, in one run; other work on the machine is in that ratio, less so in that of the processor's
time. With --keep FOLDER the videos stay, each with NAME.changes.webp, which shows the first prompts taking over.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from example.nano.evaluate import prompt_of
from example.nano.scenes.data import PERIOD, Scene
from example.nano.scenes.measure import measure
from harness.arguments import parse
from harness.json_files import commit, save_json
from harness.memory.live import storage_bytes
from harness.methods import read_method
from harness.program import make_parser, run_program
from inference.config import MagiConfig, load_config
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.session.session import VideoChunk
from inference.session.times import PromptChange
from inference.video.writing import VideoWriter
from metrics.drift import FIGURES, measure_drift

SECONDS_OF_A_PROMPT = 30
# A prompt has so long to take over; then as much is looked at as a motion takes.
SECONDS_TO_CHANGE = 2
# From here on a part of a video should stay as it is.
SECONDS_TO_SETTLE = 5
SECONDS_SHOWN = (0, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 29.5)
MOST_SHOWN = 6
STATM = Path("/proc/self/statm")
PAGE = 4096


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each video (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=["none", "flowcache_fast", "multistep_fast"])
    parser.add_argument("--config_file", default="configs/model/nano_travel.json", help="(default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", help="where the videos stay")
    parser.add_argument("--output_path", help="where the record goes")
    return parse(parser, argv)


def resident() -> int:
    """Bytes that the process holds in memory."""
    return int(STATM.read_text().split()[1]) * PAGE


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, those of the models among them."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return storage_bytes(found)


def measure_method(name: str, args: argparse.Namespace) -> dict[str, Any]:
    method = read_method(None if name == "none" else name, {})
    base = load_config(args.config_file)
    fps = base.runtime.fps
    config = method.apply_window(base).with_overrides(
        num_frames=round(args.minutes * 60) * fps, num_steps=args.num_steps
    )
    pipeline = MagiPipeline.load(config, torch.device("cpu"), make_cache=method.make_cache)
    begins = range(0, round(args.minutes * 60), SECONDS_OF_A_PROMPT)
    scenes, prompts = zip(*(prompt_of(number, "captions") for number, _ in enumerate(begins)), strict=True)
    later = tuple(PromptChange(chunk, prompt) for chunk, prompt in zip(begins[1:], prompts[1:], strict=True))
    report, seconds, busy, held, live, cache = RunReport(), [], [], [], [], set()
    session = pipeline.session(
        Sample(prompts[0], later=later), reuse=method.make_reuse(), make_cache=method.make_cache, report=report
    )
    session.begin()
    watch = Watch(scenes, prompts, config)
    with open_writer(name, args, config) as writer:
        began, worked = time.perf_counter(), time.process_time()
        for chunk in session:
            writer.append(chunk.frames)
            seconds.append(time.perf_counter() - began)
            busy.append(time.process_time() - worked)
            watch.see(chunk)
            held.append(resident())
            if chunk.number >= 10 and chunk.number % 10 == 0:
                live.append(live_bytes())
            cache.add(report.kv_cache_bytes)
            began, worked = time.perf_counter(), time.process_time()
    if args.keep:
        watch.draw(Path(args.keep) / f"{name}.changes.webp")
    return {
        "chunks": len(seconds),
        "seconds": round(sum(seconds), 1),
        "seconds_per_chunk": first_and_last(seconds),
        "processor_seconds_per_chunk": first_and_last(busy),
        "live_bytes": growth(live[0], live[1:]),
        "resident_bytes": growth(held[10], held[11:]),
        "kv_cache_bytes": sorted(cache),
        "share_reused": round(report.record.share_reused, 4),
        "prompts": watch.shares(),
        "drift_within_a_minute": watch.drift(),
    }


class Watch:
    """How much of its caption every part of a video shows. Frames are kept of one part only."""

    def __init__(self, scenes: Sequence[Scene], prompts: Sequence[str], config: MagiConfig) -> None:
        runtime = config.runtime
        self.scenes, self.prompts, self.fps = scenes, prompts, runtime.fps
        self.shown: list[np.ndarray] = []  # per prompt the frames of the picture
        self.length = SECONDS_OF_A_PROMPT * runtime.fps
        self.part = np.empty((self.length, runtime.video_size_h, runtime.video_size_w, 3), dtype=np.uint8)
        self.found: dict[str, list[dict[str, bool]]] = {"after_the_change": [], "at_the_end": []}
        # Per prompt the change of a figure within a minute, as a share of its mean.
        self.slopes: dict[str, list[float]] = {name: [] for name in FIGURES if name != "likeness"}

    def see(self, chunk: VideoChunk) -> None:
        part, place = divmod(chunk.number * self.fps, self.length)
        self.part[place : place + len(chunk.frames)] = chunk.frames.numpy()
        if place + len(chunk.frames) == self.length:
            begin, scene = SECONDS_TO_CHANGE * self.fps, self.scenes[part]
            self.found["after_the_change"].append(asdict(measure(self.part[begin : begin + PERIOD], scene)))
            self.found["at_the_end"].append(asdict(measure(self.part[-PERIOD:], scene)))
            settled = torch.from_numpy(self.part[SECONDS_TO_SETTLE * self.fps :])
            drift = measure_drift(iter(settled), self.fps)
            for name, slopes in self.slopes.items():
                slope = drift.slope(name)
                assert slope is not None
                slopes.append(60 * slope.value / statistics.mean(drift.seconds[name]))
            if len(self.shown) < MOST_SHOWN:
                self.shown.append(self.part[[round(second * self.fps) for second in SECONDS_SHOWN]])

    def draw(self, path: Path) -> None:
        """A row per prompt: frames at the times in ``SECONDS_SHOWN`` since it was given."""
        rows, columns = len(self.shown), len(SECONDS_SHOWN)
        figure, grid = plt.subplots(rows, columns, figsize=(1.2 * columns, 1.45 * rows), squeeze=False)
        for row, frames in enumerate(self.shown):
            for column, second in enumerate(SECONDS_SHOWN):
                axes = grid[row][column]
                axes.imshow(frames[column])
                axes.set_axis_off()
                axes.text(0.5, -0.12, f"{second:g} s", transform=axes.transAxes, ha="center", fontsize=7)
            grid[row][0].text(0, 1.12, self.prompts[row], transform=grid[row][0].transAxes, fontsize=8)
        figure.savefig(path, dpi=110, bbox_inches="tight", pil_kwargs={"quality": 80})
        plt.close(figure)

    def shares(self) -> dict[str, Any]:
        """Of the prompts, which share shows an attribute as it should; and of all attributes, minute by minute."""
        shares: dict[str, Any] = {"count": len(self.found["at_the_end"])}
        for when, findings in self.found.items():
            shares[when] = {name: share_of(finding[name] for finding in findings) for name in findings[0]}
            a_minute = 60 // SECONDS_OF_A_PROMPT
            minutes = [findings[place : place + a_minute] for place in range(0, len(findings), a_minute)]
            shares[when]["right_by_minute"] = [
                share_of(right for finding in minute for right in finding.values()) for minute in minutes
            ]
        return shares

    def drift(self) -> dict[str, Any]:
        """How much figures change within a minute under one prompt, as shares of themselves; over the prompts."""
        return {
            name: {
                "mean": round(statistics.mean(slopes), 4),
                "error": round(statistics.stdev(slopes) / len(slopes) ** 0.5, 4),
            }
            for name, slopes in self.slopes.items()
        }


def share_of(right: Iterable[bool]) -> float:
    return round(statistics.mean(map(float, right)), 3)


def first_and_last(values: Sequence[float]) -> dict[str, float]:
    """Medians of a minute. The first ten chunks fill the window, the last are made in one that empties."""
    early, late = statistics.median(values[10:70]), statistics.median(values[-64:-4])
    return {"first_minute": round(early, 4), "last_minute": round(late, 4), "ratio": round(late / early, 3)}


def growth(first: int, later: list[int]) -> dict[str, Any]:
    most = max(later)
    return {"after_chunk_10": first, "largest_later": most, "growth": round(most / first - 1, 4)}


def open_writer(name: str, args: argparse.Namespace, config: Any) -> VideoWriter:
    folder = Path(args.keep) if args.keep else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    runtime = config.runtime
    return VideoWriter(folder / f"{name}.mp4", runtime.fps, runtime.video_size_h, runtime.video_size_w)


def measure_all(args: argparse.Namespace) -> int:
    if round(args.minutes * 60) < 90:
        raise ValueError(f"--minutes must be at least 1.5, got {args.minutes:g}: two minutes are compared")
    if args.output_path and Path(args.output_path).exists():
        raise ValueError(f"{args.output_path} exists; name another output")
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "command": f"long_video.py --minutes {args.minutes:g} --num_steps {args.num_steps}",
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "methods": {},
    }
    for name in args.methods:
        record["methods"][name] = measure_method(name, args)
        print(name, json.dumps(record["methods"][name]), flush=True)
    if args.output_path:
        save_json(Path(args.output_path), record)
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main())
