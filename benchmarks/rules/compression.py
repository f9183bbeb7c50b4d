#!/usr/bin/env python
"""What the compressed cache keeps, tried rule by rule: python benchmarks/rules/compression.py --output results.json

Videos of held-out captions, half of them of an object that passes behind a wall, with the whole history in view and no
reuse: each rule at an equal budget against the uncompressed video of the same noise (PSNR), against the caption (the
attributes right in the last 96 frames), and in attention outputs. Results are kept after every video; the same command
goes on where it was stopped. What came out is discussed in docs/experiments.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from benchmarks.compare.store import weights_digest
from benchmarks.rules.attention_error import ShadowedCache
from example.nano.evaluate import prompt_of
from example.nano.scenes.data import PERIOD, Scene
from example.nano.scenes.measure import is_stable, measure
from flowcache.config import CompressionConfig
from flowcache.kv_cache import CompressedKVCache
from harness.device import set_threads
from harness.json_files import commit, save_json
from harness.sidecar import describe_device
from inference.config import load_config
from inference.kv_cache import KVCache, KVGeometry
from inference.pipeline import MagiPipeline, Sample
from metrics.similarity.measures import psnr

UNCOMPRESSED = "uncompressed"
PUBLISHED = {"kept_order": "score", "score_dtype": "compute"}
LATER = {"merge_dropped": True, "score_weighting_method": "exponential"}
SEVERAL = {"mix_lambda": 1.0, "query_chunks": 4}
# A video without any difference, in dB: what 8-bit frames can tell apart at most, about.
NO_DIFFERENCE = 99.0

# What is tried, with every budget in chunks for which videos are made; attention is measured for all at the first.
RULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "published": (PUBLISHED, (5, 6)),
    "recent": ({"keep_rule": "recent"}, (5, 6)),
    "random": ({"keep_rule": "random"}, (5,)),
    "spread, merged": ({"keep_rule": "spread", "merge_dropped": True}, (5, 6)),
    "spread": ({"keep_rule": "spread"}, (5,)),
    "recent, merged": ({"keep_rule": "recent", "merge_dropped": True}, (5,)),
    "published, merged": ({"merge_dropped": True}, (5, 6)),
    "published, later tokens first": ({"score_weighting_method": "exponential"}, (5,)),
    "published, later tokens first, merged": (LATER, (5, 6)),
    "published, later tokens first, merged, queries of a frame": (LATER | {"query_granularity": "frame"}, (5,)),
    "sinks": ({"keep_rule": "sinks"}, (5,)),
    "published in float32, by place": ({}, (5,)),
    "importance by the queries of 4 chunks": (SEVERAL, (5,)),
    "importance alone": ({"mix_lambda": 1.0}, ()),
    "importance by the queries of 4 chunks, one mask for all heads": (SEVERAL | {"shared_mask": True}, ()),
    "importance by the queries of 4 chunks, merged": (SEVERAL | {"merge_dropped": True}, ()),
    "random, one mask for all heads": ({"keep_rule": "random", "shared_mask": True}, ()),
    "random, merged": ({"keep_rule": "random", "merge_dropped": True}, ()),
    "spread whole frames": ({"keep_rule": "spread", "compress_strategy": "frame"}, ()),
    "spread whole frames, merged": (
        {"keep_rule": "spread", "compress_strategy": "frame", "merge_dropped": True},
        (),
    ),
}
PLAIN = ("published", "recent", "random")  # what the others have to beat


def settings_of(rule: str, budget: int) -> CompressionConfig:
    return CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=budget, **RULES[rule][0])


def planned(rules: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Rule and budget of every video but the uncompressed one."""
    return ((rule, budget) for rule in rules for budget in RULES[rule][1])


def label(rule: str, budget: int) -> str:
    return f"{rule}, budget {budget}"


def prompts_of(count: int) -> list[int]:
    """Numbers of held-out captions, in turn of an object that a wall hides for a while and of any other scene."""

    def of_kind(hidden: bool) -> Iterator[int]:
        return (number for number in range(10_000) if (prompt_of(number, "captions")[0].kind == "hide") == hidden)

    return list(islice(chain.from_iterable(zip(of_kind(True), of_kind(False), strict=False)), count))


def task_quality(frames: Tensor, scene: Scene) -> dict[str, bool]:
    """Which attributes the last period of the video shows, whether all are right, and whether the object stayed."""
    video = frames.numpy()
    found = {name: bool(right) for name, right in asdict(measure(video[-PERIOD:], scene)).items()}
    return found | {"all": all(found.values()), "stable": bool(is_stable(video, scene))}


def likeness(original: Tensor, generated: Tensor) -> dict[str, float]:
    """PSNR in dB of the whole video and of its last period."""

    def decibels(last: int) -> float:
        difference = (original[-last:].double() - generated[-last:].double()) / 255
        found = psnr(float(difference.square().mean()))
        return NO_DIFFERENCE if found is None else round(found, 3)

    return {"psnr": decibels(len(original)), "psnr_of_the_last_period": decibels(PERIOD)}


