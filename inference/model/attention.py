"""The only file that knows attention kernels.

Two calls: ``attend`` (one sequence of queries against one contiguous range of keys) and ``cross_attend`` (every chunk
against its own caption tokens). Both take any head grouping, keep the scale ``1/sqrt(d)``, use no mask inside a
range, accumulate in float32 and return the dtype of the queries (docs/transformer.md, "Attention block").

Which back end can be used where is found out at run time, by its package, the device, and a small attention that it
has to get right (docs/backends.md, "Attention").

Shape letters: E entries (chunks of one forward), N tokens of a chunk, M keys, T caption tokens of all entries, H query
heads, G key/value groups, D head width.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from inference.model.products import HALF

logger = logging.getLogger(__name__)

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# bfloat16 rounds to 2^-8; a kernel that mixes up heads, scales or ranges is off by as much as its values are large.
PROBE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Backend:
    """One way to attend.

    ``dense``: ``q`` (B, N, H, D), ``k`` and ``v`` (B, M, G, D) to (B, N, H, D).
    ``packed``: ``q`` (E, N, H, D), ``k`` and ``v`` (T, G, D), tokens of each entry (all above 0) to (E, N, H, D).
    """

    dense: Callable[[Tensor, Tensor, Tensor], Tensor]
    packed: Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Needs:
    """What a back end asks of the machine besides its package; ``below`` bounds the compute capability from above."""

    package: str
    capability: tuple[int, int]
    below: tuple[int, int] = (99, 0)
    widest_head: int = 256

    def unmet(
        self, device: torch.device, dtype: torch.dtype, head_width: int, capability: tuple[int, int] | None
    ) -> list[str]:
        """Why it cannot be used; ``capability`` is that of the device, None for one that is not CUDA."""
        problems = []
        if device.type != "cuda":
            problems.append(f"it runs on CUDA devices, not on {device.type}")
        elif capability is not None and not self.capability <= capability < self.below:
            most = "" if self.below[0] > 90 else f" and below {self.below[0]}.{self.below[1]}"
            problems.append(
                f"it needs compute capability {self.capability[0]}.{self.capability[1]}{most}, the device has "
                f"{capability[0]}.{capability[1]}"
            )
        if dtype not in HALF:
            problems.append(f"it computes in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}")
        if head_width % 8 or head_width > self.widest_head:
            problems.append(f"it takes head widths in steps of 8 up to {self.widest_head}, not {head_width}")
        return problems


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's scaled dot-product attention. ``q`` (B, G, N, D), ``k`` and ``v`` (B, G, M, D), ``mask`` true =
    visible.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def sdpa_of_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by a kernel that knows groups: ``q`` (B, N, H, D), ``k`` and ``v`` (B, M, G, D) to (B, N, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(CUDNN_FIRST, set_priority=True) if prefers_cudnn(q.device) else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)


def prefers_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's attention is to be asked before PyTorch's flash attention, which is of version 2 and does not
    know the matrix units of compute capability 9: there it takes 1.57 times as long (docs/performance.md). Which comes
    first by itself depends on the versions of PyTorch and cuDNN.
    """
    return (9, 0) <= torch.cuda.get_device_capability(device) < (11, 0)


