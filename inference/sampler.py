"""The denoising loop: a generator of clean latent chunks (docs/sampler.md, "The loop").

    for every step of the schedule:
        ask the decider which chunks to compute
        compute just those against the KV cache
        move every chunk of the window: by its velocity, or by what the advancer says
        let the cache make room
        yield the chunk that is clean now

The sampler is the only caller of ``reset``: cache, decider and advancer start every video as new. The steps from one
chunk's entering to the next one's are a stage; between two stages a video may be ended early (``inference.session``).
Only what later steps can still reach is held, so a video of any length takes the memory of a short one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from inference.config import MagiConfig
from inference.kv_cache import KVCache, KVGeometry
from inference.model.dit import VideoDiT
from inference.model.finite import FiniteLatents
from inference.model.guidance import CaptionSource, Guidance
from inference.noise import GivenNoise, NoiseSource
from inference.parallel.group import ALONE, ContextParallel
from inference.record import RunRecord, StepRecord
from inference.reuse import Reuse, State, moved
from inference.schedule import Schedule, Step, chunk_count

StepCallback = Callable[[StepRecord], None]
# Called with a chunk's number, its noise level t and the latents (1, 16, frames, H, W) that it is expected to become.
PredictionCallback = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class CleanChunk:
    """A chunk that is done. ``number`` counts from the first generated one; ``latents`` (1, 16, frames, H, W), given
    frames cut off.
    """

    number: int
    latents: Tensor


def make_schedule(config: MagiConfig, prefix_latents: int) -> Schedule:
    """The schedule of a video that continues ``prefix_latents`` given latent frames (0 text, 1 image)."""
    runtime = config.runtime
    width = runtime.chunk_width
    return Schedule(
        chunk_num=chunk_count(runtime.num_frames, prefix_latents, width, runtime.temporal_downsample_factor),
        offset=prefix_latents // width,
        num_steps=runtime.num_steps,
        window_size=runtime.window_size,
        noise2clean_kvrange=tuple(runtime.noise2clean_kvrange),
        clean_chunk_kvrange=runtime.clean_chunk_kvrange,
        shortcut_mode=config.engine.shortcut_mode,
    )


# Bits of a stored key or value by ``kv_dtype``; None: those of the model's dtype.
KV_BITS = {"model": None, "int8": 8, "int4": 4}


def kv_geometry(config: MagiConfig, device: torch.device, ranks: int = 1) -> KVGeometry:
    """Cache sizes for a configuration; each of ``ranks`` holds its share of the key/value groups."""
    model = config.model
    return KVGeometry(
        layers=model.num_layers,
        groups=model.num_query_groups // ranks,
        head_width=model.kv_channels,
        chunk_tokens=config.tokens_per_chunk,
        frame_tokens=config.tokens_per_frame,
        dtype=model.dtype,
        device=device,
        heads=model.num_attention_heads // ranks,
        offload=config.engine.kv_offload is True,
        bits=KV_BITS[config.engine.kv_dtype],
    )


class Sampler:
    """Denoises one video at a time.

    Args:
        dit: the transformer, on its device.
        config: the whole configuration.
        cache: KV cache; the plain one by default.
        reuse: who decides and who advances; MAGI-1 itself by default. Of several ranks only the first asks the decider.
        parallel: the ranks that make the video together; each has a sampler and gives it the same arguments.
    """

    def __init__(
        self,
        dit: VideoDiT,
        config: MagiConfig,
        cache: KVCache | None = None,
        reuse: Reuse | None = None,
        parallel: ContextParallel = ALONE,
    ) -> None:
        self.dit = dit
        self.config = config
        self.parallel = parallel
        if cache is None:
            cache = KVCache(kv_geometry(config, next(dit.parameters()).device, parallel.ranks))
        self.cache = cache
        self.reuse = reuse if reuse is not None else Reuse()
        self.record = RunRecord()
        self._video: _Video | None = None

    def run(
        self,
        noise: Tensor | NoiseSource,
        captions: CaptionSource,
        prefix: Tensor | None = None,
        on_step: StepCallback | None = None,
    ) -> Iterator[CleanChunk]:
        """Denoise ``noise`` and yield chunks as they become clean, in order.

        Args:
            noise: (1, 16, chunks * chunk_width, H, W) float32, on the model's device, or its source.
            captions: caption features per chunk.
            prefix: (1, 16, P, H, W) given latents, or None.
            on_step: called after every step.

        Raises:
            ValueError: the noise does not fit the schedule, or the schedule does not fit the cache.
            NotFiniteError: latents are no numbers any more.
        """
        self.begin(noise, captions, prefix)
        while not self.done:
            chunk = self.stage(on_step)
            if chunk is not None:
                yield chunk

    @torch.no_grad()
    def begin(self, noise: Tensor | NoiseSource, captions: CaptionSource, prefix: Tensor | None = None) -> None:
        """Start a video, as ``run`` does: forget the last one and encode the given chunks."""
        given = 0 if prefix is None else prefix.shape[2]
        schedule = make_schedule(self.config, given)
        if isinstance(noise, Tensor):
            self._check_noise(noise, schedule)
            noise = GivenNoise(noise, self.config.runtime.chunk_width)
        self.record = RunRecord(schedule.chunk_num, schedule.offset, schedule.num_steps)
        self.cache.reset(schedule)
        self.reuse.reset(schedule)
        guidance = Guidance(self.dit, self.config, schedule, self.cache, captions, self.record, self.parallel)
        latents = _Latents(noise, None if prefix is None else prefix[0], self.config.runtime.chunk_width)
        steps = None if self.config.runtime.endless else schedule.total_steps
        finite = FiniteLatents(self.cache.geometry.device, steps)
        self._video = _Video(schedule, guidance, latents, finite, schedule.chunk_num)
        if schedule.offset:
            for chunk in range(schedule.offset):
                latents.enter(chunk)
            guidance.extract_prefix({chunk: latents.model_input(chunk) for chunk in range(schedule.offset)})
            latents.drop_before(schedule.offset)

    @property
    def schedule(self) -> Schedule:
        """That of the video under way."""
        return self._under_way().schedule

    @property
    def number(self) -> int:
        """The step that comes next."""
        return self._under_way().number

    @property
    def endless(self) -> bool:
        """The video goes on until it is ended early."""
        return self.config.runtime.endless and self.schedule.chunk_num == self._under_way().planned

    @property
    def done(self) -> bool:
        """All steps of the video are made."""
        return self.number >= self.schedule.total_steps

    @property
    def entered(self) -> int:
        """The chunk that enters next, given ones counted: the first one that has not begun yet."""
        stages_begun = -(-self.number // self.schedule.steps_per_stage)
        return min(self.schedule.chunk_num, self.schedule.offset + stages_begun)

    def end_early(self) -> None:
        """No chunk enters any more: the video ends when those under way are clean. To be called between two stages."""
        video, entered = self._under_way(), self.entered
        if entered == video.schedule.offset:
            video.number = video.schedule.total_steps  # nothing is under way
            return
        self._shorten(entered)

    @torch.no_grad()
    def stage(
        self, on_step: StepCallback | None = None, on_prediction: PredictionCallback | None = None
    ) -> CleanChunk | None:
        """Make the steps until the next chunk may enter; gives the chunk that is clean then, None where the window is
        not full yet.

        Args:
            on_step: called after every step.
            on_prediction: called, before that, where the window's first chunk was computed: with what it would be if
                its velocity stayed as it is, the latents at t plus (1 - t) times the velocity.
        """
        video = self._under_way()
        for _ in range(video.schedule.steps_per_stage):
            step = video.schedule.step(video.number)
            entry = self._step(video, step, on_prediction)
            video.number += 1
            self.record.add_step(entry)
            if on_step is not None:
                on_step(entry)
        if step.finished is None:
            return None
        video.finite.read()
        # The chunk that has just finished is encoded once more, at the next step.
        video.latents.drop_before(step.finished)
        return CleanChunk(step.finished - video.schedule.offset, video.latents.output(step.finished))

    def held(self) -> list[Tensor]:
        """Latents of the chunks under way, for measuring memory."""
        return list(self._under_way().latents.chunks.values())

    def state(self) -> State:
        """All that is needed to go on, in a sampler that has begun the same video; between two stages."""
        video = self._under_way()
        video.finite.read()
        cpu = torch.device("cpu")
        return {
            "number": video.number,
            "encoded": video.encoded,
            "chunk_num": video.schedule.chunk_num,
            "latents": moved(video.latents.state(), cpu),
            "cache": self.cache.state(),
            "reuse": moved(self.reuse.state(), cpu),
            "record": self.record.state(),
        }

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken; after ``begin`` with the same arguments."""
        video, device = self._under_way(), self.cache.geometry.device
        video.latents.restore(state["latents"], device)
        self.cache.restore(state["cache"])
        self.reuse.restore(moved(state["reuse"], device))
        self.record = RunRecord.restored(state["record"])
        video.guidance.record = self.record
        video.number, video.encoded = state["number"], state["encoded"]
        if state["chunk_num"] < video.schedule.chunk_num:
            self._shorten(state["chunk_num"])

    def _shorten(self, chunks: int) -> None:
        video = self._under_way()
        video.schedule = replace(video.schedule, chunk_num=chunks)
        video.guidance.schedule = video.schedule
        self.record.chunk_num = chunks
        self.cache.end_early(video.schedule)

    def _step(self, video: "_Video", step: Step, on_prediction: PredictionCallback | None) -> StepRecord:
        latents, guidance = video.latents, video.guidance
        for chunk in step.chunks:
            latents.enter(chunk)
        clean = step.clean if self.reuse.clean_pass and step.clean != video.encoded else None
        latents.overwrite(step)
        todo = self.parallel.from_first(
            partial(self.reuse.decider.select, step, partial(self._features, latents, step))
        )
        inputs = {chunk: latents.model_input(chunk) for chunk in (*todo, *(() if clean is None else (clean,)))}
        asked = self.reuse.asked(step, todo)
        velocities = guidance.velocities(asked, inputs, todo, clean, self.reuse.nearly_clean_copy)
        first = step.window[0]
        if on_prediction is not None and first.chunk in velocities:
            # Before the step: the level that the model was asked at.
            level = asked.of(first.chunk).t
            expected = latents.chunks[first.chunk] + (1 - level) * velocities[first.chunk]
            on_prediction(first.chunk - video.schedule.offset, level, latents.output(first.chunk, expected))
        self._integrate(step, latents, velocities)
        video.finite.step(step.number, {chunk: latents.chunks[chunk] for chunk in step.chunks})

        passes = () if clean is None else (clean,)
        compacts = self.cache.compacts_after(step)
        if compacts and self.reuse.clean_pass and step.finished is not None:
            # Compaction squeezes the chunk that has just finished: its lasting keys must be there before.
            video.encoded = step.finished
            guidance.encode_clean(step, step.finished, latents.model_input(step.finished))
            passes += (step.finished,)
        self.cache.end_step(step)

        copied = guidance.copied_chunk(asked, todo) if self.reuse.nearly_clean_copy else None
        return StepRecord(step.number, todo, _skipped(step, todo), passes, copied, compacts)

    def _features(self, latents: "_Latents", step: Step) -> dict[int, Tensor]:
        embedded = self.dit.embed(torch.stack([latents.model_input(chunk) for chunk in step.chunks]))
        return dict(zip(step.chunks, embedded, strict=True))

    def _integrate(self, step: Step, latents: "_Latents", velocities: dict[int, Tensor]) -> None:
        for entry in step.window:
            if entry.chunk in velocities:
                velocity = velocities[entry.chunk]
                latents.add(entry.chunk, velocity * entry.dt)
                correction = self.reuse.advancer.observe(step, entry.chunk, velocity)
                if correction is not None:
                    latents.add(entry.chunk, correction)
            else:
                latents.add(entry.chunk, self.reuse.advancer.advance(step, entry.chunk))

    def _under_way(self) -> "_Video":
        if self._video is None:
            raise RuntimeError("no video was begun")
        return self._video

    def _check_noise(self, noise: Tensor, schedule: Schedule) -> None:
        frames = schedule.chunk_num * self.config.runtime.chunk_width
        if noise.ndim != 5 or noise.shape[0] != 1 or noise.shape[2] != frames:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; (1, channels, {frames}, H, W) is needed for "
                f"{schedule.chunk_num} chunks of {self.config.runtime.chunk_width} latent frames"
            )


