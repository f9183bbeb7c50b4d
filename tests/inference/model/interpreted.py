"""As a program: the Triton kernels on a CPU in Triton's interpreter, against the plain forms; prints JSON."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor

from inference.model import kernels
from inference.model.fp8 import FP8_MAX
from inference.model.fused import load_kernels, probe
from inference.model.layers import OnePlusLayerNorm, gated_residual, norm_rotate, swiglu

CPU = torch.device("cpu")


def norm_of(width: int, dtype: torch.dtype) -> OnePlusLayerNorm:
    norm = OnePlusLayerNorm(width, 1e-6, dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


def units(found: Tensor, expected: Tensor) -> float:
    """The largest difference: as it is of float32, in units of the last place of ``expected`` of bfloat16."""
    difference = (found.float() - expected.float()).abs()
    if expected.dtype == torch.bfloat16:
        exponent = torch.frexp(expected.float().abs().clamp_min(1e-2)).exponent
        difference = difference / 2.0 ** (exponent - 8)
    return difference.max().item()


def errors(dtype: torch.dtype) -> tuple[dict[str, float], int]:
    fused, found = load_kernels(), {}
    # Widths that are no powers of two, more heads than a program takes, gates that lie apart.
    x, gate, norm = (
        torch.randn(2, 5, 200, dtype=dtype),
        torch.randn(2, 1, 400, dtype=dtype)[..., :200],
        norm_of(200, dtype),
    )
    for update in (torch.randn(2, 5, 200), torch.randn(2, 5, 200).to(dtype)):
        expected = gated_residual(x, update.clone(), gate, norm)
        found[f"residual of {update.dtype}"] = units(gated_residual(x, update, gate, norm, fused), expected)
    heads, norm = torch.randn(2, 5, 11, 24, dtype=dtype), norm_of(24, dtype)
    cos, sin = torch.randn(2, 5, 9), torch.randn(2, 5, 9)
    room = torch.full((2, 5, 11, 48), 7.0, dtype=dtype)
    expected = norm_rotate(heads.clone(), norm, cos, sin, dtype)
    found["rotation"] = units(norm_rotate(heads, norm, cos, sin, dtype, fused, room[..., :24]), expected)
    wide = torch.randn(3, 4, 2 * 1500, dtype=dtype)
    found["gated activation"] = units(swiglu(wide.clone()), swiglu(wide, fused))
    found["quantised"] = 0.0
    for divisor in (torch.rand(1500) + 0.1, torch.rand(1) + 0.1):
        x = torch.randn(7, 1500, dtype=dtype) * 40
        # Left in bfloat16, and a unit of it allowed: the interpreter cuts off where GPUs round to nearest. Bits are
        # compared on the GPU, before the kernels are used (``fused.probe``).
        expected = (x.float() / divisor).clamp(-FP8_MAX, FP8_MAX).bfloat16()
        quantised = kernels.quantise(x, divisor, torch.bfloat16, FP8_MAX)
        found["quantised"] = max(found["quantised"], units(quantised, expected))
    return found, int((room[..., 24:] != 7.0).sum())


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    told = {}
    outside = 0
    for dtype in (torch.float32, torch.bfloat16):
        told[str(dtype).removeprefix("torch.")], written = errors(dtype)
        outside += written
    fused = load_kernels()

    def crash(*_: object) -> Tensor:
        raise RuntimeError("no such instruction")

    wrong = {
        "gated_residual": lambda x, update, gate, weight, *rest: fused.gated_residual(
            x, update, gate, weight + 1, *rest
        ),
        "norm_rotate": lambda x, w, b, eps, cos, sin, out: fused.norm_rotate(x, w, b, eps, sin, cos, out),
        "swiglu": lambda x: fused.swiglu(x.flip(-1)),
    }
    told["faults"] = {name: probe(replace(fused, **{name: one}), CPU, fp8=False) for name, one in wrong.items()}
    told |= {"probe": probe(fused, CPU, fp8=False), "crash": probe(replace(fused, swiglu=crash), CPU, fp8=False)}
    json.dump(told | {"written outside": outside}, sys.stdout)


if __name__ == "__main__":
    main()
