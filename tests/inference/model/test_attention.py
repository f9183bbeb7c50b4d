"""Attention against a plain loop over heads, in every grouping, and the choice of a back end."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from inference.model.attention import (
    ANYWHERE,
    BACKENDS,
    LOADERS,
    NEEDS,
    Backend,
    attend,
    available_backends,
    cross_attend,
    flash_backend,
    load_backend,
    probe,
    resolve_backend,
    varlen_backend,
)

CPU = torch.device("cpu")


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, H, D), (M, G, D) twice, to (N, H * D); one head at a time, in float64."""
    heads, groups = q.shape[1], k.shape[1]
    out = []
    for head in range(heads):
        group = head // (heads // groups)
        logits = q[:, head].double() @ k[:, group].double().T / q.shape[-1] ** 0.5
        out.append(logits.softmax(-1) @ v[:, group].double())
    return torch.cat(out, dim=-1)


def packed_sequences(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor) -> Tensor:
    """(tokens, H, D) to the same: every sequence to its own keys. Offsets must be what a CUDA kernel takes."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert (starts_q[-1], starts_k[-1]) == (len(q), len(k)) and starts_k.diff().min() > 0
    ends = zip(starts_q.tolist(), starts_q.tolist()[1:], starts_k.tolist(), starts_k.tolist()[1:], strict=False)
    out = [naive(q[a:b], k[c:d], v[c:d]).unflatten(-1, q.shape[1:]) for a, b, c, d in ends]
    return torch.cat(out).to(q.dtype)


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """The signature of torch.nn.attention.varlen, whose older versions know no groups."""
    assert query.shape[1] == key.shape[1] and key.is_contiguous() and value.is_contiguous()
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    return packed_sequences(query, key, value, cu_seq_q, cu_seq_k)


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The signature of flash_attn and of flash_attn_interface: (batch, tokens, heads, width)."""
    return torch.stack([naive(q[i], k[i], v[i]).unflatten(-1, q.shape[2:]) for i in range(len(q))]).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> Tensor:
    assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
    return packed_sequences(q, k, v, cu_seqlens_q, cu_seqlens_k)


def with_lse(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    return lambda *args, **keywords: (function(*args, **keywords), None)


IMPLEMENTATIONS = {
    "sdpa": load_backend("sdpa"),
    "eager": load_backend("eager"),
    "varlen": varlen_backend(varlen_attn),
    "flash2": flash_backend(flash_attn_func, flash_attn_varlen_func),
    "flash3": flash_backend(with_lse(flash_attn_func), with_lse(flash_attn_varlen_func)),
}


def test_every_back_end_is_tested() -> None:
    assert set(IMPLEMENTATIONS) == set(BACKENDS) == {*NEEDS, *ANYWHERE}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 4), (16, 2), (4, 1)])
def test_self_attention(backend: str, heads: int, groups: int) -> None:
    torch.manual_seed(0)
    q, kv = torch.randn(2, 5, heads, 8), torch.randn(2, 9, groups, 16)
    out = attend(q, kv, IMPLEMENTATIONS[backend])
    assert out.shape == (2, 5, heads * 8)
    for i in range(2):
        expected = naive(q[i], *kv[i].split(8, dim=-1))
        assert torch.allclose(out[i].double(), expected, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(4, 4, 4), (7, 2, 5), (3, 0, 6), (0, 0, 2), (0, 0, 0), (1, 1, 1)])
def test_cross_attention_of_packed_captions(backend: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 5, 8, 8)
    k, v = torch.randn(sum(lengths), 4, 16).chunk(2, dim=-1)
    out = cross_attend(q, k, v, lengths, IMPLEMENTATIONS[backend])
    assert out.shape == (3, 5, 64)
    start = 0
    for i, length in enumerate(lengths):
        expected = naive(q[i], k[start : start + length], v[start : start + length]) if length else torch.zeros(5, 64)
        assert torch.allclose(out[i].double(), expected.double(), atol=1e-5)
        start += length


