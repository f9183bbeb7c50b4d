#!/usr/bin/env python
"""Rules of reuse tried one by one on the bundled model: python benchmarks/rules/reuse.py --num_steps 64

Which steps are computed, and how the others advance: polynomials of several orders through the last velocities,
damped or not, corrected or not; patterns by depth and by calibration; decisions by the error just observed. PSNR
against the uncached video of the same noise, on held-out captions. What came out is discussed in docs/experiments.md;
`multistep/` is the rule that won.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from benchmarks.rules.policies import Rule
from example.nano.evaluate import prompt_of
from harness.calibration.making import make_video
from harness.device import set_threads
from harness.json_files import commit, save_json
from harness.outputs import own_json
from harness.sidecar import describe_device
from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from inference.reuse import Reuse
from metrics.similarity.measures import psnr
from multistep.calibration import VelocityRecorder, best_patterns
from multistep.config import spaced


def by_depth(steps: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Evenly spaced steps: so many of each stage (all of them where it has fewer), by depth."""
    length = steps // len(counts)
    numbers = [(depth, number, min(asked, length)) for depth, asked in enumerate(counts) for number in range(length)]
    return tuple(depth * length + round(number * length / count) for depth, number, count in numbers if number < count)


OURS = Rule("", (), correct=1, damping=0.8)
STAGES = 4


def rules(steps: int, gram_of: Callable[[], VelocityRecorder]) -> Iterator[Rule]:
    """What is tried, in groups; the calibrated patterns come from `gram_of`'s recording."""
    yield from every_nth(steps)
    for counts in [(1, 1, 2, 4), (1, 2, 2, 4), (1, 2, 4, 8), (4, 2, 2, 1), (1, 1, 1, 2)]:
        pattern = by_depth(steps, counts)
        yield replace(OURS, name=f"by depth {list(counts)}", steps=pattern)
        yield replace(OURS, name=f"by depth {list(counts)}, without copies", steps=pattern, copies=False)
    for share, spacing in itertools.product((1 / 4, 3 / 16, 1 / 8, 3 / 32), (1.5, 1.8, 2.2, 3.0)):
        pattern = spaced(steps, share, spacing)
        name = f"spaced {len(pattern)}, {spacing}"
        yield replace(OURS, name=name, steps=pattern)
        yield replace(OURS, name=f"{name}, without copies", steps=pattern, copies=False)
    for tolerance, together in itertools.product((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (True, False)):
        name = f"observed error {tolerance}, {'window' if together else 'chunk by chunk'}"
        yield replace(OURS, name=name, steps=None, tolerance=tolerance, together=together)
    yield from calibrated(steps, gram_of())


def every_nth(steps: int) -> Iterator[Rule]:
    """All chunks of the window at every n-th step of a stage, advanced in several ways."""
    for interval in (n for n in (2, 4, 8) if n <= steps // STAGES):
        rule = Rule("", by_depth(steps, (steps // STAGES // interval,) * STAGES))
        name = f"every {interval}"
        yield replace(rule, name=f"{name}: hold", predict=0)
        yield replace(rule, name=f"{name}: linear")
        yield replace(rule, name=f"{name}: quadratic", predict=2)
        yield replace(rule, name=f"{name}: linear, damping 0.8", damping=0.8)
        yield replace(rule, name=f"{name}: linear, damping 0.8, corrected", correct=1, damping=0.8)
        yield replace(rule, name=f"{name}: linear, damping 0.8, corrected by a parabola", correct=2, damping=0.8)
        yield replace(rule, name=f"{name}: hold, corrected", predict=0, correct=1)


def calibrated(steps: int, recorder: VelocityRecorder) -> Iterator[Rule]:
    """Patterns that a recording found best, and the same with no stale keys among those attended to."""
    gram = recorder.gram / recorder.chunks
    lengths = sorted({max(2, round(share * steps)) for share in (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)})
    for damping in (0.6, 0.8, 1.0):
        for count, pattern in best_patterns(gram, recorder.times, lengths, damping, passing=0.05).items():
            rule = replace(OURS, name=f"calibrated {count}, damping {damping}", steps=pattern.steps, damping=damping)
            yield rule
            if damping == OURS.damping:
                yield replace(rule, name=f"calibrated {count}, without copies", copies=False)
            fresh = with_older(pattern.steps, steps)
            if damping == OURS.damping and len(fresh) > count:
                yield replace(rule, name=f"calibrated {count}, older chunks along: {len(fresh)}", steps=fresh)


def with_older(pattern: Sequence[int], steps: int) -> tuple[int, ...]:
    """A pattern in which the older chunks of a window, whose keys it attends to, are computed along with a chunk."""
    length = steps // STAGES
    along = {step + later * length for step in pattern for later in range(STAGES - step // length)}
    return tuple(sorted(along))


@dataclass
class Outcome:
    """A rule's PSNR in dB per prompt, and what it computed against the uncached run."""

    rule: Rule
    psnr: list[float]
    share_computed: float
    flop_ratio: float


def try_rule(pipeline: MagiPipeline, rule: Rule, prompts: Sequence[str], uncached: dict) -> Outcome:
    quality, flops, tried = [], 0.0, rule.make()
    for prompt in prompts:
        frames, _, work = make_video(pipeline, Sample(prompt), tried.reuse())
        flops += work
        decibels = psnr(float(((uncached[prompt][0].double() - frames.double()) / 255).square().mean()))
        quality.append(99.0 if decibels is None else round(decibels, 2))
    return Outcome(rule, quality, tried.computed / tried.asked, sum(uncached[prompt][2] for prompt in prompts) / flops)


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
    parser.add_argument("--output", type=own_json("command", "outcomes"), help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    disable_progress_bar()
    config = load_config("configs/model/nano.json").with_overrides(num_steps=args.num_steps, num_frames=args.num_frames)
    set_threads(None, config)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))
    prompts = [prompt_of(number, "captions")[1] for number in range(args.prompts)]
    uncached = {prompt: make_video(pipeline, Sample(prompt), None) for prompt in tqdm(prompts, desc="uncached")}

    def recording() -> VelocityRecorder:
        recorder = VelocityRecorder()
        for number in range(args.prompts):
            make_video(pipeline, Sample(prompt_of(1000 + number, "captions")[1]), Reuse(advancer=recorder))
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
        about = {"command": " ".join(["benchmarks/rules/reuse.py", *sys.argv[1:]]), "commit": commit()}
        about |= {"device": describe_device(pipeline.device), "prompts": prompts, "num_frames": args.num_frames}
        save_json(args.output, about | {"outcomes": [asdict(outcome) for outcome in outcomes]})
        print(json.dumps(str(args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
