"""Merged tokens against naive versions, and what attention makes of them."""

import math

import pytest
import torch
from torch import Tensor

from flowcache import scoring
from flowcache.merging import TokenMerger, merge_tokens, merger_bytes, nearest_kept, shared_direction, sums_by_place
from inference.kv_cache import KVGeometry

GROUPS, WIDTH, HEADS = 2, 8, 6
GEOMETRY = KVGeometry(1, GROUPS, WIDTH, 12, 4, torch.float32, torch.device("cpu"))


def tokens(length: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(length, GROUPS, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))


def kept(length: int = 30, keep: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(length, generator=generator)[:keep].sort().values for _ in range(GROUPS)]
    return torch.stack(rows)


@pytest.mark.parametrize("block", [1, 45, 10**9])
def test_tokens_are_averaged_into_the_nearest_that_stays(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", block)
    given, chosen = tokens(), kept()
    counts = torch.rand(30, GROUPS, generator=torch.Generator().manual_seed(2)) + 0.5
    merged, totals = merge_tokens(given, counts, chosen, WIDTH)
    nearest = nearest_kept(given, chosen, WIDTH)
    for group in range(GROUPS):
        halves = [given[:, group, :WIDTH], given[:, group, WIDTH:]]
        features = torch.cat([half / half.std() for half in halves], dim=1)
        clusters: list[list[int]] = [[] for _ in range(10)]
        for token in range(30):
            distances = [(features[token] - features[int(other)]).norm().item() for other in chosen[group]]
            clusters[min(range(10), key=distances.__getitem__)].append(token)
            assert token in clusters[int(nearest[group, token])]
        for place, members in enumerate(clusters):
            assert chosen[group, place] in members
            weight = counts[members, group]
            mean = (given[members, group] * weight[:, None]).sum(0) / weight.sum()
            assert torch.allclose(merged[place, group], mean, atol=1e-6)
            assert torch.isclose(totals[place, group], weight.sum())


def test_sums_are_made_in_the_order_of_the_tokens() -> None:
    generator = torch.Generator().manual_seed(6)
    values = torch.randn(2, 50, 3, generator=generator) * 10.0 ** torch.arange(-3, 47).view(50, 1).remainder(7)
    place = torch.randint(0, 8, (2, 50), generator=generator).where(torch.arange(50) > 0, 9)  # 8 gets none
    found = sums_by_place(values, place, 10)
    for group in range(2):
        for where in range(10):
            expected = torch.zeros(3)
            for token in range(50):
                if place[group, token] == where:
                    expected = expected + values[group, token]
            assert torch.equal(found[group, where], expected)


def test_equal_tokens_stay_their_own() -> None:
    given = tokens(1).expand(6, -1, -1).clone()
    merged, totals = merge_tokens(given, torch.ones(6, GROUPS), torch.tensor([[0, 3]] * GROUPS), WIDTH)
    assert torch.allclose(merged, given[:2]) and totals.min() >= 1 and totals.sum() == 6 * GROUPS


def test_the_shared_direction_is_a_least_squares_fit() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(GROUPS, 40, WIDTH, generator=generator) + 2
    direction = shared_direction(rows.transpose(1, 2) @ rows, rows.sum(dim=1))
    for group in range(GROUPS):
        exact = torch.linalg.lstsq(rows[group] / math.sqrt(WIDTH), torch.ones(40, 1)).solution[:, 0]
        assert torch.allclose(direction[group], exact, rtol=0.02, atol=0.02)
    nothing = shared_direction(torch.zeros(GROUPS, WIDTH, WIDTH), torch.zeros(GROUPS, WIDTH))
    assert torch.equal(nothing, torch.zeros(GROUPS, WIDTH))


def attention(q: Tensor, kv: Tensor) -> Tensor:
    """(N, H, d), (L, G, 2d) to (N, H, d), head by head."""
    per_group = q.shape[1] // kv.shape[1]
    heads = []
    for head in range(q.shape[1]):
        k, v = kv[:, head // per_group].chunk(2, dim=-1)
        heads.append((q[:, head] @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.stack(heads, dim=1)


def test_repeated_tokens_merged_twice_leave_attention_as_it_was() -> None:
    """Each token stands several times in the history: merging loses nothing but what the copies weighed, and the
    shifted keys give that back wherever queries have a common part.
    """
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(60, HEADS, WIDTH, generator=generator)
    q[..., 0] = 3.0
    history, window = tokens(10), tokens(12, seed=5)
    merger = TokenMerger(GEOMETRY)
    merger.observe(0, q)
    first = merger.merge(0, history.repeat(3, 1, 1), torch.arange(10).expand(GROUPS, -1))
    assert torch.equal(merger.counts[0], torch.full((10, GROUPS), 3.0))
    second = merger.merge(0, torch.cat([first, history]), torch.arange(10).expand(GROUPS, -1))
    assert torch.equal(merger.counts[0], torch.full((10, GROUPS), 4.0))
    assert torch.allclose(second[..., WIDTH:], history[..., WIDTH:], atol=1e-5)
    truth = attention(q, torch.cat([history.repeat(4, 1, 1), window]))
    errors = {
        name: (attention(q, torch.cat([cached, window])) - truth).norm() / truth.norm()
        for name, cached in {"merged": second, "dropped": history}.items()
    }
    assert errors["merged"] < 0.02 < 0.2 < errors["dropped"]


def test_forgotten_tokens_are_in_no_average() -> None:
    given, chosen = tokens(), kept()
    forgotten = torch.arange(30).expand(GROUPS, -1) < 15
    merger = TokenMerger(GEOMETRY)
    merged, nearest = merger.merge(0, given, chosen, forgotten), nearest_kept(given, chosen, WIDTH)
    for group in range(GROUPS):
        remembered = {*range(15, 30), *chosen[group].tolist()}
        for place in range(10):
            members = [token for token in sorted(remembered) if nearest[group, token] == place]
            assert torch.allclose(merged[place, group], given[members, group].mean(0), atol=1e-6)
            assert merger.counts[0][place, group] == len(members)


def test_the_bytes_that_are_planned_are_the_bytes_held() -> None:
    merger = TokenMerger(GEOMETRY)
    merger.observe(0, torch.ones(3, HEADS, WIDTH))
    merger.merge(0, tokens(), kept())
    held = [merger._square, merger._sum, merger._shift, *merger.counts]
    assert merger_bytes(GEOMETRY, 10 * GROUPS) == sum(tensor.nbytes for tensor in held)
