"""Train the small video autoencoder: `python -m example.nano.training.vae --steps 1000`.

Writes the checkpoint `work/vae.pt`, the curves `work/vae.png` and a sheet of reconstructions `work/vae_sheet.png`.
Run again with `--resume` to go on. The loss is squared error + 0.1 x absolute error + a small divergence of the
posterior from the unit normal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
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
    Budget,
    Log,
    Optimizers,
    Team,
    learning_rate_factor,
    load_checkpoint,
    restart_tuned,
    save_checkpoint,
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


def train(team: Team, budget: Budget, batch: int, lr: float, kl_weight: float, resume: bool) -> None:
    """One worker's training; all hold the same weights, the first one measures and saves."""
    torch.manual_seed(0)
    vae = ViTVAE(DDCONFIG)
    optimizers = Optimizers(
        [vae], lr, vector_names=("pos_embed", "cls_token", "final_proj", "proj_in", "encoder.last_layer")
    )
    average = Average(vae, decay=0.99)
    log = Log(WORK / "vae.jsonl")
    step, seconds = 0, 0.0
    if resume:
        state = load_checkpoint(CHECKPOINT)
        vae.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        average.weights = state["average"]
        step, seconds = state["step"], state["seconds"]
    if team.rank == 0:
        log.truncate(step if resume else -1)
        held_out = tiles(_HELD_OUT_SEEDS)
    losses: list[float] = []
    while (progress := team.agree(budget.progress(step, seconds))) < 1:
        started = time.monotonic()
        torch.manual_seed(step * team.size + team.rank)
        loss = loss_of(vae, training_tiles(step, batch, team), kl_weight)
        loss.backward()
        team.average_gradients(optimizers.parameters)
        optimizers.step(learning_rate_factor(step, progress, warmup_steps=50, decay_from=0.6))
        average.update(vae, step)
        losses.append(loss.item())
        step += 1
        seconds += time.monotonic() - started
        if team.rank != 0:
            continue
        if step % 50 == 0:
            row = {"step": step, "minutes": seconds / 60, "loss": float(np.mean(losses[-50:]))}
            log.add(row | evaluate(average.weights, held_out, WORK / "vae_sheet.png"))
            log.plot(logarithmic=("loss",))
            print(" ".join(f"{name} {value:.4g}" for name, value in log.rows[-1].items()), flush=True)
        if step % 100 == 0 or budget.progress(step, seconds) >= 1:
            state = {"model": vae.state_dict(), "average": average.weights, "optimizers": optimizers.state_dict()}
            save_checkpoint(CHECKPOINT, state | {"step": step, "seconds": seconds})
    if team.rank == 0:
        print(evaluate(average.weights, held_out, WORK / "vae_sheet.png"), flush=True)


def work(rank: int, args: argparse.Namespace, meeting_point: Path) -> None:
    """Entry point of a worker process."""
    team = Team.join(rank, args.workers, meeting_point)
    minutes = args.minutes if args.minutes or args.steps else 15.0
    train(team, Budget(args.steps, minutes), args.batch, args.lr, args.kl_weight, args.resume)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=None, help="wall-clock budget (default: 15 unless --steps is given)"
    )
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead")
    parser.add_argument("--batch", type=int, default=24, help="tiles per step (default 24)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default 2e-3)")
    parser.add_argument("--kl_weight", type=float, default=1e-4, help="weight of the divergence (default 1e-4)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, one core each (default 2)")
    parser.add_argument("--resume", action="store_true", help="go on from work/vae.pt")
    args = parser.parse_args(argv)
    restart_tuned("example.nano.training.vae")
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, Path(folder) / "meeting"), nprocs=args.workers)


if __name__ == "__main__":
    main()
