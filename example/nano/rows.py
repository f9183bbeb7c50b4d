"""Training rows of the transformer: the states that the sampler will show it, several chunks of one clip side by side.

A *row* is a few chunks (*slots*) that attend to one another as in the sampler: each to a contiguous range of slots
up to itself. With `window_size` 4 and key windows [5, 4, 3, 2] every noisy chunk of a running window sees the noisy
chunks before it and exactly one clean chunk, so `[clean, d3, d2, d1, d0]` *is* the sampler's state; `d3` is the
chunk at the largest pipeline depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from example.nano.data import Scene
from example.nano.latents import PERIOD, TILE_LATENTS, LatentClips, opening_tile

CHUNK_WIDTH = 6
WINDOW = 4
CLEAN_T = 0.9999
CLEAN = -1
STEP_COUNTS = (8, 16, 32, 64)
_STEP_SHARES = (0.15, 0.2, 0.3, 0.35)


@dataclass(frozen=True)
class Slot:
    """One chunk of a row: pipeline depth 0..3 or CLEAN, chunk number within the row, first slot that it sees."""

    depth: int
    chunk: int
    start: int


@dataclass(frozen=True)
class Layout:
    """Slots of a row. `from_start`: chunk 0 of the row is the first of the video. `share`: how often it is drawn."""

    name: str
    share: float
    rows: int
    from_start: bool
    slots: tuple[Slot, ...]


def _consecutive(depths: tuple[int, ...], full_history: bool = False) -> tuple[Slot, ...]:
    """Chunks after one another; clean ones see only themselves, as with `clean_chunk_kvrange` 1, unless all history
    is seen.
    """
    return tuple(Slot(d, i, i if d == CLEAN and not full_history else 0) for i, d in enumerate(depths))


LAYOUTS = (
    Layout("running", 0.22, 8, False, _consecutive((CLEAN, 3, 2, 1, 0))),
    Layout("start", 0.16, 10, True, _consecutive((3, 2, 1, 0))),
    # The third and the second stage of a video: here its first chunk decides, by the caption alone, what there is to
    # see and how it moves. All later chunks can read that from the earlier ones.
    Layout("third_stage", 0.28, 13, True, _consecutive((2, 1, 0))),
    Layout("second_stage", 0.18, 20, True, _consecutive((1, 0))),
    Layout("first_stage", 0.02, 40, True, _consecutive((0,))),
    # The nearly-clean copy sees itself only, wherever in the video it is.
    Layout("nearly_clean_copy", 0.03, 40, False, _consecutive((3,))),
    Layout("after_prefix", 0.04, 8, False, _consecutive((CLEAN, CLEAN, CLEAN, 1, 0))),
    Layout("after_short_prefix", 0.04, 10, False, _consecutive((CLEAN, 2, 1, 0))),
    Layout("full_history", 0.04, 6, False, _consecutive((CLEAN, CLEAN, CLEAN, 3, 2, 1, 0), full_history=True)),
)


def noise_level(u: Tensor) -> Tensor:
    """The sampler's schedule: share of the steps done to t (0 noise, 1 clean)."""
    squared = u * u
    return squared / 3 / (1 - 2 / 3 * squared)


@dataclass(frozen=True)
class Batch:
    """Entries (E = rows x slots, row by row) of one forward, and what the loss needs.

    `x`, `velocity` (E, 16, 6, H, W); `t` (E,); `foreground`, `given` (E, 1, 6, H, W) bool; `depth` (E,) with -1 for
    clean; `null` and `remaining`: per entry whether it reads the null caption, and how many chunks come after it.
    """

    layout: Layout
    scenes: list[Scene]
    x: Tensor
    velocity: Tensor
    t: Tensor
    foreground: Tensor
    given: Tensor
    depth: Tensor
    decides: Tensor
    null: list[bool]
    remaining: list[int]
    first_frames: list[int]
    num_steps: int


def draw_layout(rng: np.random.Generator) -> Layout:
    shares = np.array([layout.share for layout in LAYOUTS])
    return LAYOUTS[int(rng.choice(len(LAYOUTS), p=shares / shares.sum()))]


def _clean_slot(x1: Tensor, x0: Tensor, rng: np.random.Generator) -> tuple[Tensor, float, bool]:
    """A chunk that is done, as the cache holds it: input, noise level, whether it reads the null caption.

    Mostly the sampler's clean pass; sometimes what is left of the last noisy steps where that pass is skipped. A
    little noise stands for the errors of generated chunks.
    """
    if rng.uniform() < 0.7:
        return x1 + float(rng.uniform(0, 0.15)) * torch.randn_like(x1), CLEAN_T, True
    t = float(noise_level(torch.tensor(rng.uniform(0.96, 1.0))))
    return t * x1 + (1 - t) * x0, t, False


@dataclass(frozen=True)
class _Row:
    """The clip behind one row. `image`: its first latent is given as an image; `given`: two latents of chunk 1 are."""

    latents: Tensor
    foreground: Tensor
    image: Tensor | None
    given: bool
    share: float  # how far the stage is, the same for the whole window
    first_chunk: int
    chunks_after: int


