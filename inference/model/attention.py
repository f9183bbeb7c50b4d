"""The only file that knows attention kernels.

Two calls: ``attend`` (one sequence of queries against one contiguous range of keys) and ``cross_attend`` (every chunk
against its own caption tokens). Both take any head grouping, keep the scale ``1/sqrt(d)``, use no mask inside a
range, accumulate in float32 and return the dtype of the queries (docs/transformer.md, "Attention block").

Shape letters: E entries (chunks of one forward), N tokens of a chunk, M keys, H query heads, G key/value groups, D
head width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's scaled dot-product attention. ``q`` (B, G, N, D), ``k`` and ``v`` (B, G, M, D), ``mask`` true =
    visible.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Plain matmul, softmax, matmul in float32: the reference arithmetic, and the slowest."""
    logits = torch.matmul(q.float(), k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return torch.matmul(logits.softmax(dim=-1), v.float()).to(q.dtype)


KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "eager": eager}


def resolve_backend(name: str) -> str:
    """The back end that ``name`` stands for on this machine; ValueError where it does not exist."""
    if name == "auto":
        return "sdpa"
    if name not in KERNELS:
        raise ValueError(f"attention_backend {name!r} is not available; choose one of auto, {', '.join(KERNELS)}")
    return name


def attend(q: Tensor, kv: Tensor, backend: str = "sdpa") -> Tensor:
    """Self attention of one range of keys.

    Args:
        q: (B, N, H, D), normalised and rotated.
        kv: (B, M, G, 2D), keys and values side by side, as the cache stores them.
        backend: a key of ``KERNELS``.

    Returns:
        (B, N, H * D) in the dtype of ``q``.
    """
    k, v = rearrange(kv, "b m g (two d) -> two b g m d", two=2)
    return _grouped(q, k, v, None, backend)


def cross_attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], backend: str = "sdpa") -> Tensor:
    """Attention of every entry to its own caption tokens; an entry without any gives zeros.

    Args:
        q: (E, N, H, D).
        k, v: (sum of lengths, G, D), the entries' tokens one after the other.
        lengths: tokens of each entry.

    Returns:
        (E, N, H * D) in the dtype of ``q``.
    """
    longest = max(lengths)
    if longest == 0:
        return torch.zeros_like(q).flatten(2)
    if min(lengths) == longest:
        k, v = (rearrange(x, "(e m) g d -> e g m d", m=longest) for x in (k, v))
        return _grouped(q, k, v, None, backend)
    counts = torch.tensor(lengths, device=q.device)
    present = torch.arange(longest, device=q.device)[None] < counts[:, None]  # (E, M)
    # An entry without tokens may look at padding, so that no softmax is empty; its result is replaced by zeros below.
    visible = present | (counts == 0)[:, None]
    padded = [rearrange(_unpack(x, present), "e m g d -> e g m d") for x in (k, v)]
    out = _grouped(q, *padded, visible[:, None, None, :], backend)
    return out * (counts > 0)[:, None, None]


def _unpack(packed: Tensor, present: Tensor) -> Tensor:
    """(sum of lengths, G, D) to (E, M, G, D), zeros where no token is."""
    out = packed.new_zeros(*present.shape, *packed.shape[1:])
    out[present] = packed
    return out


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """Attention with grouped heads: the query heads of a group become more queries of that group, so no key is
    copied.
    """
    groups = k.shape[1]
    folded = rearrange(q, "b n (g r) d -> b g (r n) d", g=groups)
    out = KERNELS[backend](folded, k, v, mask)
    return rearrange(out, "b g (r n) d -> b n (g r d)", n=q.shape[1])
