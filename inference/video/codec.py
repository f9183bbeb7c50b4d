"""Between frames as people see them (uint8 RGB) and latents as the sampler wants them (scaled).

Source: docs/conditioning.md, "Latents and frames" and "Tiling".
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from inference.config import VAE_CHANNELS, VAE_SPATIAL_FACTOR, VAE_TEMPORAL_FACTOR
from inference.model.finite import require_finite
from inference.parallel.group import ALONE
from inference.placement.residency import Residency
from inference.video.tiling import UNTILED, Reduction, TileMap, TileSpec, tiled_decode, tiled_encode
from inference.video.vae import ViTVAE

_HALF_RANGE = 127.5
_PUBLISHED_TILE = 256
_SPATIAL_OVERLAP = 0.25


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Map [-1, 1] to 0..255 by truncation, clamped, in the arithmetic of ``video``'s own dtype; any shape.

    In bfloat16 values above 128 are rounded to whole numbers by the type itself, as in the published pipeline.
    """
    return (video * _HALF_RANGE + _HALF_RANGE).clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Map 0..255 to [-1, 1] in float32; any shape."""
    return pixels.float() / _HALF_RANGE - 1


def tiles_for(vae: ViTVAE, fps: int, frame_size: tuple[int, int] | None = None) -> TileSpec:
    """The pipeline's tiles: 256x256 pixels, a quarter overlapping, and half a second without overlap in time.

    A VAE trained at less than 256 pixels gets tiles of its native size, and none along an axis of ``frame_size``
    (height, width) that is no larger: the published count by stride would add slivers there. Time tiles are whole
    latents (at 24 fps 12 frames, as published) and at least one; tile sides are multiples of four patches so that
    strides are whole latents.
    """
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    config = vae.vit_config
    side_unit = 4 * config.patch_size
    side = max(side_unit, min(_PUBLISHED_TILE, config.video_size) // side_unit * side_unit)
    length = max(config.patch_length, fps // 2 // config.patch_length * config.patch_length)
    if frame_size is None:
        return TileSpec(length=length, height=side, width=side, spatial_overlap=_SPATIAL_OVERLAP)
    small = config.video_size < _PUBLISHED_TILE
    height, width = (UNTILED if small and size <= config.video_size else side for size in frame_size)
    return TileSpec(length=length, height=height, width=width, spatial_overlap=_SPATIAL_OVERLAP)


class VaeCodec:
    """Encodes prefix frames and decodes finished chunks, tile by tile.

    ``scale_factor``: the sampler's latents are the VAE's times this. ``tiles``: by default ``tiles_for(vae, fps)``.
    ``map_tiles``: runs the tiles; several ranks may share them. ``residency``: where the VAE lies between uses; by
    default it stays where it is. Raises ``ValueError`` for a scale factor that is not positive and for tiles that would
    change the video's size.
    """

    def __init__(
        self,
        vae: ViTVAE,
        scale_factor: float,
        fps: int,
        tiles: TileSpec | None = None,
        map_tiles: TileMap = ALONE.map,
        residency: Residency | None = None,
    ) -> None:
        if not scale_factor > 0:
            raise ValueError(f"VAE scale_factor must be positive, got {scale_factor}")
        self.vae = vae
        self.scale_factor = scale_factor
        self.tiles = tiles or tiles_for(vae, fps)
        self.map_tiles = map_tiles
        self.residency = residency or Residency(vae, vae.device)
        self.reduction = Reduction(time=vae.vit_config.patch_length, space=vae.vit_config.patch_size)
        if misfits := self.tiles.misfits(self.reduction):
            raise ValueError(f"VAE tiles would change the size of the video: {'; '.join(misfits)}")

    @torch.no_grad()
    def encode_video(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Encode uint8 RGB frames (T, H, W, 3) to scaled latents (1, z_chans, t, H/8, W/8), deterministically.

        One frame is an image and gives one latent. Otherwise four frames give one (for the published VAE); a count
        that is one more than whole time tiles ends in an image, as in the published pipeline. Result in the VAE's
        dtype and where it computes. Raises ``ValueError`` for other frame counts and for sizes that are not in patches.
        """
        frames = torch.as_tensor(frames)
        self._check_frames(frames)
        video = rearrange(frames, "t h w c -> 1 c t h w")
        with self.residency.visit():
            latents = tiled_encode(self._encode_tile, video, self.tiles, self.reduction, self.map_tiles)
        return latents * self.scale_factor

    @torch.no_grad()
    def decode_chunk(self, latents: torch.Tensor, *, image: bool = False, name: str = "frames") -> torch.Tensor:
        """Decode scaled latents (1, z_chans, t, h, w) to uint8 RGB frames (4*t, 8*h, 8*w, 3) on the CPU.

        Exactly ``4*t`` frames come out (for the published VAE), also where the rest of a chunk is a single latent.
        With ``image`` there must be one latent, and one frame comes out. Raises NotFiniteError, which calls them
        ``name``, for frames that are no numbers.
        """
        if latents.ndim != 5 or latents.shape[0] != 1:
            raise ValueError(f"decode_chunk takes latents (1, z_chans, t, h, w), got shape {tuple(latents.shape)}")
        if image and latents.shape[2] != 1:
            raise ValueError(f"an image is one latent frame, got {latents.shape[2]}")
        decode_tile = partial(self.vae.decode, one_latent_is_image=image)
        with self.residency.visit():
            unscaled = latents.to(self.vae.device, torch.float32) / self.scale_factor
            video = tiled_decode(decode_tile, unscaled, self.tiles, self.reduction, self.map_tiles)
            require_finite(video, f"decoding: {name}")
            return rearrange(to_uint8(video), "1 c t h w -> t h w c").cpu()

    def _encode_tile(self, tile: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(from_uint8(tile.to(self.vae.device))).mode()

    def _check_frames(self, frames: torch.Tensor) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        count, height, width, _ = frames.shape
        patch, tile = self.reduction.time, self.tiles.length
        if count == 0 or (count % patch and count % tile != 1):
            below = count // patch * patch
            hint = f"use {below} or {below + patch}" if below else f"use 1 or {patch}"
            raise ValueError(
                f"cannot encode {count} frames: the count must be 1, a multiple of {patch}, or one more than a "
                f"multiple of the time tile of {tile} frames; {hint}"
            )
        if height % self.reduction.space or width % self.reduction.space or not height * width:
            raise ValueError(
                f"cannot encode frames of {height}x{width}: both must be multiples of {self.reduction.space}"
            )


def check_vae(vae: ViTVAE, directory: Path) -> None:
    """ValueError where the autoencoder's latents are not those of the transformer."""
    found = (vae.vit_config.z_chans, vae.vit_config.patch_length, vae.vit_config.patch_size)
    needed = (VAE_CHANNELS, VAE_TEMPORAL_FACTOR, VAE_SPATIAL_FACTOR)
    if found != needed:
        raise ValueError(
            f"the VAE in {directory} has z_chans, patch_length and patch_size {found}; the transformer needs {needed}"
        )
