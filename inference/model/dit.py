"""The MAGI-1 video transformer (docs/transformer.md).

The model is told everything by its arguments: which chunks (*entries*) to compute, at which noise level, with which
caption, where in time, and through which attention context their keys reach it. It keeps no state between forwards
and knows neither schedule nor caching.

Shape letters: E entries, N tokens of a chunk, D hidden width, H heads, G key/value groups, d head width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from inference.config import PROJECTION_SHARDS, ModelConfig
from inference.model.attention import BACKENDS, cross_attend_heads
from inference.model.fp8 import DEQUANTISE, Fp8Linear
from inference.model.fused import FusedKernels
from inference.model.layers import (
    CaptionEmbedder,
    FinalLinear,
    OnePlusLayerNorm,
    PatchEmbedder,
    Rope,
    TimestepEmbedder,
    UpcastLinear,
    gated_residual,
    gelu,
    norm_rotate,
    swiglu,
)
from inference.model.products import functional, hidden_blocks
from inference.parallel.group import ALONE, ContextParallel
from inference.placement.streaming import StreamedLayers

CONDITIONAL_ROW = -2
DROPPED_ROW = -1


@dataclass(frozen=True)
class Captions:
    """Caption tokens of the entries of a forward, packed one entry after the other.

    ``features`` (sum of lengths, caption width), ``lengths`` tokens of each entry (0 is allowed).
    """

    features: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[Tensor]) -> "Captions":
        """From one (m, caption width) tensor per entry."""
        return cls(torch.cat(list(entries)), tuple(len(entry) for entry in entries))


class AttentionContext(Protocol):
    """What a forward attends to: the KV cache in a sampling run, a masked batch in training."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Iterable[Tensor]:
        """``q`` (E, N, H, d), fresh ``kv`` (E, N, G, 2d) to the result of every entry in turn, (N, H, d) or (N, H * d).
        H and G are those of this rank.
        """
        ...


@dataclass(frozen=True)
class _Inputs:
    """What a layer sees besides the tokens. ``cos`` and ``sin`` are those of this rank's tokens."""

    condition: Tensor  # (E, C), compute dtype
    caption: Tensor  # (tokens, D), compute dtype
    lengths: tuple[int, ...]
    cos: Tensor
    sin: Tensor
    context: AttentionContext
    backend: str
    tokens: int  # N, all tokens of a chunk
    parallel: ContextParallel
    kernels: FusedKernels | None
    layer: int = 0  # here and not an argument: to a compiled layer a number is a reason to be compiled anew


class Fp8Choice(NamedTuple):
    """How layers with float8 weights multiply, and what quantises their input."""

    matmul: str
    kernels: FusedKernels | None

    def linear(self, inputs: int, outputs: int, *, per_channel: bool) -> Fp8Linear:
        return Fp8Linear(inputs, outputs, per_channel=per_channel, matmul=self.matmul, kernels=self.kernels)


