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

from example.nano.scenes.data import Scene
from example.nano.training.changes import Change, ChangePartners
from example.nano.training.latents import IMAGE_FRAMES, PERIOD, LatentClips

CHUNK_WIDTH = 6
WINDOW = 4
CLEAN_T = 0.9999
CLEAN = -1
ANY_DEPTH = -2
STEP_COUNTS = (8, 16, 32, 64)
_STEP_SHARES = (0.15, 0.2, 0.3, 0.35)
# Of chunks at any depth: what a video shows is decided at depths 1 and 2, the outlines of shapes at depth 3.
_DEPTH_SHARES = (0.08, 0.28, 0.34, 0.30)


@dataclass(frozen=True)
class Slot:
    """One chunk of a row: pipeline depth 0..3, CLEAN or ANY_DEPTH; number within the row; first slot that it sees."""

    depth: int
    chunk: int
    start: int


@dataclass(frozen=True)
class Layout:
    """Slots of a row, and how many `rows` make a batch. `from_start`: chunk 0 of the row is the first of the video.
    `single_frame`: of every chunk only one latent frame is shown, at its true place.
    """

    rows: int
    from_start: bool
    slots: tuple[Slot, ...]
    single_frame: bool = False

    @property
    def alone(self) -> bool:
        """Whether a row is the first chunk of a video and nothing else."""
        return self.from_start and len(self.slots) == 1

    @property
    def entered(self) -> int | None:
        """The chunk that a prefix may reach into: the first noisy one behind it, at an early stage."""
        first = next(slot for slot in self.slots if slot.depth != CLEAN)
        return first.chunk if first.chunk > 0 and first.depth in (1, 2) else None


def _consecutive(depths: tuple[int, ...], full_history: bool = False) -> tuple[Slot, ...]:
    """Chunks after one another; clean ones see only themselves, as with `clean_chunk_kvrange` 1, unless all history
    is seen.
    """
    return tuple(Slot(d, i, i if d == CLEAN and not full_history else 0) for i, d in enumerate(depths))


LAYOUTS = {
    "running": Layout(8, False, _consecutive((CLEAN, 3, 2, 1, 0))),
    "start": Layout(10, True, _consecutive((3, 2, 1, 0))),
    "third_stage": Layout(13, True, _consecutive((2, 1, 0))),
    "second_stage": Layout(20, True, _consecutive((1, 0))),
    # The first chunk of a video, at any stage: by the caption alone it decides what there is to see and how it moves;
    # all later chunks can read that from the earlier ones.
    "first_chunk": Layout(40, True, _consecutive((ANY_DEPTH,))),
    "first_picture": Layout(160, True, _consecutive((ANY_DEPTH,)), single_frame=True),
    # The nearly-clean copy sees itself only, wherever in the video it is.
    "nearly_clean_copy": Layout(40, False, _consecutive((3,))),
    "after_prefix": Layout(8, False, _consecutive((CLEAN, CLEAN, CLEAN, 1, 0))),
    "after_short_prefix": Layout(10, False, _consecutive((CLEAN, 2, 1, 0))),
    "full_history": Layout(6, False, _consecutive((CLEAN, CLEAN, CLEAN, 3, 2, 1, 0), full_history=True)),
}
# How often each layout is drawn until the given share of the training is done. Looks are learned first and fastest
# from single pictures, then motion from single chunks, then how chunks follow one another.
_PHASES: tuple[tuple[float, dict[str, float]], ...] = (
    (0.10, {"first_picture": 0.8, "first_chunk": 0.2}),
    (0.40, {"first_chunk": 0.64, "first_picture": 0.1, "running": 0.14, "start": 0.06, "third_stage": 0.06}),
    (
        1.0,
        {
            "first_chunk": 0.44,
            "first_picture": 0.08,
            "running": 0.18,
            "start": 0.08,
            "third_stage": 0.07,
            "second_stage": 0.05,
            "nearly_clean_copy": 0.03,
            "after_prefix": 0.03,
            "after_short_prefix": 0.03,
            "full_history": 0.02,
        },
    ),
)


def noise_level(u: Tensor) -> Tensor:
    """The sampler's schedule: share of the steps done to t (0 noise, 1 clean)."""
    squared = u * u
    return squared / 3 / (1 - 2 / 3 * squared)


@dataclass(frozen=True)
class Batch:
    """Entries (E = rows x slots, row by row) of one forward, and what the loss needs.

    `x`, `velocity` (E, 16, T, H, W), T 6 or 1; `t` (E,); `foreground`, `given` (E, 1, T, H, W) bool; `depth` (E,) with
    -1 for clean; `opens` (E,) bool: the first chunk of a video; `null` and `remaining`: per entry whether it
    reads the null caption, and how many chunks come after it. `scenes`: of every row the one it begins with and, where
    its caption changes, the second one; `scene_of`: per entry which of them it shows.
    """

    layout: Layout
    scenes: list[Scene]
    scene_of: list[int]
    x: Tensor
    velocity: Tensor
    t: Tensor
    foreground: Tensor
    given: Tensor
    depth: Tensor
    opens: Tensor
    null: list[bool]
    remaining: list[int]
    first_frames: list[int]
    num_steps: int


def draw_layout(rng: np.random.Generator, progress: float) -> Layout:
    shares = next(shares for until, shares in _PHASES if progress < until or until == 1.0)
    return LAYOUTS[str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))]


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
    """The clip behind one row. `image`: its first latent, given as an image; `entered`: the chunk of which a prefix
    gives the first two latents; `change`: which clip follows on the way.
    """

    latents: Tensor
    foreground: Tensor
    image: Tensor | None
    entered: int | None
    share: float  # how far the stage is, the same for the whole window
    first_chunk: int
    chunks_after: int
    change: Change | None


