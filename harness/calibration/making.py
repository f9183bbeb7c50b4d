"""Making a calibration: patterns of several lengths found from uncached runs, tried in the closed loop, and measured
(docs/multistep.md, "Calibration").
"""

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.calibration.differentiable import DifferentiableRun
from harness.calibration.files import Entry, Ratio, Tried
from harness.calibration.fitting import SolverFit, Target
from harness.calibration.work import Caption, Measured, Uncached, Work
from harness.methods import MultistepSettings, make_reuse
from inference.config import MagiConfig
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.reuse import Reuse
from metrics.flops import TransformerSize, run_flops
from metrics.similarity.measures import psnr
from multistep.calibration import VelocityRecorder, candidates
from multistep.config import Solver

# A video without any difference, in dB: what 8-bit frames can tell apart at most, about.
_NO_DIFFERENCE = 99.0
# Captions whose videos are timed.
_TIMED = 5


@dataclass(frozen=True)
class Progress:
    """`expect(n)`: so many more videos will be made or read. `done(n)`: so many were."""

    expect: Callable[[int], None]
    done: Callable[[int], None]


@dataclass(frozen=True)
class Fitting:
    """For which numbers of computed steps a solver is fitted, with the nearly-clean copies of a distilled model and
    without, and how long: `iterations` of two captions each.
    """

    lengths: Collection[int] = ()
    without_copies: Collection[int] = ()
    iterations: int = 120
    chunks: int = 3  # of a video: the first, and later ones with a past

    def asks_for(self, length: int, discard: bool) -> bool:
        return length in (self.without_copies if discard else self.lengths)


