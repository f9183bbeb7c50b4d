#!/usr/bin/env python
"""Rules of reuse tried one by one on the bundled model: python benchmarks/reuse_rules.py --num_steps 64

Which steps are computed, and how the others advance: polynomials of several orders through the last velocities,
damped or not, corrected or not. PSNR against the uncached video of the same noise, on held-out captions. What came
out is discussed in docs/experiments.md; `multistep/` is the rule that won.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from example.nano.evaluate import prompt_of
from harness.calibrating import make_video
from harness.device import set_threads
from harness.sidecar import commit, describe_device, replacing, write_json
from inference.config import load_config
from inference.pipeline import MagiPipeline
from inference.reuse import Features
from inference.schedule import Schedule, Step
from metrics.similarity import psnr
from multistep.calibration import VelocityRecorder, best_patterns
from multistep.config import MultistepConfig


@dataclass(frozen=True)
class Rule:
    """`steps`: own steps that are computed. `predict`, `correct`: order of the polynomial through the last velocities
    that skipped steps follow, and of the one that replaces it at the next computed step (None: none does). `damping`:
    share by which the prediction leaves the last velocity. `copies`: the nearly-clean copies are made.
    """

    name: str
    steps: tuple[int, ...]
    predict: int = 1
    correct: int | None = None
    damping: float = 1.0
    copies: bool = True


def through(points: Sequence[tuple[float, Tensor]], t: float) -> Tensor:
    """The polynomial through (t, velocity) points, at another t."""
    total = torch.zeros_like(points[0][1])
    for number, (here, velocity) in enumerate(points):
        weight = 1.0
        for other, (there, _) in enumerate(points):
            if other != number:
                weight *= (t - there) / (here - there)
        total = total + weight * velocity
    return total


class RulePolicy:
    """A rule, taken literally: every velocity and every gain is kept, sums are made when they are needed."""

    clean_pass = True

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.nearly_clean_copy = rule.copies
        self._points: dict[int, list[tuple[float, Tensor]]] = {}
        self._skipped: dict[int, list[tuple[float, float, Tensor]]] = {}

    def reset(self, schedule: Schedule) -> None:
        self._points, self._skipped = {}, {}

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        return tuple(entry.chunk for entry in step.window if entry.index in self.rule.steps)

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        points = self._points.setdefault(chunk, [])
        points.append((step.of(chunk).t, velocity))
        skipped = self._skipped.pop(chunk, [])
        if self.rule.correct is None or not skipped:
            return None
        line = points[-(self.rule.correct + 1) :]
        return sum((through(line, t) * dt - gained for t, dt, gained in skipped), torch.zeros_like(velocity))

    def advance(self, step: Step, chunk: int) -> Tensor:
        entry, points = step.of(chunk), self._points[chunk]
        held = points[-1][1]
        predicted = through(points[-(self.rule.predict + 1) :], entry.t)
        gained = (held + self.rule.damping * (predicted - held)) * entry.dt
        self._skipped.setdefault(chunk, []).append((entry.t, entry.dt, gained))
        return gained


def by_depth(steps: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Evenly spaced steps: so many of each stage, by depth."""
    schedule = Schedule(1, 0, steps, len(counts))
    return tuple(sorted(MultistepConfig(computed_per_stage=counts).computed_steps(schedule)))