class QkvProjection(nn.Module):
    """LayerNorm, then the four projections of an attention block: q, qx (cross attention), k, v."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, fp8: Fp8Choice | None) -> None:
        super().__init__()
        width, kv_width = config.hidden_size, config.num_query_groups * config.kv_channels
        self.layer_norm = nn.LayerNorm(width, config.layernorm_epsilon, dtype=dtype)
        self.q = _linear(width, width, dtype, fp8)
        self.qx = _linear(width, width, dtype, fp8)
        self.k = _linear(width, kv_width, dtype, fp8)
        self.v = _linear(width, kv_width, dtype, fp8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.layer_norm(x)
        return self.q(x), self.qx(x), self.k(x), self.v(x)


class Attention(nn.Module):
    """Self and cross attention side by side, joined by one projection that returns float32 (bfloat16 where it is
    fp8).
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, fp8: Fp8Choice | None) -> None:
        super().__init__()
        width, head, eps = config.hidden_size, config.kv_channels, config.layernorm_epsilon
        self.head = head
        self.attend: Callable[..., Tensor] = _attend  # where layers are compiled, one that compilers leave alone
        self.linear_qkv = QkvProjection(config, dtype, fp8)
        xattn_width = int(width * config.xattn_cond_hidden_ratio)
        self.linear_kv_xattn = nn.Linear(xattn_width, 2 * config.num_query_groups * head, bias=False, dtype=dtype)
        if fp8:
            self.linear_proj: nn.Module = fp8.linear(2 * width, width, per_channel=True)
        else:
            self.linear_proj = UpcastLinear(2 * width, width, dtype)
        self.q_layernorm = OnePlusLayerNorm(head, eps, dtype)
        self.k_layernorm = OnePlusLayerNorm(head, eps, dtype)
        self.q_layernorm_xattn = OnePlusLayerNorm(head, eps, dtype, compute_dtype=dtype)
        self.k_layernorm_xattn = OnePlusLayerNorm(head, eps, dtype, compute_dtype=dtype)

    def forward(self, x: Tensor, inputs: _Inputs) -> Tensor:
        q, qx, k, v = (rearrange(p, "e n (h d) -> e n h d", d=self.head) for p in self.linear_qkv(x))
        positions = inputs.cos, inputs.sin, x.dtype, inputs.kernels
        q = norm_rotate(q, self.q_layernorm, *positions)
        if functional():
            kv = torch.cat([norm_rotate(k, self.k_layernorm, *positions), v], dim=-1)
        else:
            kv = x.new_empty(*k.shape[:-1], 2 * self.head)
            norm_rotate(k, self.k_layernorm, *positions, out=kv[..., : self.head])
            kv[..., self.head :] = v
        kx, vx = rearrange(self.linear_kv_xattn(inputs.caption), "m (g two d) -> two m g d", two=2, d=self.head)
        qx, kx = self.q_layernorm_xattn(qx), self.k_layernorm_xattn(kx)
        del k, v
        both = self.attend(q, kv, qx, kx, vx, inputs)
        del q, kv, qx  # large, and of no use to the projection
        return self.linear_proj(both)