def knows_groups(q: Tensor) -> bool:
    """Whether PyTorch's attention has a kernel for ``q`` that takes fewer key heads than query heads: the flash kernels
    of an NVIDIA GPU; without them it would hold every query times every key.
    """
    return (
        q.device.type == "cuda"
        and q.dtype in HALF
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Plain matmul, softmax, matmul in float32: the reference arithmetic, and the slowest."""
    logits = torch.matmul(q.float(), k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return torch.matmul(logits.softmax(dim=-1), v.float()).to(q.dtype)


def masked_backend(kernel: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]) -> Backend:
    """A back end out of a kernel like ``sdpa`` that takes a mask: packed tokens are padded to the longest entry."""

    def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if kernel is sdpa and mask is None and knows_groups(q):
            return sdpa_of_groups(q, k, v)
        # The query heads of a group become more queries of that group, so no key is copied.
        folded = rearrange(q, "b n (g r) d -> b g (r n) d", g=k.shape[2])
        k, v = (rearrange(x, "b m g d -> b g m d") for x in (k, v))
        return rearrange(kernel(folded, k, v, mask), "b g (r n) d -> b n (g r) d", n=q.shape[1])

    def packed(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        if min(lengths) == max(lengths):
            return dense(q, *(rearrange(x, "(e m) g d -> e m g d", e=len(lengths)) for x in (k, v)))
        k, v = (torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True) for x in (k, v))
        return dense(q, k, v, _present(lengths, q.device)[:, None, None, :])

    return Backend(dense, packed)


def varlen_backend(varlen_attn: Callable[..., Tensor]) -> Backend:
    """``torch.nn.attention.varlen.varlen_attn`` on packed captions; SDPA for self attention, where nothing is ragged.

    Grouped heads are folded into the queries, since not every version of the kernel knows groups.
    """

    def packed(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        queries = rearrange(q, "e n (g r) d -> (e r n) g d", g=k.shape[1])
        each = len(queries) // len(lengths)
        ranges = _offsets((each,) * len(lengths), q.device), _offsets(lengths, q.device)
        out = varlen_attn(queries, k.contiguous(), v.contiguous(), *ranges, each, max(lengths))
        return rearrange(out, "(e r n) g d -> e n (g r) d", e=len(q), n=q.shape[1])

    return Backend(masked_backend(sdpa).dense, packed)


def flash_backend(func: Callable[..., Any], varlen_func: Callable[..., Any]) -> Backend:
    """Both calls of a flash-attention package (``flash_attn_func`` and ``flash_attn_varlen_func``), version 2 or 3.

    They know grouped heads. Some releases return the log-sum-exp beside the result.
    """

    def first(out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    def packed(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        entries, tokens = q.shape[:2]
        out = varlen_func(
            q.flatten(0, 1),
            k,
            v,
            cu_seqlens_q=_offsets((tokens,) * entries, q.device),
            cu_seqlens_k=_offsets(lengths, q.device),
            max_seqlen_q=tokens,
            max_seqlen_k=max(lengths),
        )
        return first(out).unflatten(0, (entries, tokens))

    return Backend(lambda q, k, v: first(func(q, k, v)), packed)


def _load_varlen() -> Backend:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_backend(varlen_attn)


def _load_flash2() -> Backend:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    return flash_backend(flash_attn_func, flash_attn_varlen_func)


def _load_flash3() -> Backend:
    from flash_attn_interface import flash_attn_func, flash_attn_varlen_func

    return flash_backend(flash_attn_func, flash_attn_varlen_func)


LOADERS: Mapping[str, Callable[[], Backend]] = {
    "sdpa": partial(masked_backend, sdpa),
    "eager": partial(masked_backend, eager),
    "varlen": _load_varlen,
    "flash2": _load_flash2,
    "flash3": _load_flash3,
}
BACKENDS = tuple(LOADERS)
ANYWHERE = ("sdpa", "eager")
NEEDS = {
    "varlen": Needs("torch.nn.attention.varlen (torch 2.10 or later)", (8, 0)),
    "flash2": Needs("package flash_attn", (8, 0)),
    "flash3": Needs("package flash_attn_interface", (9, 0), below=(10, 0)),
}
# What `auto` tries. PyTorch's own attention is a version 2 kernel or better, so flash2 adds only the packed captions.
PREFERENCE = ("flash3", "varlen", "flash2", "sdpa")


@cache
def load_backend(name: str) -> Backend:
    """The back end ``name``; ImportError where its package is not installed, KeyError for an unknown name."""
    return LOADERS[name]()


def available_backends(
    device: torch.device | str,
    dtype: torch.dtype,
    head_width: int,
    loaders: Mapping[str, Callable[[], Backend]] = LOADERS,
) -> dict[str, str | None]:
    """Every back end, with the reason why it cannot be used there, or None."""
    device = torch.device(device)
    return {name: _problem(name, device, dtype, head_width, loaders[name]) for name in loaders}


def resolve_backend(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    head_width: int = 128,
    loaders: Mapping[str, Callable[[], Backend]] = LOADERS,
) -> str:
    """The back end that ``name`` stands for on ``device``; ValueError, with the reason, where it cannot be used."""
    device = torch.device(device)
    if name == "auto":
        # What needs another device is not imported: that of one back end takes longer than torch's own import.
        possible = [known for known in PREFERENCE if not _unmet(known, device, dtype, head_width)]
        usable = (known for known in possible if _problem(known, device, dtype, head_width, loaders[known]) is None)
        chosen = next(usable)
        logger.info("attention back end: %s", chosen)
        return chosen
    if name not in loaders:
        raise ValueError(f"attention_backend {name!r} is not available; choose one of auto, {', '.join(loaders)}")
    problem = _problem(name, device, dtype, head_width, loaders[name])
    if problem is not None:
        raise ValueError(f"attention_backend {name!r} cannot be used: {problem}; choose auto or sdpa")
    return name


def attend(q: Tensor, kv: Tensor, backend: str | Backend = "sdpa") -> Tensor:
    """Self attention of one range of keys.

    Args:
        q: (B, N, H, D), normalised and rotated.
        kv: (B, M, G, 2D), keys and values side by side, as the cache stores them.
        backend: one of ``BACKENDS``, or the back end itself.

    Returns:
        (B, N, H * D) in the dtype of ``q``.
    """
    return attend_heads(q, kv, backend).flatten(2)


def attend_heads(q: Tensor, kv: Tensor, backend: str | Backend = "sdpa") -> Tensor:
    """``attend`` with heads apart, (B, N, H, D), as the kernel left them in memory: a view to be copied from."""
    k, v = kv.chunk(2, dim=-1)
    return _the(backend).dense(q, k, v)


def cross_attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], backend: str | Backend = "sdpa") -> Tensor:
    """Attention of every entry to its own caption tokens; an entry without any gives zeros.

    Args:
        q: (E, N, H, D).
        k, v: (T, G, D), the entries' tokens one after the other.
        lengths: tokens of each entry.
        backend: one of ``BACKENDS``, or the back end itself.

    Returns:
        (E, N, H * D) in the dtype of ``q``.
    """
    return cross_attend_heads(q, k, v, lengths, backend).flatten(2)


def cross_attend_heads(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], backend: str | Backend = "sdpa"
) -> Tensor:
    """``cross_attend`` with heads apart, (E, N, H, D), as the kernel left them in memory: a view to be copied from."""
    # No kernel is asked about an entry without keys: what they make of an empty softmax differs.
    filled = tuple(i for i, length in enumerate(lengths) if length)
    if len(filled) == len(lengths):
        return _the(backend).packed(q, k, v, tuple(lengths))
    out = torch.zeros_like(q)
    if filled:
        chosen = _places(filled, q.device)
        found = _the(backend).packed(q[chosen], k, v, tuple(lengths[i] for i in filled))
        out[chosen] = found
    return out


def _the(backend: str | Backend) -> Backend:
    return load_backend(backend) if isinstance(backend, str) else backend


# Kept from layer to layer: making these copies to the device and waits for it.
@lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence begins, and the end of the last, (sequences + 1,) int32."""
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)


