"""Making the videos of a comparison, methods taking turns, and measuring each against its reference.

Of every prompt and seed all methods are made one after the other in one process, on the same noise, references first:
a ratio of seconds is one of neighbours in time. Frames are compared as they come from the autoencoder.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare.methods import Entry
from benchmarks.compare.store import HeldOut, Store
from benchmarks.compare.summary import Likeness, Result, Work
from example.nano.evaluate import prompt_of
from example.nano.scenes.data import WORLD, Scene
from example.nano.scenes.measure import measure
from harness.json_files import commit
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.record import RunRecord
from inference.reuse import ComputeAll, Features, Reuse, relative_l1_by_chunk
from inference.schedule import Schedule, Step
from metrics.flops import TransformerSize, run_flops
from metrics.similarity.lpips_distance import LpipsDistance
from metrics.similarity.measures import compare

logger = logging.getLogger(__name__)

_BATCH = 32  # frames compared at a time
_MARKS = {0: "0", 1: "1", -1: "-"}


class ChangeRecorder(ComputeAll):
    """Computes everything, and notes by how much each chunk changes: what the paper's rule looks at.

    `changes`: for every step and chunk that was there at the step before, `step` of the video, `chunk`, its own
    `index`, and the relative L1 `change` of its patch-embedded latents.
    """

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self._previous: dict[int, Tensor] = {}

    def reset(self, schedule: Schedule) -> None:
        self.changes, self._previous = [], {}

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        current = dict(features())
        for chunk, change in relative_l1_by_chunk(current, self._previous).items():
            entry = {"step": step.number, "chunk": chunk, "index": step.of(chunk).index, "change": change}
            self.changes.append(entry)
        self._previous = current
        return step.chunks


@dataclass(frozen=True)
class _Video:
    frames: Tensor  # (T, H, W, 3) uint8
    work: Work
    record: RunRecord
    digest: str


class Runner:
    """Makes what is missing. ``session`` marks what was made by this process."""

    def __init__(
        self,
        pipeline: MagiPipeline,
        entries: Sequence[Entry],
        samples: Sequence[HeldOut],
        store: Store,
        lpips: LpipsDistance | None,
    ) -> None:
        self.pipeline, self.store, self.lpips = pipeline, store, lpips
        self.entries = {entry.name: entry for entry in entries}
        self.samples = samples
        self.session = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}, process {os.getpid()}"
        self.commit = commit()

    def run(self, progress: Callable[[str], None]) -> None:
        """Make every video of the plan; ``progress`` is called after each, and after the one that warms up."""
        first = next(iter(self.entries.values()))
        recorder = ChangeRecorder()
        make_video(self.pipeline, first, self.samples[0], Reuse(decider=recorder))
        self.store.save_changes(first, self.samples[0], recorder.changes)
        progress("warming up")
        for sample in self.samples:
            references: dict[str, _Video] = {}
            for entry in planned(list(self.entries.values()), sample, self.store, self.samples[0]):
                video = make_video(self.pipeline, entry, sample)
                if entry.reference is None:
                    references[entry.name] = video
                self._keep(entry, sample, video, references)
                progress(entry.name)

    def _keep(self, entry: Entry, sample: HeldOut, video: _Video, references: dict[str, _Video]) -> None:
        whole = None if entry.reference is None else references[entry.reference]
        scene, _ = prompt_of(sample.number, sample.held_out_set)
        result = Result(
            method=entry.name,
            sample=sample.name,
            prompt=sample.prompt,
            work=video.work,
            digest=video.digest,
            reference=None if whole is None else whole.work,
            reference_digest=None if whole is None else whole.digest,
            likeness=None if whole is None else likeness(whole.frames, video.frames, self.lpips),
            quality=task_quality(video.frames, scene),
            reuse_map=drawn(video.record),
            session=self.session,
            commit=self.commit,
        )
        if entry.shown and sample == self.samples[0]:
            self.store.save_frames(entry, sample, video.frames)
        self.store.save(entry, sample, result)


def planned(entries: Sequence[Entry], sample: HeldOut, store: Store, first: HeldOut) -> list[Entry]:
    """The videos to make of a sample: those that are missing, and the references they are measured against."""
    missing = {
        entry.name
        for entry in entries
        if not store.path(entry, sample).exists()
        or (entry.shown and sample == first and not store.frames_path(entry, sample).exists())
    }
    needed = {entry.reference for entry in entries if entry.name in missing}
    made = [entry for entry in entries if entry.name in missing or entry.name in needed]
    return sorted(made, key=lambda entry: entry.reference is not None)  # stable: references first


def held_out(held_out_set: str, prompts: int, seeds: int) -> Iterator[HeldOut]:
    """The samples, seed by seed, so that a run that is stopped has seen many prompts."""
    for seed in range(seeds):
        for number in range(prompts):
            yield HeldOut(held_out_set, number, seed, prompt_of(number, held_out_set)[1])


def make_video(base: MagiPipeline, entry: Entry, sample: HeldOut, reuse: Reuse | None = None) -> _Video:
    """One video of a method, or of ``reuse`` in its place; the models are those of ``base``."""
    pipeline = MagiPipeline(entry.config, base.dit, base.vae, base.t5, base.tokens, base.device, base.parallel)
    report = RunReport()
    began = time.perf_counter()
    chunks = pipeline.frames(
        Sample(sample.prompt, identity=sample.identity),
        reuse=reuse or entry.method.make_reuse(),
        make_cache=entry.method.make_cache,
        # A GPU's work is awaited at every step, or the seconds of denoising would be those of starting it.
        on_step=(lambda step: torch.cuda.synchronize(base.device)) if base.device.type == "cuda" else None,
        report=report,
    )
    frames = torch.cat(list(chunks))
    work = Work(
        seconds=report.seconds["denoise"],
        total_seconds=time.perf_counter() - began,
        flop=run_flops(TransformerSize.of(entry.config.model.model_dump()), report.record.forwards),
        computed=report.record.computed,
        reused=report.record.reused,
        kv_cache_bytes=report.kv_cache_bytes,
    )
    return _Video(frames, work, report.record, hashlib.sha256(frames.numpy().tobytes()).hexdigest())


def likeness(original: Tensor, generated: Tensor, lpips: LpipsDistance | None) -> Likeness:
    """The figures of two videos (T, H, W, 3) uint8."""
    found = compare(zip(original.split(_BATCH), generated.split(_BATCH), strict=True), lpips)
    return Likeness(
        identical=found.identical,
        psnr=found.psnr,
        psnr_frame_mean=found.psnr_frame_mean,
        ssim=found.ssim_mean,
        lpips=found.lpips_mean,
    )


def task_quality(frames: Tensor, scene: Scene) -> dict[str, bool] | None:
    """Which attributes of the scene the video shows; None where it has not the size that scenes are drawn in."""
    if tuple(frames.shape[1:3]) != (WORLD, WORLD):
        return None
    return {name: bool(right) for name, right in asdict(measure(frames.numpy(), scene)).items()}


def drawn(record: RunRecord) -> list[str]:
    """The reuse map, a string a chunk."""
    return ["".join(_MARKS[mark] for mark in chunk) for chunk in zip(*record.reuse_map(), strict=True)]
