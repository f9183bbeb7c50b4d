"""The denoising loop: a generator of clean latent chunks (docs/sampler.md, "The loop").

    for every step of the schedule:
        ask the decider which chunks to compute
        compute just those against the KV cache
        move every chunk of the window: by its velocity, or by what the advancer says
        let the cache make room
        yield the chunk that is clean now

The sampler is the only caller of ``reset``: cache, decider and advancer start every video as new.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inference.config import MagiConfig
from inference.kv_cache import KVCache, KVGeometry
from inference.model.dit import VideoDiT
from inference.model.finite import FiniteLatents
from inference.model.guidance import CaptionSource, Guidance
from inference.parallel.group import ALONE, ContextParallel
from inference.record import RunRecord, StepRecord
from inference.reuse import Reuse
from inference.schedule import Schedule, Step, chunk_count

StepCallback = Callable[[StepRecord], None]


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

    @torch.no_grad()
    def run(
        self,
        noise: Tensor,
        captions: CaptionSource,
        prefix: Tensor | None = None,
        on_step: StepCallback | None = None,
    ) -> Iterator[CleanChunk]:
        """Denoise ``noise`` and yield chunks as they become clean, in order.

        Args:
            noise: (1, 16, chunks * chunk_width, H, W) float32, on the model's device.
            captions: caption features per chunk.
            prefix: (1, 16, P, H, W) given latents, or None.
            on_step: called after every step.

        Raises:
            ValueError: the noise does not fit the schedule, or the schedule does not fit the cache.
            NotFiniteError: latents are no numbers any more.
        """
        given = 0 if prefix is None else prefix.shape[2]
        schedule = make_schedule(self.config, given)
        self._check_noise(noise, schedule)
        self.record = RunRecord(schedule.chunk_num, schedule.offset, schedule.num_steps)
        self.cache.reset(schedule)
        self.reuse.reset(schedule)
        guidance = Guidance(self.dit, self.config, schedule, self.cache, captions, self.record, self.parallel)
        window = _Latents(noise[0], None if prefix is None else prefix[0], self.config.runtime.chunk_width)
        if schedule.offset:
            guidance.extract_prefix({chunk: window.model_input(chunk) for chunk in range(schedule.offset)})

        finite = FiniteLatents(noise.device, len(schedule.steps))
        encoded: int | None = None  # chunk whose clean pass was made ahead of a compaction
        for step in schedule.steps:
            clean = step.clean if self.reuse.clean_pass and step.clean != encoded else None
            window.overwrite(step)
            features = partial(self._features, window, step)
            todo = self.parallel.from_first(partial(self.reuse.decider.select, step, features))
            latents = {chunk: window.model_input(chunk) for chunk in (*todo, *(() if clean is None else (clean,)))}
            asked = self.reuse.asked(step, todo)
            velocities = guidance.velocities(asked, latents, todo, clean, self.reuse.nearly_clean_copy)
            self._integrate(step, window, velocities)
            finite.step(step.number, {chunk: window.chunks[chunk] for chunk in step.chunks})

            passes = () if clean is None else (clean,)
            compacts = self.cache.compacts_after(step)
            if compacts and self.reuse.clean_pass and step.finished is not None:
                # Compaction squeezes the chunk that has just finished: its lasting keys must be there before.
                encoded = step.finished
                guidance.encode_clean(step, encoded, window.model_input(encoded))
                passes += (encoded,)
            self.cache.end_step(step)

            copied = guidance.copied_chunk(asked, todo) if self.reuse.nearly_clean_copy else None
            entry = StepRecord(step.number, todo, _skipped(step, todo), passes, copied, compacts)
            self.record.steps.append(entry)
            if on_step is not None:
                on_step(entry)
            if step.finished is not None:
                finite.read()
                yield CleanChunk(step.finished - schedule.offset, window.output(step.finished))

    def _features(self, window: "_Latents", step: Step) -> dict[int, Tensor]:
        embedded = self.dit.embed(torch.stack([window.model_input(chunk) for chunk in step.chunks]))
        return dict(zip(step.chunks, embedded, strict=True))

    def _integrate(self, step: Step, window: "_Latents", velocities: dict[int, Tensor]) -> None:
        for entry in step.window:
            if entry.chunk in velocities:
                velocity = velocities[entry.chunk]
                window.add(entry.chunk, velocity * entry.dt)
                correction = self.reuse.advancer.observe(step, entry.chunk, velocity)
                if correction is not None:
                    window.add(entry.chunk, correction)
            else:
                window.add(entry.chunk, self.reuse.advancer.advance(step, entry.chunk))

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
    """The latents of all chunks, and the given frames that overwrite the beginning of some."""

    def __init__(self, noise: Tensor, prefix: Tensor | None, chunk_width: int) -> None:
        """``noise`` (16, frames, H, W), ``prefix`` (16, P, H, W) or None."""
        self.chunks = list(noise.split(chunk_width, dim=1))
        self.prefix = prefix
        self.given = 0 if prefix is None else prefix.shape[1]
        self.chunk_width = chunk_width

    def given_frames(self, chunk: int) -> int:
        """How many frames at the start of ``chunk`` are given."""
        return max(0, min(self.chunk_width, self.given - chunk * self.chunk_width))

    def overwrite(self, step: Step) -> None:
        """Put the given frames back into the chunks of the window; the last step moved them like the others."""
        for chunk in step.chunks:
            self.chunks[chunk] = self.model_input(chunk)

    def model_input(self, chunk: int) -> Tensor:
        """What the model sees of ``chunk``: (16, T, H, W) with the given frames in place."""
        count = self.given_frames(chunk)
        if count == 0:
            return self.chunks[chunk]
        start = chunk * self.chunk_width
        return torch.cat([self.prefix[:, start : start + count], self.chunks[chunk][:, count:]], dim=1)

    def add(self, chunk: int, change: Tensor) -> None:
        self.chunks[chunk] = self.chunks[chunk] + change

    def output(self, chunk: int) -> Tensor:
        """(1, 16, frames, H, W) without the given frames; the chunk of a given image is returned whole."""
        count = 0 if self.given == 1 else self.given_frames(chunk)
        return self.chunks[chunk][None, :, count:]