def test_an_entry_does_not_depend_on_its_neighbours_captions() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 5, 8, 8)
    k, v = torch.randn(2, 9, 4, 8)
    both = cross_attend(q, k, v, (3, 6))
    alone = cross_attend(q[:1], k[:3], v[:3], (3,))
    assert torch.allclose(both[:1], alone, atol=1e-6)


def test_eager_attention_rounds_once_in_bfloat16() -> None:
    torch.manual_seed(0)
    q, kv = torch.randn(1, 5, 4, 8).bfloat16(), torch.randn(1, 9, 4, 16).bfloat16()
    out = attend(q, kv, "eager")
    expected = naive(q[0], *kv[0].split(8, dim=-1))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0], expected.bfloat16())


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="'flash9' is not available; choose one of auto, sdpa, eager, varlen, flash2"):
        resolve_backend("flash9")


def test_on_a_cpu_auto_is_sdpa_and_the_others_say_why_not() -> None:
    assert resolve_backend("auto") == "sdpa"
    reasons = available_backends("cpu", torch.float32, 12)
    assert set(reasons) == set(BACKENDS)
    assert reasons["sdpa"] is reasons["eager"] is None
    for name in NEEDS:
        assert "runs on CUDA devices, not on cpu" in reasons[name]
        assert "not in float32" in reasons[name] and "not 12" in reasons[name]
        with pytest.raises(ValueError, match=f"{name!r} cannot be used: .*CUDA devices.*; choose auto or sdpa"):
            resolve_backend(name)


def test_a_missing_package_is_the_reason() -> None:
    def absent() -> Backend:
        raise ImportError("No module named 'flash_attn'")

    reasons = available_backends("cpu", torch.bfloat16, 128, {**LOADERS, "flash2": absent})
    assert reasons["flash2"].startswith("package flash_attn is not installed or does not fit (No module named")


@pytest.mark.parametrize(
    ("name", "capability", "reason"),
    [
        ("flash2", (7, 5), "it needs compute capability 8.0, the device has 7.5"),
        ("flash3", (8, 9), "it needs compute capability 9.0 and below 10.0, the device has 8.9"),
        ("flash3", (10, 0), "it needs compute capability 9.0 and below 10.0, the device has 10.0"),
        ("flash3", (9, 0), None),
        ("varlen", (12, 0), None),
    ],
)
def test_what_a_device_must_be_capable_of(name: str, capability: tuple[int, int], reason: str | None) -> None:
    found = NEEDS[name].unmet(torch.device("cuda"), torch.bfloat16, 128, capability)
    assert found == ([] if reason is None else [reason])


def wrong_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash_attn_func(q * 2, k, v)


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (flash_attn_func, None),
        (wrong_scale, "it is off by"),
        (lambda q, k, v: q * float("nan"), "it is off by nan"),
        (unsupported, "it fails on a small example: RuntimeError: no kernel image is available"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_back_end_has_to_prove_itself(func: Callable[..., Tensor], expected: str | None, dtype: torch.dtype) -> None:
    found = probe(flash_backend(func, flash_attn_varlen_func), CPU, dtype, 16)
    assert found is None if expected is None else found.startswith(expected)


def test_the_probe_looks_at_captions_too() -> None:
    def whole_sequence(q: Tensor, k: Tensor, v: Tensor, **ranges: object) -> Tensor:
        return naive(q, k, v).unflatten(-1, q.shape[1:]).to(q.dtype)

    assert "off by" in probe(flash_backend(flash_attn_func, whole_sequence), CPU, torch.bfloat16, 16)


def test_lengths_may_be_any_sequence() -> None:
    lengths: Sequence[int] = [2, 1]
    q, (k, v) = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8)
    assert torch.equal(cross_attend(q, k, v, lengths), cross_attend(q, k, v, (2, 1)))