def _skipped(step: Step, todo: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(chunk for chunk in step.chunks if chunk not in todo)


class _Latents:
    """Latents (C, T, H, W) by chunk, and the given frames that overwrite the beginning of some.

    A chunk's are there from its first step until it was encoded clean.

    Args:
        noise: where chunks begin.
        prefix: (C, P, H, W) given latents, or None.
        chunk_width: T.
    """

    def __init__(self, noise: NoiseSource, prefix: Tensor | None, chunk_width: int) -> None:
        self.noise = noise
        self.prefix = prefix
        self.given = 0 if prefix is None else prefix.shape[1]
        self.chunk_width = chunk_width
        self.chunks: dict[int, Tensor] = {}

    def enter(self, chunk: int) -> None:
        """``chunk`` begins, as noise; nothing happens where it has."""
        if chunk not in self.chunks:
            self.chunks[chunk] = self.noise.chunk(chunk)

    def drop_before(self, chunk: int) -> None:
        """Forget all chunks before ``chunk``."""
        self.chunks = {number: latents for number, latents in self.chunks.items() if number >= chunk}

    def given_frames(self, chunk: int) -> int:
        """How many frames at the start of ``chunk`` are given."""
        return max(0, min(self.chunk_width, self.given - chunk * self.chunk_width))

    def overwrite(self, step: Step) -> None:
        """Put the given frames back into the chunks of the window; the last step moved them like the others."""
        for chunk in step.chunks:
            self.chunks[chunk] = self.model_input(chunk)

    def model_input(self, chunk: int) -> Tensor:
        """What the model sees of ``chunk``: (C, T, H, W) with the given frames in place."""
        count = self.given_frames(chunk)
        if count == 0:
            return self.chunks[chunk]
        start = chunk * self.chunk_width
        return torch.cat([self.prefix[:, start : start + count], self.chunks[chunk][:, count:]], dim=1)

    def add(self, chunk: int, change: Tensor) -> None:
        self.chunks[chunk] = self.chunks[chunk] + change

    def output(self, chunk: int, latents: Tensor | None = None) -> Tensor:
        """``chunk``, or ``latents`` (C, T, H, W) in its place, without the given frames: (1, C, frames, H, W); the
        chunk of a given image is returned whole.
        """
        count = 0 if self.given == 1 else self.given_frames(chunk)
        return (self.chunks[chunk] if latents is None else latents)[None, :, count:]

    def state(self) -> State:
        """What ``restore`` needs; the prefix is given anew."""
        return {"noise": self.noise.state(), "chunks": dict(self.chunks)}

    def restore(self, state: State, device: torch.device) -> None:
        self.noise.restore(state["noise"])
        self.chunks = moved(state["chunks"], device)


@dataclass
class _Video:
    """What belongs to one video. ``planned``: chunks of it as begun; ``number``: the next step; ``encoded``: the chunk
    whose clean pass was made ahead of a compaction.
    """

    schedule: Schedule
    guidance: Guidance
    latents: _Latents
    finite: FiniteLatents
    planned: int
    number: int = 0
    encoded: int | None = None
