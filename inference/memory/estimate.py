"""How much memory a run needs, part by part, from its configuration: nothing is loaded, run or allocated.

Weights are counted on the model built without memory (torch's meta device), caches and stages by formula. What the
parts mean, and how far they are from what is measured: docs/memory.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference.config import VAE_SPATIAL_FACTOR, MagiConfig, resolve_path
from inference.files import read_json
from inference.kv_cache import KVCache
from inference.memory.stages import ForwardShape, Peak, decode_peak, forward_peak
from inference.model.dit import VideoDiT
from inference.model.fp8 import DEQUANTISE, SCALED_MM, resolve_fp8_matmul
from inference.sampler import kv_geometry
from inference.schedule import Schedule
from inference.text.t5 import T5_FOLDER
from inference.video.codec import tiles_for
from inference.video.vae import CONFIG_NAME, ViTVAE
from inference.video.vit_blocks import VitConfig

# Of each chunk in the window, by any method: two velocities, and what was gained since where that is corrected.
MOST_REMEMBERED = 3
FLOAT = 4

# What is published, for where its config.json is not there yet (docs/conditioning.md, "VAE configuration" and
# "T5 text encoder"; t5-v1_1-xxl's own configuration).
PUBLISHED_VAE = {
    **{"embed_dim": 1024, "depth": 24, "num_heads": 16, "z_chans": 16, "qkv_bias": True},
    **{"ln_in_attn": True, "conv_last_layer": True, "use_final_proj": True},
}
PUBLISHED_T5 = {
    **{"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    **{"relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu"},
}


@dataclass(frozen=True)
class TransformerSize:
    """Bytes of the transformer's weights: everything outside its layers, and each layer."""

    outside: int
    layers: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.outside + sum(self.layers)

    @property
    def streamed(self) -> int:
        """On the device where layers pass through two slots there."""
        return self.outside + 2 * max(self.layers)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the parts of a run; ``activations`` and ``decode`` are peaks of stages, the others last.

    ``kv_cache``: rows and tables together. ``kv_rows``: keys and values, ``kv_tables``: what a compressed cache knows
    of them besides. ``kv_layer``: the rows of one layer.
    """

    transformer: TransformerSize
    text_encoder: int
    vae: int
    kv_rows: int
    kv_tables: int
    kv_layer: int
    captions: int
    latents: int
    activations: Peak
    decode: Peak

    @property
    def kv_cache(self) -> int:
        return self.kv_rows + self.kv_tables


def transformer_size(config: MagiConfig) -> TransformerSize:
    """Weights of the transformer, in the dtypes in which they are stored: fp8 layers as such."""
    # Between the first and the last all layers are alike, so one of them is enough.
    count = config.model.num_layers
    few = config.model.model_copy(update={"num_layers": min(count, 3)})
    with torch.device("meta"):
        # Any back end will do: nothing is computed.
        dit = VideoDiT(few, distill=config.engine.distill, fp8=config.engine.fp8_quant, backend="sdpa")
    layers = [_bytes(layer) for layer in dit.videodit_blocks.layers]
    inner = layers[1:2] * max(count - 2, 0)
    return TransformerSize(_bytes(dit) - sum(layers), tuple([layers[0], *inner, layers[-1]][:count]))


def text_encoder_bytes(config: MagiConfig, dtype: torch.dtype = torch.float32) -> int:
    """Weights of the T5 encoder by its ``config.json``, or the published one's where that is not there."""
    t5 = PUBLISHED_T5 | _json_beside(config.runtime.t5_pretrained, T5_FOLDER, CONFIG_NAME)
    width, attention = t5["d_model"], t5["num_heads"] * t5["d_kv"]
    matrices = 3 if str(t5["feed_forward_proj"]).startswith("gated") else 2
    layer = 4 * width * attention + matrices * width * t5["d_ff"] + 2 * width
    buckets = t5["relative_attention_num_buckets"] * t5["num_heads"]
    return dtype.itemsize * (t5["vocab_size"] * width + t5["num_layers"] * layer + buckets + width)


def vae_config(config: MagiConfig) -> VitConfig:
    """The autoencoder's ``config.json``, or the published one where that is not there."""
    stored = _json_beside(config.runtime.vae_pretrained, CONFIG_NAME)
    return VitConfig.from_dict(stored.get("ddconfig", PUBLISHED_VAE))


