"""Measure what every part of a run holds, and put it beside what the estimate says (docs/memory.md)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcache.merging import TokenMerger
from harness.memory.live import LiveMemory, storage_bytes, tensors_in
from harness.methods import Method
from inference.advance import MemoryAdvancer
from inference.config import MagiConfig, require_path
from inference.kv_cache import KVCache
from inference.memory.dry_run import dry_run, largest_forward
from inference.memory.estimate import MOST_REMEMBERED, chunk_latent, estimate
from inference.memory.stages import ForwardShape
from inference.model.attention import attend_heads
from inference.model.dit import Captions, VideoDiT
from inference.model.weights import checkpoint_directory, load_weights
from inference.noise import DrawnNoise
from inference.pipeline import load_special_tokens, load_transformer, plan, prompt_flags
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry
from inference.text.captions import SpecialTokens, assemble_captions
from inference.text.t5 import T5TextEncoder, load_t5
from inference.video.codec import VaeCodec, tiles_for
from inference.video.vae import load_vae


@dataclass(frozen=True)
class PartSize:
    """Bytes of one part of a run, measured and estimated."""

    measured: int
    estimated: int

    @property
    def ratio(self) -> float:
        """Estimated over measured."""
        return self.estimated / self.measured


class OwnKeys:
    """Every entry attends to its own tokens: nothing but the forward itself holds memory."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Iterator[Tensor]:
        for entry in range(len(q)):
            yield attend_heads(q[entry : entry + 1], kv[entry : entry + 1])[0]


@dataclass(frozen=True)
class Models:
    """The models of a configuration, in host memory."""

    dit: VideoDiT
    codec: VaeCodec
    t5: T5TextEncoder
    tokens: SpecialTokens | None


def load_models(config: MagiConfig) -> Models:
    """Load what ``config`` names, on the CPU."""
    runtime, cpu = config.runtime, torch.device("cpu")
    dit = load_transformer(config, cpu)
    load_weights(dit, checkpoint_directory(config), device=cpu, name="transformer")
    vae = load_vae(require_path(runtime.vae_pretrained, "runtime_config.vae_pretrained"))
    t5 = load_t5(
        require_path(runtime.t5_pretrained, "runtime_config.t5_pretrained"), max_length=config.model.caption_max_length
    )
    tiles = tiles_for(vae, runtime.fps, (runtime.video_size_h, runtime.video_size_w))
    return Models(dit.eval(), VaeCodec(vae, runtime.scale_factor, runtime.fps, tiles), t5, load_special_tokens(config))


def compare_parts(config: MagiConfig, models: Models, method: Method, prompt: str) -> dict[str, PartSize]:
    """Every part of a text-to-video run, measured and estimated.

    The transformer runs one forward of the largest shape, the sampler a whole video. Size and length of the video may
    differ from what ``models`` were loaded with.
    """
    config, schedule = plan(method.apply_window(config), 0)
    reuse = method.make_reuse()
    passes = {"clean_pass": reuse.clean_pass, "nearly_clean_copy": reuse.nearly_clean_copy}
    shape = largest_forward(dry_run(config, 0, method.make_cache, **passes))
    expected = estimate(
        config,
        schedule,
        shape,
        device=torch.device("cpu"),
        make_cache=method.make_cache,
        remembered=method.remembered,
    )
    video = measure_video(config, models.dit, method)
    return {
        "transformer": PartSize(storage_bytes(models.dit.parameters()), expected.transformer.bytes),
        "text encoder": PartSize(storage_bytes(models.t5.model.parameters()), expected.text_encoder),
        "autoencoder": PartSize(storage_bytes(models.codec.vae.parameters()), expected.vae),
        "KV cache": PartSize(video["cache"], expected.kv_cache),
        "latents": PartSize(video["latents"], expected.latents),
        "captions": PartSize(measure_captions(config, models, prompt), expected.captions),
        "activations": PartSize(measure_forward(models.dit, config, shape), expected.activations.bytes),
        "decoding": PartSize(measure_decode(config, models.codec), expected.decode.bytes),
    }