def _draw_row(
    clips: LatentClips, clip: int, layout: Layout, share: float, rng: np.random.Generator, chunk_count: int
) -> _Row:
    tile = int(rng.integers(PERIOD // TILE_LATENTS))
    image = layout.from_start and rng.uniform() < 0.2  # a given image may show its object anywhere
    if layout.from_start and not image:
        tile = opening_tile(clips.scenes[clip])
    latents, foreground = clips.window(clip, tile, chunk_count * CHUNK_WIDTH)
    return _Row(
        latents=latents,
        foreground=foreground,
        image=clips.images[clip, tile].float() if image else None,
        given=layout.name == "after_short_prefix" and rng.uniform() < 0.5,
        share=share,
        first_chunk=0 if layout.from_start else int(rng.integers(0, 9)),
        chunks_after=int(rng.integers(0, 9)),
    )


def _draw_entry(row: _Row, slot: Slot, rng: np.random.Generator) -> dict[str, Tensor | bool]:
    """The tensors of one slot, named as in `Batch`."""
    span = slice(slot.chunk * CHUNK_WIDTH, (slot.chunk + 1) * CHUNK_WIDTH)
    x1 = row.latents[span].transpose(0, 1)
    x0 = torch.randn_like(x1)
    if slot.depth == CLEAN:
        x, t, null = _clean_slot(x1, x0, rng)
    else:
        t, null = float(noise_level(torch.tensor((slot.depth + row.share) / WINDOW))), False
        x = t * x1 + (1 - t) * x0
    given = torch.zeros(1, *x1.shape[1:], dtype=torch.bool)
    if row.image is not None and slot.chunk == 0:
        given[:, :1] = True
        x[:, 0] = row.image
    if row.given and slot.chunk == 1:
        given[:, :2] = True
        x[:, :2] = x1[:, :2]
    # What is given stays as it is.
    velocity = torch.where(given, torch.zeros(()), x1 - x0)
    foreground = row.foreground[span][None]
    return {"x": x, "velocity": velocity, "t": torch.tensor(t), "foreground": foreground, "given": given, "null": null}


def make_batch(clips: LatentClips, layout: Layout, rng: np.random.Generator, rows: int | None = None) -> Batch:
    """Draw clips and noise for one layout. Gaussian noise comes from torch's global generator, the rest from `rng`."""
    slots = layout.slots
    count = rows or layout.rows
    chunk_count = 1 + max(slot.chunk for slot in slots)
    chosen = [int(clip) for clip in rng.integers(len(clips.scenes), size=count)]
    # The rows' places in the stage are spread evenly over it.
    drawn = [
        _draw_row(clips, clip, layout, (number + float(rng.uniform())) / count, rng, chunk_count)
        for number, clip in enumerate(chosen)
    ]
    entries = [_draw_entry(row, slot, rng) for row in drawn for slot in slots]
    deciding = [layout.from_start and slot.chunk == 0 and slot.depth in (1, 2) for slot in slots]
    return Batch(
        layout=layout,
        scenes=[clips.scenes[clip] for clip in chosen],
        **{
            name: torch.stack([entry[name] for entry in entries])
            for name in ("x", "velocity", "t", "foreground", "given")
        },
        depth=torch.tensor([slot.depth for slot in slots]).repeat(count),
        decides=torch.tensor(deciding).repeat(count),
        null=[bool(entry["null"]) for entry in entries],
        remaining=[row.chunks_after + chunk_count - 1 - slot.chunk for row in drawn for slot in slots],
        first_frames=[(row.first_chunk + slot.chunk) * CHUNK_WIDTH for row in drawn for slot in slots],
        num_steps=int(rng.choice(STEP_COUNTS, p=_STEP_SHARES)),
    )


class RowAttention:
    """Attention context of a batch: every slot to the slots of its own row that it may see.

    Plain matmul, softmax, matmul: on a CPU faster to train than the fused kernel.
    """

    def __init__(self, layout: Layout) -> None:
        self.starts = [slot.start for slot in layout.slots]

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """`q` (E, N, H, d), `kv` (E, N, G, 2d) to (E, N, H * d)."""
        slots, groups, width = len(self.starts), kv.shape[2], q.shape[-1]
        q = rearrange(q * width**-0.5, "(b s) n (g r) d -> s b g (r n) d", s=slots, g=groups)
        k = rearrange(kv[..., :width], "(b s) n g d -> b g d (s n)", s=slots)
        v = rearrange(kv[..., width:], "(b s) n g d -> b g (s n) d", s=slots)
        tokens = kv.shape[1]
        outputs = []
        for slot, start in enumerate(self.starts):
            seen = slice(start * tokens, (slot + 1) * tokens)
            weights = torch.matmul(q[slot], k[..., seen]).softmax(-1)
            outputs.append(torch.matmul(weights, v[:, :, seen]))
        return rearrange(torch.stack(outputs), "s b g (r n) d -> (b s) n (g r d)", n=tokens)
