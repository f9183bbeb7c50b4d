"""The parts both halves of the VAE are made of: configuration, attention, block, position embedding.

Source: docs/conditioning.md, "VAE configuration" and "VAE blocks".
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

_NORM_EPS = 1e-5
# Below what the deviation plus _NORM_EPS can resolve in float32; only there so that sqrt has a gradient at zero spread.
_SMALLEST_VARIANCE = 1e-30

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class VitConfig:
    """The ``ddconfig`` dictionary of a published VAE, with its defaults; both halves share one.

    Sizes are in pixels (``video_size``, ``patch_size``) and frames (``video_length``, ``patch_length``).
    ``qk_scale`` and ``drop_path_rate`` have no effect; ``drop_rate`` has none outside the original training.
    """

    video_size: int = 256
    video_length: int = 16
    patch_size: int = 8
    patch_length: int = 4
    in_chans: int = 3
    z_chans: int = 4
    double_z: bool = True
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    with_cls_token: bool = True
    norm_code: bool = False
    ln_in_attn: bool = False
    conv_last_layer: bool = False
    use_rope: bool = False
    use_final_proj: bool = False

    @classmethod
    def from_dict(cls, ddconfig: dict[str, Any]) -> "VitConfig":
        """Read a ``ddconfig``; raises ``ValueError`` for unknown keys and for configurations that cannot work."""
        known = {field.name: field.type for field in fields(cls)}
        if unknown := sorted(set(ddconfig) - set(known)):
            raise ValueError(f"VAE ddconfig has unknown keys {unknown}; known keys: {sorted(known)}")
        for key, value in ddconfig.items():
            # isinstance alone would take True for the number 1.
            accepted = known[key] if known[key] in (bool, int) else (int, float, type(None))
            if not isinstance(value, accepted) or isinstance(value, bool) != (accepted is bool):
                raise ValueError(f"VAE ddconfig: {key} must be of type {known[key]}, got {value!r}")
        config = cls(**ddconfig)
        config._refuse_what_cannot_work()
        return config

    @property
    def native_grid(self) -> Grid:
        """Latent frames, rows and columns the position embedding is stored for."""
        side = self.video_size // self.patch_size
        return self.video_length // self.patch_length, side, side

    @property
    def patch_volume(self) -> int:
        """Pixels per channel in one patch."""
        return self.patch_length * self.patch_size**2

    @property
    def pixel_channels(self) -> int:
        """Channels per pixel in front of the decoder's last convolution."""
        return 4 if self.use_final_proj else self.embed_dim // self.patch_volume

    def _refuse_what_cannot_work(self) -> None:
        if self.use_rope:
            raise ValueError("VAE use_rope=True: the published model cannot run with it; set use_rope to false")
        if not self.conv_last_layer:
            raise ValueError("VAE conv_last_layer=False: the decoder has no other last layer; set it to true")
        if not self.double_z:
            raise ValueError(
                f"VAE double_z=False: the encoder would give latents of {self.z_chans // 2} channels, "
                f"which a decoder for z_chans={self.z_chans} cannot read; set double_z to true"
            )
        if self.attn_drop_rate:
            raise ValueError(
                f"VAE attn_drop_rate={self.attn_drop_rate}: only 0 gives a deterministic result; set it to 0"
            )
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}
        if min(sizes.values()) < 1 or self.video_length < self.patch_length or self.video_size < self.patch_size:
            raise ValueError(f"VAE sizes must be positive, and those of a video at least those of a patch; got {sizes}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"VAE embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if not self.use_final_proj and self.embed_dim % self.patch_volume:
            raise ValueError(
                f"VAE embed_dim={self.embed_dim} without use_final_proj must be a multiple of the pixels in a patch, "
                f"{self.patch_length}*{self.patch_size}*{self.patch_size}={self.patch_volume}"
            )


def attention_norm(x: torch.Tensor) -> torch.Tensor:
    """``(x - mean) / (biased deviation + 1e-5)`` over the last axis, in ``x``'s own dtype, without parameters.

    The epsilon is added to the deviation, not to the variance (docs/conditioning.md, "VAE blocks").
    """
    variance = x.var(dim=-1, correction=0, keepdim=True).clamp_min(_SMALLEST_VARIANCE)
    return (x - x.mean(dim=-1, keepdim=True)) / (variance.sqrt() + _NORM_EPS)


def resize_position_embedding(embedding: torch.Tensor, native: Grid, grid: Grid) -> torch.Tensor:
    """Resize a position embedding (1, native tokens, channels) without class token entry to another grid.

    Trilinear, ``align_corners`` off, no antialiasing. Returns (1, tokens of ``grid``, channels).
    """
    if native == grid:
        return embedding
    t, h, w = native
    volume = rearrange(embedding, "n (t h w) c -> n c t h w", t=t, h=h, w=w)
    resized = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return rearrange(resized, "n c t h w -> n (t h w) c")


class Attention(nn.Module):
    """Full self-attention over all tokens; with ``ln_in_attn`` q, k and v are normalised per token and head."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.ln_in_attn = config.ln_in_attn
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, embed_dim) -> (N, tokens, embed_dim)."""
        qkv = rearrange(self.qkv(x), "n l (three h d) -> three n h l d", three=3, h=self.num_heads)
        if self.ln_in_attn:
            qkv = attention_norm(qkv)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(rearrange(attended, "n h l d -> n l (h d)"))


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; with ``ln_in_attn`` the raw residual stream enters the attention."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if config.ln_in_attn else nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        self.mlp = Mlp(config.embed_dim, int(config.embed_dim * config.mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenTransformer(nn.Module):
    """What encoder and decoder have in common: class token, position embedding, blocks, final norm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.vit_config = config
        t, h, w = config.native_grid
        class_tokens = int(config.with_cls_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.with_cls_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, t * h * w + class_tokens, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def transform(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Run the blocks on tokens (N, t*h*w, embed_dim) in the order time, row, column.

        Returns the normalised tokens with the class token, if there is one, still in front.
        """
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = tokens + self._positions(grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def drop_class_token(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.cls_token is None else tokens[:, 1:]

    def _positions(self, grid: Grid) -> torch.Tensor:
        native = self.vit_config.native_grid
        if grid == native:
            return self.pos_embed
        if self.cls_token is None:
            raise ValueError(
                f"a VAE without class token works at its native size only: latent grid {native} "
                f"(frames, rows, columns), got {grid}"
            )
        resized = resize_position_embedding(self.pos_embed[:, 1:], native, grid)
        return torch.cat([self.pos_embed[:, :1], resized], dim=1)
