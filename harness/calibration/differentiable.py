"""A sampling run that gradients pass through, of videos from text: for fitting a solver's coefficients.

Nothing is written in place: keys and values of a chunk are tensors of their own, and noise levels may be tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference.config import MagiConfig
from inference.kv_cache import KVCache, KVGeometry
from inference.model.dit import VideoDiT
from inference.model.guidance import CaptionSource, Guidance
from inference.noise import draw_noise, sample_seed
from inference.pipeline import MagiPipeline, Sample, prompt_flags
from inference.placement.kv_rows import Range
from inference.record import RunRecord
from inference.sampler import kv_geometry, make_schedule
from inference.schedule import Schedule, Step
from inference.text.captions import assemble_captions


class FunctionalCache(KVCache):
    """Holds every chunk from the first one on, a tensor a layer and chunk."""

    def __init__(self, geometry: KVGeometry) -> None:
        super().__init__(geometry)
        self._kept: dict[tuple[int, int], Tensor] = {}

    def reset(self, schedule: Schedule) -> None:
        self._kept = {}

    def span(self, chunk: int) -> tuple[int, int]:
        return chunk * self.geometry.chunk_tokens, (chunk + 1) * self.geometry.chunk_tokens

    def prepare(self, read: Iterable[Range], written: Iterable[Range]) -> None:
        return None

    def write(self, layer: int, chunk: int, kv: Tensor) -> None:
        self._kept[layer, chunk] = kv

    def view(self, layer: int, chunk: int, key_start: int) -> Tensor:
        return torch.cat([self._kept[layer, earlier] for earlier in range(key_start, chunk + 1)])

    def end_step(self, step: Step) -> None:
        return None


class DifferentiableGuidance(Guidance):
    """Asks the model at noise levels that may be tensors."""

    def _levels(self, t: Sequence[float | Tensor], device: torch.device) -> Tensor:
        return torch.stack([torch.as_tensor(level, dtype=torch.float32, device=device) for level in t])


@dataclass(frozen=True)
class Coefficients:
    """Of a solver in training, as `multistep.config.Solver` has them: `levels` (n,), `weights` (2, n, n), the first
    chunk's and those of the later ones; lower triangles.
    """

    levels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Start:
    """What a video begins with: noise (chunks, 16, T, H, W) and its caption."""

    noise: Tensor
    captions: CaptionSource


class DifferentiableRun:
    """Runs of the first ``chunks`` chunks of a video; a later one changes nothing about them."""

    def __init__(self, dit: VideoDiT, config: MagiConfig, chunks: int, device: torch.device) -> None:
        runtime = config.runtime
        frames = min(runtime.num_frames, chunks * runtime.chunk_width * runtime.temporal_downsample_factor)
        self.dit, self.device = dit, device
        self.config = config.with_overrides(num_frames=frames)
        self.schedule = make_schedule(self.config, 0)
        self.chunks = self.schedule.chunk_num
        dit.requires_grad_(False)

    def start(self, pipeline: MagiPipeline, sample: Sample) -> Start:
        """Noise and caption of a sample as ``pipeline`` makes it."""
        runtime = self.config.runtime
        shape = (
            self.config.model.latent_channels,
            runtime.chunk_width,
            runtime.video_size_h // 8,
            runtime.video_size_w // 8,
        )
        noise = draw_noise(sample_seed(runtime.seed, sample.identity), self.schedule.chunk_num, shape)[0]
        if pipeline.t5 is None:
            raise RuntimeError("this pipeline has no text encoder")
        found = pipeline.t5.encode(sample.prompt)
        captions = assemble_captions(
            found.features.to(self.device),
            found.mask.to(self.device),
            self.dit.y_embedder.null_caption_embedding,
            pipeline.tokens,
            prompt_flags(self.config),
            self.schedule.chunk_num,
            0,
        )
        return Start(torch.stack(noise.split(runtime.chunk_width, dim=1)).to(self.device), captions)

    def clean(self, start: Start, pattern: Sequence[int], solver: Coefficients, copies: bool) -> Tensor:
        """Clean latents (chunks, 16, T, H, W), by the solver at the own steps ``pattern``."""
        schedule, row = self.schedule, {step: number for number, step in enumerate(pattern)}
        cache = FunctionalCache(kv_geometry(self.config, self.device))
        cache.reset(schedule)
        record = RunRecord(schedule.chunk_num, 0, schedule.num_steps)
        guidance = DifferentiableGuidance(self.dit, self.config, schedule, cache, start.captions, record)
        latents = dict(enumerate(start.noise))
        past: dict[int, list[Tensor]] = {chunk: [] for chunk in latents}
        for step in schedule.steps:
            todo = {entry.chunk: row[entry.index] for entry in step.window if entry.index in row}
            asked = tuple(
                replace(entry, t=solver.levels[row[entry.index]]) if entry.chunk in todo else entry
                for entry in step.window
            )
            found = guidance.velocities(replace(step, window=asked), latents, tuple(todo), step.clean, copies)
            for chunk, number in todo.items():
                past[chunk].append(found[chunk])
                weights = solver.weights[min(chunk, 1), number]
                gained = sum(weight * velocity for weight, velocity in zip(weights, past[chunk], strict=False))
                latents[chunk] = latents[chunk] + gained
        return torch.stack(list(latents.values()))
