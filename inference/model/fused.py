"""Whether the elementwise work of a layer is done by Triton's kernels or by PyTorch's operators.

Triton comes with PyTorch's CUDA wheels on Linux. The kernels are tried on a small example before they are used; where
they fail, or are off, the plain forms stay (docs/backends.md, "Fused kernels").
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

FIRST_CAPABILITY = (8, 0)
FIRST_FP8_CAPABILITY = (8, 9)
# Of the small example's numbers, which are about one: float32 sums in another order.
PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class FusedKernels:
    """The operations of ``inference.model.kernels``, by their names there."""

    gated_residual: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
    norm_rotate: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor, Tensor], None]
    swiglu: Callable[[Tensor], Tensor]
    quantise: Callable[[Tensor, Tensor, torch.dtype, float], Tensor]


@cache
def load_kernels() -> FusedKernels:
    """The Triton kernels; ImportError where there is no Triton."""
    from inference.model import kernels

    return FusedKernels(kernels.gated_residual, kernels.norm_rotate, kernels.swiglu, kernels.quantise)


def resolve_kernels(choice: str | bool, device: torch.device | str) -> FusedKernels | None:
    """The kernels for ``device``, None for the plain forms.

    Args:
        choice: "auto" takes the kernels where they can be used; True insists; False takes the plain forms.

    Raises:
        ValueError: they are insisted on and cannot be used; the reason is in it.
    """
    if choice is False:
        return None
    problem = kernels_problem(torch.device(device))
    if problem is None:
        return load_kernels()
    if choice == "auto":
        if torch.device(device).type == "cuda":
            logger.info("no fused kernels: %s", problem)
        return None
    raise ValueError(f"fused_kernels cannot be used: {problem}; choose auto or false")


def kernels_problem(device: torch.device) -> str | None:
    """Why the kernels cannot be used on ``device``; None where nothing speaks against them."""
    if device.type != "cuda":
        return f"they run on CUDA devices, not on {device.type}"
    if torch.version.hip is not None:
        return "they were not tried on AMD's devices"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        return f"they need compute capability 8.0, the device has {capability[0]}.{capability[1]}"
    try:
        kernels = load_kernels()
    except ImportError as error:
        return f"Triton is not installed ({error})"
    return probe(kernels, device, fp8=capability >= FIRST_FP8_CAPABILITY)


def probe(kernels: FusedKernels, device: torch.device, *, fp8: bool) -> str | None:
    """What goes wrong when ``kernels`` are tried on a small example, compared with PyTorch; None where nothing.

    ``fp8``: the device converts to fp8, so quantising is tried too; it has to give the same bits.
    """
    try:
        with torch.no_grad():
            error = _error(kernels, device, fp8)
    # Compilers and drivers fail in ways of their own; none of them should end a run that can do without.
    except Exception as failure:  # noqa: BLE001
        reason = next(iter(str(failure).splitlines()), "")
        return f"they fail on a small example: {type(failure).__name__}: {reason}"
    return None if error <= PROBE_TOLERANCE else f"they are off by {error:.3g} on a small example"


def _error(kernels: FusedKernels, device: torch.device, fp8: bool) -> float:
    """The largest difference on the small example; infinite where fp8 numbers have other bits."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, update, gate, weight, bias = random(2, 3, 40), random(2, 3, 40), random(2, 1, 40), random(40), random(40)
    heads, cos, sin, of_heads = random(2, 3, 5, 20), random(2, 3, 6), random(2, 3, 6), (random(20), random(20))
    normed = F.layer_norm(update * gate, (40,), weight + 1, bias, 1e-6)
    a, b, rest = F.layer_norm(heads, (20,), of_heads[0] + 1, of_heads[1], 1e-6).split((6, 6, 8), dim=-1)
    c, s = cos[:, :, None], sin[:, :, None]
    rotated = torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)
    expected = [x + normed, rotated, F.silu(x[..., :20]) * x[..., 20:]]
    turned = torch.empty_like(heads)
    kernels.norm_rotate(heads, *of_heads, 1e-6, cos, sin, turned)
    norm = gate, weight, bias, 1e-6
    found = [kernels.gated_residual(x, update.clone(), *norm), turned, kernels.swiglu(x.clone())]
    error = max((one - other).abs().max().item() for one, other in zip(found, expected, strict=True))
    # Rounded to eight bits, and none of the numbers is above 16.
    rounded = kernels.gated_residual(x.bfloat16(), update.bfloat16(), *norm).float()
    error = max(error, (rounded - expected[0]).abs().max().item() * PROBE_TOLERANCE / 0.15)
    if fp8:
        wide, divisor = random(6, 40) * 300, random(40).abs() + 0.5
        plain = (wide / divisor).clamp(-448, 448).bfloat16().to(torch.float8_e4m3fn)
        bits = kernels.quantise(wide, divisor, plain.dtype, 448.0).view(torch.uint8)
        error = error if torch.equal(bits, plain.view(torch.uint8)) else float("inf")
    return error
