"""The clips of the transformer's training, encoded once: `work/latents.pt`.

Every motion of `data` repeats after 96 frames, so one period of a clip, 4 chunks, stands for a video of any length
and start: latent frame `i` is latent `i % 24`. Latents are those of the product: encoded in time tiles of 12 frames,
times the scale factor.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from example.nano.data import BACKGROUNDS, WORLD, Scene, draw_background, render, sample_scene, trajectory
from example.nano.train_vae import CHECKPOINT, DDCONFIG, TILE, to_model
from example.nano.training import WORK, load_checkpoint, save_checkpoint
from inference.model.vae import ViTVAE

LATENTS = WORK / "latents.pt"
PERIOD_FRAMES = 96
TILE_LATENTS = TILE // 4
PERIOD = PERIOD_FRAMES // 4
# A latent counts as foreground where it is this far (root mean square over channels, in units of the latents' own
# deviation) from the latent of the empty background.
_FOREGROUND = 0.35


@cache
def load_vae() -> ViTVAE:
    """The averaged weights of the last VAE training."""
    vae = ViTVAE(DDCONFIG).eval()
    vae.load_state_dict(load_checkpoint(CHECKPOINT)["average"])
    return vae


def scene_of(seed: int, held_out: bool) -> Scene:
    return sample_scene(np.random.default_rng([7, int(held_out), seed]), held_out)


def opening_tile(scene: Scene) -> int:
    """The tile that a video of this scene opens with: where its first object is closest to the middle.

    With the place known, what a first chunk looks like on average depends on every word of the caption from the first
    denoising step on. Were objects to start anywhere, direction and shape would show only once the place is decided,
    and a short training does not learn them.
    """
    x, y, radius = trajectory(scene.bodies[0], np.arange(0, PERIOD_FRAMES, TILE))
    away = [centre % WORLD - WORLD / 2 for centre in (x, y)]
    return int(np.argmin(np.hypot(*away) - radius))


@torch.no_grad()
def encode_scene(vae: ViTVAE, scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """One period of a scene, (24, 16, 8, 8), and the first frame of each of its tiles as an image, (8, 16, 8, 8);
    unscaled.
    """
    frames = torch.from_numpy(render(scene, PERIOD_FRAMES)).reshape(-1, TILE, 64, 64, 3)
    tiles = vae.encode(to_model(frames)).mode().permute(0, 2, 1, 3, 4).flatten(0, 1)
    images = vae.encode(to_model(frames[:, :1])).mode()[:, :, 0]
    return tiles, images


def _encode_seed(job: tuple[int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """For worker processes, one thread each: small networks gain little from more."""
    torch.set_num_threads(1)
    tiles, images = encode_scene(load_vae(), scene_of(*job))
    return tiles.numpy(), images.numpy()


@torch.no_grad()
def encode_background(vae: ViTVAE, name: str) -> torch.Tensor:
    """The empty background, (3, 16, 8, 8): the latents of a tile."""
    frame = torch.from_numpy(np.rint(draw_background(name)).astype(np.uint8))
    return vae.encode(to_model(frame.expand(1, TILE, -1, -1, -1))).mode()[0].transpose(0, 1)


@dataclass(frozen=True)
class LatentClips:
    """Encoded scenes. `latents` (clips, 24, 16, 8, 8), `images` (clips, 8, 16, 8, 8), `foreground` (clips, 24, 8, 8)
    bool.
    """

    scenes: tuple[Scene, ...]
    latents: torch.Tensor
    images: torch.Tensor
    foreground: torch.Tensor
    scale_factor: float

    def window(self, clip: int, start_tile: int, latent_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (latent_frames, 16, 8, 8) float32 from a tile on, wrapped round the period, and their foreground
        mask.
        """
        index = (start_tile * TILE_LATENTS + torch.arange(latent_frames)) % PERIOD
        return self.latents[clip, index].float(), self.foreground[clip, index]


def build(path: Path, count: int, held_out_count: int) -> None:
    """Encode the training scenes and, after them, the held-out ones."""
    jobs = [(seed, False) for seed in range(count)] + [(seed, True) for seed in range(held_out_count)]
    scenes = [scene_of(*job) for job in jobs]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        encoded = list(
            tqdm(pool.map(_encode_seed, jobs, chunksize=8), total=len(jobs), desc="encoding", mininterval=10)
        )
    latents = torch.from_numpy(np.stack([tiles for tiles, _ in encoded]))
    images = torch.from_numpy(np.stack([pictures for _, pictures in encoded]))
    scale = 1 / float(latents[:count].std())
    empty = torch.stack([encode_background(load_vae(), name) for name in BACKGROUNDS]) * scale
    latents, images = latents * scale, images * scale
    names = list(BACKGROUNDS)
    foreground = torch.stack(
        [
            (clip - empty[names.index(scene.background)].repeat(PERIOD // TILE_LATENTS, 1, 1, 1))
            .square()
            .mean(1)
            .sqrt()
            > _FOREGROUND
            for clip, scene in zip(latents, scenes, strict=True)
        ]
    )
    state = {"latents": latents.half(), "images": images.half(), "foreground": foreground}
    save_checkpoint(path, state | {"scale_factor": scale, "count": count, "held_out_count": held_out_count})


def load(path: Path = LATENTS) -> tuple[LatentClips, LatentClips]:
    """Training clips and held-out clips."""
    state = load_checkpoint(path)
    count, held_out_count = state["count"], state["held_out_count"]

    def part(rows: slice, number: int, held_out: bool) -> LatentClips:
        scenes = tuple(scene_of(seed, held_out) for seed in range(number))
        return LatentClips(
            scenes, state["latents"][rows], state["images"][rows], state["foreground"][rows], state["scale_factor"]
        )

    return part(slice(0, count), count, False), part(slice(count, None), held_out_count, True)
