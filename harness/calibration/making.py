"""Making a calibration: patterns of several lengths found from uncached runs, tried in the closed loop, and measured
(docs/multistep.md, "Calibration").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.calibration.files import Entry, Ratio, Tried
from harness.calibration.work import Caption, Measured, Uncached, Work
from harness.methods import Method, MultistepSettings
from inference.config import MagiConfig
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.reuse import Reuse
from metrics.flops import TransformerSize, run_flops
from metrics.similarity.measures import psnr
from multistep.calibration import VelocityRecorder, candidates

# A video without any difference, in dB: what 8-bit frames can tell apart at most, about.
_NO_DIFFERENCE = 99.0


@dataclass(frozen=True)
class Progress:
    """`expect(n)`: so many more videos will be made or read. `done()`: one was."""

    expect: Callable[[int], None]
    done: Callable[[], None]


class Calibrator:
    """Makes and measures the videos of one calibration; what `work` holds already is read."""

    def __init__(self, pipeline: MagiPipeline, captions: Sequence[Caption], work: Work, progress: Progress) -> None:
        self.pipeline, self.captions, self.work, self.progress = pipeline, captions, work, progress
        self.chosen_by = [caption for caption in captions if not caption.held_out]
        self.settings = MultistepSettings()

    def run(self, lengths: Sequence[int]) -> list[Entry]:
        """Record uncached runs, try several patterns of every length on the captions that are not held out, and measure
        the best of each on all of them, with the nearly-clean copies of a distilled model and without.
        """
        make_video(self.pipeline, self.captions[0].sample, None)  # the first run of a process is slower
        grams, times = self._record()
        found = candidates(grams, times, lengths, self.settings.damping, self.settings.correct)
        discards = _discards(self.pipeline.config)
        tries = sum(map(len, found.values())) * len(self.chosen_by)
        self.progress.expect(tries + len(found) * len(discards) * len(self.captions))
        entries = []
        for patterns in found.values():
            tried = {name: self._try(pattern) for name, pattern in patterns.items()}
            best = max(tried, key=lambda name: tried[name].mean)
            entries += [self._entry(patterns[best], best, list(tried.values()), discard) for discard in discards]
        return entries

    def uncached(self, caption: Caption) -> Uncached:
        return self.work.uncached(caption, lambda: record_video(self.pipeline, caption.sample))

    def measure(self, caption: Caption, settings: MultistepSettings) -> Measured:
        """A caption's video with `settings`, against its uncached one."""

        def make() -> Measured:
            reuse = Method("multistep", "calibration", settings).make_reuse()
            frames, seconds, flop = make_video(self.pipeline, caption.sample, reuse)
            return Measured(difference(self.uncached(caption).frames, frames.numpy()), seconds, flop)

        found = self.work.measured(caption, settings.model_dump(mode="json", exclude_defaults=True), make)
        self.progress.done()
        return found

    def _record(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean inner products of a chunk's velocities over the captions that are not held out, and noise levels."""
        self.progress.expect(len(self.captions))
        grams, times = [], np.zeros(0)
        for caption in self.captions:
            video = self.uncached(caption)
            times = video.times
            if not caption.held_out:
                grams.append(video.grams.mean(0))
            self.progress.done()
        return np.mean(grams, axis=0), times

    def _changed(self, pattern: tuple[int, ...], discard: bool) -> MultistepSettings:
        steps = self.pipeline.config.runtime.num_steps
        changes = {"pattern": pattern, "pattern_steps": steps, "discard_nearly_clean_chunk": discard}
        return self.settings.model_copy(update=changes)

    def _try(self, pattern: tuple[int, ...]) -> Tried:
        settings = self._changed(pattern, discard=False)
        return Tried.of(pattern, [self.measure(caption, settings).psnr for caption in self.chosen_by])

    def _entry(self, pattern: tuple[int, ...], found_by: str, tried: list[Tried], discard: bool) -> Entry:
        settings = self._changed(pattern, discard)
        whole = {caption: self.uncached(caption) for caption in self.captions}
        cached = {caption: self.measure(caption, settings) for caption in self.captions}
        flops = [sum(video.flop for video in videos.values()) for videos in (whole, cached)]
        return Entry(
            pattern=pattern,
            found_by=found_by,
            tried=[one for one in tried if one.pattern != pattern],
            discard_nearly_clean_chunk=discard,
            psnr=[cached[caption].psnr for caption in self.captions if not caption.held_out],
            checked_psnr=[cached[caption].psnr for caption in self.captions if caption.held_out],
            flop_ratio=round(flops[0] / flops[1], 3),
            seconds_ratio=Ratio.of((whole[caption].seconds, cached[caption].seconds) for caption in self.captions),
        )


def _discards(config: MagiConfig) -> tuple[bool, ...]:
    return (False, True) if config.engine.distill else (False,)


def record_video(pipeline: MagiPipeline, sample: Sample) -> Uncached:
    """An uncached video with what its velocities tell."""
    recorder = VelocityRecorder()
    frames, seconds, flop = make_video(pipeline, sample, Reuse(advancer=recorder))
    travelled = torch.stack(list(recorder.travelled.values())).cpu().numpy()
    grams = np.stack(list(recorder.grams.values()))
    return Uncached(frames.numpy(), travelled, grams, recorder.times, seconds, flop)


def make_video(pipeline: MagiPipeline, sample: Sample, reuse: Reuse | None) -> tuple[torch.Tensor, float, float]:
    """Frames (T, H, W, 3) uint8, seconds of denoising, floating point operations."""
    report = RunReport()
    frames = torch.cat(list(pipeline.frames(sample, reuse=reuse, report=report)))
    flops = run_flops(TransformerSize.of(pipeline.config.model.model_dump()), report.record.forwards)
    return frames, report.seconds["denoise"], float(flops)


def difference(uncached: np.ndarray, cached: np.ndarray) -> float:
    """PSNR in dB of two videos (T, H, W, 3) uint8, to two places."""
    decibels = psnr(float(np.square((uncached.astype(np.float64) - cached) / 255).mean()))
    return _NO_DIFFERENCE if decibels is None else round(decibels, 2)
