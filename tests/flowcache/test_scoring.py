"""Scoring and selection against naive versions that hold every matrix."""

import math

import pytest
import torch
from torch import Tensor

from flowcache import scoring
from flowcache.scoring import (
    Selection,
    attention_weight,
    importance,
    mixed_score,
    position_weight,
    redundancy,
    select,
    select_queries,
    weighted_score,
)

METHODS = ["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]


def selection(**changes: object) -> Selection:
    values = {"strategy": "token", "mix_lambda": 0.3, "weighting": "no_weight", "power": 3.0}
    return Selection(**{**values, "chunk_tokens": 12, "frame_tokens": 4, **changes})


def naive_weight(q: Tensor, k: Tensor) -> Tensor:
    groups, heads = k.shape[1], q.shape[1]
    rows = []
    for group in range(groups):
        per_head = [
            q[:, h] @ k[:, group].T / math.sqrt(q.shape[-1]) for h in range(heads) if h // (heads // groups) == group
        ]
        rows.append(torch.stack(per_head).amax(0).softmax(-1).mean(0))
    return torch.stack(rows)


def naive_redundancy(k: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(k, dim=-1)
    cosine = torch.einsum("lgd,mgd->glm", unit, unit)
    cosine.diagonal(dim1=1, dim2=2).zero_()
    return cosine.mean(-1).softmax(-1)


@pytest.mark.parametrize(("heads", "groups"), [(8, 4), (4, 4), (6, 1)])
@pytest.mark.parametrize("block", [1, 50, 10**9])
def test_attention_weight_in_any_block_size(
    monkeypatch: pytest.MonkeyPatch, heads: int, groups: int, block: int
) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    q, k = torch.randn(7, heads, 8), torch.randn(20, groups, 8)
    assert torch.allclose(attention_weight(q, k), naive_weight(q, k), atol=1e-6)


def test_weights_and_redundancies_are_distributions() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(7, 8, 8), torch.randn(20, 4, 8)
    assert torch.allclose(attention_weight(q, k).sum(-1), torch.ones(4), atol=1e-5)
    assert torch.allclose(redundancy(k).sum(-1), torch.ones(4), atol=1e-5)
    assert torch.allclose(redundancy(k), naive_redundancy(k), atol=1e-6)


def test_importance_pools_over_neighbours() -> None:
    weight = torch.zeros(1, 20)
    weight[0, 8] = 1
    pooled = importance(weight)
    assert pooled[0].nonzero().flatten().tolist() == list(range(5, 12))


def test_importance_by_original_position_ignores_false_neighbours() -> None:
    """Kept tokens 0, 1, 50, 51 are neighbours in the buffer; in the video only two and two are."""
    weight = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    positions = torch.tensor([[0, 1, 50, 51]])
    assert importance(weight, positions).tolist() == [[1.0, 1.0, 0.5, 0.5]]
    contiguous = torch.arange(20).expand(2, -1)
    weight = torch.rand(2, 20)
    assert torch.equal(importance(weight, contiguous), importance(weight))
    assert torch.equal(importance(weight[:, :2], contiguous[:, :2]), importance(weight[:, :2]))


def test_a_repeated_key_is_more_redundant() -> None:
    torch.manual_seed(0)
    k = torch.randn(20, 1, 8)
    k[5:10] = k[5]
    scores = redundancy(k)[0]
    assert scores[5:10].min() > scores[torch.cat([torch.arange(5), torch.arange(10, 20)])].mean()


@pytest.mark.parametrize("method", METHODS)
def test_position_weights(method: str) -> None:
    last = 11
    expected = {
        "no_weight": lambda u, i: 1,
        "hard_code": lambda u, i: 1,
        "exponential": lambda u, i: 0.1 + 0.9 * (1 - math.exp(-2 * u)) / (1 - math.exp(-2)),
        "polynomial": lambda u, i: 0.1 + 0.9 * u**3,
        "upper_convex_polynomial": lambda u, i: 2 * (1 - (1 - u) ** 3),
        "gaussian": lambda u, i: 0.1 + 0.9 * (g(i) - g(last)) / (1 - g(last)),
    }[method]

    def g(i: float) -> float:
        return math.exp(-0.5 * (i / (12 / 4)) ** 2)

    weights = position_weight(method, torch.arange(12.0), last, 3.0)
    assert weights.tolist() == pytest.approx([expected(i / last, i) for i in range(12)], abs=1e-6)


def test_hard_code_gives_up_the_first_chunk_first() -> None:
    score = torch.arange(36.0).flip(0)[None]
    kept = select(score, 24, selection(weighting="hard_code"))
    assert sorted(kept[0].tolist()) == list(range(12, 36))
    assert weighted_score(score, selection(weighting="hard_code")).isfinite().all()
    with pytest.raises(ValueError, match="unknown score_weighting_method"):
        position_weight("linear", torch.arange(3.0), 2, 1.0)


def test_tokens_kept_are_the_best_of_each_group() -> None:
    torch.manual_seed(0)
    score = torch.rand(3, 36)
    kept = select(score, 10, selection())
    for group in range(3):
        assert kept[group].tolist() == score[group].argsort(descending=True)[:10].tolist()


def test_of_equal_scores_the_first_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 4, (3, 500), generator=generator).float()
    for row, chosen in zip(score.tolist(), scoring.highest(score, 300).tolist(), strict=True):
        assert chosen == sorted(range(500), key=lambda place: (-row[place], place))[:300]


@pytest.mark.parametrize(("strategy", "unit"), [("frame", 4), ("chunk", 12)])
def test_units_are_kept_whole(strategy: str, unit: int) -> None:
    torch.manual_seed(0)
    score = torch.rand(3, 36)
    kept = select(score, 24, selection(strategy=strategy))
    for group in range(3):
        means = score[group].view(-1, unit).mean(-1)
        best = means.argsort(descending=True)[: 24 // unit]
        assert kept[group].tolist() == [int(u) * unit + i for u in best for i in range(unit)]
    with pytest.raises(ValueError, match="cannot be kept in units"):
        select(score, 25, selection(strategy=strategy))


def test_queries_by_granularity() -> None:
    q = torch.arange(72.0)[:, None, None]
    assert select_queries(q, "token", 12).flatten().tolist() == list(range(22, 72))
    assert select_queries(q, "frame", 12).flatten().tolist() == list(range(60, 72))
    assert len(select_queries(q, "chunk", 12)) == 72
    assert len(select_queries(q[:20], "token", 4)) == 20


def test_scores_keep_the_dtype_they_are_given() -> None:
    q, k = torch.randn(7, 8, 8).bfloat16(), torch.randn(20, 4, 8).bfloat16()
    assert mixed_score(q, k, 0.07).dtype == torch.bfloat16
    assert mixed_score(q.float(), k.float(), 0.07).dtype == torch.float32
    extremes = [mixed_score(q.float(), k.float(), mix) for mix in (0.0, 1.0)]
    assert torch.equal(extremes[0], -redundancy(k.float()))
    assert torch.equal(extremes[1], importance(attention_weight(q.float(), k.float())))
