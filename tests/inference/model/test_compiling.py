"""Compiled layers give the same numbers, and all layers and numbers of chunks share a few compilations."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from inference.model.attention import attend
from inference.model.compiling import compile_layers
from inference.model.dit import Captions, VideoDiT
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise


class Alone:
    """Every chunk sees its own tokens."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return attend(q, kv)


@torch.no_grad()
def velocities(dit: VideoDiT, count: int) -> Tensor:
    captions = TinyCaptions(tiny_config())
    packed = Captions.of([captions.packed_cond(chunk)[: 3 + chunk] for chunk in range(count)])
    latents = torch.cat(tiny_noise(count).split(6, dim=2))
    frames = [6 * chunk for chunk in range(count)]
    return dit(latents, torch.linspace(0.2, 0.8, count), packed, Alone(), first_frames=frames, step_scalar=2.0)


@pytest.mark.slow
def test_layers_and_windows_share_what_is_compiled() -> None:
    torch._dynamo.reset()
    plain, counter = tiny_dit(tiny_config()), CompileCounterWithBackend("eager")
    compiled = compile_layers(tiny_dit(tiny_config()), backend=counter)
    for count in (2, 3, 4):
        assert torch.allclose(velocities(compiled, count), velocities(plain, count), atol=1e-5)
    # Attention divides a layer into four parts; each is compiled for two chunks, then for any number.
    assert counter.frame_count == 8
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_compiled_layers_can_be_streamed() -> None:
    torch._dynamo.reset()
    config = tiny_config().with_overrides(num_layers=5)
    plain, compiled = tiny_dit(config), compile_layers(tiny_dit(config), backend="eager")
    streamed = compiled.stream_layers(torch.device("cpu"))
    for count in (2, 3):
        assert torch.allclose(velocities(streamed, count), velocities(plain, count), atol=1e-5)
