"""Which cached tokens are worth keeping: importance, redundancy, their mix, position weights, selection. Pure
functions.

Shape letters: L keys, G key/value groups, H query heads, N queries, d head width. Scores are (G, L): every group
chooses for itself (docs/flowcache.md, "What is kept"; arXiv 2602.10825, section on KV compression; R-KV for the mix of
importance and redundancy).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

POOL_WIDTH = 7
QUERY_TOKENS = 50
HARD_CODE_PENALTY = 1e6
# Products of one block of tokens with all others, in elements: 64 MiB in float32 whatever the length of the video. A
# GPU has the memory of a forward free meanwhile, and small blocks would not fill it.
BLOCK_ELEMENTS = 16 * 2**20
GPU_BLOCK_ELEMENTS = 128 * 2**20


@dataclass(frozen=True)
class Selection:
    """How kept tokens are chosen; the fields of ``FlowCacheConfig`` of the same names, and sizes in tokens."""

    strategy: str
    mix_lambda: float
    weighting: str
    power: float
    chunk_tokens: int
    frame_tokens: int

    @property
    def unit(self) -> int:
        """Tokens that are kept or dropped as one."""
        return {"token": 1, "frame": self.frame_tokens, "chunk": self.chunk_tokens}[self.strategy]


def block_rows(row_elements: int, device: torch.device) -> int:
    """How many rows of ``row_elements`` products are made at a time."""
    return max(1, (GPU_BLOCK_ELEMENTS if device.type == "cuda" else BLOCK_ELEMENTS) // row_elements)


def select_queries(q: Tensor, granularity: str, frame_tokens: int) -> Tensor:
    """The queries that score importance: the last 50 tokens, the last frame, or all of ``q`` (N, H, d)."""
    return q[-queries_kept(granularity, len(q), frame_tokens) :]


def queries_kept(granularity: str, chunk_tokens: int, frame_tokens: int) -> int:
    """How many queries ``select_queries`` takes of a chunk."""
    return min(chunk_tokens, {"token": QUERY_TOKENS, "frame": frame_tokens, "chunk": chunk_tokens}[granularity])


def attention_weight(q: Tensor, k: Tensor) -> Tensor:
    """Mean attention that each key gets, (G, L), in the dtype of ``q``.

    Logits ``q . k / sqrt(d)``, maximum over the query heads of a group, softmax over the keys in float32, mean over
    the queries. Queries go in blocks, so that no query x key matrix is ever held.

    Args:
        q: (N, H, d).
        k: (L, G, d).
    """
    length, groups = k.shape[:2]
    heads_per_group = q.shape[1] // groups
    keys = rearrange(k, "l g d -> g d l")
    total = torch.zeros(groups, length, dtype=torch.float32, device=k.device)
    for block in q.split(block_rows(length * q.shape[1], k.device)):
        rows = rearrange(block, "n (g r) d -> g (n r) d", g=groups)
        # Scaled by the product itself: logits are the largest tensor here, and every pass over them costs.
        logits = torch.baddbmm(rows.new_zeros(()), rows, keys, beta=0, alpha=q.shape[-1] ** -0.5)
        best = rearrange(logits, "g (n r) l -> g n r l", r=heads_per_group).amax(dim=2)
        total += best.softmax(dim=-1, dtype=torch.float32).sum(dim=1)
    return (total / len(q)).to(q.dtype)


def importance(weight: Tensor, positions: Tensor | None = None) -> Tensor:
    """Max-pool of ``attention_weight`` (G, L) over neighbouring keys, width 7.

    Args:
        positions: (G, L) ascending original positions. Neighbours are then tokens that lay within three of each other
            in the video;
            without them, tokens that lie so in the buffer.
    """
    reach = POOL_WIDTH // 2
    if positions is None:
        return F.max_pool1d(weight[None], POOL_WIDTH, stride=1, padding=reach)[0]
    pooled = weight.clone()
    # Ascending positions: whoever lay within `reach` in the video lies within `reach` in the buffer.
    for shift in range(1, min(reach, weight.shape[1] - 1) + 1):
        near = positions[:, shift:] - positions[:, :-shift] <= reach
        later = torch.where(near, weight[:, shift:], -torch.inf)
        earlier = torch.where(near, weight[:, :-shift], -torch.inf)
        pooled[:, :-shift] = torch.maximum(pooled[:, :-shift], later)
        pooled[:, shift:] = torch.maximum(pooled[:, shift:], earlier)
    return pooled


def redundancy(k: Tensor) -> Tensor:
    """How much each key resembles all others, (G, L): softmax over keys of the row mean of the cosine matrix without
    its diagonal.

    Computed from the sum of the normalised keys in O(L) memory: ``(k_i . sum_j k_j - 1) / L``.

    Args:
        k: (L, G, d).
    """
    normalised = k / (k.norm(dim=-1, keepdim=True) + 1e-8)
    mean = (torch.einsum("lgd,gd->gl", normalised, normalised.sum(dim=0)) - 1) / len(k)
    return mean.softmax(dim=-1, dtype=torch.float32).to(k.dtype)


def mixed_score(q: Tensor, k: Tensor, mix_lambda: float, positions: Tensor | None = None) -> Tensor:
    """``lambda * importance - (1 - lambda) * redundancy``, (G, L), in the dtype of the inputs."""
    return mix_lambda * importance(attention_weight(q, k), positions) - (1 - mix_lambda) * redundancy(k)


def position_weight(method: str, position: Tensor, last: int, power: float) -> Tensor:
    """Weight of a score by position (docs/flowcache.md, "Position weights"); 1 for ``no_weight`` and ``hard_code``.

    Args:
        position: positions from 0, any shape, float.
        last: the largest position, L - 1.
        power: exponent of the polynomial forms.
    """
    u = position / max(last, 1)
    match method:
        case "no_weight" | "hard_code":
            return torch.ones_like(u)
        case "exponential":
            return 0.1 + 0.9 * (1 - torch.exp(-2 * u)) / (1 - math.exp(-2))
        case "polynomial":
            return 0.1 + 0.9 * u**power
        case "upper_convex_polynomial":
            return 2 * (1 - (1 - u) ** power)
        case "gaussian":
            sigma = (last + 1) / 4
            tail = math.exp(-0.5 * (last / sigma) ** 2)
            return 0.1 + 0.9 * (torch.exp(-0.5 * (position / sigma) ** 2) - tail) / (1 - tail)
    raise ValueError(f"unknown score_weighting_method {method!r}")


def weighted_score(score: Tensor, selection: Selection, positions: Tensor | None = None) -> Tensor:
    """Scores after the position weight: each group's minimum is subtracted first, so that weights act on what is
    above it.
    """
    position = positions if positions is not None else torch.arange(score.shape[-1], device=score.device)
    last = int(position.max())
    shifted = score - score.amin(dim=-1, keepdim=True)
    if selection.weighting == "hard_code":
        shifted = shifted - HARD_CODE_PENALTY * (position < selection.chunk_tokens).to(shifted.dtype)
    return shifted * position_weight(selection.weighting, position.float(), last, selection.power).to(shifted.dtype)


def select(score: Tensor, keep: int, selection: Selection, positions: Tensor | None = None) -> Tensor:
    """Indices (G, keep) of the tokens to keep, best first; units whole, their tokens ascending.

    Args:
        score: (G, L) from ``mixed_score``.
        keep: tokens to keep; a multiple of the unit.
        positions: original positions, as in ``importance``; None where a position is a place in the buffer.
    """
    unit = selection.unit
    if unit == 1:
        return highest(weighted_score(score, selection, positions), keep)
    if keep % unit or score.shape[-1] % unit:
        raise ValueError(f"{keep} of {score.shape[-1]} tokens cannot be kept in units of {unit}")
    units = rearrange(score, "g (n u) -> g n u", u=unit).mean(dim=-1)
    best = highest(units, keep // unit)
    return (best[..., None] * unit + torch.arange(unit, device=score.device)).flatten(1)


def highest(score: Tensor, count: int) -> Tensor:
    """Indices (G, count) of the highest scores, best first, equal ones in order: ``topk`` promises nothing for those,
    and on a GPU takes them as they come.
    """
    return score.sort(dim=-1, descending=True, stable=True).indices[..., :count]
