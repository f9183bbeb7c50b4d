"""Train transformer and text encoder together by flow matching: `python -m example.nano.training.dit --minutes 90`.

Needs `work/vae.pt` (see vae.py; the shipped autoencoder without); encodes the training clips into `work/latents.pt` the
first time. Writes `work/dit.pt`, curves `work/dit.png`; `--resume` goes on. Look at sampled videos
(`python -m example.nano.evaluate`), not at the loss.

Foreground latents count several times as much as the background at first, or the objects never come out; the weight
falls to 1 at the end, since it makes the model draw objects twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from example.nano.model import NanoModel, magi_config
from example.nano.scenes.data import training_caption
from example.nano.text import CaptionReader, build_tokenizer, special_tokens
from example.nano.training.changes import ChangePartners
from example.nano.training.common import (
    WORK,
    Average,
    Course,
    Log,
    Optimizers,
    Team,
    budget_of,
    learning_rate_factor,
    low_precision,
    restart_tuned,
    start_workers,
    training_parser,
)
from example.nano.training.latents import LATENTS, LatentClips, build, load
from example.nano.training.rows import LAYOUTS, Batch, RowAttention, draw_layout, make_batch
from inference.model.dit import Captions

CHECKPOINT = WORK / "dit.pt"
MINUTES = 90.0  # where no budget is given
# Of the depths 0 (noise) .. 3 (nearly clean): the first stage moves a chunk by 2 % of its way only.
_DEPTH_WEIGHTS = torch.tensor([0.6, 1.2, 1.4, 1.0])
# How often the caption of a lone first chunk is dropped, so that guidance knows what is likely without one.
_CAPTION_DROPOUT = 0.1
# Not matrices of hidden layers: trained with AdamW.
_NOT_HIDDEN = ("embed", "y_proj", "final_linear", "ada_modulate", "relative_attention_bias", "shared", "t_embedder")


def read_captions(model: NanoModel, reader: CaptionReader, batch: Batch, rng: np.random.Generator) -> Captions:
    """What every entry reads: each scene of a row a freshly worded caption, clean chunks the null caption."""
    features = reader.encode([training_caption(scene, rng) for scene in batch.scenes])
    dropped = batch.layout.alone & (rng.uniform(size=len(batch.null)) < _CAPTION_DROPOUT)
    return Captions.of(
        [
            model.null_caption()
            if null or dropped[entry]
            else reader.with_tokens(features[batch.scene_of[entry]], remaining)
            for entry, (null, remaining) in enumerate(zip(batch.null, batch.remaining, strict=True))
        ]
    )


def predict(model: NanoModel, captions: Captions, batch: Batch) -> Tensor:
    """Velocity of every entry of a batch."""
    return model.dit(
        batch.x,
        batch.t,
        captions,
        RowAttention(batch.layout),
        first_frames=batch.first_frames,
        step_scalar=batch.num_steps / 4 * 2,
    )


def guided_target(model: NanoModel, velocity: Tensor, batch: Batch, guidance: float) -> Tensor:
    """The data's velocity, moved on in the direction in which the caption moves the prediction.

    A distilled model has its guidance built in. At the fixed point the prediction is that of classifier-free guidance
    at scale 1 / (1 - guidance). Only where a caption decides: first chunks past the first stage.
    """
    with torch.no_grad():
        without = predict(model, Captions.of([model.null_caption()] * len(batch.null)), batch)
    guided = (batch.depth >= 1) & batch.opens
    shift = (velocity.detach() - without).float() * guided.view(-1, 1, 1, 1, 1)
    return batch.velocity + guidance * torch.where(batch.given, torch.zeros(()), shift)


def errors(velocity: Tensor, target: Tensor, batch: Batch, foreground_weight: float) -> Tensor:
    """Mean squared error of every entry, foreground latents weighted; (E,)."""
    weight = 1 + (foreground_weight - 1) * batch.foreground
    weight = torch.where(batch.given, 0.3, weight)
    squared = (velocity.float() - target).square().mean(1, keepdim=True)
    return (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def loss_of(velocity: Tensor, target: Tensor, batch: Batch, foreground_weight: float, guided: bool) -> Tensor:
    """Weighted mean over the noisy entries; what is predicted for clean ones is never used.

    While lone first chunks learn a guided target, first chunks of longer rows, which see as little, learn nothing: the
    two targets would contradict each other.
    """
    weights = _DEPTH_WEIGHTS[batch.depth.clamp(min=0)] * (batch.depth >= 0)
    if guided and not batch.layout.alone:
        weights = weights * ~(batch.opens & (batch.depth >= 1))
    return (errors(velocity, target, batch, foreground_weight) * weights).sum() / weights.sum().clamp(min=1e-6)


def guidance_at(progress: float, highest: float) -> float:
    """None while the words are learned, then rising."""
    return float(np.interp(progress, (0.5, 0.65), (0.0, highest)))


def foreground_weight_at(progress: float, highest: float) -> float:
    """Constant for a third of the training, falling to a third of it at two thirds, and to 1 close to the end."""
    points = [(0.33, highest), (0.66, max(1.0, highest / 3)), (0.82, max(1.0, highest / 3)), (0.94, 1.0)]
    return float(np.interp(progress, *zip(*points, strict=True)))


def changing_at(progress: float, share: float) -> float:
    """The share of rows whose caption changes: none while the words are learned."""
    return share if progress >= 0.4 else 0.0


@torch.no_grad()
def validate(model: NanoModel, weights: dict[str, Tensor], clips: LatentClips) -> dict[str, float]:
    """Unweighted error on held-out clips by depth: behind a clean chunk (v3..v0), and of a first chunk (s3..s1); what
    the caption of another scene costs a first chunk (c2, c1) shows whether the words are read.
    """
    shadow = NanoModel(model.dit.config).eval()
    shadow.load_averaged(weights)
    reader = CaptionReader(build_tokenizer(), shadow.t5, special_tokens())
    figures = {}
    kept = torch.get_rng_state()
    for prefix, name in (("v", "running"), ("s", "start"), ("s", "third_stage"), ("s", "second_stage")):
        torch.manual_seed(1)
        rng = np.random.default_rng(1)
        batch = make_batch(clips, LAYOUTS[name], rng, rows=24)
        # Of the first stages, only the video's first chunk, which has no history.
        depths = (3, 2, 1, 0) if prefix == "v" else (int(batch.depth[0]),)
        with low_precision():
            each = errors(predict(shadow, read_captions(shadow, reader, batch, rng), batch), batch.velocity, batch, 1.0)
            if name in ("third_stage", "second_stage"):
                other = replace(batch, scenes=batch.scenes[1:] + batch.scenes[:1])
                wrong = predict(shadow, read_captions(shadow, reader, other, rng), batch)
                cost = errors(wrong, batch.velocity, batch, 1.0) / each
                figures[f"c{depths[0]}"] = float(cost[batch.depth == depths[0]].mean())
        figures |= {f"{prefix}{depth}": float(each[batch.depth == depth].mean()) for depth in depths}
    torch.set_rng_state(kept)
    return figures


def begin(args: argparse.Namespace) -> NanoModel:
    """The model before the first step: new, or the shipped one, whose text encoder then stays as it is."""
    torch.manual_seed(0)
    model = NanoModel(magi_config().model, backend="eager")  # faster to train on a CPU than the fused kernel
    if args.tune:
        model.load_shipped()
        model.t5.requires_grad_(False)
    else:
        model.initialise()
    return model


def train(team: Team, args: argparse.Namespace) -> None:
    """One worker's training."""
    clips = load()
    model = begin(args)
    partners = ChangePartners(clips["periods"].scenes)
    reader = CaptionReader(build_tokenizer(), model.t5, special_tokens())
    optimizers = Optimizers([model], args.lr, vector_names=_NOT_HIDDEN)
    log, average = Log(WORK / "dit.jsonl"), Average(model, decay=0.996)
    course = Course(team, budget_of(args, MINUTES), model, optimizers, average, log, CHECKPOINT)
    course.begin(args.resume)
    precision = low_precision()
    for done in course.steps():
        progress = 1.0 if args.tune else done  # of what changes on the way, a tuning has the end
        layout = draw_layout(np.random.default_rng([11, course.step]), progress)
        rng = np.random.default_rng([12, course.step, team.rank])
        torch.manual_seed(course.step * team.size + team.rank)
        # Small batches are enough for what is learned first. Lone first chunks are drawn from both sets of clips.
        rows = max(1, layout.rows // team.size // (1 if progress > args.small_until else 2))
        openings = layout.alone and rng.uniform() < 0.75
        batch = make_batch(
            clips["openings" if openings else "periods"],
            layout,
            rng,
            rows,
            partners,
            changing_at(progress, args.changes),
        )
        guidance = guidance_at(progress, args.guidance)
        with precision:
            velocity = predict(model, read_captions(model, reader, batch, rng), batch)
            guide = guidance > 0 and layout.alone
            target = guided_target(model, velocity, batch, guidance) if guide else batch.velocity
        weight = foreground_weight_at(progress, args.foreground_weight)
        loss = loss_of(velocity, target, batch, weight, guided=guidance > 0)
        course.update(loss, learning_rate_factor(course.step, done, warmup_steps=100, decay_from=0.7))
        if team.rank != 0:
            continue
        if course.step % 200 == 0 or course.is_over:
            course.report(validate(model, average.weights, clips["held_out"]), steps=200)
        if course.step % 100 == 0 or course.is_over:
            course.save(scale_factor=clips["periods"].scale_factor)


def main(argv: Sequence[str] | None = None) -> None:
    parser = training_parser(__doc__, CHECKPOINT, MINUTES)
    parser.add_argument("--foreground_weight", type=float, default=6.0, help="weight of foreground latents (default 6)")
    parser.add_argument(
        "--small_until", type=float, default=0.15, help="share of the training with half the batch (default 0.15)"
    )
    parser.add_argument(
        "--guidance", type=float, default=0.5, help="how far the caption's effect is carried on, below 1 (default 0.5)"
    )
    parser.add_argument(
        "--changes", type=float, default=0.4, help="share of the later rows whose caption changes (default 0.4)"
    )
    parser.add_argument("--tune", action="store_true", help="go on from the shipped weights instead of from nothing")
    parser.add_argument("--clips", type=int, default=1800, help="training clips to encode whole (default 1800)")
    parser.add_argument("--openings", type=int, default=8000, help="clips to encode the first chunk of (default 8000)")
    args = parser.parse_args(argv)
    restart_tuned("example.nano.training.dit")
    if not LATENTS.exists():
        build(LATENTS, args.clips, args.openings, held_out=100)
    start_workers(train, args)


if __name__ == "__main__":
    main()