def _attend(q: Tensor, kv: Tensor, qx: Tensor, kx: Tensor, vx: Tensor, inputs: _Inputs) -> Tensor:
    """Self and cross attention side by side, (E, n, 2 * H * d), n the tokens of this rank.

    They lie in the order that the training's eight tensor-parallel ranks left in the weights of the projection: each
    concatenated its share of both.
    """
    cross = cross_attend_heads(qx, kx, vx, inputs.lengths, inputs.backend)
    q, kv = inputs.parallel.to_heads(q, kv, inputs.tokens)
    results = inputs.context.attend(inputs.layer, q, kv)
    if inputs.parallel.ranks > 1:
        results = inputs.parallel.to_tokens(torch.stack([result.flatten(1) for result in results]))
    if torch.is_grad_enabled():
        halves = torch.stack([torch.stack([result.flatten(1) for result in results]), cross.flatten(2)])
        return rearrange(halves, "two e n (s f) -> e n (s two f)", s=PROJECTION_SHARDS)
    both = qx.new_empty(*qx.shape[:2], PROJECTION_SHARDS, 2, qx[0, 0].numel() // PROJECTION_SHARDS)
    _by_shards(both[..., 1, :], cross)
    del cross, qx
    for entry, result in enumerate(results):
        _by_shards(both[entry, :, :, 0], result)
    return both.flatten(2)


def _by_shards(room: Tensor, result: Tensor) -> None:
    """Copy ``result`` (..., n, H, d), of any strides, or (..., n, H * d) to ``room`` (..., n, shards, width of one)."""
    shards = room.shape[-2]
    if result.ndim == room.ndim and result.shape[-2] % shards == 0:
        room.unflatten(-1, (-1, result.shape[-1])).copy_(result.unflatten(-2, (shards, -1)))
    else:
        room.copy_(result.reshape(room.shape))


class FeedForward(nn.Module):
    """LayerNorm, fc1, activation, fc2: exact GELU, or SwiGLU where ``gated_linear_unit`` is set."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, fp8: Fp8Choice | None) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_hidden_size
        self.gated = config.gated_linear_unit
        self.layer_norm = nn.LayerNorm(width, config.layernorm_epsilon, dtype=dtype)
        self.linear_fc1 = _linear(width, inner * (2 if self.gated else 1), dtype, fp8)
        self.linear_fc2: nn.Module = (
            fp8.linear(inner, width, per_channel=True) if fp8 else _linear(inner, width, dtype, fp8=None)
        )

    def forward(self, x: Tensor, kernels: FusedKernels | None) -> Tensor:
        rows = x.flatten(0, 1)
        blocks = hidden_blocks(len(rows), self.linear_fc1.weight.shape[-2], x.dtype.itemsize)
        if functional() or blocks == 1:
            return self._rows(x, kernels)
        out: Tensor | None = None
        for index, block in enumerate(rows.tensor_split(blocks)):
            result = self._rows(block, kernels)
            out = result.new_empty(len(rows), result.shape[-1]) if out is None else out
            out.tensor_split(blocks)[index].copy_(result)
        return out.unflatten(0, x.shape[:2])

    def _rows(self, x: Tensor, kernels: FusedKernels | None) -> Tensor:
        hidden = self.linear_fc1(self.layer_norm(x))
        hidden = swiglu(hidden, kernels) if self.gated else gelu(hidden)
        return self.linear_fc2(hidden)


class Modulation(nn.Module):
    """Condition to the two gates of a layer, soft-capped at 1 by a tanh."""

    def __init__(self, config: ModelConfig, condition_width: int, dtype: torch.dtype) -> None:
        super().__init__()
        outputs = int(config.hidden_size * config.cond_gating_ratio * 2)
        self.proj = nn.Sequential(nn.Linear(condition_width, outputs, dtype=dtype))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(E, C) to two gates (E, 1, D) in the compute dtype, the tanh itself evaluated in float32."""
        raw = self.proj(F.silu(condition))
        gate = torch.tanh(raw.float()).to(raw.dtype)
        gate_attention, gate_mlp = gate[:, None].chunk(2, dim=-1)
        return gate_attention, gate_mlp


class Layer(nn.Module):
    """One transformer layer: gated attention and gated feed-forward, each normalised after the gate, in float32."""

    def __init__(self, config: ModelConfig, condition_width: int, dtype: torch.dtype, fp8: Fp8Choice | None) -> None:
        super().__init__()
        self.ada_modulate_layer = Modulation(config, condition_width, dtype)
        self.self_attention = Attention(config, dtype, fp8)
        self.self_attn_post_norm = OnePlusLayerNorm(config.hidden_size, config.layernorm_epsilon, dtype)
        self.mlp = FeedForward(config, dtype, fp8)
        self.mlp_post_norm = OnePlusLayerNorm(config.hidden_size, config.layernorm_epsilon, dtype)

    def forward(self, x: Tensor, inputs: _Inputs) -> Tensor:
        gate_attention, gate_mlp = self.ada_modulate_layer(inputs.condition)
        kernels = inputs.kernels
        x = gated_residual(x, self.self_attention(x, inputs), gate_attention, self.self_attn_post_norm, kernels)
        return gated_residual(x, self.mlp(x, kernels), gate_mlp, self.mlp_post_norm, kernels)


class Blocks(nn.Module):
    """The layers and the final norm (named as in the checkpoints)."""

    def __init__(self, config: ModelConfig, condition_width: int, dtype: torch.dtype, fp8: Fp8Choice | None) -> None:
        super().__init__()
        last = config.num_layers - 1
        self.layers = nn.ModuleList(
            Layer(config, condition_width, dtype, fp8 if 0 < index < last else None)
            for index in range(config.num_layers)
        )
        self.final_layernorm = OnePlusLayerNorm(config.hidden_size, config.layernorm_epsilon, dtype)
        # The same layers one after the other, where their weights are fetched one after the other
        # (``inference.placement.streaming``).
        self.streamed: Iterable[nn.Module] | None = None

    def forward(self, x: Tensor, inputs: _Inputs) -> Tensor:
        for index, layer in enumerate(self.layers if self.streamed is None else self.streamed):
            x = layer(x, replace(inputs, layer=index))
        return self.final_layernorm(x)


class VideoDiT(nn.Module):
    """MAGI-1's transformer: velocity ``dx/dt`` of flow matching for a set of chunks.

    Args:
        config: the ``model_config`` section.
        distill: the model takes the step-size scalar (it has no parameters of its own for it).
        fp8: all layers but the first and the last hold float8 weights.
        fp8_matmul: how those multiply, "dequantise" or "scaled_mm" (``inference.model.fp8``).
        backend: attention back end, one of ``inference.model.attention.BACKENDS`` (``resolve_backend`` knows which can
            be used where).
        kernels: what does elementwise work, None for PyTorch's operators (``inference.model.fused``).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        distill: bool = False,
        fp8: bool = False,
        fp8_matmul: str = DEQUANTISE,
        backend: str = "sdpa",
        kernels: FusedKernels | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.distill = distill
        if backend not in BACKENDS:
            raise ValueError(f"attention back end {backend!r} is none of {', '.join(BACKENDS)}; see resolve_backend")
        self.backend = backend
        self.fp8_matmul = fp8_matmul if fp8 else None
        self.dtype = config.dtype
        condition_width = int(config.hidden_size * config.cond_hidden_ratio)
        xattn_width = int(config.hidden_size * config.xattn_cond_hidden_ratio)
        self.x_embedder = PatchEmbedder(config.in_channels, config.hidden_size, config.patch_size)
        self.t_embedder = TimestepEmbedder(condition_width, self.dtype)
        self.y_embedder = CaptionEmbedder(
            config.caption_channels, config.caption_max_length, xattn_width, condition_width
        )
        self.rope = Rope(config.kv_channels)
        multiplies = Fp8Choice(fp8_matmul, kernels) if fp8 else None
        self.videodit_blocks = Blocks(config, condition_width, self.dtype, multiplies)
        self.final_linear = FinalLinear(config.hidden_size, config.out_channels, config.patch_size)

    def stream_layers(self, device: torch.device) -> "VideoDiT":
        """Leave the loaded layers in host memory and stream them to ``device``; move the rest there; returns self."""
        self.videodit_blocks.streamed = StreamedLayers(self.videodit_blocks.layers, device)
        return self.to(device)

    def embed(self, latents: Tensor) -> Tensor:
        """Patch-embedded latents (E, N, D) in the compute dtype; also what caching policies measure.

        Args:
            latents: (E, 16, T, H, W), H and W divisible by the patch.
        """
        scaled = latents.float() * self.config.x_rescale_factor
        if self.config.half_channel_vae:
            scaled = torch.cat([scaled, scaled], dim=1)
        return self.x_embedder(scaled).to(self.dtype)

    def condition(self, t: Tensor, row: int, step_scalar: float | None) -> Tensor:
        """Modulation input (E, C), float32: time, step size (distilled models) and one row of the null caption,
        added.
        """
        embedding = self.t_embedder(t)
        if self.distill:
            if step_scalar is None:
                raise ValueError("a distilled model needs step_scalar (num_steps / 4 * 2)")
            embedding = embedding + self.t_embedder(t.new_tensor([step_scalar]))
        return embedding + self.y_embedder.modulation(row)

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        captions: Captions,
        context: AttentionContext,
        *,
        first_frames: Sequence[int],
        adaln_row: int = CONDITIONAL_ROW,
        step_scalar: float | None = None,
        parallel: ContextParallel = ALONE,
    ) -> Tensor:
        """Velocity of every entry.

        Args:
            latents: (E, 16, T, H, W).
            t: (E,) noise level of each entry, 0 noise, 1 clean.
            captions: caption tokens of each entry.
            context: where the entries' keys go and what they attend to.
            first_frames: absolute latent frame at which each entry starts.
            adaln_row: row of the null caption for the modulation: -2 with caption, -1 with the caption dropped.
            step_scalar: step-size scalar of a distilled model; ignored by others.
            parallel: the ranks that compute this forward together; every one gives the same arguments and gets the
                whole result.

        Returns:
            (E, 16, T, H, W), float32.
        """
        _, channels, frames, height, width = latents.shape
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        cos, sin = self.rope(torch.as_tensor(first_frames), frames, rows, columns)
        inputs = _Inputs(
            condition=self.condition(t, adaln_row, step_scalar).to(self.dtype),
            caption=self.y_embedder.tokens(captions.features).to(self.dtype),
            lengths=captions.lengths,
            cos=parallel.shard(cos),
            sin=parallel.shard(sin),
            context=context,
            backend=self.backend,
            tokens=cos.shape[1],
            parallel=parallel,
            kernels=self.kernels,
        )
        x = parallel.shard(self.embed(latents))  # (E, n, D), of N tokens the n of this rank
        x = self.videodit_blocks(x, inputs)  # (E, n, D) float32
        patches = parallel.gather(self.final_linear(x), inputs.tokens)  # (E, N, p * p * C)
        velocity = self.final_linear.unpatch(patches, frames, rows, columns)  # (E, C, T, H, W)
        return velocity[:, :channels] / self.config.x_rescale_factor


def _linear(inputs: int, outputs: int, dtype: torch.dtype, fp8: Fp8Choice | None) -> nn.Module:
    """A layer without bias; ``fp8`` says how one with float8 weights multiplies, None that it has none."""
    if fp8:
        return fp8.linear(inputs, outputs, per_channel=False)
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)