def rules(steps: int, gram_of: Callable[[], VelocityRecorder]) -> Iterator[Rule]:
    """What is tried, in groups; the calibrated patterns come from `gram_of`'s recording."""
    length = steps // 4
    for interval in (p for p in (2, 4, 8) if p <= length):
        same = by_depth(steps, (length // interval,) * 4)
        name = f"every {interval}"
        yield Rule(f"{name}: hold", same, predict=0)
        yield Rule(f"{name}: linear", same)
        yield Rule(f"{name}: quadratic", same, predict=2)
        yield Rule(f"{name}: linear, damping 0.8", same, damping=0.8)
        yield Rule(f"{name}: linear, damping 0.8, corrected", same, correct=1, damping=0.8)
        yield Rule(f"{name}: linear, damping 0.8, corrected by a parabola", same, correct=2, damping=0.8)
        yield Rule(f"{name}: hold, corrected", same, predict=0, correct=1)
    ours = Rule("", (), correct=1, damping=0.8)
    for counts in itertools.chain([(1, 1, 2, 4), (1, 2, 2, 4), (1, 2, 4, 8), (4, 2, 2, 1)], [(1, 1, 1, 2)]):
        pattern = by_depth(steps, counts)
        yield replace(ours, name=f"by depth {list(counts)}", steps=pattern)
        yield replace(ours, name=f"by depth {list(counts)}, without copies", steps=pattern, copies=False)
    recorder = gram_of()
    gram = recorder.gram / recorder.chunks
    lengths = sorted({max(2, round(share * steps)) for share in (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)})
    for damping in (0.6, 0.8, 1.0):
        for count, pattern in best_patterns(gram, recorder.times, lengths, damping).items():
            name = f"calibrated {count}, damping {damping}"
            yield replace(ours, name=name, steps=pattern.steps, damping=damping)


@dataclass
class Outcome:
    """A rule's PSNR in dB per prompt, and what it computed against the uncached run."""

    rule: Rule
    psnr: list[float]
    share_computed: float
    flop_ratio: float


def try_rule(pipeline: MagiPipeline, rule: Rule, prompts: Sequence[str], uncached: dict) -> Outcome:
    quality, flops = [], 0.0
    for prompt in prompts:
        frames, _, work = make_video(pipeline, prompt, RulePolicy(rule))
        flops += work
        decibels = psnr(float(((uncached[prompt][0].double() - frames.double()) / 255).square().mean()))
        quality.append(99.0 if decibels is None else round(decibels, 2))
    share = len(rule.steps) / pipeline.config.runtime.num_steps
    return Outcome(rule, quality, share, sum(uncached[prompt][2] for prompt in prompts) / flops)


def fewer_steps(pipeline: MagiPipeline, divisor: int, prompts: Sequence[str], uncached: dict) -> Outcome:
    """The plain alternative to every rule: a run of fewer steps, from the same noise."""
    steps = pipeline.config.runtime.num_steps // divisor
    config = pipeline.config.with_overrides(num_steps=steps)
    shorter = MagiPipeline(config, pipeline.dit, pipeline.vae, pipeline.t5, pipeline.tokens, pipeline.device)
    outcome = try_rule(shorter, Rule(f"{steps} steps", tuple(range(steps))), prompts, uncached)
    return replace(outcome, share_computed=1 / divisor)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=64)
    parser.add_argument("--num_frames", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=6, help="held-out captions; as many others calibrate")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    disable_progress_bar()
    config = load_config("configs/model/nano.json").with_overrides(num_steps=args.num_steps, num_frames=args.num_frames)
    set_threads(None, config)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))
    prompts = [prompt_of(number, "captions")[1] for number in range(args.prompts)]
    uncached = {prompt: make_video(pipeline, prompt, None) for prompt in tqdm(prompts, desc="uncached")}

    def recording() -> VelocityRecorder:
        recorder = VelocityRecorder()
        for number in range(args.prompts):
            make_video(pipeline, prompt_of(1000 + number, "captions")[1], recorder)
        return recorder

    tried = list(rules(args.num_steps, recording))
    outcomes = [
        fewer_steps(pipeline, divisor, prompts, uncached) for divisor in (2, 4, 8) if args.num_steps / divisor >= 8
    ]
    outcomes += [try_rule(pipeline, rule, prompts, uncached) for rule in tqdm(tried, desc="rules")]
    for outcome in outcomes:
        print(
            f"{outcome.rule.name:58s} {outcome.share_computed:6.1%} computed  FLOP {outcome.flop_ratio:5.2f}x  "
            f"{statistics.mean(outcome.psnr):5.1f} dB ({min(outcome.psnr):.1f} to {max(outcome.psnr):.1f})"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"command": " ".join(["benchmarks/reuse_rules.py", *sys.argv[1:]]), "commit": commit()}
        about |= {"device": describe_device(pipeline.device), "prompts": prompts, "num_frames": args.num_frames}
        with replacing(args.output) as part:
            write_json(part, about | {"outcomes": [asdict(outcome) for outcome in outcomes]})
        print(json.dumps(str(args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
