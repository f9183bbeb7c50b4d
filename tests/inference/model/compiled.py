"""As a program: compile the Triton kernels for GPUs that need not be there; prints how many for each, as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference.model import kernels

COUNTS = dict.fromkeys(("tokens", "width", "gate_stride", "heads", "bands", "divisor_stride"), "i32")
COUNTS |= dict.fromkeys(("x_stride", "out_stride", "out_head_stride"), "i32")
HALF = dict.fromkeys(("x_ptr", "gate_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
WIDE = dict.fromkeys(("cos_ptr", "sin_ptr", "divisor_ptr"), "*fp32")


def build(kernel: triton.JITFunction, constants: dict[str, float], capability: int, **types: str) -> int:
    known = COUNTS | HALF | WIDE | {"eps": "fp32"} | types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: known[name] for name in kernel.arg_names}, constexprs=constants)
    return int(bool(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]))


def main() -> None:
    built = {}
    for capability in (80, 90, 100):
        count = sum(
            build(kernels._gated_residual, {"WIDTH": width}, capability, update_ptr=update)
            for width, update in ((4096, "*fp32"), (4096, "*bf16"), (8192, "*bf16"))
        )
        count += build(kernels._norm_rotate, {"HEADS": kernels.HEADS, "WIDTH": 128}, capability)
        count += build(kernels._swiglu, {"BLOCK": kernels.BLOCK}, capability)
        if capability >= 90:
            constants = {"LARGEST": 448.0, "BLOCK": kernels.BLOCK}
            count += build(kernels._quantise, constants, capability, out_ptr="*fp8e4nv")
        built[capability] = count
    json.dump(built, sys.stdout)


if __name__ == "__main__":
    main()
