"""Context parallelism by Ulysses over ``torch.distributed``: tokens sharded outside attention, heads inside.

Source: docs/parallel.md, "What a rank computes"; the method is that of DeepSpeed-Ulysses (arXiv 2309.14509). Two
all-to-all exchanges a layer carry queries, keys and values to the ranks that own their heads, and the results back.

A chunk's N tokens are split without padding: the first N mod R ranks take one more than the others. Tensors travel as
bytes, so that every dtype is exchanged exactly, whatever the back end knows about it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from inference.parallel.group import ContextParallel, RankLostError
from inference.parallel.lookout import UNREACHABLE, Lookout

T = TypeVar("T")
Shape = tuple[int, ...]


def token_shares(tokens: int, ranks: int) -> list[int]:
    """How many of ``tokens`` each rank holds; they differ by at most one."""
    share, rest = divmod(tokens, ranks)
    return [share + (rank < rest) for rank in range(ranks)]


class Ulysses(ContextParallel):
    """This process among those of ``torch.distributed``'s default group; all of them make the same calls.

    Args:
        device: where tensors are exchanged from and to.
        lookout: knows when another rank has ended.
    """

    def __init__(self, device: torch.device, lookout: Lookout) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size())
        self.device = device
        self.lookout = lookout

    def shard(self, x: Tensor) -> Tensor:
        # A copy: a view would keep the memory of all tokens.
        return x.split(token_shares(x.shape[1], self.ranks), dim=1)[self.rank].clone()

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        shapes = [[(len(x), share, x.shape[2])] for share in token_shares(tokens, self.ranks)]
        return torch.cat([part for (part,) in self._all_gather([x], shapes, x.dtype)], dim=1)

    def to_heads(self, q: Tensor, kv: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        entries, _, groups, kv_width = kv.shape
        # A group's query heads beside its key and value: one exchange for all three.
        packed = torch.cat([rearrange(q, "e n (g r) d -> e n g (r d)", g=groups), kv], dim=-1)
        outgoing = packed.chunk(self.ranks, dim=2)
        shape = outgoing[0].shape[2:]
        shapes = [(entries, share, *shape) for share in token_shares(tokens, self.ranks)]
        received = torch.cat(self._all_to_all(outgoing, shapes), dim=1)  # (E, N, G/R, (H/G + 2) d)
        queries, kv = received.split([shape[-1] - kv_width, kv_width], dim=-1)
        return rearrange(queries, "e n g (r d) -> e n (g r) d", d=q.shape[-1]), kv

    def to_tokens(self, out: Tensor) -> Tensor:
        outgoing = out.split(token_shares(out.shape[1], self.ranks), dim=1)
        return torch.cat(self._all_to_all(outgoing, [tuple(outgoing[self.rank].shape)] * self.ranks), dim=-1)

    def from_first(self, make: Callable[[], T]) -> T:
        box: list[Any] = [make() if self.is_first else None]
        with self._together():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def map(self, function: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> list[Tensor]:
        mine = [function(piece) for piece in pieces[self.rank :: self.ranks]]
        kinds: list[Any] = [None] * self.ranks
        with self._together():
            dist.all_gather_object(kinds, [(tuple(result.shape), result.dtype) for result in mine])
        dtype = next(dtype for kind in kinds for _, dtype in kind)
        shapes = [[shape for shape, _ in kind] for kind in kinds]
        by_rank = self._all_gather(mine, shapes, dtype)
        return [by_rank[i % self.ranks][i // self.ranks] for i in range(len(pieces))]

    def check(self) -> None:
        if self.lookout.lost is not None:
            raise RankLostError(self._message())

    def describe(self) -> dict[str, Any]:
        return {"count": self.ranks, "strategy": "cp_ulysses", "backend": dist.get_backend()}

    def _all_to_all(self, outgoing: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Send ``outgoing[r]`` to rank r; gives what came from every rank, of ``shapes[r]``."""
        dtype = outgoing[0].dtype
        sent = _as_bytes(outgoing)
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=sent.device)
        with self._together():
            dist.all_to_all_single(received, sent, sizes, [part.nbytes for part in outgoing])
        return _from_bytes(received, shapes, dtype)

    def _all_gather(self, mine: list[Tensor], shapes: list[list[Shape]], dtype: torch.dtype) -> list[list[Tensor]]:
        """The tensors of every rank, of ``shapes[r]`` each, on every rank."""
        sizes = [sum(math.prod(shape) for shape in of_rank) * dtype.itemsize for of_rank in shapes]
        # Collectives gather equal sizes, so shares are filled up to the largest.
        sent = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        sent[: sizes[self.rank]] = _as_bytes(mine) if mine else 0
        received = torch.empty(self.ranks * len(sent), dtype=torch.uint8, device=self.device)
        with self._together():
            dist.all_gather_into_tensor(received, sent)
        rows = received.view(self.ranks, -1)
        return [_from_bytes(row[:size], of_rank, dtype) for row, size, of_rank in zip(rows, sizes, shapes, strict=True)]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around every collective: its failure becomes an error that says what became of the other ranks."""
        self.check()
        try:
            yield
        except RuntimeError as error:
            self.lookout.wait_for_verdict()
            # Who has ended says more than how the connection broke; without that, the back end's own words.
            known = self.lookout.lost not in (None, UNREACHABLE)
            raise RankLostError(self._message() + ("" if known else f" ({error})")) from error

    def _message(self) -> str:
        return f"rank {self.rank} of {self.ranks} cannot go on: {self.lookout.verdict()}"


def _as_bytes(tensors: Sequence[Tensor]) -> Tensor:
    """The contents of ``tensors``, one after the other, (bytes,) uint8."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).view(torch.uint8)


def _from_bytes(data: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> list[Tensor]:
    """The tensors of ``shapes`` that ``_as_bytes`` made ``data`` of: views of it."""
    sizes = [math.prod(shape) for shape in shapes]
    return [part.view(shape) for part, shape in zip(data.view(dtype).split(sizes), shapes, strict=True)]
