"""Rules for what stays in the cache: a score per cached token, the highest of which are kept.

`importance` is the published rule (docs/flowcache.md, "What is kept"); the others look at places in the video alone.
Which one keeps what a model needs is measured in docs/experiments.md, "What the compressed cache keeps".

Shape letters: L cached tokens, G key/value groups, H query heads, N queries, d head width. Scores are (G, L).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.scoring import mixed_score

# Multiples of the golden ratio's fraction fill the unit interval evenly, however many of them there are.
_GOLDEN = 0.6180339887498949
_HASH_SEED = 20260210


@dataclass(frozen=True)
class Candidates:
    """Tokens of one layer to choose from.

    Args:
        queries: (N, H, d) that score importance; None for a rule that looks at none.
        keys: (L, G, d).
        positions: (G, L) places in the video; None where the published form is kept, which knows places in the buffer
            only.
        layer: which layer.
        frame_tokens: tokens of a latent frame.
        mix_lambda: weight of importance against redundancy.
    """

    queries: Tensor | None
    keys: Tensor
    positions: Tensor | None
    layer: int
    frame_tokens: int
    mix_lambda: float

    @property
    def places(self) -> Tensor:
        """Places in the video; ValueError where they are not known."""
        if self.positions is None:
            raise ValueError("this rule needs places in the video: set kept_order to position")
        return self.positions


def importance_against_redundancy(tokens: Candidates) -> Tensor:
    """The published rule."""
    if tokens.queries is None:
        raise ValueError("keep_rule importance needs queries to score with")
    return mixed_score(tokens.queries, tokens.keys, tokens.mix_lambda, tokens.positions)


def recent(tokens: Candidates) -> Tensor:
    """The latest tokens."""
    return tokens.places.float()


def sinks(tokens: Candidates) -> Tensor:
    """The first frame of the video, and the latest tokens."""
    places = tokens.places
    return torch.where(places < tokens.frame_tokens, places + places.max() + 1, places).float()


def random(tokens: Candidates) -> Tensor:
    """Tokens drawn at random, evenly from the whole history: every place of every group has a lot of its own."""
    groups, places = tokens.places.shape[0], tokens.places
    generator = torch.Generator().manual_seed(_HASH_SEED + tokens.layer)
    # A group's lots are drawn one after the other, so that they do not depend on how long the video is.
    lots = torch.rand(int(places.max()) + 1, groups, generator=generator).T.to(places.device)
    return lots.gather(1, places)


def spread(tokens: Candidates) -> Tensor:
    """Tokens at even distances over the whole history, the same in all groups: no two that are kept are close."""
    return torch.remainder(tokens.places.double() * _GOLDEN, 1.0)


RULES: dict[str, Callable[[Candidates], Tensor]] = {
    "importance": importance_against_redundancy,
    "recent": recent,
    "sinks": sinks,
    "random": random,
    "spread": spread,
}


def keep_score(rule: str, tokens: Candidates, shared_mask: bool) -> Tensor:
    """Scores (G, L) by a rule; with ``shared_mask`` the mean over the groups, so that all keep the same tokens."""
    score = RULES[rule](tokens)
    return score.mean(dim=0, keepdim=True).expand_as(score) if shared_mask else score


def lower_unreachable(score: Tensor, positions: Tensor, first_reachable: int) -> Tensor:
    """Scores with every token before position ``first_reachable`` below all others, their order kept."""
    span = (score.amax() - score.amin()).clamp_min(1e-6)
    return torch.where(positions < first_reachable, score - 2 * span, score)
