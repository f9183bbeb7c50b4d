"""Compiled layers give the same numbers, and all layers and window sizes share a few compilations."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from inference.config import MagiConfig
from inference.model.compiling import compile_layers
from inference.model.dit import VideoDiT
from inference.sampler import Sampler
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 2


def deep_config() -> MagiConfig:
    """Four layers: enough that a compilation per layer would show."""
    config = tiny_config(num_frames=CHUNKS * 24, num_steps=4)
    return config.model_copy(update={"model": config.model.model_copy(update={"num_layers": 4})})


def video(dit: VideoDiT, config: MagiConfig) -> Tensor:
    torch._dynamo.reset()
    chunks = Sampler(dit, config).run(tiny_noise(CHUNKS), TinyCaptions(config))
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def test_layers_and_windows_share_what_is_compiled() -> None:
    config = deep_config()
    plain, counter = tiny_dit(config), CompileCounterWithBackend("eager")
    compiled = compile_layers(tiny_dit(config), backend=counter)
    assert torch.allclose(video(compiled, config), video(plain, config), atol=1e-5)
    # Two parts of a layer; for one entry, for two, and for any number of them and of caption tokens.
    assert 2 <= counter.frame_count <= 8
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_the_default_compiler_keeps_the_numbers() -> None:
    config = deep_config()
    expected = video(tiny_dit(config), config)
    found = video(compile_layers(tiny_dit(config)), config)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
