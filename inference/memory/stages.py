"""What one forward of the transformer and one decoded chunk hold at most, beside the weights: formulas, nothing run.

Each formula lists the tensors that are alive together at the places where memory peaks, in bytes per token, as read
off ``inference/model/dit.py``, ``layers.py``, ``vit_blocks.py`` and ``tiling.py``; the largest place counts
(docs/memory.md, "What the estimates count"). Kernels that keep something of their own are not known here.

Letters: D hidden width, F inner width of the feed-forward, KV key/value groups times head width, b bytes of the
compute dtype, 4 bytes of float32. Float32 copies cost nothing where b is 4 already.
"""

import math
from dataclasses import dataclass

import torch

from inference.config import VAE_CHANNELS, ModelConfig
from inference.video.tiling import Reduction, TileSpec
from inference.video.vit_blocks import VitConfig

FLOAT = 4


@dataclass(frozen=True)
class ForwardShape:
    """A forward of the transformer: entries (chunks computed together), tokens of a chunk, caption tokens of all."""

    entries: int
    chunk_tokens: int
    caption_tokens: int


@dataclass(frozen=True)
class Peak:
    """Bytes at the place ``at`` where a stage holds most."""

    bytes: int
    at: str


def forward_peak(model: ModelConfig, shape: ForwardShape, *, fp8: bool = False, ranks: int = 1) -> Peak:
    """Peak of one forward of the transformer on one of ``ranks``, its result included, its inputs not."""
    width, b = model.hidden_size, model.dtype.itemsize
    tokens = shape.entries * -(-shape.chunk_tokens // ranks)
    bands = 3 * (model.kv_channels // 8)
    # Alive in every layer: the embedded latents, the layer's input, cosines and sines of the positions.
    held = tokens * (2 * width * b + 2 * bands * FLOAT)
    if ranks > 1:
        held += 2 * bands * FLOAT * shape.entries * shape.chunk_tokens
    captions = shape.caption_tokens * width * b
    places = _fp8_places(model, tokens, shape.caption_tokens) if fp8 else {}
    places |= _layer_places(model, tokens, shape.caption_tokens, ranks)
    at = max(places, key=lambda place: places[place])
    return Peak(held + captions + places[at], at)


def _projected(model: ModelConfig, tokens: int, caption_tokens: int) -> int:
    """Queries of both attentions, keys, values, and both side by side as the cache stores them; of the captions keys
    and values as they come, and the keys normalised.
    """
    kv = model.num_query_groups * model.kv_channels
    return model.dtype.itemsize * (tokens * (2 * model.hidden_size + 4 * kv) + caption_tokens * 3 * kv)


def _layer_places(model: ModelConfig, tokens: int, caption_tokens: int, ranks: int) -> dict[str, int]:
    """Bytes alive at the candidates for a layer's peak, by name of the place."""
    width, inner, b = model.hidden_size, model.ffn_hidden_size, model.dtype.itemsize
    upcast = 0 if b == FLOAT else FLOAT
    projected = _projected(model, tokens, caption_tokens)
    # Both attentions' results, the two joined, and what the last projection makes of them in float32; its weights too.
    joined = 2 * width * b + 2 * width * (b + upcast) + width * FLOAT
    places = {
        "joining both attentions": projected + tokens * 6 * width * b,
        "attention output": projected + tokens * joined + upcast * 2 * width * width,
    }
    # The attention's result in float32 stays; the layer's own tokens; hidden values before and after the activation.
    kept = width * FLOAT + width * b
    hidden = b * (inner * 4 if model.gated_linear_unit else inner * 2 + width)
    places["feed-forward"] = tokens * (kept + hidden)
    # Both results in float32, tokens, gated result and its norm.
    places["second residual"] = tokens * (kept + width * (3 * FLOAT + upcast))
    if ranks > 1:
        # Queries, keys and values on their way to the ranks that own their heads: packed, sent, received.
        kv = model.num_query_groups * model.kv_channels
        places["exchange"] = projected + tokens * 3 * b * (width + 2 * kv)
    return places


def _fp8_places(model: ModelConfig, tokens: int, caption_tokens: int) -> dict[str, int]:
    """The layers with float8 weights by dequantisation: weights, quantised input and products in float32."""
    width, inner, b = model.hidden_size, model.ffn_hidden_size, model.dtype.itemsize
    outer = inner * (2 if model.gated_linear_unit else 1)
    kept = width * FLOAT + width * b
    return {
        "feed-forward in fp8, into the products' scales": tokens * (kept + width * (b + 1) + 3 * outer * FLOAT),
        "feed-forward in fp8, back": tokens * (kept + b * outer + inner * (b + 1 + FLOAT) + width * FLOAT)
        + FLOAT * inner * width,
        "attention output in fp8": _projected(model, tokens, caption_tokens)
        + tokens * width * (4 * b + 2 * (1 + FLOAT) + FLOAT)
        + FLOAT * 2 * width * width,
    }


def decode_peak(
    vit: VitConfig, tiles: TileSpec, latent: tuple[int, int, int], dtype: torch.dtype, ranks: int = 1
) -> Peak:
    """Peak of decoding one chunk of ``latent`` (frames, rows, columns), its frames included."""
    b = dtype.itemsize
    layouts = tiles.decode_layout(torch.Size((1, VAE_CHANNELS, *latent)), Reduction(vit.patch_length, vit.patch_size))
    pixels = 3 * vit.patch_volume * b
    sizes = [
        (math.prod(size), row > 0 or column > 0)
        for t in layouts[0].sizes
        for row, h in enumerate(layouts[1].sizes)
        for column, w in enumerate(layouts[2].sizes)
        for size in [(t, h, w)]
    ]
    raw = pixels * sum(size for size, _ in sizes)
    blended = pixels * sum(size for size, touches in sizes if touches)
    video = pixels * math.prod(latent)
    largest = max(size for size, _ in sizes)
    exchange = 0 if ranks == 1 else raw // ranks * 2
    places = {
        "last tile": raw - pixels * largest + largest * _tile_bytes_per_token(vit, b),
        "assembly": raw + exchange + blended + 2 * video + video // len(layouts[0].sizes),
        "bytes of the frames": 3 * video + video // b,
    }
    at = max(places, key=lambda place: places[place])
    return Peak(places[at] + FLOAT * VAE_CHANNELS * math.prod(latent), at)


def _tile_bytes_per_token(vit: VitConfig, b: int) -> int:
    """Most that the decoder holds of a tile, per token."""
    width, hidden, patch = vit.embed_dim, int(vit.embed_dim * vit.mlp_ratio), vit.patch_volume
    # Embedded latents, the same with a class token, the residual stream.
    held = 3 * width
    # Queries, keys and values as they are, less their mean, and normalised.
    attention = held + (9 * width if vit.ln_in_attn else 4 * width)
    # The stream with the attention added, its norm, hidden values before and after the activation.
    mlp = held + 2 * width + 2 * hidden
    # Projected patches, normalised, in the order of pixels, twice, and the picture.
    last = 3 * width + vit.pixel_channels * patch * 3 + 3 * patch
    return b * max(attention, mlp, last)
