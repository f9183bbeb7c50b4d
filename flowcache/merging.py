"""Merging instead of dropping: tokens that do not stay are averaged into those that do, and their weight is kept.

A cache that drops tokens takes their share of the attention away, and what is left of the history counts for less
against the chunks of the window: on the bundled model that is most of the error (docs/experiments.md, "What the
compressed cache keeps"). Here a token that stands for n others is to weigh as much as n. Softmax would need log n added
to its logit; attention kernels have no place for that, so it is put into the key: queries of a layer have a common
part, and along the direction u with ``q . u / sqrt(d) = 1`` on average (least squares over the queries seen) a key is
moved by ``log n``.

Shape letters: L tokens before, M after, G key/value groups, H query heads, N queries, d head width.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from flowcache.scoring import block_rows
from inference.kv_cache import KVGeometry
from inference.reuse import State

# Share of the queries' mean square that is added to keep the fit of u well posed.
RIDGE = 1e-3


class TokenMerger:
    """Merges the tokens of one video, layer by layer."""

    def __init__(self, geometry: KVGeometry) -> None:
        self.geometry = g = geometry
        shape = (g.layers, g.groups, g.head_width)
        self._square = torch.zeros(*shape, g.head_width, device=g.device)  # sum of q q^T over the queries seen
        self._sum = torch.zeros(shape, device=g.device)  # sum of q
        self._shift = torch.zeros(shape, device=g.device)  # u, as it is in the stored keys
        # Per layer (kept, G): how many tokens each kept one stands for.
        self.counts = [torch.ones(0, g.groups, device=g.device) for _ in range(g.layers)]

    def observe(self, layer: int, q: Tensor) -> None:
        """Take queries (N, H, d) into the fit of the direction that all of them share."""
        rows = rearrange(q.float(), "n (g r) d -> g (n r) d", g=self.geometry.groups)
        self._square[layer] += rows.transpose(1, 2) @ rows
        self._sum[layer] += rows.sum(dim=1)

    def merge(self, layer: int, tokens: Tensor, kept: Tensor, forgotten: Tensor | None = None) -> Tensor:
        """The kept tokens (M, G, 2d) with all others averaged into them, in the dtype of ``tokens``.

        Args:
            tokens: (L, G, 2d) keys and values, those that were kept before in front.
            kept: (G, M) indices of the tokens that stay, in the order in which they are stored.
            forgotten: (G, L) bool, tokens that are dropped all the same unless they stay.
        """
        width = self.geometry.head_width
        before = self.counts[layer]
        counts = torch.cat([before, before.new_ones(len(tokens) - len(before), before.shape[1])])
        plain = tokens.float()
        plain[..., :width] -= counts.log()[..., None] * self._shift[layer]
        if forgotten is not None:
            counts = counts.masked_fill(forgotten.scatter(1, kept, False).T, 0)
        merged, self.counts[layer] = merge_tokens(plain, counts, kept, width)
        self._shift[layer] = shared_direction(self._square[layer], self._sum[layer])
        merged[..., :width] += self.counts[layer].log()[..., None] * self._shift[layer]
        return merged.to(tokens.dtype)

    def state(self) -> State:
        sums = {"square": self._square, "sum": self._sum, "shift": self._shift}
        return sums | {"counts": list(self.counts)}

    def restore(self, state: State) -> None:
        self._square, self._sum, self._shift = (state[name] for name in ("square", "sum", "shift"))
        self.counts = state["counts"]


def merger_bytes(geometry: KVGeometry, kept: int) -> int:
    """What a ``TokenMerger`` holds where ``kept`` tokens stay, those of every group counted."""
    g = geometry
    return 4 * g.layers * (kept + g.groups * g.head_width * (g.head_width + 2))


def shared_direction(square: Tensor, total: Tensor) -> Tensor:
    """``u`` (G, d) with ``q . u / sqrt(d)`` as near to 1 as least squares bring it.

    Args:
        square: (G, d, d) sum of ``q q^T``.
        total: (G, d) sum of ``q``.
    """
    width = square.shape[-1]
    ridge = RIDGE * square.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    regular = square + ridge.clamp_min(1e-12) * torch.eye(width, device=square.device)
    return torch.linalg.solve(regular, total) * math.sqrt(width)


def merge_tokens(tokens: Tensor, counts: Tensor, kept: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Kept tokens (M, G, 2d) as means over all that are nearest to them, and how many those are, (M, G).

    Args:
        tokens: (L, G, 2d) keys and values, float32.
        counts: (L, G) how many tokens each stands for.
        kept: (G, M) indices that stay.
        head_width: d.
    """
    nearest = nearest_kept(tokens, kept, head_width)  # (G, L)
    weight = counts.T.contiguous()
    sums = sums_by_place(rearrange(tokens, "l g d -> g l d") * weight[..., None], nearest, kept.shape[1])
    totals = sums_by_place(weight, nearest, kept.shape[1])
    return rearrange(sums / totals[..., None], "g m d -> m g d"), totals.T.contiguous()


def sums_by_place(values: Tensor, place: Tensor, places: int) -> Tensor:
    """Sums (G, places, ...) of all ``values`` (G, L, ...) that have the same ``place`` (G, L), in ascending order.

    Not ``scatter_add_``: on a GPU that adds in the order in which threads arrive, so no two runs would be equal.
    """
    ordered, order = place.sort(dim=1, stable=True)
    edges = torch.arange(places + 1, device=place.device).expand(len(place), -1).contiguous()
    offsets = torch.searchsorted(ordered, edges)
    wide = order.view(*order.shape, *[1] * (values.ndim - 2)).expand_as(values)
    # Unsafe is the check of the offsets, for which the host would wait.
    return torch.segment_reduce(values.gather(1, wide), "sum", offsets=offsets, axis=1, unsafe=True)


def nearest_kept(tokens: Tensor, kept: Tensor, head_width: int) -> Tensor:
    """For every token the kept one, 0 to M - 1, that is nearest in keys and values, each in units of its spread.

    Returns (G, L); a kept token is its own nearest. Arguments as in ``merge_tokens``.
    """
    halves = rearrange(tokens, "l g (two d) -> g l two d", d=head_width)
    features = (halves / halves.std(dim=(1, 3), keepdim=True).clamp_min(1e-12)).flatten(2)
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    # |x - y| is least where x . y - |y|^2 / 2 is largest: one product, and nothing else of that size.
    half_squares = chosen.square().sum(dim=-1)[:, None] / 2
    nearest = torch.cat(
        [
            torch.baddbmm(half_squares, part, chosen.transpose(1, 2), beta=-1).argmax(dim=-1)
            for part in features.split(block_rows(kept.numel(), kept.device), dim=1)
        ],
        dim=1,
    )
    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    return nearest.scatter(1, kept, own)
