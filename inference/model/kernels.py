"""The elementwise work of a layer in one pass over memory each, as Triton kernels.

PyTorch's operators read and write the tokens once each: 22 GB in a layer of four chunks of 720 x 720, of which these
leave 9 (docs/performance.md). They compute in float32 and round once, as the plain forms in ``inference.model.layers``
and ``fp8`` do; sums are added up in another order. Imported only where Triton is (``inference.model.fused``).

Shape letters: E entries, N tokens of a chunk, D hidden width, H heads, d head width, R rotary bands.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Heads that one program normalises and rotates, and features that one quantises or gates.
HEADS = 8
BLOCK = 1024


@triton.jit
def _gated_residual(
    x_ptr, update_ptr, gate_ptr, weight_ptr, bias_ptr, out_ptr, tokens, width, gate_stride, eps, WIDTH: tl.constexpr
):
    """One token: its D features in registers, so that mean, variance and sum are taken from one reading."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    update = tl.load(update_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + (row // tokens) * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    gated = update * gate
    mean = tl.sum(gated, axis=0) / width
    centred = tl.where(inside, gated - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32) + 1.0
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    result = x + (centred * scale * weight + bias)
    tl.store(out_ptr + row * width + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate(
    x_ptr,
    weight_ptr,
    bias_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    heads,
    width,
    bands,
    x_stride,
    out_stride,
    out_head_stride,
    eps,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Some heads of one token. Each feature is read beside the one that it is rotated with."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    feature = tl.arange(0, WIDTH)
    first, turned, known = feature < bands, feature < 2 * bands, feature < width
    partner = tl.where(first, feature + bands, tl.where(turned, feature - bands, feature))
    inside = (head < heads) & known[None, :]
    place = x_ptr + token * x_stride + head * width
    own = tl.load(place + feature[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(place + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = (tl.sum(own, axis=1) / width)[:, None]
    centred = tl.where(inside, own - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)[:, None]
    weight = tl.load(weight_ptr + feature, mask=known, other=0.0).to(tl.float32) + 1.0
    bias = tl.load(bias_ptr + feature, mask=known, other=0.0).to(tl.float32)
    other_weight = tl.load(weight_ptr + partner, mask=known, other=0.0).to(tl.float32) + 1.0
    other_bias = tl.load(bias_ptr + partner, mask=known, other=0.0).to(tl.float32)
    own = centred * scale * weight[None, :] + bias[None, :]
    other = (other - mean) * scale * other_weight[None, :] + other_bias[None, :]
    band = token * bands + tl.where(first, feature, feature - bands)
    cos = tl.load(cos_ptr + band, mask=turned, other=1.0)
    sin = tl.load(sin_ptr + band, mask=turned, other=0.0)
    result = own * cos[None, :] + other * tl.where(first, -sin, sin)[None, :]
    room = out_ptr + token * out_stride + head * out_head_stride + feature[None, :]
    tl.store(room, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(x_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x_ptr + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * value
    tl.store(out_ptr + row * width + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quantise(x_ptr, divisor_ptr, out_ptr, width, divisor_stride, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    divisor = tl.load(divisor_ptr + column * divisor_stride, mask=inside, other=1.0)
    # As the plain form divides: rounded to nearest, not by a reciprocal.
    quotient = tl.div_rn(x, divisor)
    quotient = tl.clamp(quotient, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    rounded = quotient.to(tl.bfloat16).to(tl.float32)
    tl.store(out_ptr + row * width + column, rounded.to(out_ptr.dtype.element_ty), mask=inside)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``x + norm(update * gate)``, the norm's weight without its one; ``x``, ``update`` (E, N, D), ``gate`` (E, 1, D)
    to (E, N, D) in the dtype of ``x``.
    """
    x, update = x.contiguous(), update.contiguous()
    out = torch.empty_like(x)
    entries, tokens, width = x.shape
    _gated_residual[(entries * tokens,)](
        *(x, update, gate, weight, bias, out, tokens, width, gate.stride(0), eps),
        WIDTH=triton.next_power_of_2(width),
        num_warps=8 if width > 1024 else 4,
    )
    return out


def norm_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Normalise heads, the norm's weight without its one, and rotate them into ``out``.

    ``x`` (E, N, H, d) contiguous, ``cos`` and ``sin`` (E, N, R) float32, ``out`` (E, N, H, d), of which features lie
    side by side.
    """
    entries, tokens, heads, width = x.shape
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    _norm_rotate[(entries * tokens, triton.cdiv(heads, HEADS))](
        *(x, weight, bias, cos, sin, out, heads, width, cos.shape[-1]),
        *(heads * width, out.stride(1), out.stride(2), eps),
        HEADS=HEADS,
        WIDTH=triton.next_power_of_2(width),
        num_warps=4,
    )


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) * value`` of ``x`` (..., 2F), gate in front: (..., F) in its dtype."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _swiglu[(x.numel() // (2 * width), triton.cdiv(width, BLOCK))](x, out, width, BLOCK=BLOCK)
    return out


def quantise(x: Tensor, divisor: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """``x`` (..., D) divided by ``divisor`` (D,) or (1,), float32, rounded to bfloat16 and then to ``dtype``."""
    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    stride = 0 if divisor.numel() == 1 else 1
    _quantise[(x.numel() // width, triton.cdiv(width, BLOCK))](
        x, divisor, out, width, stride, LARGEST=largest, BLOCK=BLOCK
    )
    return out
