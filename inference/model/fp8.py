"""Linear layers with float8 weights: exact by dequantisation anywhere, fast on matrix units that multiply fp8.

(docs/transformer.md, "fp8 checkpoints"; docs/backends.md, "fp8 products")
"""

import logging

import torch
from torch import Tensor, nn

from inference.model.fused import FusedKernels
from inference.model.products import functional, widened_linear

logger = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

DEQUANTISE, SCALED_MM = "dequantise", "scaled_mm"
# The first GPUs whose matrix units take fp8, and the step in which their product takes widths.
FIRST_CAPABILITY = (8, 9)
WIDTH_STEP = 16
# Rows that are quantised at a time.
BLOCK_ROWS = 8192
# Against the exact product, relative to its largest value: one rounding to bfloat16 is 2^-9 of a value. Matrix units
# add up with fewer bits than float32 has.
PROBE_TOLERANCE = 2e-2


class Fp8Linear(nn.Module):
    """Linear layer with float8 e4m3 weights.

    The input is divided by its scale in float32, clamped to +-448 and rounded to bfloat16, then to fp8; the product
    accumulates in float32, is multiplied by both scales and rounded to bfloat16 once.

    Args:
        per_channel: a smoothing scale per input feature (``linear_proj``, ``linear_fc2``) instead of one input scale
            for all.
        matmul: "dequantise", the reference arithmetic that runs anywhere, or "scaled_mm", torch's fp8 product
            (``resolve_fp8_matmul`` knows where that can be used). Widths that are no multiples of 16, which no
            published model has, are dequantised in any case.
        kernels: what quantises where fp8 matrix units multiply, None for PyTorch's operators.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        per_channel: bool,
        matmul: str = DEQUANTISE,
        kernels: FusedKernels | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, out_features, in_features, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.input_scale = nn.Parameter(torch.ones(1 if per_channel else in_features), requires_grad=False)
        self.smooth_scale = nn.Parameter(torch.ones(1, in_features), requires_grad=False) if per_channel else None
        fits = in_features % WIDTH_STEP == 0 and out_features % WIDTH_STEP == 0
        self.matmul = matmul if fits else DEQUANTISE
        # Others have no fp8 in their instructions.
        self.kernels = kernels if self.matmul == SCALED_MM else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) of any dtype to (..., out), bfloat16."""
        divisor = self.input_scale if self.smooth_scale is None else self.smooth_scale[0]
        multiply = scaled_product if self.matmul == SCALED_MM else exact_product
        return multiply(quantise(x, divisor, self.kernels), self.weight[0], self.input_scale[:1], self.weight_scale)


def quantise(x: Tensor, divisor: Tensor, kernels: FusedKernels | None = None) -> Tensor:
    """``x`` (..., in) divided by ``divisor`` (in,) or (1,) in float32, rounded to bfloat16 and then to fp8."""
    if functional():
        return (x.float() / divisor).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).to(FP8)
    if kernels is not None:
        return kernels.quantise(x, divisor, FP8, FP8_MAX)
    out = torch.empty_like(x, dtype=FP8)
    # In blocks, so that the float32 numbers in between are few.
    for part, room in zip(x.flatten(0, -2).split(BLOCK_ROWS), out.flatten(0, -2).split(BLOCK_ROWS), strict=True):
        room.copy_(torch.div(part, divisor).clamp_(-FP8_MAX, FP8_MAX).to(torch.bfloat16))
    return out


def exact_product(x: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """``x`` (..., in), ``weight`` (out, in), both fp8, scales (1,) to (..., out) bfloat16: in float32.

    On a GPU by way of bfloat16, which holds an fp8 number exactly and which its matrix units multiply.
    """
    if x.device.type == "cuda":
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    product = widened_linear(x, weight)
    if functional():
        return (product * input_scale * weight_scale).to(torch.bfloat16)
    return product.mul_(input_scale).mul_(weight_scale).to(torch.bfloat16)


def scaled_product(x: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The same by fp8 matrix units, which take the second factor column by column: the weights as they are stored."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch._scaled_mm(rows, weight.t(), scale_a=input_scale, scale_b=weight_scale, out_dtype=torch.bfloat16)
    return out.unflatten(0, x.shape[:-1])


def resolve_fp8_matmul(choice: str, device: torch.device | str) -> str:
    """ "dequantise" or "scaled_mm" for ``device``; ValueError, with the reason, where the asked one cannot be used.

    "auto" takes the fast one on GPUs that have it, and the exact one on CPUs.
    """
    device = torch.device(device)
    if choice == DEQUANTISE or (choice == "auto" and device.type == "cpu"):
        return DEQUANTISE
    problem = scaled_mm_problem(device)
    if problem is None:
        return SCALED_MM
    if choice == "auto":
        logger.info("fp8 layers are dequantised: %s", problem)
        return DEQUANTISE
    raise ValueError(f"fp8_matmul {choice!r} cannot be used: {problem}; choose auto or {DEQUANTISE}")


def scaled_mm_problem(device: torch.device) -> str | None:
    """Why torch's fp8 product cannot be used on ``device``: its capability, or a small product that goes wrong."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"fp8 matrix units come with compute capability 8.9, the device has {major}.{minor}"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 32, generator=generator).to(device, FP8)
    weight = torch.randn(16, 32, generator=generator).to(device, FP8)
    scales = torch.tensor([0.5], device=device), torch.tensor([0.25], device=device)
    try:
        found, expected = scaled_product(x, weight, *scales).float(), exact_product(x, weight, *scales).float()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
    except (RuntimeError, TypeError, ValueError, AttributeError) as failure:
        reason = next(iter(str(failure).splitlines()), "")
        return f"torch's fp8 product fails on {device.type}: {type(failure).__name__}: {reason}"
    return None if error <= PROBE_TOLERANCE else f"torch's fp8 product is off by {error:.3g} on {device.type}"
