"""What one forward of the transformer and one decoded chunk hold at most, beside the weights: formulas, nothing run.

Each formula lists the tensors that are alive together at the places where memory peaks, in bytes per token, as read
off ``inference/model/dit.py``, ``layers.py``, ``vit_blocks.py`` and ``tiling.py``; the largest place counts
(docs/memory.md, "What the estimates count"). Kernels that keep something of their own are not known here.

Letters: D hidden width, F inner width of the feed-forward, KV key/value groups times head width, b bytes of the
compute dtype, 4 bytes of float32. Float32 copies cost nothing where b is 4 already.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from inference.config import VAE_CHANNELS, ModelConfig
from inference.model.fp8 import BLOCK_ROWS, SCALED_MM
from inference.model.products import hidden_blocks
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


def forward_peak(
    model: ModelConfig, shape: ForwardShape, *, device: torch.device, fp8: str | None = None, ranks: int = 1
) -> Peak:
    """Peak of one forward of the transformer on one of ``ranks``, its result included, its inputs not.

    ``fp8``: how layers with float8 weights multiply (``inference.model.fp8``); None where there are none. A GPU widens
    no factor to float32 (``inference.model.products``).
    """
    width, b = model.hidden_size, model.dtype.itemsize
    tokens = shape.entries * -(-shape.chunk_tokens // ranks)
    bands = 3 * (model.kv_channels // 8)
    # Alive in every layer: the embedded latents, the layer's input, cosines and sines of the positions.
    held = tokens * (2 * width * b + 2 * bands * FLOAT)
    if ranks > 1:
        held += 2 * bands * FLOAT * shape.entries * shape.chunk_tokens
    captions = shape.caption_tokens * width * b
    widened = device.type != "cuda"
    places = _fp8_places(model, tokens, fp8, widened) if fp8 else {}
    places |= _layer_places(model, shape.entries, tokens, shape.caption_tokens, ranks, widened)
    at = max(places, key=lambda place: places[place])
    return Peak(held + captions + places[at], at)


def _layer_places(
    model: ModelConfig, entries: int, tokens: int, caption_tokens: int, ranks: int, widened: bool
) -> dict[str, int]:
    """Bytes alive at the candidates for a layer's peak, by name of the place."""
    width, inner, b = model.hidden_size, model.ffn_hidden_size, model.dtype.itemsize
    kv = model.num_query_groups * model.kv_channels
    upcast, one_entry = 0 if b == FLOAT else FLOAT, tokens // entries
    turned = 2 * 3 * (model.kv_channels // 8) * model.num_attention_heads  # numbers of a token that are rotated
    # Of the captions keys and values as they come, and the keys normalised.
    captions = caption_tokens * 3 * kv * b
    places = {
        "norm of the queries": tokens * (2 * width * b + 2 * kv * b + width * (upcast + FLOAT)),
        "rotation of the queries": tokens * (2 * width * b + kv * (b + FLOAT) + (width + turned) * FLOAT),
        # Queries of both attentions, keys beside values, the room for both results, and of all entries the result of
        # the captions' attention or of one entry the queries in the kernel's order and its result.
        "joining both attentions": (tokens * (4 * width + 2 * kv) + max(tokens, 2 * one_entry) * width) * b + captions,
        # Both attentions and what the projection makes of them in float32; its factors too where they are widened.
        "attention output": tokens * (2 * width * (b + widened * upcast) + width * FLOAT)
        + widened * upcast * 2 * width * width
        + captions,
    }
    # The layer's own tokens; their norm or the result; hidden values, before and after the activation where gated.
    hidden = (
        max(b * width + 2 * b * inner, inner * (3 * b + upcast)) if model.gated_linear_unit else b * (width + inner)
    )
    outer = inner * (2 if model.gated_linear_unit else 1)
    places["feed-forward"] = _in_blocks(tokens, width, outer, b, lambda rows: rows * (width * b + hidden))
    # Own tokens, result, the same gated, its norm, and the sum: in float32 two of them are written over others.
    places["second residual"] = tokens * width * (3 * FLOAT if b == FLOAT else 3 * b + 2 * FLOAT)
    if ranks > 1:
        # Queries, keys and values on their way to the ranks that own their heads: packed, sent, received.
        exchanged = 2 * width + 2 * kv + 3 * (width + 2 * kv)
        places["exchange"] = tokens * (exchanged + width) * b + captions
        places["exchange of results"] = tokens * (6 * width + 2 * kv) * b + captions
    return places


def _in_blocks(tokens: int, width: int, outer: int, b: int, alive: Callable[[int], int]) -> int:
    """Most that a feed-forward holds, ``alive`` for some rows; of several blocks beside the room for all results."""
    blocks = hidden_blocks(tokens, outer, b)
    return alive(tokens) if blocks == 1 else tokens * width * b + alive(-(-tokens // blocks))


def _fp8_places(model: ModelConfig, tokens: int, matmul: str, widened: bool) -> dict[str, int]:
    """The layers with float8 weights: quantised input, its factors where they are widened, and the product."""
    width, inner, b = model.hidden_size, model.ffn_hidden_size, model.dtype.itemsize
    outer = inner * (2 if model.gated_linear_unit else 1)
    # ``between``: numbers between float32 and fp8 of the rows that are quantised at a time.

    def product(inputs: int, outputs: int, tokens: int = tokens) -> int:
        """From an input of ``inputs`` numbers, itself not counted, to its product, most that is alive."""
        between = min(tokens, BLOCK_ROWS) * (FLOAT + b)
        if matmul == SCALED_MM:
            return max(between * inputs, tokens * outputs * b) + tokens * inputs
        factor = FLOAT if widened else b
        multiplying = tokens * (factor * inputs + FLOAT * outputs) + factor * inputs * outputs
        rounding = tokens * outputs * (FLOAT + b) + (0 if widened else factor * (tokens * inputs + inputs * outputs))
        return max(between * inputs, multiplying, rounding) + tokens * inputs

    return {
        "feed-forward in fp8": _in_blocks(
            tokens, width, outer, b, lambda rows: rows * 2 * width * b + product(width, outer, rows)
        ),
        "feed-forward in fp8, back": _in_blocks(
            tokens, width, outer, b, lambda rows: rows * (width + inner) * b + product(inner, width, rows)
        ),
        "attention output in fp8": tokens * 2 * width * b + product(2 * width, width),
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
