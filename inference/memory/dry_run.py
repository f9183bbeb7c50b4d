"""A run that computes nothing: which forwards a video takes, and how large the largest is.

The sampler itself runs, with its schedule, guidance and cache, so what it would do is not written down twice. The
transformer returns zeros, the cache has no layers and the latents are a few numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inference.config import VAE_CHANNELS, MagiConfig
from inference.kv_cache import KVCache
from inference.memory.stages import ForwardShape
from inference.record import RunRecord
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule

CAPTION_TOKENS = 50


class NoTransformer:
    """In the place of ``VideoDiT``: every velocity is zero, and nothing is attended to."""

    backend = "sdpa"

    def __call__(self, latents: Tensor, *others: Any, **named: Any) -> Tensor:
        return torch.zeros_like(latents)


class CaptionLengths:
    """Captions without features."""

    def __init__(self, text: int, null: int) -> None:
        self.text, self.null = torch.zeros(text, 0), torch.zeros(null, 0)

    def packed_cond(self, chunk: int) -> Tensor:
        return self.text

    def packed_null(self) -> Tensor:
        return self.null


def dry_run(
    config: MagiConfig,
    prefix_latents: int = 0,
    make_cache: Callable[..., KVCache] = KVCache,
    *,
    clean_pass: bool = True,
    nearly_clean_copy: bool = True,
    caption_tokens: int = CAPTION_TOKENS,
) -> RunRecord:
    """The record of a run in which every chunk is computed at every step.

    Args:
        config: the configuration as ``inference.pipeline.plan`` returns it.
        prefix_latents: given latent frames.
        make_cache: as for ``MagiPipeline.frames``.
        clean_pass, nearly_clean_copy: as in ``inference.reuse.Reuse``.
        caption_tokens: length of the prompt in tokens, special tokens included.

    Raises:
        ValueError: as the run itself would.
    """
    geometry = replace(kv_geometry(config, torch.device("cpu")), layers=0)
    cache = make_cache(geometry)
    sampler = Sampler(NoTransformer(), config, cache, Reuse(clean_pass=clean_pass, nearly_clean_copy=nearly_clean_copy))
    schedule = make_schedule(config, prefix_latents)
    frames = schedule.chunk_num * config.runtime.chunk_width
    noise = torch.zeros(1, VAE_CHANNELS, frames, 1, 1)
    prefix = torch.zeros(1, VAE_CHANNELS, prefix_latents, 1, 1) if prefix_latents else None
    captions = CaptionLengths(caption_tokens, min(CAPTION_TOKENS, config.model.caption_max_length))
    for _ in sampler.run(noise, captions, prefix):
        pass
    return sampler.record


def largest_forward(record: RunRecord) -> ForwardShape:
    """The forward with most entries, with most caption tokens where several have as many."""
    forward = max(record.forward_counts(), key=lambda forward: (len(forward.keys), sum(forward.caption_tokens)))
    return ForwardShape(len(forward.keys), forward.chunk_tokens, sum(forward.caption_tokens))