def vae_bytes(vit: VitConfig, dtype: torch.dtype) -> int:
    """Weights of both halves of the autoencoder."""
    vae = _small_vae(vit)
    blocks = sum(_numbers(half.blocks) for half in (vae.encoder, vae.decoder))
    return dtype.itemsize * (_numbers(vae) + (vit.depth - 1) * blocks)


def vae_dtype(config: MagiConfig, device: torch.device) -> torch.dtype:
    """The dtype in which the autoencoder runs: the model's on a GPU, as published; float32 on a CPU, where bfloat16
    gains nothing.
    """
    return config.model.dtype if device.type == "cuda" else torch.float32


def captions_bytes(config: MagiConfig) -> int:
    """Caption features of a prompt: every position."""
    return FLOAT * config.model.caption_channels * config.model.caption_max_length


def latents_bytes(config: MagiConfig, schedule: Schedule, remembered: int) -> int:
    """Latents of the window and of the chunk that has just finished, and what caching remembers of the chunks in the
    window: ``remembered`` tensors of their latents' size each, and where there are any their embedded latents.
    """
    runtime, model = config.runtime, config.model
    side = VAE_SPATIAL_FACTOR
    cells = runtime.chunk_width * (runtime.video_size_h // side) * (runtime.video_size_w // side)
    chunk = FLOAT * model.latent_channels * cells
    features = config.tokens_per_chunk * model.hidden_size * model.dtype.itemsize
    window = min(runtime.window_size, schedule.chunk_num)
    return min(window + 1, schedule.chunk_num) * chunk + window * (remembered * chunk + (features if remembered else 0))


def chunk_latent(config: MagiConfig) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a chunk."""
    runtime = config.runtime
    return (
        runtime.chunk_width,
        runtime.video_size_h // VAE_SPATIAL_FACTOR,
        runtime.video_size_w // VAE_SPATIAL_FACTOR,
    )


def estimate(
    config: MagiConfig,
    schedule: Schedule,
    shape: ForwardShape,
    *,
    device: torch.device,
    make_cache: Callable[..., KVCache] = KVCache,
    remembered: int = 0,
    ranks: int = 1,
) -> MemoryEstimate:
    """Everything a run of ``config`` holds on one of ``ranks``.

    Args:
        config: the whole configuration.
        schedule: that of the video, with its prefix.
        shape: the largest forward, as ``inference.memory.dry_run`` finds it.
        device: where it is to run; it need not exist.
        make_cache: as for ``MagiPipeline.frames``.
        remembered: tensors of a chunk's latents that caching keeps of each chunk in the window.
    """
    runtime = config.runtime
    vit, dtype = vae_config(config), vae_dtype(config, device)
    tiles = tiles_for(_small_vae(vit), runtime.fps, (runtime.video_size_h, runtime.video_size_w))
    geometry = kv_geometry(config, torch.device("cpu"), ranks)
    cache = make_cache(geometry)
    rows = cache.planned_rows(schedule)
    return MemoryEstimate(
        transformer=transformer_size(config),
        text_encoder=text_encoder_bytes(config),
        vae=vae_bytes(vit, dtype),
        kv_rows=rows,
        kv_tables=cache.planned_bytes(schedule) - rows,
        kv_layer=rows // geometry.layers,
        captions=captions_bytes(config),
        latents=latents_bytes(config, schedule, remembered),
        activations=_activations(config, shape, device, ranks),
        decode=decode_peak(vit, tiles, chunk_latent(config), dtype, ranks),
    )


def _activations(config: MagiConfig, shape: ForwardShape, device: torch.device, ranks: int) -> Peak:
    """The forward's peak with the product that fp8 layers will take, or the worse where that cannot be known here."""
    choice = config.engine.fp8_matmul
    if not config.engine.fp8_quant:
        products: list[str | None] = [None]
    elif choice == "auto" and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        products = [DEQUANTISE, SCALED_MM]
    else:
        products = [choice if choice != "auto" else resolve_fp8_matmul(choice, device)]
    peaks = [forward_peak(config.model, shape, device=device, fp8=product, ranks=ranks) for product in products]
    return max(peaks, key=lambda peak: peak.bytes)


def _small_vae(vit: VitConfig) -> ViTVAE:
    """The autoencoder with one block a half, without memory."""
    with torch.device("meta"):
        return ViTVAE(ddconfig=vars(vit) | {"depth": 1})


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _json_beside(folder: str | None, *names: str) -> dict[str, Any]:
    """The JSON of that name below a folder of the configuration; nothing where it is not there or not JSON."""
    path = Path() if folder is None else resolve_path(folder).joinpath(*names)
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
