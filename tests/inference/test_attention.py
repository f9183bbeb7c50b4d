"""Attention against a plain loop over heads, in every grouping."""

import pytest
import torch

from inference.model.attention import KERNELS, attend, cross_attend, resolve_backend


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(N, H, D), (M, G, D) twice, to (N, H * D); one head at a time, in float64."""
    heads, groups = q.shape[1], k.shape[1]
    out = []
    for head in range(heads):
        group = head // (heads // groups)
        logits = q[:, head].double() @ k[:, group].double().T / q.shape[-1] ** 0.5
        out.append(logits.softmax(-1) @ v[:, group].double())
    return torch.cat(out, dim=-1)


@pytest.mark.parametrize("backend", sorted(KERNELS))
@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 4), (16, 2), (4, 1)])
def test_self_attention(backend: str, heads: int, groups: int) -> None:
    torch.manual_seed(0)
    q, kv = torch.randn(2, 5, heads, 8), torch.randn(2, 9, groups, 16)
    out = attend(q, kv, backend)
    for i in range(2):
        expected = naive(q[i], *kv[i].split(8, dim=-1))
        assert torch.allclose(out[i].double(), expected, atol=1e-5)


@pytest.mark.parametrize("backend", sorted(KERNELS))
@pytest.mark.parametrize("lengths", [(4, 4, 4), (7, 2, 5), (3, 0, 6), (0, 0, 0), (1, 1, 1)])
def test_cross_attention_of_packed_captions(backend: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 5, 8, 8)
    k, v = torch.randn(2, sum(lengths), 4, 8)
    out = cross_attend(q, k, v, lengths, backend)
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
    assert resolve_backend("auto") in KERNELS
    with pytest.raises(ValueError, match="'flash9' is not available; choose one of auto, sdpa, eager"):
        resolve_backend("flash9")
