"""Train the small video autoencoder: `python -m example.nano.training.vae --steps 1000`.

Writes the checkpoint `work/vae.pt`, the curves `work/vae.png` and a sheet of reconstructions `work/vae_sheet.png`.
Run again with `--resume` to go on. The loss is squared error + 0.1 x absolute error + a small divergence of the
posterior from the unit normal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from example.nano.scenes.data import PERIOD, sample_scene
from example.nano.scenes.drawing import render
from example.nano.training.common import (
    WORK,
    Average,
    Course,
    Log,
    Optimizers,
    Team,
    budget_of,
    learning_rate_factor,
    restart_tuned,
    start_workers,
    training_parser,
)
from inference.video.vae import ViTVAE

# Its native size is the 12-frame time tile of a 64 x 64 video: the position embedding is never resized.
DDCONFIG = {
    "video_size": 64,
    "video_length": 12,
    "patch_size": 8,
    "patch_length": 4,
    "in_chans": 3,
    "z_chans": 16,
    "double_z": True,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "with_cls_token": True,
    "ln_in_attn": True,
    "conv_last_layer": True,
    "use_final_proj": True,
}
TILE = 12
CHECKPOINT = WORK / "vae.pt"
MINUTES = 15.0  # where no budget is given
_HELD_OUT_SEEDS = range(1_000_000, 1_000_064)


def tiles(seeds: range) -> torch.Tensor:
    """One time tile per seed, from anywhere in the period of a scene; (N, 3, 12, 64, 64) float32 in [-1, 1]."""
    clips = []
    for seed in seeds:
        rng = np.random.default_rng([2026, seed])
        clips.append(render(sample_scene(rng, held_out=None), TILE, first_frame=int(rng.integers(PERIOD))))
    return to_model(torch.from_numpy(np.stack(clips)))


def training_tiles(step: int, batch: int, team: Team) -> torch.Tensor:
    """A worker's share of the batch of a step. Every fourth is shorter, as the rest of a video is: two latents, one, or
    one of a still picture.
    """
    video = tiles(range(step * batch + team.rank, (step + 1) * batch, team.size))
    if step % 4:
        return video
    kind = step // 4 % 3
    return video[:, :, :8] if kind == 0 else video[:, :, :4] if kind == 1 else video[:, :, :1].expand(-1, -1, 4, -1, -1)


def to_model(frames: torch.Tensor) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W) float32 in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def peak_signal_to_noise(video: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """dB per entry; both in [-1, 1], the video clamped to it."""
    return 10 * torch.log10(4 / (video.clamp(-1, 1) - truth).square().flatten(1).mean(1))


def loss_of(vae: ViTVAE, video: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """Errors of the reconstruction, and the mean divergence per latent element from the unit normal."""
    posterior = vae.encode(video)
    error = vae.decode(posterior.sample()) - video
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error.square().mean() + 0.1 * error.abs().mean() + kl_weight * divergence


@torch.no_grad()
def evaluate(weights: dict[str, torch.Tensor], video: torch.Tensor, sheet: Path | None) -> dict[str, float]:
    """Reconstruction of held-out tiles through the posterior mean with the given weights; optionally drawn."""
    vae = ViTVAE(DDCONFIG).eval()
    vae.load_state_dict(weights)
    posterior = vae.encode(video)
    mean = posterior.mode()
    decoded = vae.decode(mean)
    quality = peak_signal_to_noise(decoded, video)
    if sheet is not None:
        pairs = torch.stack([video, decoded.clamp(-1, 1)], 1)[:16, :, :, ::6]  # (16, 2, 3, 2, H, W)
        picture = (
            pairs.permute(0, 4, 1, 3, 5, 2).reshape(2, 8, 64, 4, 64, 3).permute(1, 2, 0, 3, 4, 5).reshape(8 * 64, -1, 3)
        )
        Image.fromarray(((picture + 1) * 127.5).byte().numpy()).save(sheet)
    return {
        "psnr": float(quality.mean()),
        "worst_psnr": float(quality.min()),
        "latent_std": float(mean.std()),
        "posterior_std": float(posterior.std.mean()),
    }


def train(team: Team, args: argparse.Namespace) -> None:
    """One worker's training."""
    torch.manual_seed(0)
    vae = ViTVAE(DDCONFIG)
    optimizers = Optimizers(
        [vae], args.lr, vector_names=("pos_embed", "cls_token", "final_proj", "proj_in", "encoder.last_layer")
    )
    log, average = Log(WORK / "vae.jsonl"), Average(vae, decay=0.99)
    course = Course(team, budget_of(args, MINUTES), vae, optimizers, average, log, CHECKPOINT)
    course.begin(args.resume)
    held_out = tiles(_HELD_OUT_SEEDS) if team.rank == 0 else None
    for progress in course.steps():
        torch.manual_seed(course.step * team.size + team.rank)
        loss = loss_of(vae, training_tiles(course.step, args.batch, team), args.kl_weight)
        course.update(loss, learning_rate_factor(course.step, progress, warmup_steps=50, decay_from=0.6))
        if held_out is None:
            continue
        if course.step % 50 == 0:
            measured = evaluate(average.weights, held_out, WORK / "vae_sheet.png")
            course.report(measured, steps=50, logarithmic=("loss",))
        if course.step % 100 == 0 or course.is_over:
            course.save()
    if held_out is not None:
        print(evaluate(average.weights, held_out, WORK / "vae_sheet.png"), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = training_parser(__doc__, CHECKPOINT, MINUTES)
    parser.add_argument("--batch", type=int, default=24, help="tiles per step (default 24)")
    parser.add_argument("--kl_weight", type=float, default=1e-4, help="weight of the divergence (default 1e-4)")
    args = parser.parse_args(argv)
    restart_tuned("example.nano.training.vae")
    start_workers(train, args)


if __name__ == "__main__":
    main()
