"""Weights that pass through two slots: the same numbers, two layers on the device and no more."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.memory.live import storage_bytes
from inference.config import MagiConfig, load_config
from inference.memory.estimate import transformer_size
from inference.model.dit import VideoDiT
from inference.pipeline import MagiPipeline, Sample
from inference.placement.streaming import ALIGNMENT, StreamedLayers, layer_bytes
from inference.sampler import Sampler
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")


def latents(dit: VideoDiT, config: MagiConfig) -> torch.Tensor:
    chunks = -(-config.runtime.num_frames // 24)
    sampler = Sampler(dit, config)
    return torch.cat([c.latents for c in sampler.run(tiny_noise(chunks), TinyCaptions(config))], dim=2)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ({}, {"num_layers": 1}),
        ({}, {"num_layers": 2}),
        ({}, {"num_layers": 5, "params_dtype": "torch.bfloat16"}),
        ({"three_pass": True}, {"num_layers": 4, "gated_linear_unit": True}),
        ({"fp8": True}, {"num_layers": 6}),
    ],
)
def test_streamed_weights_change_no_number_and_take_two_layers(kind: dict[str, Any], changes: dict[str, Any]) -> None:
    config = tiny_config(**kind, num_frames=48, num_steps=4).with_overrides(**changes)
    whole, streamed = tiny_dit(config), tiny_dit(config).stream_layers(CPU)
    layers = streamed.videodit_blocks.streamed
    assert isinstance(layers, StreamedLayers)
    assert torch.equal(latents(whole, config), latents(streamed, config))

    on_device, size = storage_bytes(streamed.parameters()), transformer_size(config)
    assert on_device == size.outside + layers.device_bytes
    assert layers.device_bytes <= 2 * max(layer_bytes(layer) for layer in whole.videodit_blocks.layers)
    tensors = len(list(streamed.videodit_blocks.layers[0].parameters()))
    assert on_device <= size.streamed + 2 * tensors * ALIGNMENT
    if config.model.num_layers > 2:
        assert on_device < storage_bytes(whole.parameters())
    assert len(layers.host) == config.model.num_layers


def test_a_layer_is_in_its_slot_when_its_turn_comes_and_the_next_one_beside_it() -> None:
    config = tiny_config().with_overrides(num_layers=4)
    whole = tiny_dit(config).videodit_blocks.layers
    layers = StreamedLayers(tiny_dit(config).videodit_blocks.layers, CPU)
    for _ in range(2):
        for index, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                assert torch.equal(parameter, whole[index].get_parameter(name)), (index, name)
            following = layers.layers[(index + 1) % 4]
            expected = whole[(index + 1) % 4]
            assert all(torch.equal(p, expected.get_parameter(name)) for name, p in following.named_parameters())


def test_a_pipeline_streams_where_it_is_told_to(checkpoint: Path) -> None:
    config = load_config(checkpoint / "distill.json").with_overrides(num_steps=4)
    usual = MagiPipeline.load(config, CPU)
    streaming = MagiPipeline.load(config.with_overrides(stream_weights=True, kv_offload=True), CPU)
    assert usual.dit.videodit_blocks.streamed is None
    assert isinstance(streaming.dit.videodit_blocks.streamed, StreamedLayers)
    first, second = (torch.cat(list(p.frames(Sample("a red ball")))) for p in (usual, streaming))
    assert torch.equal(first, second)
