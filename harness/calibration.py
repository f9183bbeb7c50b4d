"""A target instead of settings: what a model loses and gains with patterns of several lengths, measured once, and the
pattern that meets a wish (docs/multistep.md, "Calibration").
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.methods import Method, MultistepSettings, make_config
from inference.config import MagiConfig
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.reuse import ReusePolicy
from metrics.flops import TransformerSize, run_flops
from metrics.similarity import psnr
from multistep.calibration import VelocityRecorder, best_patterns
from multistep.config import MultistepConfig
from multistep.policy import MultistepReuse

# What has to be the same in a run for a calibration to speak of it.
CONDITIONS = ("num_steps", "window_size", "noise2clean_kvrange", "num_layers", "hidden_size")
# A video without any difference, in dB: what 8-bit frames can tell apart at most, about.
_NO_DIFFERENCE = 99.0


class Ratio(BaseModel):
    """Of uncached over cached, pair by pair."""

    model_config = ConfigDict(extra="forbid")

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> "Ratio":
        values = [uncached / cached for uncached, cached in pairs]
        return cls(median=statistics.median(values), min=min(values), max=max(values))


class Entry(BaseModel):
    """One pattern. `psnr`: dB against the uncached video, per calibration prompt; `checked_psnr`: per held-out one."""

    model_config = ConfigDict(extra="forbid")

    pattern: tuple[int, ...]
    psnr: list[float]
    checked_psnr: list[float]
    flop_ratio: float
    seconds_ratio: Ratio

    @property
    def expected_psnr(self) -> float:
        """What most prompts reach: the mean less one standard deviation."""
        return statistics.mean(self.psnr) - (statistics.stdev(self.psnr) if len(self.psnr) > 1 else 0.0)


class Calibration(BaseModel):
    """A calibration file. `conditions`: what it holds for, by CONDITIONS."""

    model_config = ConfigDict(extra="forbid")

    about: dict[str, Any]
    conditions: dict[str, Any]
    damping: float
    correct: bool
    entries: list[Entry]


def conditions_of(config: MagiConfig) -> dict[str, Any]:
    values = {**config.runtime.model_dump(mode="json"), **config.model.model_dump(mode="json")}
    return {name: values[name] for name in CONDITIONS}


def calibration_path(config_file: str, num_steps: int) -> Path:
    """Where the calibration of a model and step count is looked for."""
    return Path("configs/calibration") / f"{Path(config_file).stem}_{num_steps}.json"


def load_calibration(path: Path, shown_as: str) -> Calibration:
    try:
        return Calibration.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"calibration {shown_as} does not exist; make it with scripts/calibrate.sh, or name one with --calibration"
        ) from None
    except (ValidationError, ValueError) as error:
        raise ValueError(f"calibration {shown_as} cannot be read: {error}") from error


def calibrated_method(
    calibration: Calibration,
    source: str,
    config: MagiConfig,
    target_psnr: float | None,
    target_speedup: float | None,
    overrides: dict[str, Any],
) -> Method:
    """The method that meets the target, as multi-step reuse with a calibrated pattern.

    Raises:
        ValueError: the calibration is for other conditions, or no entry meets the target; with the numbers.
    """
    for name, value in conditions_of(config).items():
        if calibration.conditions.get(name) != value:
            raise ValueError(
                f"{source} was made with {name} {calibration.conditions.get(name)}, but this run has {value}; "
                "calibrate it (scripts/calibrate.sh)"
            )
    entry = choose(calibration.entries, source, target_psnr, target_speedup)
    settings = {
        "pattern": entry.pattern,
        "pattern_steps": config.runtime.num_steps,
        "damping": calibration.damping,
        "correct": calibration.correct,
    }
    target = {"target_psnr": target_psnr} if target_psnr is not None else {"target_speedup": target_speedup}
    chosen = target | {
        "expected_psnr": entry.expected_psnr,
        "expected_speedup": entry.seconds_ratio.median,
        "calibrated_on": calibration.about.get("device"),
    }
    method = Method("multistep", source, make_config(MultistepSettings, {**settings, **overrides}, source))
    return replace(method, chosen=chosen)


def choose(entries: Sequence[Entry], source: str, target_psnr: float | None, target_speedup: float | None) -> Entry:
    """The fastest entry that is good enough, or the best that is fast enough."""
    by_length = sorted(entries, key=lambda entry: len(entry.pattern))
    if target_psnr is not None:
        for entry in by_length:
            if entry.expected_psnr >= target_psnr:
                return entry
        best = max(entry.expected_psnr for entry in entries)
        raise ValueError(f"{source}: target_psnr {target_psnr:g} is above the highest calibrated, {best:.1f} dB")
    assert target_speedup is not None
    for entry in reversed(by_length):
        if entry.seconds_ratio.median >= target_speedup:
            return entry
    most = max(entry.seconds_ratio.median for entry in entries)
    raise ValueError(f"{source}: target_speedup {target_speedup:g} is above the highest calibrated, {most:.2f}")


def calibrate(
    pipeline: MagiPipeline,
    prompts: Sequence[str],
    held_out: Sequence[str],
    lengths: Sequence[int],
    progress: Callable[[], None],
) -> tuple[MultistepConfig, list[Entry]]:
    """Record uncached runs of `prompts`, find a pattern of every length, and measure it on them and on `held_out`.

    `progress` is called after every video: (lengths + 1) x (prompts + held_out) + 1 times.
    """
    settings = MultistepConfig()
    recorder = VelocityRecorder()
    make_video(pipeline, prompts[0], None)  # the first run of a process is slower
    progress()
    uncached = {}
    for prompt in (*prompts, *held_out):
        uncached[prompt] = make_video(pipeline, prompt, recorder if prompt in prompts else None)
        progress()
    patterns = best_patterns(
        recorder.gram / recorder.chunks, recorder.times, lengths, settings.damping, settings.correct
    )
    entries = []
    for length in sorted(patterns):
        steps = {"pattern": patterns[length].steps, "pattern_steps": pipeline.config.runtime.num_steps}
        policy = MultistepReuse(settings.model_copy(update=steps))
        cached = {}
        for prompt in uncached:
            cached[prompt] = make_video(pipeline, prompt, policy)
            progress()
        entries.append(_entry(patterns[length].steps, uncached, cached, prompts, held_out))
    return settings, entries


def make_video(pipeline: MagiPipeline, prompt: str, policy: ReusePolicy | None) -> tuple[torch.Tensor, float, float]:
    """Frames (T, H, W, 3) uint8, seconds of denoising, floating point operations."""
    report = RunReport()
    frames = torch.cat(list(pipeline.frames(Sample(prompt), policy=policy, report=report)))
    flops = run_flops(TransformerSize.of(pipeline.config.model.model_dump()), report.record.forwards)
    return frames, report.seconds["denoise"], float(flops)


Videos = dict[str, tuple[torch.Tensor, float, float]]


def _entry(
    pattern: tuple[int, ...], uncached: Videos, cached: Videos, prompts: Sequence[str], held_out: Sequence[str]
) -> Entry:
    def quality(prompt: str) -> float:
        difference = uncached[prompt][0].double() - cached[prompt][0].double()
        decibels = psnr(float((difference / 255).square().mean()))
        return _NO_DIFFERENCE if decibels is None else round(decibels, 2)

    return Entry(
        pattern=pattern,
        psnr=[quality(prompt) for prompt in prompts],
        checked_psnr=[quality(prompt) for prompt in held_out],
        flop_ratio=round(sum(video[2] for video in uncached.values()) / sum(video[2] for video in cached.values()), 3),
        seconds_ratio=Ratio.of((uncached[prompt][1], cached[prompt][1]) for prompt in uncached),
    )


def today() -> str:
    return time.strftime("%Y-%m-%d")
