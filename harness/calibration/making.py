"""Making a calibration: patterns of several lengths found from uncached runs, and measured (docs/multistep.md,
"Calibration").
"""

import itertools
from collections.abc import Callable, Sequence

import torch

from harness.calibration.files import Entry, Ratio
from harness.methods import Method, MultistepSettings
from inference.config import MagiConfig
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.reuse import Reuse
from metrics.flops import TransformerSize, run_flops
from metrics.similarity.measures import psnr
from multistep.calibration import VelocityRecorder, best_patterns

# A video without any difference, in dB: what 8-bit frames can tell apart at most, about.
_NO_DIFFERENCE = 99.0


def calibrate(
    pipeline: MagiPipeline,
    prompts: Sequence[str],
    held_out: Sequence[str],
    lengths: Sequence[int],
    progress: Callable[[], None],
) -> tuple[MultistepSettings, list[Entry]]:
    """Record uncached runs of `prompts`, find a pattern of every length, and measure it on them and on `held_out`, with
    the nearly-clean copies of a distilled model and without.

    `progress` is called after every video, `count_videos` times.
    """
    settings = MultistepSettings()
    recorder = VelocityRecorder()
    make_video(pipeline, prompts[0], None)  # the first run of a process is slower
    progress()
    uncached = {}
    for prompt in (*prompts, *held_out):
        uncached[prompt] = make_video(pipeline, prompt, Reuse(advancer=recorder) if prompt in prompts else None)
        progress()
    patterns = best_patterns(
        recorder.gram / recorder.chunks, recorder.times, lengths, settings.damping, settings.correct
    )
    entries = []
    for length, discard in itertools.product(sorted(patterns), _discards(pipeline.config)):
        changes = {"pattern": patterns[length].steps, "pattern_steps": pipeline.config.runtime.num_steps}
        tried = settings.model_copy(update=changes | {"discard_nearly_clean_chunk": discard})
        method, cached = Method("multistep", "calibration", tried), {}
        for prompt in uncached:
            cached[prompt] = make_video(pipeline, prompt, method.make_reuse())
            progress()
        entries.append(_entry(tried, uncached, cached, prompts, held_out))
    return settings, entries


def count_videos(config: MagiConfig, prompts: int, lengths: int) -> int:
    """How many videos a calibration makes: with every pattern and without any, and one more to warm up."""
    return (lengths * len(_discards(config)) + 1) * prompts + 1


def _discards(config: MagiConfig) -> tuple[bool, ...]:
    return (False, True) if config.engine.distill else (False,)


def make_video(pipeline: MagiPipeline, prompt: str, reuse: Reuse | None) -> tuple[torch.Tensor, float, float]:
    """Frames (T, H, W, 3) uint8, seconds of denoising, floating point operations."""
    report = RunReport()
    frames = torch.cat(list(pipeline.frames(Sample(prompt), reuse=reuse, report=report)))
    flops = run_flops(TransformerSize.of(pipeline.config.model.model_dump()), report.record.forwards)
    return frames, report.seconds["denoise"], float(flops)


Videos = dict[str, tuple[torch.Tensor, float, float]]


def _entry(
    tried: MultistepSettings, uncached: Videos, cached: Videos, prompts: Sequence[str], held_out: Sequence[str]
) -> Entry:
    def quality(prompt: str) -> float:
        difference = uncached[prompt][0].double() - cached[prompt][0].double()
        decibels = psnr(float((difference / 255).square().mean()))
        return _NO_DIFFERENCE if decibels is None else round(decibels, 2)

    return Entry(
        pattern=tried.pattern or (),
        discard_nearly_clean_chunk=tried.discard_nearly_clean_chunk,
        psnr=[quality(prompt) for prompt in prompts],
        checked_psnr=[quality(prompt) for prompt in held_out],
        flop_ratio=round(sum(video[2] for video in uncached.values()) / sum(video[2] for video in cached.values()), 3),
        seconds_ratio=Ratio.of((uncached[prompt][1], cached[prompt][1]) for prompt in uncached),
    )
