#!/usr/bin/env python
"""Where the published speed-ups come from, by floating point operations alone: python benchmarks/flops.py

No weights are needed. Each row is a real run of the sampler, with its cache and its passes, of a model of the smallest
size on frames of a single token; the tokens of its record are then multiplied by what a chunk of the real size has,
and counted with the real model's sizes. Every chunk is computed at every step: what reuse adds is not in the table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import Method
from inference.config import MagiConfig, load_config
from inference.model.dit import VideoDiT
from inference.record import ForwardRecord
from inference.sampler import Sampler, kv_geometry, make_schedule
from metrics.flops import TransformerSize, run_flops

PUBLISHED_PFLOP = 306  # what the paper states for the first row
CAPTION_TOKENS = 50
SMALLEST = {
    "num_layers": 1,
    "hidden_size": 64,
    "ffn_hidden_size": 64,
    "num_attention_heads": 8,
    "num_query_groups": 1,
    "kv_channels": 8,
    "caption_channels": 8,
    "params_dtype": "torch.float32",
}
NO_EXTRA_PASSES = {"clean_pass": False, "discard_nearly_clean_chunk": True}
COMPRESSED = {"compress_kv_cache": True}
FULL, SHIPPED = (), (5, 4, 3, 2)


@dataclass(frozen=True)
class Row:
    """A way to sample without reuse: its name, key window, and what differs from MAGI-1."""

    name: str
    window: tuple[int, ...]
    settings: dict[str, Any]


ROWS = (
    Row("full history", FULL, {}),
    Row("full history, no nearly-clean copies", FULL, {"discard_nearly_clean_chunk": True}),
    Row("full history, neither copies nor clean passes", FULL, NO_EXTRA_PASSES),
    Row("  the same, compressed to 6 chunks", FULL, NO_EXTRA_PASSES | COMPRESSED | {"total_cache_chunk_nums": 6}),
    Row("  the same, compressed to 5 chunks", FULL, NO_EXTRA_PASSES | COMPRESSED | {"total_cache_chunk_nums": 5}),
    Row("window [5,4,3,2], as MAGI-1 ships", SHIPPED, {}),
    Row("window [5,4,3,2], neither copies nor clean passes", SHIPPED, NO_EXTRA_PASSES),
)


class EmptyCaptions:
    """Captions of the usual length that say nothing."""

    def __init__(self, width: int) -> None:
        self.tokens = torch.zeros(CAPTION_TOKENS, width)

    def packed_cond(self, chunk: int) -> Tensor:
        return self.tokens

    def packed_null(self) -> Tensor:
        return self.tokens


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="configs/model/4.5B_distill.json", help="(default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=240, help="(default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=64, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    config = load_config(args.config_file).with_overrides(num_frames=args.num_frames, num_steps=args.num_steps)
    counted = {row.name: count(config, row) for row in ROWS}
    print(describe(counted))
    print(json.dumps({"config": args.config_file, "flop": {name.strip(): flop for name, flop in counted.items()}}))
    return 0


def count(config: MagiConfig, row: Row) -> int:
    """Floating point operations of one video."""
    config = config.with_overrides(noise2clean_kvrange=list(row.window))
    small = smallest(config)
    settings = FlowCacheConfig(**row.settings)
    dit = VideoDiT(small.model, distill=small.engine.distill, fp8=False)
    for parameter in dit.parameters():
        torch.nn.init.zeros_(parameter)
    geometry = kv_geometry(small, torch.device("cpu"))
    cache = CompressedKVCache(geometry, settings) if settings.compress_kv_cache else None
    sampler = Sampler(dit, small, cache, Method("flowcache", row.name, settings).make_reuse())
    frames = make_schedule(small, 0).chunk_num * small.runtime.chunk_width
    noise = torch.zeros(1, small.model.in_channels, frames, 2, 2)
    for _ in sampler.run(noise, EmptyCaptions(small.model.caption_channels)):
        pass
    scale = config.tokens_per_chunk // small.tokens_per_chunk
    size = TransformerSize.of(config.model.model_dump())
    return run_flops(size, (enlarged(forward, scale) for forward in sampler.record.forwards))


def smallest(config: MagiConfig) -> MagiConfig:
    """The same schedule, guidance and passes, with one token a frame."""
    sections = config.to_json_dict(full=True)
    sections["model_config"] |= SMALLEST
    sections["runtime_config"] |= {"video_size_h": 16, "video_size_w": 16}
    sections["engine_config"] |= {"fp8_quant": False}
    return MagiConfig.from_json_dict(sections)


def enlarged(forward: ForwardRecord, scale: int) -> ForwardRecord:
    keys = tuple(count * scale for count in forward.keys)
    return ForwardRecord(forward.kind, forward.chunk_tokens * scale, keys, forward.caption_tokens)


def describe(counted: dict[str, int]) -> str:
    """A table: PFLOP, the same scaled to the paper's figure for the first row, and how many times less."""
    first = next(iter(counted.values()))
    lines = [f"{'':50s} {'PFLOP':>8s} {'scaled':>8s} {'less':>6s}"]
    for name, flop in counted.items():
        lines.append(f"{name:50s} {flop / 1e15:8.1f} {PUBLISHED_PFLOP * flop / first:8.1f} {first / flop:5.2f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
