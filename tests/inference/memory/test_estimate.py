"""Estimates without any weights: published sizes, and how they change with what the user can change."""

import pytest
import torch

from inference.config import MagiConfig, load_config
from inference.memory.dry_run import dry_run, largest_forward
from inference.memory.estimate import (
    MemoryEstimate,
    estimate,
    text_encoder_bytes,
    transformer_size,
    vae_bytes,
    vae_config,
)
from inference.memory.stages import forward_peak
from inference.pipeline import plan
from inference.record import RunRecord
from inference.sampler import Sampler
from tests.paths import CONFIGS
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

GPU = torch.device("cuda")


def published(name: str, **overrides: object) -> MagiConfig:
    return load_config(CONFIGS / f"{name}.json").with_overrides(**overrides)


def estimated(config: MagiConfig, ranks: int = 1) -> MemoryEstimate:
    config, schedule = plan(config, 0)
    shape = largest_forward(dry_run(config))
    return estimate(config, schedule, shape, device=GPU, ranks=ranks)


@pytest.mark.parametrize(("name", "billions"), [("4.5B_distill", 4.460), ("24B_base", 23.90)])
def test_published_sizes(name: str, billions: float) -> None:
    config = published(name)
    size = transformer_size(config)
    assert len(size.layers) == config.model.num_layers
    # Layers are stored in two bytes, what embeds latents and captions in four.
    assert size.bytes / 2e9 == pytest.approx(billions, rel=0.01)
    assert size.streamed == size.outside + 2 * max(size.layers)
    assert size.streamed < size.bytes / 10
    assert text_encoder_bytes(config) / 2**30 == pytest.approx(17.7, abs=0.1)
    vae = vae_config(config)
    assert vae_bytes(vae, torch.bfloat16) == vae_bytes(vae, torch.float32) / 2 > 1e9


def test_fp8_layers_are_half_as_large() -> None:
    plain, fp8 = transformer_size(published("4.5B_distill")), transformer_size(published("4.5B_distill_quant"))
    assert fp8.layers[0] == fp8.layers[-1] == plain.layers[0]
    assert fp8.layers[1] < 0.6 * plain.layers[1]


def test_estimates_follow_size_length_and_ranks() -> None:
    one = estimated(published("4.5B_distill"))
    large = estimated(published("4.5B_distill", video_size_h=1440))
    long = estimated(published("4.5B_distill", num_frames=192))
    shared = estimated(published("4.5B_distill"), ranks=8)
    # One chunk at 720x720: 12150 tokens x 34 layers x 8 groups x 256 x 2 bytes.
    assert one.kv_cache == 4 * 12150 * 34 * 8 * 256 * 2
    assert large.kv_cache == 2 * one.kv_cache == 16 * shared.kv_cache
    # Eight chunks, of which the key window reaches five; all of them where the whole history is in view.
    assert long.kv_cache * 4 == 5 * one.kv_cache
    assert estimated(published("4.5B_distill", num_frames=192, noise2clean_kvrange=[])).kv_cache == 2 * one.kv_cache
    assert one.kv_layer * 34 == one.kv_cache
    assert large.activations.bytes == pytest.approx(2 * one.activations.bytes, rel=0.05)
    assert shared.activations.bytes < one.activations.bytes / 6
    assert large.decode.bytes > 1.5 * one.decode.bytes
    # Of a window of four chunks and the one before it, however many there are.
    assert long.latents * 4 == 5 * one.latents and long.transformer == one.transformer


def forwards(record: RunRecord) -> list[tuple[object, ...]]:
    return [(f.kind, f.chunk_tokens, f.keys, f.caption_tokens) for f in record.forwards]


@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize("prefix_latents", [0, 8])
def test_a_dry_run_makes_the_forwards_of_a_real_one(three_pass: bool, prefix_latents: int) -> None:
    config = tiny_config(three_pass, num_frames=120, noise2clean_kvrange=[5, 4, 3, 2])
    dry = dry_run(config, prefix_latents, caption_tokens=5)
    chunks, window = dry.chunk_num, config.runtime.window_size
    prefix = tiny_noise(2)[:, :, :prefix_latents] if prefix_latents else None
    sampler = Sampler(tiny_dit(config), config)
    captions = TinyCaptions(config)
    captions.null = torch.zeros(50, config.model.caption_channels)
    for _ in sampler.run(tiny_noise(chunks), captions, prefix):
        pass
    assert forwards(dry) == forwards(sampler.record)
    assert dry.reuse_map() == sampler.record.reuse_map()
    shape = largest_forward(dry)
    assert shape.entries == window + 1 + (not three_pass)
    assert forward_peak(config.model, shape, device=GPU).bytes > 0