def _draw_row(
    clips: LatentClips,
    clip: int,
    layout: Layout,
    share: float,
    rng: np.random.Generator,
    chunk_count: int,
    partners: ChangePartners | None,
) -> _Row:
    number = int(rng.integers(clips.images.shape[1]))
    image = layout.from_start and not layout.single_frame and rng.uniform() < 0.25
    # A given image may show its object anywhere; a video from text begins where the scene does.
    start = IMAGE_FRAMES[number] // 4 if image else 0 if layout.from_start else int(rng.integers(PERIOD // 3)) * 3
    latents, foreground = clips.window(clip, start, chunk_count * CHUNK_WIDTH)
    change = None
    if partners is not None:
        cut = int(rng.integers(1, chunk_count))
        change = partners.draw(clip, (start + cut * CHUNK_WIDTH) * 4, cut, rng)
        second = clips.window(change.clip, change.start, (chunk_count - cut) * CHUNK_WIDTH)
        latents, foreground = (
            torch.cat([a[: cut * CHUNK_WIDTH], b]) for a, b in zip((latents, foreground), second, strict=True)
        )
    return _Row(
        latents=latents,
        foreground=foreground,
        image=clips.image(clip, number) if image else None,
        entered=layout.entered if rng.uniform() < 0.4 else None,
        share=share,
        first_chunk=0 if layout.from_start else int(rng.integers(0, 9)),
        chunks_after=int(rng.integers(0, 9)),
        change=change,
    )


def _draw_entry(row: _Row, slot: Slot, frames: slice, rng: np.random.Generator) -> dict[str, Tensor | bool]:
    """The tensors of one slot, named as in `Batch`; of its chunk the given latent frames."""
    span = slice(slot.chunk * CHUNK_WIDTH, (slot.chunk + 1) * CHUNK_WIDTH)
    x1 = row.latents[span].transpose(0, 1)[:, frames]
    x0 = torch.randn_like(x1)
    depth = int(rng.choice(WINDOW, p=_DEPTH_SHARES)) if slot.depth == ANY_DEPTH else slot.depth
    if depth == CLEAN:
        x, t, null = _clean_slot(x1, x0, rng)
    else:
        t, null = float(noise_level(torch.tensor((depth + row.share) / WINDOW))), False
        x = t * x1 + (1 - t) * x0
    given = torch.zeros(1, *x1.shape[1:], dtype=torch.bool)
    if row.image is not None and slot.chunk == 0:
        given[:, :1] = True
        x[:, 0] = row.image
    if row.entered == slot.chunk:
        given[:, :2] = True
        x[:, :2] = x1[:, :2]
    # What is given stays as it is.
    velocity = torch.where(given, torch.zeros(()), x1 - x0)
    return {
        "x": x,
        "velocity": velocity,
        "t": torch.tensor(t),
        "foreground": row.foreground[span][None, frames],
        "given": given,
        "depth": torch.tensor(depth),
        "null": null,
    }


def _scenes(
    clips: LatentClips, chosen: list[int], drawn: list[_Row], slots: tuple[Slot, ...]
) -> tuple[list[Scene], list[int]]:
    """`scenes` and `scene_of` of a batch."""
    scenes, scene_of = [], []
    for clip, row in zip(chosen, drawn, strict=True):
        first = len(scenes)
        scenes.append(clips.scenes[clip])
        if row.change is not None:
            scenes.append(clips.scenes[row.change.clip])
        scene_of += [first + int(row.change is not None and slot.chunk >= row.change.chunk) for slot in slots]
    return scenes, scene_of


def make_batch(
    clips: LatentClips,
    layout: Layout,
    rng: np.random.Generator,
    rows: int | None = None,
    partners: ChangePartners | None = None,
    changing: float = 0.0,
) -> Batch:
    """Draw clips and noise for one layout. Gaussian noise comes from torch's global generator, the rest from `rng`.

    `changing`: the share of rows of several chunks whose caption changes, to one of `partners`.
    """
    slots = layout.slots
    count = rows or layout.rows
    chunk_count = 1 + max(slot.chunk for slot in slots)
    chosen = [int(clip) for clip in rng.integers(len(clips.scenes), size=count)]
    # The rows' places in the stage are spread evenly over it.
    drawn = [
        _draw_row(
            clips,
            clip,
            layout,
            (number + float(rng.uniform())) / count,
            rng,
            chunk_count,
            partners if chunk_count > 1 and rng.uniform() < changing else None,
        )
        for number, clip in enumerate(chosen)
    ]
    scenes, scene_of = _scenes(clips, chosen, drawn, slots)
    pictures = [int(rng.integers(CHUNK_WIDTH)) if layout.single_frame else 0 for _ in drawn]
    width = 1 if layout.single_frame else CHUNK_WIDTH
    entries = [
        _draw_entry(row, slot, slice(first, first + width), rng)
        for row, first in zip(drawn, pictures, strict=True)
        for slot in slots
    ]
    return Batch(
        layout=layout,
        scenes=scenes,
        scene_of=scene_of,
        **{
            name: torch.stack([entry[name] for entry in entries])
            for name in ("x", "velocity", "t", "foreground", "given", "depth")
        },
        opens=torch.tensor([layout.from_start and slot.chunk == 0 for slot in slots]).repeat(count),
        null=[bool(entry["null"]) for entry in entries],
        remaining=[row.chunks_after + chunk_count - 1 - slot.chunk for row in drawn for slot in slots],
        first_frames=[
            (row.first_chunk + slot.chunk) * CHUNK_WIDTH + first
            for row, first in zip(drawn, pictures, strict=True)
            for slot in slots
        ],
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
