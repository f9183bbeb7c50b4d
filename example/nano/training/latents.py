"""The clips of the transformer's training, encoded once: `work/latents.pt`.

Every scene of `data` repeats after 96 frames, so one period of it, 4 chunks, stands for a video of any length: latent
frame `i` is latent `i % 24`. Of most scenes only the first chunk is kept: there the caption alone decides what comes,
which takes the most examples to learn. Latents are those of the product: encoded in time tiles of 12 frames, times
the scale factor.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import reduce
from tqdm import tqdm

from example.nano.model import WEIGHTS, magi_config
from example.nano.scenes.data import PERIOD as PERIOD_FRAMES
from example.nano.scenes.data import PRACTISED, Scene, sample_scene
from example.nano.scenes.drawing import WALL, coverage, render
from example.nano.training.common import WORK, load_checkpoint, save_checkpoint
from example.nano.training.vae import CHECKPOINT, DDCONFIG, TILE, to_model
from inference.video.vae import ViTVAE
from inference.video.vae import load_vae as load_stored_vae

LATENTS = WORK / "latents.pt"
CHUNK_FRAMES = 24
TILE_LATENTS = TILE // 4
PERIOD = PERIOD_FRAMES // 4
# Frames that are also encoded as given images: the first, and some with the object elsewhere.
IMAGE_FRAMES = (0, 24, 48, 72)
# A latent is foreground where objects cover this share of its 4 x 8 x 8 pixels.
_FOREGROUND = 0.02


@cache
def load_vae() -> ViTVAE:
    """The averaged weights of the last VAE training; the shipped ones where nothing was trained here."""
    if not CHECKPOINT.exists():
        return load_stored_vae(WEIGHTS / "vae")
    vae = ViTVAE(DDCONFIG).eval()
    vae.load_state_dict(load_checkpoint(CHECKPOINT)["average"])
    return vae


def practised_scene(seed: int, held_out: bool) -> Scene:
    """The scene of a seed; of those that are not held out the training is made."""
    return sample_scene(np.random.default_rng([7, int(held_out), seed]), held_out, shares=PRACTISED)


@torch.no_grad()
def encode_scene(vae: ViTVAE, scene: Scene, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first frames of a scene, (num_frames / 4, 16, 8, 8), and those of IMAGE_FRAMES among them as images,
    (images, 16, 8, 8); unscaled.
    """
    frames = torch.from_numpy(render(scene, num_frames))
    tiles = vae.encode(to_model(frames.reshape(-1, TILE, 64, 64, 3))).mode().permute(0, 2, 1, 3, 4).flatten(0, 1)
    chosen = frames[[number for number in IMAGE_FRAMES if number < num_frames]]
    return tiles, vae.encode(to_model(chosen[:, None])).mode()[:, :, 0]


def foreground_of(scene: Scene, num_frames: int) -> np.ndarray:
    """Which latents show an object, (num_frames / 4, 8, 8) bool."""
    frames = np.arange(num_frames, dtype=np.float64)
    seen = np.max([coverage(scene, body, frames) for body in scene.bodies], axis=0)
    if scene.wall:
        seen[:, :, slice(*WALL)] = 0
    return reduce(seen, "(t dt) (h dh) (w dw) -> t h w", "mean", dt=4, dh=8, dw=8) > _FOREGROUND


def _encode_seed(job: tuple[int, bool, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For worker processes, one thread each: small networks gain little from more."""
    torch.set_num_threads(1)
    seed, held_out, num_frames = job
    scene = practised_scene(seed, held_out)
    tiles, images = encode_scene(load_vae(), scene, num_frames)
    return tiles.half().numpy(), images.half().numpy(), foreground_of(scene, num_frames)


@dataclass(frozen=True)
class LatentClips:
    """Encoded scenes. `latents` (clips, L, 16, 8, 8) with L 24, a whole period, or 6, its first chunk; `images`
    (clips, images, 16, 8, 8); `foreground` (clips, L, 8, 8) bool. Latents are not yet scaled.
    """

    scenes: tuple[Scene, ...]
    latents: torch.Tensor
    images: torch.Tensor
    foreground: torch.Tensor
    scale_factor: float

    def window(self, clip: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents (count, 16, 8, 8) float32 from a latent frame on, wrapped round the period, and their
        foreground mask.
        """
        length = self.latents.shape[1]
        if length < PERIOD and start + count > length:
            raise ValueError(f"latents {start} .. {start + count} asked of clips of which {length} are kept")
        index = (start + torch.arange(count)) % length
        return self.latents[clip, index].float() * self.scale_factor, self.foreground[clip, index]

    def image(self, clip: int, number: int) -> torch.Tensor:
        """A frame of IMAGE_FRAMES encoded as an image, scaled, (16, 8, 8) float32."""
        return self.images[clip, number].float() * self.scale_factor


_PARTS = ("periods", "openings", "held_out")


def build(path: Path, periods: int, openings: int, held_out: int) -> None:
    """Encode whole periods of the first training scenes, first chunks of those that follow, and held-out periods."""
    jobs = {
        "periods": [(seed, False, PERIOD_FRAMES) for seed in range(periods)],
        "openings": [(periods + seed, False, CHUNK_FRAMES) for seed in range(openings)],
        "held_out": [(seed, True, PERIOD_FRAMES) for seed in range(held_out)],
    }
    state: dict = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for part in _PARTS:
            encoded = list(
                tqdm(pool.map(_encode_seed, jobs[part], chunksize=8), total=len(jobs[part]), desc=part, mininterval=10)
            )
            latents, images, foreground = (torch.from_numpy(np.stack(column)) for column in zip(*encoded, strict=True))
            seeds = [(seed, held) for seed, held, _ in jobs[part]]
            state[part] = {"seeds": seeds, "latents": latents, "images": images, "foreground": foreground}
    # What is trained on in the shipped autoencoder's latents has its scale factor.
    trained = CHECKPOINT.exists()
    scale = 1 / float(state["periods"]["latents"].float().std()) if trained else magi_config().runtime.scale_factor
    save_checkpoint(path, state | {"scale_factor": scale})


def load(path: Path = LATENTS) -> dict[str, LatentClips]:
    """`periods` and `openings` to train with, `held_out` to watch."""
    state = load_checkpoint(path)
    return {
        part: LatentClips(
            scenes=tuple(practised_scene(*seed) for seed in state[part]["seeds"]),
            scale_factor=state["scale_factor"],
            **{name: state[part][name] for name in ("latents", "images", "foreground")},
        )
        for part in _PARTS
    }
