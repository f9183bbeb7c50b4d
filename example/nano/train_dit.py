"""Train transformer and text encoder together by flow matching: `python -m example.nano.train_dit --minutes 75`.

Needs `work/vae.pt` (see train_vae); encodes the training clips into `work/latents.pt` the first time. Writes
`work/dit.pt`, curves `work/dit.png`; `--resume` goes on. Look at sampled videos (`python -m example.nano.evaluate`),
not at the loss.

Foreground latents count several times as much as the background at first, or the objects never come out; the weight
falls to 1 at the end, since it makes the model draw objects twice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from example.nano.data import caption
from example.nano.latents import LATENTS, LatentClips, build, load
from example.nano.model import NanoModel, magi_config
from example.nano.rows import LAYOUTS, Batch, RowAttention, draw_layout, make_batch
from example.nano.text import CaptionReader, build_tokenizer, special_tokens
from example.nano.training import (
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
from inference.model.dit import Captions

CHECKPOINT = WORK / "dit.pt"
# Of the depths 0 (noise) .. 3 (nearly clean): the first stage moves a chunk by 2 % of its way only.
_DEPTH_WEIGHTS = torch.tensor([0.6, 1.0, 1.3, 1.1])
# Of first chunks without history: they alone must learn shape and motion from the caption.
_DECIDING_WEIGHT = 2.5
# Not matrices of hidden layers: trained with AdamW.
_NOT_HIDDEN = ("embed", "y_proj", "final_linear", "ada_modulate", "relative_attention_bias", "shared", "t_embedder")


def predict(model: NanoModel, reader: CaptionReader, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Velocity of every entry of a batch, each row with a freshly worded caption."""
    features = reader.encode([caption(scene, rng, omit=0.15) for scene in batch.scenes])
    slots = len(batch.layout.slots)
    captions = [
        model.null_caption() if null else reader.with_tokens(features[entry // slots], remaining)
        for entry, (null, remaining) in enumerate(zip(batch.null, batch.remaining, strict=True))
    ]
    return model.dit(
        batch.x,
        batch.t,
        Captions.of(captions),
        RowAttention(batch.layout),
        first_frames=batch.first_frames,
        step_scalar=batch.num_steps / 4 * 2,
    )


def errors(velocity: Tensor, batch: Batch, foreground_weight: float) -> Tensor:
    """Mean squared error of every entry, foreground latents weighted; (E,)."""
    weight = 1 + (foreground_weight - 1) * batch.foreground
    weight = torch.where(batch.given, 0.3, weight)
    squared = (velocity.float() - batch.velocity).square().mean(1, keepdim=True)
    return (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def loss_of(velocity: Tensor, batch: Batch, foreground_weight: float) -> Tensor:
    """Weighted mean over the noisy entries; what is predicted for clean ones is never used."""
    noisy = batch.depth >= 0
    weights = _DEPTH_WEIGHTS[batch.depth[noisy]] * torch.where(batch.decides[noisy], _DECIDING_WEIGHT, 1.0)
    return (errors(velocity, batch, foreground_weight)[noisy] * weights).sum() / weights.sum()


def foreground_weight_at(progress: float, highest: float) -> float:
    """Constant for a third of the training, falling to a third of it at two thirds, and to 1 close to the end."""
    points = [(0.33, highest), (0.66, max(1.0, highest / 3)), (0.82, max(1.0, highest / 3)), (0.94, 1.0)]
    return float(np.interp(progress, *zip(*points, strict=True)))


@torch.no_grad()
def validate(model: NanoModel, weights: dict[str, Tensor], clips: LatentClips) -> dict[str, float]:
    """Unweighted error on held-out clips by depth: behind a clean chunk (v3..v0), and of a first chunk (s3..s1)."""
    shadow = NanoModel(model.dit.config).eval()
    shadow.load_averaged(weights)
    reader = CaptionReader(build_tokenizer(), shadow.t5, special_tokens())
    figures = {}
    kept = torch.get_rng_state()
    layouts = {layout.name: layout for layout in LAYOUTS}
    for prefix, name in (("v", "running"), ("s", "start"), ("s", "third_stage"), ("s", "second_stage")):
        torch.manual_seed(1)
        rng = np.random.default_rng(1)
        batch = make_batch(clips, layouts[name], rng, rows=24)
        with torch.autocast("cpu", torch.bfloat16):
            each = errors(predict(shadow, reader, batch, rng), batch, 1.0)
        # Of the first stages, only the video's first chunk, which has no history.
        depths = (3, 2, 1, 0) if prefix == "v" else (int(batch.depth[0]),)
        figures |= {f"{prefix}{depth}": float(each[batch.depth == depth].mean()) for depth in depths}
    torch.set_rng_state(kept)
    return figures


def train(team: Team, budget: Budget, lr: float, foreground_weight: float, small_until: float, resume: bool) -> None:
    """One worker's training; all hold the same weights, the first one measures and saves."""
    clips, held_out = load()
    torch.manual_seed(0)
    model = NanoModel(magi_config().model, backend="eager")  # faster to train on a CPU than the fused kernel
    model.initialise()
    reader = CaptionReader(build_tokenizer(), model.t5, special_tokens())
    optimizers = Optimizers([model], lr, vector_names=_NOT_HIDDEN)
    average = Average(model, decay=0.998)
    log = Log(WORK / "dit.jsonl")
    step, seconds = 0, 0.0
    if resume:
        state = load_checkpoint(CHECKPOINT)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        average.weights = state["average"]
        step, seconds = state["step"], state["seconds"]
    if team.rank == 0:
        log.truncate(step if resume else -1)
    losses: list[float] = []
    while (progress := team.agree(budget.progress(step, seconds))) < 1:
        started = time.monotonic()
        layout = draw_layout(np.random.default_rng([11, step]))
        rng = np.random.default_rng([12, step, team.rank])
        torch.manual_seed(step * team.size + team.rank)
        # Small batches are enough for what is learned first.
        rows = max(1, layout.rows // team.size // (1 if progress > small_until else 2))
        batch = make_batch(clips, layout, rng, rows)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = predict(model, reader, batch, rng)
        loss = loss_of(velocity, batch, foreground_weight_at(progress, foreground_weight))
        loss.backward()
        team.average_gradients(optimizers.parameters)
        optimizers.step(learning_rate_factor(step, progress, warmup_steps=100, decay_from=0.8))
        average.update(model, step)
        losses.append(loss.item())
        step += 1
        seconds += time.monotonic() - started
        if team.rank != 0:
            continue
        over = budget.progress(step, seconds) >= 1
        if step % 200 == 0 or over:
            row = {"step": step, "minutes": seconds / 60, "loss": float(np.mean(losses[-200:]))}
            log.add(row | validate(model, average.weights, held_out))
            log.plot()
            print(" ".join(f"{name} {value:.4g}" for name, value in log.rows[-1].items()), flush=True)
        if step % 100 == 0 or over:
            state = {"model": model.state_dict(), "average": average.weights, "optimizers": optimizers.state_dict()}
            state |= {"scale_factor": clips.scale_factor, "step": step, "seconds": seconds}
            save_checkpoint(CHECKPOINT, state)


def work(rank: int, args: argparse.Namespace, meeting_point: Path) -> None:
    """Entry point of a worker process."""
    team = Team.join(rank, args.workers, meeting_point)
    minutes = args.minutes if args.minutes or args.steps else 75.0
    train(team, Budget(args.steps, minutes), args.lr, args.foreground_weight, args.small_until, args.resume)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=None, help="wall-clock budget (default: 75 unless --steps is given)"
    )
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default 2e-3)")
    parser.add_argument("--foreground_weight", type=float, default=6.0, help="weight of foreground latents (default 6)")
    parser.add_argument(
        "--small_until", type=float, default=0.25, help="share of the training with half the batch (default 0.25)"
    )
    parser.add_argument("--clips", type=int, default=2400, help="training clips to encode (default 2400)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, one core each (default 2)")
    parser.add_argument("--resume", action="store_true", help="go on from work/dit.pt")
    args = parser.parse_args()
    restart_tuned("example.nano.train_dit")
    if not LATENTS.exists():
        build(LATENTS, args.clips, held_out_count=100)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, Path(folder) / "meeting"), nprocs=args.workers)


if __name__ == "__main__":
    main()