class Study:
    """Makes what is missing. `results`: per prompt number, the figures of every video by its label."""

    def __init__(self, pipeline: MagiPipeline, about: Mapping[str, Any], rules: Sequence[str], output: Path) -> None:
        self.pipeline, self.about, self.rules, self.output = pipeline, dict(about), tuple(rules), output
        self.results: dict[str, dict[str, Any]] = {}
        if output.exists():
            known = json.loads(output.read_text(encoding="utf-8"))
            differing = [key for key in ("weights", "num_steps", "num_frames") if known.get(key) != about[key]]
            if differing:
                raise ValueError(f"{output} was made with other {', '.join(differing)}; choose another --output")
            self.results = known["prompts"]

    def run(self, numbers: Sequence[int]) -> None:
        plan = list(planned(self.rules))
        with tqdm(total=len(numbers) * (len(plan) + 1), desc="videos") as bar:
            for number in numbers:
                self._run_prompt(number, plan, bar)

    def _run_prompt(self, number: int, plan: Sequence[tuple[str, int]], bar: tqdm) -> None:
        scene, prompt = prompt_of(number, "captions")
        entry = self.results.setdefault(str(number), {"prompt": prompt, "kind": scene.kind, "videos": {}})
        videos = entry["videos"]
        missing = [(rule, budget) for rule, budget in plan if label(rule, budget) not in videos]
        bar.update(len(plan) - len(missing) + (not missing))
        if not missing:
            return
        caches: list[ShadowedCache] = []

        def shadowed(geometry: KVGeometry) -> KVCache:
            shadows = {rule: CompressedKVCache(geometry, settings_of(rule, 5)) for rule in self.rules}
            caches.append(ShadowedCache(geometry, shadows))
            return caches[-1]

        whole = self._make(number, prompt, shadowed)
        entry.setdefault("attention_error_by_layer", {}).update(caches[-1].relative_errors())
        videos[UNCOMPRESSED] = task_quality(whole, scene)
        bar.update()
        for rule, budget in missing:
            settings = settings_of(rule, budget)
            frames = self._make(number, prompt, lambda geometry, s=settings: CompressedKVCache(geometry, s))
            videos[label(rule, budget)] = likeness(whole, frames) | task_quality(frames, scene)
            self._save()
            bar.update()

    def _make(self, number: int, prompt: str, make_cache: Any) -> Tensor:
        return torch.cat(list(self.pipeline.frames(Sample(prompt, identity=str(number)), make_cache=make_cache)))

    def _save(self) -> None:
        save_json(self.output, self.about | {"summary": summary(self.results, self.rules), "prompts": self.results})


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": round(statistics.mean(values), 4), "error": round(spread, 4)}


def summary(results: Mapping[str, Mapping[str, Any]], rules: Sequence[str]) -> dict[str, Any]:
    """Per label the means over the prompts that have the videos of all these rules, and the advantage over the plain
    rules at the same budget, paired by prompt.
    """
    names = [UNCOMPRESSED, *(label(rule, budget) for rule, budget in planned(rules))]
    complete = [entry for entry in results.values() if set(names) <= set(entry["videos"])]
    table: dict[str, Any] = {"prompts": len(complete), "videos": {}, "attention_error": {}, "advantage_in_db": {}}
    if not complete:
        return table
    for name in names:
        rows = [entry["videos"][name] for entry in complete]
        table["videos"][name] = {key: mean_and_error([float(row[key]) for row in rows]) for key in rows[0]}
    for rule in rules:
        layers = [entry["attention_error_by_layer"][rule] for entry in complete]
        table["attention_error"][rule] = mean_and_error([statistics.mean(errors) for errors in layers])
    for rule, budget in planned(rules):
        for plain in (label(other, budget) for other in PLAIN if other != rule):
            if plain in names:
                gains = [
                    entry["videos"][label(rule, budget)]["psnr"] - entry["videos"][plain]["psnr"] for entry in complete
                ]
                table["advantage_in_db"][f"{label(rule, budget)} over {plain}"] = mean_and_error(gains)
    return table


def show(table: Mapping[str, Any]) -> None:
    """The summary, a rule a line."""

    def figure(value: Mapping[str, float]) -> str:
        return f"{value['mean']:6.3f} +- {value['error']:.3f}"

    print(f"{table['prompts']} prompts")
    for name, row in table["videos"].items():
        print(f"{name:50s}", "  ".join(f"{key} {figure(value)}" for key, value in row.items()))
    for group in ("attention_error", "advantage_in_db"):
        for name, value in table[group].items():
            print(f"{group}: {name:62s} {figure(value)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=16)
    parser.add_argument("--num_frames", type=int, default=240, help="at least 192: the cache holds 120")
    parser.add_argument("--prompts", type=int, default=16, help="held-out captions, every other one with a wall")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="(default: all)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results, old ones included")
    args = parser.parse_args(argv)
    if args.num_frames < 2 * PERIOD or args.prompts < 1:
        parser.error(f"--num_frames {args.num_frames} has to be at least {2 * PERIOD}, --prompts {args.prompts} 1")
    disable_progress_bar()
    config = load_config("configs/model/nano.json").with_overrides(
        num_steps=args.num_steps, num_frames=args.num_frames, noise2clean_kvrange=[]
    )
    set_threads(None, config)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))
    about = {
        "command": " ".join(["benchmarks/rules/compression.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": describe_device(pipeline.device),
        "weights": weights_digest(config),
        "num_steps": args.num_steps,
        "num_frames": args.num_frames,
        "key_window": "full history",
        "rules": {rule: settings_of(rule, 5).model_dump(mode="json") for rule in RULES},
    }
    study = Study(pipeline, about, args.rules, args.output)
    study.run(prompts_of(args.prompts))
    show(summary(study.results, args.rules))
    return 0


if __name__ == "__main__":
    sys.exit(main())
