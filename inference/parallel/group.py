"""How the ranks of a run share its work: the interface that the model sees, and the case of one process.

A *rank* is one process with one device. Outside attention every rank holds a share of each chunk's tokens, inside
attention all tokens of a share of the heads (docs/parallel.md, "What a rank computes"). The model, the guidance, the
sampler and the pipeline take a ``ContextParallel`` as an argument; ``ALONE`` is the default everywhere, and with it
nothing is moved or copied.

Shape letters: E entries (chunks of one forward), N tokens of a chunk, n of them on this rank, R ranks, H query heads,
G key/value groups, d head width.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from inference.errors import ExpectedError

T = TypeVar("T")


class RankLostError(ExpectedError):
    """The other ranks cannot be reached any more, so the run cannot go on."""


class ContextParallel:
    """One process, which holds all tokens and all heads. ``Ulysses`` is the same for several."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rank = rank
        self.ranks = ranks

    @property
    def is_first(self) -> bool:
        """The rank that decides, reads the prompt and writes the video."""
        return self.rank == 0

    def shard(self, x: Tensor) -> Tensor:
        """(E, N, ...) of all tokens to (E, n, ...) of this rank's."""
        return x

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """(E, n, f) of this rank's tokens to (E, N, f) of all, N being ``tokens``; the same on every rank."""
        return x

    def to_heads(self, q: Tensor, kv: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """``q`` (E, n, H, d) and ``kv`` (E, n, G, 2d) of this rank's tokens to (E, N, H/R, d) and (E, N, G/R, 2d) of
        its heads, N being ``tokens``.
        """
        return q, kv

    def to_tokens(self, out: Tensor) -> Tensor:
        """The way back: (E, N, H/R * d) of this rank's heads to (E, n, H * d) of its tokens."""
        return out

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, on every rank; it is called nowhere else. Tensors in it are on the
        CPU.
        """
        return make()

    def map(self, function: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> list[Tensor]:
        """``function`` of every piece, each computed by one rank; all results, in order, on every rank."""
        return [function(piece) for piece in pieces]

    def check(self) -> None:
        """RankLostError where another rank is known to have ended: what this one last received is then worthless."""
        return None

    def describe(self) -> dict[str, Any]:
        """For the sidecar file."""
        return {"count": 1}


ALONE = ContextParallel()
