"""The MAGI-1 video autoencoder: a transformer encoder and decoder over 4x8x8 patches.

Sources: docs/conditioning.md, "VAE configuration" and "VAE blocks"; MAGI-1 report, section on the VAE.

Types: the weights decide. In float32 everything is float32. With bfloat16 weights the whole computation is bfloat16;
for the decoder this equals the published autocast policy (float32 layer norms feeding bfloat16 linear layers),
because every layer norm is followed by a layer that rounds its input to bfloat16 anyway.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import nn

from inference.files import read_json
from inference.model.weights import load_weights
from inference.video.vit_blocks import Grid, TokenTransformer, VitConfig

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model"
_LOGVAR_RANGE = (-30.0, 20.0)
# Fixed in the published model, whatever its patch length.
_FRAMES_OF_AN_IMAGE = 4


class DiagonalGaussianPosterior:
    """What the encoder says about the latents: a Gaussian per element.

    ``moments`` is (N, 2*z_chans, t, h, w), means first, then log variances, which are clamped to [-30, 20].
    """

    def __init__(self, moments: torch.Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*_LOGVAR_RANGE)

    @property
    def std(self) -> torch.Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> torch.Tensor:
        return torch.exp(self.logvar)

    def mode(self) -> torch.Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean plus noise; the noise is drawn in float32 on the CPU, so a seed means the same on every device."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + self.std * noise.to(self.mean.device, self.mean.dtype)


class PatchEmbed(nn.Module):
    """Cut a video into patches and map each linearly: a 3D convolution whose kernel equals its stride."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel_size=self.patch, stride=self.patch)

    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """(N, C, T, H, W) -> tokens (N, t*h*w, embed_dim) and the grid (t, h, w); incomplete patches are dropped."""
        q, p, _ = self.patch
        frames, height, width = video.shape[2:]
        grid = (frames // q, height // p, width // p)
        whole = video[:, :, : grid[0] * q, : grid[1] * p, : grid[2] * p]
        # As one matrix product: the backward pass of Conv3d with few input channels is many times slower on a CPU.
        patches = rearrange(whole, "n c (t q) (h p) (w r) -> n (t h w) (c q p r)", q=q, p=p, r=p)
        return nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias), grid


class Encoder(TokenTransformer):
    """Video to moments."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config)
        self.last_layer = nn.Linear(config.embed_dim, 2 * config.z_chans)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(N, 3, T, H, W) -> (N, 2*z_chans, T//4, H//8, W//8) for the published patch of 4x8x8."""
        tokens, grid = self.patch_embed(video)
        moments = self.last_layer(self.drop_class_token(self.transform(tokens, grid)))
        moments = rearrange(moments, "n (t h w) k -> n k t h w", t=grid[0], h=grid[1], w=grid[2])
        if self.vit_config.norm_code:
            length = torch.linalg.vector_norm(moments, dim=1, keepdim=True, dtype=torch.float32)
            moments = (moments.float() / length).to(moments.dtype)
        return moments


class Decoder(TokenTransformer):
    """Latents to video."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        self.proj_in = nn.Linear(config.z_chans, config.embed_dim)
        if config.use_final_proj:
            features = config.pixel_channels * config.patch_volume
            self.final_proj = nn.Linear(config.embed_dim, features)
            self.final_norm = nn.LayerNorm(features)
        self.last_layer = nn.Conv3d(config.pixel_channels, 3, kernel_size=3, padding=1)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(N, z_chans, t, h, w) -> (N, 3, 4*t, 8*h, 8*w) for the published patch of 4x8x8."""
        config = self.vit_config
        _, _, t, h, w = latent.shape
        tokens = self.proj_in(rearrange(latent, "n c t h w -> n (t h w) c"))
        tokens = self.drop_class_token(self.transform(tokens, (t, h, w)))
        if config.use_final_proj:
            tokens = self.final_norm(self.final_proj(tokens))
        q, p = config.patch_length, config.patch_size
        pixels = rearrange(tokens, "n (t h w) (q p r c) -> n c (t q) (h p) (w r)", t=t, h=h, w=w, q=q, p=p, r=p)
        # Channels are the fastest axis here already; said explicitly, the CPU convolution is several times faster.
        return self.last_layer(pixels.contiguous(memory_format=torch.channels_last_3d))