class Calibrator:
    """Makes and measures the videos of one calibration; what `work` holds already is read."""

    def __init__(self, pipeline: MagiPipeline, captions: Sequence[Caption], work: Work, progress: Progress) -> None:
        self.pipeline, self.captions, self.work, self.progress = pipeline, captions, work, progress
        self.chosen_by = [caption for caption in captions if not caption.held_out]
        self.settings = MultistepSettings()

    def run(self, lengths: Sequence[int], fitting: Fitting) -> list[Entry]:
        """Record uncached runs, try several patterns of every length on the captions that are not held out, and measure
        the best of each on all of them, with the nearly-clean copies of a distilled model and without; where asked for,
        fit a solver to it, which is kept where held-out captions gain.
        """
        make_video(self.pipeline, self.captions[0].sample, None)  # the first run of a process is slower
        grams, times = self._record()
        found = candidates(grams, times, lengths, self.settings.damping, self.settings.correct)
        discards = _discards(self.pipeline.config)
        fits = sum(fitting.asks_for(length, discard) for length in found for discard in discards)
        measured = (len(found) * len(discards) + fits) * len(self.captions)
        self.progress.expect(sum(map(len, found.values())) * len(self.chosen_by) + measured + fits * fitting.iterations)
        entries = []
        for length, patterns in found.items():
            tried = {name: self._try(name, pattern) for name, pattern in patterns.items()}
            best = max(tried, key=lambda name: tried[name].mean)
            others = [one for name, one in tried.items() if name != best]
            for discard in discards:
                settings = self._changed(patterns[best], discard)
                rule = self._entry(settings, best, others)
                fitted = fitting.asks_for(length, discard)
                entries += self._with_solver(rule, settings, fitting) if fitted else [rule]
        return self._timed(entries)

    def uncached(self, caption: Caption) -> Uncached:
        return self.work.uncached(caption, lambda: record_video(self.pipeline, caption.sample))

    def measure(self, caption: Caption, settings: MultistepSettings) -> Measured:
        """A caption's video with `settings`, against its uncached one."""

        def make() -> Measured:
            reuse = make_reuse(settings)
            frames, _, flop = make_video(self.pipeline, caption.sample, reuse)
            return Measured(difference(self.uncached(caption).frames, frames.numpy()), flop)

        found = self.work.measured(caption, settings.model_dump(mode="json", exclude_defaults=True), make)
        self.progress.done(1)
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
            self.progress.done(1)
        return np.mean(grams, axis=0), times

    def _changed(self, pattern: tuple[int, ...], discard: bool) -> MultistepSettings:
        steps = self.pipeline.config.runtime.num_steps
        changes = {"pattern": pattern, "pattern_steps": steps, "discard_nearly_clean_chunk": discard}
        return self.settings.model_copy(update=changes)

    def _try(self, name: str, pattern: tuple[int, ...]) -> Tried:
        settings = self._changed(pattern, discard=False)
        return Tried.of(pattern, name, [self.measure(caption, settings).psnr for caption in self.chosen_by])

    def _entry(self, settings: MultistepSettings, found_by: str, tried: list[Tried]) -> Entry:
        whole = {caption: self._cost(caption) for caption in self.captions}
        cached = {caption: self.measure(caption, settings) for caption in self.captions}
        flops = [sum(video.flop for video in videos.values()) for videos in (whole, cached)]
        return Entry(
            pattern=settings.pattern or (),
            found_by=found_by,
            tried=tried,
            discard_nearly_clean_chunk=settings.discard_nearly_clean_chunk,
            solver=settings.solver,
            psnr=[cached[caption].psnr for caption in self.captions if not caption.held_out],
            checked_psnr=[cached[caption].psnr for caption in self.captions if caption.held_out],
            flop_ratio=round(flops[0] / flops[1], 3),
            seconds_ratio=Ratio(median=1, min=1, max=1),  # timed at the end
        )

    def _timed(self, entries: list[Entry]) -> list[Entry]:
        """The entries with their ratios of seconds, measured now, all taking turns: what was made before a stop or
        beside other work would not be comparable.
        """
        captions = self.captions[:_TIMED]
        self.progress.expect(len(captions) * (len(entries) + 1))
        pairs: list[list[tuple[float, float]]] = [[] for _ in entries]
        for caption in captions:
            whole = make_video(self.pipeline, caption.sample, None)[1]
            self.progress.done(1)
            for entry, own in zip(entries, pairs, strict=True):
                settings = self._changed(entry.pattern, entry.discard_nearly_clean_chunk)
                reuse = make_reuse(settings.model_copy(update={"solver": entry.solver}))
                own.append((whole, make_video(self.pipeline, caption.sample, reuse)[1]))
                self.progress.done(1)
        ratios = [Ratio.of(own) for own in pairs]
        return [entry.model_copy(update={"seconds_ratio": ratio}) for entry, ratio in zip(entries, ratios, strict=True)]

    def _cost(self, caption: Caption) -> Measured:
        """What the uncached video took; its frames are not kept in memory."""
        video = self.uncached(caption)
        return Measured(_NO_DIFFERENCE, video.flop)

    def _with_solver(self, rule: Entry, settings: MultistepSettings, fitting: Fitting) -> list[Entry]:
        """The rule's entry, and that of the solver fitted to its pattern where it gains on held-out captions."""
        solver = self._fit(settings, fitting)
        fitted = self._entry(settings.model_copy(update={"solver": solver}), "fitted", [])
        if gains(fitted.checked_psnr, rule.checked_psnr):
            return [rule, fitted]
        lost = Tried.of(rule.pattern, "fitted, on held-out prompts", fitted.checked_psnr)
        return [rule.model_copy(update={"tried": [*rule.tried, lost]})]

    def _fit(self, settings: MultistepSettings, fitting: Fitting) -> Solver:
        run = DifferentiableRun(self.pipeline.dit, self.pipeline.config, fitting.chunks, self.pipeline.device)
        targets, grams = [], []
        for caption in self.chosen_by:
            video, start = self.uncached(caption), run.start(self.pipeline, caption.sample)
            travelled = torch.from_numpy(video.travelled[: run.chunks]).to(start.noise)
            targets.append(Target(start, start.noise + travelled))
            later = video.grams[1:] if len(video.grams) > 1 else video.grams
            grams.append(np.stack([video.grams[0], later.mean(0)]) / travelled[0].numel())
        copies = not settings.discard_nearly_clean_chunk
        rule = (settings.damping, settings.correct)
        fit = SolverFit(run, settings.pattern or (), np.mean(grams, axis=0), *rule, copies)
        asked = settings.model_dump(mode="json", exclude_defaults=True) | {"fitting": [fitting.iterations, run.chunks]}
        path = self.work.fit_path(self.chosen_by, asked)
        if path.exists():
            fit.load(path)
            self.progress.done(fit.iteration)

        def done(_: float) -> None:
            self.progress.done(1)
            if fit.iteration % 10 == 0 or fit.iteration == fitting.iterations:
                fit.save(path)

        fit.train(targets, fitting.iterations, done)
        return fit.solver()


def gains(fitted: Sequence[float], rule: Sequence[float]) -> bool:
    """Whether dB of the same videos are higher by more than twice the standard error of their mean difference."""
    more = [a - b for a, b in zip(fitted, rule, strict=True)]
    error = statistics.stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.inf
    return statistics.mean(more) > 2 * error


def _discards(config: MagiConfig) -> tuple[bool, ...]:
    return (False, True) if config.engine.distill else (False,)


def record_video(pipeline: MagiPipeline, sample: Sample) -> Uncached:
    """An uncached video with what its velocities tell."""
    recorder = VelocityRecorder()
    frames, _, flop = make_video(pipeline, sample, Reuse(advancer=recorder))
    travelled = torch.stack(list(recorder.travelled.values())).cpu().numpy()
    grams = np.stack(list(recorder.grams.values()))
    return Uncached(frames.numpy(), travelled, grams, recorder.times, flop)


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