def compare_offloaded(config: MagiConfig, method: Method) -> dict[str, PartSize]:
    """What is left on the device of parts that lie in host memory, measured on the copies that a CPU makes too: the
    slots of a streamed transformer beside what is outside of its layers, and those of the cache with its tables.
    """
    config, schedule = plan(method.apply_window(config), 0)
    offloaded = config.with_overrides(kv_offload=True, stream_weights=True)
    shape = largest_forward(dry_run(config, 0, method.make_cache))
    expected = estimate(
        config, schedule, shape, device=torch.device("cpu"), make_cache=method.make_cache, remembered=MOST_REMEMBERED
    )
    dit = load_transformer(config, torch.device("cpu"))
    load_weights(dit, checkpoint_directory(config), device="cpu", name="transformer")
    dit = dit.eval().stream_layers(torch.device("cpu"))
    video = measure_video(offloaded, dit, method)
    return {
        "transformer, streamed": PartSize(storage_bytes(dit.parameters()), expected.transformer.streamed),
        "KV cache, offloaded": PartSize(video["cache"], expected.kv_tables + 2 * expected.kv_layer),
    }


@torch.no_grad()
def measure_forward(dit: VideoDiT, config: MagiConfig, shape: ForwardShape) -> int:
    """Peak of one forward."""
    captions = shape.caption_tokens // shape.entries
    inputs = torch.zeros(shape.entries, config.model.latent_channels, *chunk_latent(config))
    text = Captions.of([torch.zeros(captions, config.model.caption_channels)] * shape.entries)
    with LiveMemory() as memory:
        dit(
            inputs,
            torch.full((shape.entries,), 0.5),
            text,
            OwnKeys(),
            first_frames=[0] * shape.entries,
            step_scalar=1.0,
        )
    return memory.peak


def measure_decode(config: MagiConfig, codec: VaeCodec) -> int:
    """Peak of decoding one chunk."""
    latents = torch.zeros(1, config.model.latent_channels, *chunk_latent(config))
    with LiveMemory() as memory:
        codec.decode_chunk(latents)
    return memory.peak


@torch.no_grad()
def measure_captions(config: MagiConfig, models: Models, prompt: str) -> int:
    """What stays of a prompt's encoding."""
    _, schedule = plan(config, 0)
    null = models.dit.y_embedder.null_caption_embedding
    with LiveMemory() as memory:
        features, mask = models.t5.encode(prompt)
        held = assemble_captions(
            features, mask, null, models.tokens, prompt_flags(config), schedule.chunk_num, schedule.offset
        )
        del features, mask
        live = memory.live
    del held
    return live


def measure_video(config: MagiConfig, dit: VideoDiT, method: Method) -> dict[str, int]:
    """Most that the cache, and latents with what caching remembers, hold during a whole video."""
    cache, reuse = method.make_cache(kv_geometry(config, torch.device("cpu"))), method.make_reuse()
    noise = DrawnNoise(0, (config.model.latent_channels, *chunk_latent(config)), torch.device("cpu"))
    most = {"cache": 0, "latents": 0}

    def watch(step: Any) -> None:
        most["cache"] = max(most["cache"], storage_bytes(_held_by(cache)))
        most["latents"] = max(most["latents"], storage_bytes([*_remembered(reuse), *sampler.held()]))

    sampler = Sampler(dit, config, cache, reuse)
    for _ in sampler.run(noise, _NoWords(config), on_step=watch):
        pass
    return most


def _held_by(cache: KVCache) -> Iterator[Tensor]:
    """Tensors of a cache that lie on the device; of rows in host memory the slots they pass through."""
    yield from tensors_in(vars(cache))
    yield from (
        tensor for part in vars(cache).values() if isinstance(part, TokenMerger) for tensor in tensors_in(vars(part))
    )
    yield from cache.rows.held()


def _remembered(reuse: Reuse) -> Iterator[Tensor]:
    """Tensors that a decider and an advancer hold."""
    for value in vars(reuse.decider).values():
        yield from tensors_in(value)
    if isinstance(reuse.advancer, MemoryAdvancer):
        yield from reuse.advancer.held()


class _NoWords:
    """Captions of the usual length that say nothing."""

    def __init__(self, config: MagiConfig) -> None:
        self.tokens = torch.zeros(50, config.model.caption_channels)

    def packed_cond(self, chunk: int) -> Tensor:
        return self.tokens

    def packed_null(self) -> Tensor:
        return self.tokens
