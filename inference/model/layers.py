"""Building blocks of the MAGI-1 transformer: norms, rotary positions, embedders, linear layers with their dtype rules.

Module and parameter names are those of the published checkpoints. Parameters are created in the dtype in which the
checkpoint *stores* them; the dtype in which each computes is stated per class (docs/transformer.md, "Tensors").
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from inference.model.fused import FusedKernels
from inference.model.products import functional, widened_linear

SINUSOID_WIDTH = 256
TIME_FACTOR = 1000.0
# Frequencies of the timestep that the reference data have one unit in the last place above the nearest float32.
REFERENCE_ROUNDING = {12: 1, 106: 1}


class OnePlusLayerNorm(nn.Module):
    """LayerNorm whose effective weight is ``weight + 1``. Computes in ``compute_dtype``, returns that dtype."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.eps = eps
        self.compute_dtype = compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(self.compute_dtype) + 1, self.bias.to(self.compute_dtype)
        return F.layer_norm(x.to(self.compute_dtype), (x.shape[-1],), weight, bias, self.eps)


class UpcastLinear(nn.Linear):
    """Linear layer without bias whose result is float32, whatever its weights are stored in: no product is rounded."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return widened_linear(x, self.weight)


class Rope(nn.Module):
    """Learned rotary frequencies over (time, height, width) (docs/transformer.md, "Rotary embedding")."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        count = head_width // 8
        bands = torch.empty(count)
        if not bands.is_meta:  # where to compute nothing imports the compiler, which takes seconds
            bands = 10000.0 ** (-torch.arange(count, dtype=torch.float32) / count)
        self.bands = nn.Parameter(bands)

    def forward(self, first_frames: Tensor, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(E, frames * height * width, 3 * bands)``, float32.

        Args:
            first_frames: (E,) absolute latent frame at which each entry starts.
            frames, height, width: size of an entry in tokens.
        """
        device = self.bands.device
        extent = math.sqrt(height * width / 256)
        time = first_frames.to(device, torch.float32)[:, None] + torch.arange(frames, device=device)
        rows, columns = (_centred(size, extent, device) for size in (height, width))
        shape = (len(first_frames), frames, height, width, len(self.bands))
        angles = torch.cat(
            [
                (time[..., None] * self.bands)[:, :, None, None].expand(shape),
                (rows[:, None] * self.bands)[None, None, :, None].expand(shape),
                (columns[:, None] * self.bands)[None, None, None].expand(shape),
            ],
            dim=-1,
        ).flatten(1, 3)
        return angles.cos(), angles.sin()


def _centred(size: int, extent: float, device: torch.device) -> Tensor:
    """Positions of a spatial axis: centred, and rescaled so that the picture's area counts as 16 x 16 tokens."""
    positions = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    return positions * ((size / extent - 1) / (size - 1)) if size > 1 else positions


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate the first ``2 * R`` features of each head, half-split; the rest passes. ``x`` (E, N, H, D), ``cos`` (E,
    N, R).

    ``out`` (E, N, H, D) is where the result goes, of any floating dtype, rounded once; not where gradients are taken.
    """
    width = cos.shape[-1]
    a, b, rest = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
    cos, sin = cos[:, :, None], sin[:, :, None]
    if out is None:
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    first, second = a * cos, b * sin
    torch.sub(first, second, out=out[..., :width])
    torch.mul(b, cos, out=first)
    torch.mul(a, sin, out=second)
    torch.add(first, second, out=out[..., width : 2 * width])
    out[..., 2 * width :] = rest
    return out


def norm_rotate(
    x: Tensor,
    norm: OnePlusLayerNorm,
    cos: Tensor,
    sin: Tensor,
    dtype: torch.dtype,
    kernels: FusedKernels | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Heads ``x`` (E, N, H, D), normalised and rotated in float32 and rounded once to ``dtype``; ``x`` is used up.

    ``out`` (E, N, H, D) is where the result goes; not where gradients are taken.
    """
    if functional():
        return rotate(norm(x), cos, sin).to(dtype)
    if kernels is not None:
        # Not over what is read: threads that read a feature's partner may come later.
        out = torch.empty_like(x, dtype=dtype) if out is None else out
        kernels.norm_rotate(x, norm.weight, norm.bias, norm.eps, cos, sin, out)
        return out
    if out is None:
        out = x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    return rotate(norm(x), cos, sin, out=out)


def gated_residual(
    x: Tensor, update: Tensor, gate: Tensor, norm: OnePlusLayerNorm, kernels: FusedKernels | None = None
) -> Tensor:
    """``x + norm(update * gate)`` in float32, rounded once to the dtype of ``x``; ``update`` is used up.

    Args:
        x, update: (E, N, D).
        gate: (E, 1, D).
    """
    if functional():
        return (x.float() + norm(update.float() * gate.float())).to(x.dtype)
    if kernels is not None:
        return kernels.gated_residual(x, update, gate, norm.weight, norm.bias, norm.eps)
    gated = update.mul_(gate) if update.dtype == torch.float32 else update * gate.float()
    normed = norm(gated)
    return torch.add(x, normed, out=normed if normed.dtype == x.dtype else torch.empty_like(x))


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; ``x`` is used up."""
    return F.gelu(x) if functional() else torch.ops.aten.gelu_(x)


def swiglu(x: Tensor, kernels: FusedKernels | None = None) -> Tensor:
    """``silu(gate) * value`` of ``x`` (..., 2F), gate in front: (..., F), float32 rounded once; ``x`` is used up."""
    gate, value = x.chunk(2, dim=-1)
    if functional():
        return (F.silu(gate.float()) * value.float()).to(x.dtype)
    if kernels is not None:
        return kernels.swiglu(x)
    gate = F.silu(gate.float(), inplace=True)
    return torch.mul(gate, value, out=torch.empty_like(value, memory_format=torch.contiguous_format))


class TimestepEmbedder(nn.Module):
    """Sinusoid of a scalar in [0, 1], then a small MLP. Computes in float32 on a sinusoid rounded to the compute
    dtype.
    """

    def __init__(self, width: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.compute_dtype = compute_dtype

    def forward(self, t: Tensor) -> Tensor:
        """``t`` (E,) to (E, width), float32."""
        frequencies = sinusoid_frequencies(t.device)
        # Multiplied in this order: (t * f) * 1000 rounds differently from t * (1000 f).
        angles = (t.float()[:, None] * frequencies) * TIME_FACTOR
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoid.to(self.compute_dtype).float())


def sinusoid_frequencies(device: torch.device) -> Tensor:
    """``exp(-ln(10000) i / 128)``, (128,) float32, the same numbers on every processor.

    exp in float32 is a unit in the last place off now and then, at other places on other processors, and angles of
    several thousand show it: up to 8e-5 of a whole forward. So it is rounded once from float64, and the two numbers
    that the processor of the reference data had rounded the other way are taken as it had them.
    """
    exponent = torch.arange(SINUSOID_WIDTH // 2, dtype=torch.float32, device=device) / (SINUSOID_WIDTH // 2)
    frequencies = torch.exp((-math.log(10000.0) * exponent).double()).float()
    bits = frequencies.view(torch.int32)
    for index, units in REFERENCE_ROUNDING.items():
        bits[index] += units
    return frequencies


class CaptionEmbedder(nn.Module):
    """Projects caption tokens for cross attention, and a learned null row for modulation. Computes in float32."""

    def __init__(self, caption_width: int, caption_length: int, xattn_width: int, condition_width: int) -> None:
        super().__init__()
        null = torch.empty(caption_length, caption_width)
        if not null.is_meta:  # as above
            null.normal_().div_(caption_width**0.5)
        self.null_caption_embedding = nn.Parameter(null)
        self.y_proj_xattn = nn.Sequential(nn.Linear(caption_width, xattn_width), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(caption_width, condition_width))

    def tokens(self, features: Tensor) -> Tensor:
        """(tokens, caption width) to (tokens, xattn width), float32."""
        return self.y_proj_xattn(features.float())

    def modulation(self, row: int) -> Tensor:
        """(condition width,) of one row of the null caption: -2 for a pass with caption, -1 for one without."""
        return self.y_proj_adaln(self.null_caption_embedding[row])


class PatchEmbedder(nn.Module):
    """Latents to tokens, float32: a bias-free convolution whose kernel is its stride, written as a matrix product."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, 1, patch, patch))
        nn.init.xavier_uniform_(self.weight.view(width, -1))
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """(E, C, T, H, W) to (E, T * H/p * W/p, width), tokens ordered (t, h, w)."""
        patches = rearrange(x.float(), "e c t (h p) (w q) -> e (t h w) (c p q)", p=self.patch, q=self.patch)
        return F.linear(patches, self.weight.flatten(1))


class FinalLinear(nn.Module):
    """Tokens to latent patches, float32."""

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels * patch * patch, bias=False)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """(E, n, D), any tokens of the entries, to their patches (E, n, p * p * C). Features: (pH, pW, channel)."""
        return self.linear(x)

    def unpatch(self, patches: Tensor, frames: int, height: int, width: int) -> Tensor:
        """(E, N, p * p * C), all tokens, to (E, C, T, H, W); ``height`` and ``width`` in tokens."""
        return rearrange(
            patches,
            "e (t h w) (p q c) -> e c t (h p) (w q)",
            t=frames,
            h=height,
            w=width,
            p=self.patch,
            q=self.patch,
        )
