"""The fused kernels against the plain forms in Triton's interpreter, that they compile, and when they are used."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.model import fused
from inference.model.dit import Captions, VideoDiT
from inference.model.fp8 import Fp8Linear
from inference.model.fused import FusedKernels, kernels_problem, probe, resolve_kernels
from inference.model.layers import OnePlusLayerNorm, gated_residual, norm_rotate, swiglu
from inference.pipeline import load_transformer
from tests.paths import ROOT
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton")
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What ``interpreted.py`` says: Triton decides at its import whether it interprets, so it is another process."""
    program = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@has_triton
@pytest.mark.slow
def test_they_give_what_the_plain_forms_give(told: dict[str, Any]) -> None:
    assert told["probe"] is None
    assert told["float32"].pop("quantised") <= 1.0  # rounded to bfloat16 in any case
    for name, error in told["float32"].items():
        assert error < 1e-5, name
    # A unit of bfloat16 at most, where the sums lie on both sides of the middle between two numbers.
    for name, error in told["bfloat16"].items():
        assert error <= 1.0, name
    assert told["written outside"] == 0


@has_triton
@pytest.mark.slow
def test_a_kernel_that_is_wrong_is_not_used(told: dict[str, Any]) -> None:
    assert {name: "off by" in reason for name, reason in told["faults"].items()} == dict.fromkeys(
        ("gated_residual", "norm_rotate", "swiglu"), True
    )
    assert "RuntimeError: no such instruction" in told["crash"]


@has_triton
@pytest.mark.slow
def test_they_compile_for_the_gpus_that_are_named() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py"))], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"80": 5, "90": 6, "100": 6}


class Counting:
    """Plain forms that count how often they were asked for."""

    def __init__(self) -> None:
        self.calls = dict.fromkeys(("gated_residual", "norm_rotate", "swiglu", "quantise"), 0)

    def kernels(self) -> FusedKernels:
        return FusedKernels(self.gated_residual, self.norm_rotate, self.swiglu, self.quantise)

    def gated_residual(self, x: Tensor, update: Tensor, gate: Tensor, *norm: Any) -> Tensor:
        self.calls["gated_residual"] += 1
        return gated_residual(x, update, gate, _norm(*norm))

    def norm_rotate(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *rest: Tensor) -> None:
        self.calls["norm_rotate"] += 1
        cos, sin, out = rest
        norm_rotate(x, _norm(weight, bias, eps), cos, sin, out.dtype, out=out)

    def swiglu(self, x: Tensor) -> Tensor:
        self.calls["swiglu"] += 1
        return swiglu(x)

    def quantise(self, x: Tensor, divisor: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
        self.calls["quantise"] += 1
        return (x.float() / divisor).clamp(-largest, largest).bfloat16().to(dtype)


def _norm(weight: Tensor, bias: Tensor, eps: float) -> OnePlusLayerNorm:
    norm = OnePlusLayerNorm(len(weight), eps, weight.dtype)
    norm.load_state_dict({"weight": weight, "bias": bias})
    return norm


class Alone:
    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        from inference.model.attention import attend

        return attend(q, kv)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("fp8", [None, "dequantise", "scaled_mm"])
def test_a_transformer_asks_for_them_in_every_layer(gated: bool, fp8: str | None) -> None:
    config = tiny_config(fp8=fp8 is not None).with_overrides(gated_linear_unit=gated)
    counting = Counting()
    plain = tiny_dit(config, fp8_matmul=fp8 or "dequantise")
    dit = tiny_dit(config, fp8_matmul=fp8 or "dequantise", kernels=counting.kernels())
    words = TinyCaptions(config)
    captions = Captions.of([words.packed_cond(chunk) for chunk in range(2)])

    def velocities(dit: VideoDiT) -> Tensor:
        t = torch.tensor([0.7, 0.2])
        return dit(torch.cat(tiny_noise(2).split(6, dim=2)), t, captions, Alone(), first_frames=[0, 6], step_scalar=2.0)

    with torch.no_grad():
        assert torch.equal(velocities(dit), velocities(plain))
    layers = config.model.num_layers
    quantising = sum(isinstance(module, Fp8Linear) for module in dit.modules()) if fp8 == "scaled_mm" else 0
    assert counting.calls == {
        "gated_residual": 2 * layers,
        "norm_rotate": 2 * layers,
        "swiglu": gated * layers,
        "quantise": quantising,
    }
    velocities(dit)
    assert counting.calls["gated_residual"] == 2 * layers  # where gradients are taken the plain forms compute


def test_where_they_cannot_be_used_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernels("auto", "cpu") is None and resolve_kernels(False, "cpu") is None
    with pytest.raises(ValueError, match="fused_kernels cannot be used: they run on CUDA devices, not on cpu; choose"):
        resolve_kernels(True, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernels_problem(CUDA) == "they need compute capability 8.0, the device has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def missing() -> FusedKernels:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(fused, "load_kernels", missing)
    assert kernels_problem(CUDA) == "Triton is not installed (No module named 'triton')"
    monkeypatch.setattr(fused, "load_kernels", lambda: Counting().kernels())
    assert "fail on a small example" in kernels_problem(CUDA)  # there is no such device here


def test_the_configuration_can_do_without() -> None:
    assert load_transformer(tiny_config(), torch.device("cpu")).kernels is None
    with pytest.raises(ValueError, match="fused_kernels cannot be used"):
        load_transformer(tiny_config().with_overrides(fused_kernels=True), torch.device("cpu"))


def test_plain_forms_pass_the_probe() -> None:
    assert probe(Counting().kernels(), torch.device("cpu"), fp8=True) is None
    less_rounded = replace(Counting().kernels(), quantise=_truncated)
    assert "off by inf" in probe(less_rounded, torch.device("cpu"), fp8=True)


def _truncated(x: Tensor, divisor: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """Without the rounding to bfloat16 before the one to fp8."""
    return (x.float() / divisor).clamp(-largest, largest).to(dtype)
