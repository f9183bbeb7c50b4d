"""Numbers that are no numbers end a run where they appear, and the message says where and why."""

import pytest
import torch
from torch import Tensor, nn

from inference.model.finite import FiniteLatents, NotFiniteError, reasons, require_finite
from inference.model.fp8 import Fp8Linear
from inference.sampler import Sampler
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_of_a_chunk_is_enough(value: float) -> None:
    finite, good = FiniteLatents(CPU, 40), torch.ones(16, 6, 4, 4)
    bad = good.clone()
    bad[3, 2, 1, 0] = value
    finite.step(7, {2: good, 3: good})
    finite.step(8, {2: good, 3: bad, 4: bad})
    with pytest.raises(NotFiniteError, match="denoising: the latents of chunks 3, 4 are not finite after step 9 of 40"):
        finite.step(9, {2: good})
    finite.read()  # told once


class Broken:
    """A transformer of which one chunk's velocity is no number from a step on."""

    def __init__(self, value: float, from_forward: int) -> None:
        self.dit, self.value, self.left = tiny_dit(tiny_config()), value, from_forward

    def __getattr__(self, name: str) -> object:
        return getattr(self.dit, name)

    def __call__(self, *arguments: object, **named: object) -> Tensor:
        out = self.dit(*arguments, **named)
        self.left -= 1
        if self.left < 0:
            out[0, 0, 0, 0, 0] = self.value
        return out


def test_the_sampler_stops_at_the_next_step_and_yields_no_such_chunk() -> None:
    config = tiny_config()
    sampler = Sampler(Broken(float("nan"), from_forward=3), config)
    with pytest.raises(NotFiniteError, match="the latents of chunk 0 are not finite after step 4 of"):
        list(sampler.run(tiny_noise(5), TinyCaptions(config)))
    assert len(sampler.record.steps) <= 4
    steps = len(sampler.record.steps)
    last_step_of_the_first = config.runtime.num_steps - 1
    sampler = Sampler(Broken(float("inf"), from_forward=last_step_of_the_first), config)
    done = []
    with pytest.raises(NotFiniteError):
        done.extend(sampler.run(tiny_noise(5), TinyCaptions(config)))
    assert done == [] and len(sampler.record.steps) > steps


def test_the_reason_is_looked_for_in_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Fp8Linear(16, 16, per_channel=False))
    with (
        pytest.raises(NotFiniteError, match=r"values: 1 of 2 .* all weights are. Computed in bfloat16: try"),
        reasons({"transformer": model}, "bfloat16"),
    ):
        require_finite(torch.tensor([1.0, float("nan")]), "values")
    with torch.no_grad():
        model[0].bias[2] = float("inf")
    with (
        pytest.raises(NotFiniteError, match=r"nor are weights of the VAE: 0\.bias\. The file is damaged"),
        reasons({"transformer": nn.Linear(1, 1), "VAE": model}, "bfloat16"),
    ):
        require_finite(torch.tensor([float("nan")]), "values")
    with reasons({"transformer": model}, "bfloat16"):
        require_finite(torch.ones(3), "values")