class ViTVAE(nn.Module):
    """The autoencoder; ``ddconfig`` as in a published VAE's ``config.json`` (see ``VitConfig``)."""

    def __init__(self, ddconfig: dict[str, Any], model_type: str = "vit") -> None:
        super().__init__()
        if model_type != "vit":
            raise ValueError(f"VAE model_type {model_type!r} is not known; the published model is 'vit'")
        self.vit_config = VitConfig.from_dict(ddconfig)
        self.encoder = Encoder(self.vit_config)
        self.decoder = Decoder(self.vit_config)

    @property
    def device(self) -> torch.device:
        return self.decoder.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.proj_in.weight.dtype

    def encode(self, video: torch.Tensor) -> DiagonalGaussianPosterior:
        """Encode a video (N, 3, T, H, W) in [-1, 1] to a posterior over (N, z_chans, T//4, H//8, W//8).

        One frame is an image: it is repeated to four frames and the first latent frame is kept. Frames, rows and
        columns that do not fill a patch are dropped. Raises ``ValueError`` for inputs smaller than one patch.
        """
        config = self.vit_config
        if video.ndim != 5 or video.shape[1] != config.in_chans:
            raise ValueError(f"VAE encode takes (N, {config.in_chans}, T, H, W), got shape {tuple(video.shape)}")
        is_image = video.shape[2] == 1
        if is_image:
            video = video.expand(-1, -1, _FRAMES_OF_AN_IMAGE, -1, -1)
        frames, height, width = video.shape[2:]
        if frames < config.patch_length or min(height, width) < config.patch_size:
            raise ValueError(
                f"VAE encode needs one frame, or at least {config.patch_length} frames, of at least "
                f"{config.patch_size}x{config.patch_size} pixels; got {frames} frames of {height}x{width}"
            )
        moments = self.encoder(video.to(self.dtype))
        return DiagonalGaussianPosterior(moments[:, :, :1] if is_image else moments)

    def decode(self, latent: torch.Tensor, *, one_latent_is_image: bool = True) -> torch.Tensor:
        """Decode latents (N, z_chans, t, h, w) to a video (N, 3, 4*t, 8*h, 8*w), about [-1, 1], not clamped.

        One latent frame gives one frame, as in the published model, unless ``one_latent_is_image`` is False: then
        it gives all frames of its patch, which is what the rest of a video needs.
        """
        if latent.ndim != 5 or latent.shape[1] != self.vit_config.z_chans or 0 in latent.shape:
            raise ValueError(
                f"VAE decode takes non-empty latents (N, {self.vit_config.z_chans}, t, h, w), "
                f"got shape {tuple(latent.shape)}"
            )
        video = self.decoder(latent.to(self.dtype))
        return video[:, :, :1] if one_latent_is_image and latent.shape[2] == 1 else video


def load_vae(directory: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ViTVAE:
    """Load a VAE from a diffusers-style folder: ``config.json`` and ``diffusion_pytorch_model`` in safetensors.

    Built on the meta device and loaded strictly; returned in evaluation mode, its parameters frozen.
    Raises ``FileNotFoundError`` without ``config.json``, ``ValueError`` for one that describes no VAE that can work,
    ``WeightsError`` for weights that are absent, pickled, damaged or not those of this model (all tensors named).
    """
    directory = Path(directory)
    arguments = _read_config(directory / CONFIG_NAME)
    with torch.device("meta"):
        vae = ViTVAE(**arguments)
    vae.to(dtype)
    load_weights(vae, directory, device=device, name="VAE", base_name=WEIGHTS_NAME)
    return vae.eval().requires_grad_(False)


def save_vae(vae: ViTVAE, directory: Path, ddconfig: dict[str, Any], shard_size: str = "10GB") -> None:
    """Write ``vae``, made of ``ddconfig``, as ``load_vae`` reads it; files larger than ``shard_size`` are split."""
    from huggingface_hub import save_torch_state_dict  # who makes a video does not need it

    directory.mkdir(parents=True, exist_ok=True)
    pattern = WEIGHTS_NAME + "{suffix}.safetensors"
    save_torch_state_dict(vae.state_dict(), directory, filename_pattern=pattern, max_shard_size=shard_size)
    contents = {"_class_name": type(vae).__name__, "ddconfig": ddconfig, "model_type": "vit"}
    (directory / CONFIG_NAME).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    """The constructor's arguments out of a folder's ``config.json``."""
    if not path.is_file():
        raise FileNotFoundError(f"no VAE here: {path} does not exist; expected it beside {WEIGHTS_NAME}.safetensors")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("ddconfig"), dict):
        raise ValueError(f"{path} describes no VAE: it has no dictionary under the key 'ddconfig'")
    arguments = {key: content[key] for key in ("ddconfig", "model_type") if key in content}
    # Keys with an underscore are notes of diffusers about itself.
    if ignored := [key for key in content if key not in arguments and not key.startswith("_")]:
        logger.warning("%s: keys without a meaning here are ignored: %s", path, ", ".join(ignored))
    return arguments