@lru_cache(maxsize=64)
def _places(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """``numbers`` as an index, (count,) int64."""
    return torch.tensor(numbers).to(device)


@lru_cache(maxsize=64)
def _present(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Which of the padded tokens exist, (E, M)."""
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).to(device)


def _problem(
    name: str, device: torch.device, dtype: torch.dtype, head_width: int, loader: Callable[[], Backend]
) -> str | None:
    if name in ANYWHERE:
        return None
    needs, problems = NEEDS[name], _unmet(name, device, dtype, head_width)
    try:
        backend = loader()
    except (ImportError, OSError) as error:  # OSError: a library that was built for another torch
        problems.insert(0, f"{needs.package} is not installed or does not fit ({error})")
    else:
        if not problems and (failure := probe(backend, device, dtype, head_width)):
            problems.append(failure)
    return "; ".join(problems) or None


def _unmet(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> list[str]:
    """What the device, the type and the head's width lack for the back end ``name``."""
    if name in ANYWHERE:
        return []
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return NEEDS[name].unmet(device, dtype, head_width, capability)


def probe(backend: Backend, device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """What goes wrong when ``backend`` is tried on a small example, compared with ``eager``; None where nothing."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 4, head_width, generator=generator).to(device, dtype)
    kv = torch.randn(2, 10, 2, 2 * head_width, generator=generator).to(device, dtype)
    k, v = kv.flatten(0, 1)[:9].chunk(2, dim=-1)
    try:
        with torch.no_grad():
            found = [attend(q, kv, backend), cross_attend(q, k, v, (3, 6), backend)]
            expected = [attend(q, kv, "eager"), cross_attend(q, k, v, (3, 6), "eager")]
        error = (torch.cat(found).float() - torch.cat(expected).float()).abs().max().item()
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as failure:
        reason = next(iter(str(failure).splitlines()), "")
        return f"it fails on a small example: {type(failure).__name__}: {reason}"
    return None if error <= PROBE_TOLERANCE else f"it is off by {error:.3g} on a small example"
