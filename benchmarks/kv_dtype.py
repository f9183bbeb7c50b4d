#!/usr/bin/env python
"""What keys and values in fewer bits cost: python benchmarks/kv_dtype.py --output RECORD.json

Held-out captions, every chunk computed at every step. Each way of keeping the cache (bits, FlowCache's dropping, both)
against the cache in the model's dtype with all keys that the window reaches: PSNR of the frames, mean and lowest over
the captions, and the most that the cache held (live tensors), on this model and, without a forward, in the sizes of
MAGI-1 4.5B at 720x720. Results are kept after every video; the same command goes on where it was stopped.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from benchmarks.compare.store import weights_digest
from benchmarks.rules.compression import LATER, likeness, mean_and_error
from example.nano.evaluate import prompt_of
from flowcache.config import CompressionConfig
from flowcache.kv_cache import CompressedKVCache
from harness.device import set_threads
from harness.json_files import commit, save_json
from harness.memory.live import LiveMemory
from harness.outputs import own_json
from harness.program import make_parser
from harness.sidecar import describe_device
from inference.config import MagiConfig, load_config
from inference.kv_cache import KVCache, KVGeometry
from inference.pipeline import MagiPipeline, Sample
from inference.sampler import KV_BITS, kv_geometry, make_schedule

WINDOWS = {"window": (5, 4, 3, 2), "full history": ()}
LARGE = "configs/model/4.5B_distill.json"


@dataclass(frozen=True)
class Variant:
    """``budget``: chunks that FlowCache keeps, None for all."""

    kv_dtype: str
    window: str
    budget: int | None = None
    merged: bool = False

    @property
    def name(self) -> str:
        kept = "" if self.budget is None else f", {self.budget} chunks kept{' and merged' if self.merged else ''}"
        return f"{self.kv_dtype}, {self.window}{kept}"

    def make(self, geometry: KVGeometry) -> KVCache:
        geometry = replace(geometry, bits=KV_BITS[self.kv_dtype])
        if self.budget is None:
            return KVCache(geometry)
        rules = LATER if self.merged else {}
        settings = CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=self.budget, **rules)
        return CompressedKVCache(geometry, settings)

    @property
    def reference(self) -> "Variant":
        return Variant("model", self.window)


VARIANTS = (
    *(Variant(bits, window) for window in WINDOWS for bits in KV_BITS),
    *(Variant(bits, "full history", budget) for budget in (6, 5) for bits in KV_BITS),
    *(Variant(bits, "full history", budget, True) for budget in (6, 5) for bits in KV_BITS),
)


class Study:
    """Makes what is missing. ``videos``: per prompt number and variant the figures of a video."""

    def __init__(self, config: MagiConfig, about: Mapping[str, Any], output: Path | None) -> None:
        self.config, self.about, self.output = config, dict(about), output
        self.pipelines = {
            name: MagiPipeline.load(config.with_overrides(noise2clean_kvrange=list(window)), torch.device("cpu"))
            for name, window in WINDOWS.items()
        }
        self.videos: dict[str, dict[str, Any]] = {}
        self.peaks: dict[str, int] = {}
        if output is not None and output.exists():
            known = json.loads(output.read_text(encoding="utf-8"))
            differing = [key for key in ("weights", "num_steps", "num_frames") if known.get(key) != about[key]]
            if differing:
                raise ValueError(f"{output} was made with other {', '.join(differing)}; choose another --output")
            self.videos, self.peaks = known["videos"], known["peak_bytes"]

    def run(self, numbers: Sequence[int]) -> None:
        with tqdm(total=len(numbers) * len(VARIANTS), desc="videos") as bar:
            for number in numbers:
                for window in WINDOWS:
                    self._run_window(number, [variant for variant in VARIANTS if variant.window == window], bar)

    def _run_window(self, number: int, variants: Sequence[Variant], bar: tqdm) -> None:
        known = self.videos.setdefault(str(number), {"prompt": prompt_of(number, "captions")[1]})
        missing = [variant for variant in variants if variant != variant.reference and variant.name not in known]
        bar.update(len(variants) - len(missing) - bool(missing))
        if not missing:
            return
        original = self._make(number, missing[0].reference)
        bar.update()
        for variant in missing:
            known[variant.name] = likeness(original, self._make(number, variant))
            if self.output is not None:
                save_json(self.output, self.record())
            bar.update()

    def _make(self, number: int, variant: Variant) -> Tensor:
        caches: list[KVCache] = []

        def make_cache(geometry: KVGeometry) -> KVCache:
            caches.append(variant.make(geometry))
            return caches[-1]

        sample = Sample(prompt_of(number, "captions")[1], identity=str(number))
        frames = torch.cat(list(self.pipelines[variant.window].frames(sample, make_cache=make_cache)))
        self.peaks[variant.name] = caches[-1].bytes
        return frames

    def record(self) -> dict[str, Any]:
        return self.about | {"summary": self.summary(), "peak_bytes": self.peaks, "videos": self.videos}

    def summary(self) -> dict[str, Any]:
        rows = {}
        for variant in VARIANTS:
            values = [found[variant.name]["psnr"] for found in self.videos.values() if variant.name in found]
            if values:
                share = self.peaks[variant.name] / self.peaks[variant.reference.name]
                rows[variant.name] = {
                    "psnr": mean_and_error(values) | {"lowest": round(min(values), 3), "prompts": len(values)},
                    "share_of_bytes": round(share, 4),
                }
        return rows


def large_peaks() -> dict[str, dict[str, float]]:
    """Most bytes that a cache of MAGI-1 4.5B at 720x720 holds while one layer is written and read, by live tensors."""
    config = load_config(LARGE).with_overrides(video_size_h=720, video_size_w=720, kv_offload=False)
    geometry = kv_geometry(config, torch.device("cpu"))
    schedule = make_schedule(config, 0)
    found = {}
    for name, bits in KV_BITS.items():
        # Two layers are touched; the others lie there as they were allocated.
        with LiveMemory() as memory:
            cache = KVCache(replace(geometry, bits=bits))
            cache.reset(schedule)
            fresh = torch.zeros(geometry.chunk_tokens, geometry.groups, 2 * geometry.head_width, dtype=geometry.dtype)
            given = memory.live - cache.bytes
            for layer in range(2):
                cache.prepare([(0, geometry.chunk_tokens)], [])
                cache.write(layer, 0, fresh)
                cache.view(layer, 0, 0)
            found[name] = {"held": cache.bytes, "peak": memory.peak - given}
        del cache
    whole = found["model"]["peak"]
    return {name: row | {"share": round(row["peak"] / whole, 4)} for name, row in found.items()}


def describe(summary: Mapping[str, Any], large: Mapping[str, Any]) -> str:
    lines = [f"{'cache':48s} {'PSNR':>16s} {'lowest':>7s} {'bytes':>6s}"]
    for name, row in summary.items():
        psnr = row["psnr"]
        figures = f"{psnr['mean']:7.2f} +- {psnr['error']:5.2f} {psnr['lowest']:7.2f}"
        lines.append(f"{name:48s} {figures} {row['share_of_bytes']:6.3f}")
    lines += [f"4.5B, 720x720, {name}: {row['peak'] / 1e9:.2f} GB, {row['share']:.3f}" for name, row in large.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--num_steps", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=240, help="(default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=16, help="held-out captions (default: %(default)s)")
    parser.add_argument("--output", type=own_json("peak_bytes", "videos"), help="JSON file, old results included")
    args = parser.parse_args(argv)
    disable_progress_bar()
    config = load_config("configs/model/nano.json").with_overrides(num_steps=args.num_steps, num_frames=args.num_frames)
    set_threads(None, config)
    about = {
        "command": " ".join(["benchmarks/kv_dtype.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": describe_device(torch.device("cpu")),
        "weights": weights_digest(config),
        "num_steps": args.num_steps,
        "num_frames": args.num_frames,
        "peak_at_4.5B_720x720": large_peaks(),
    }
    study = Study(config, about, None if args.output is None else Path(args.output))
    study.run(range(args.prompts))
    print(describe(study.summary(), about["peak_at_4.5B_720x720"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
