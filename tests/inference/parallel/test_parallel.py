"""Several processes against one: the exchanges, whole runs of a tiny model, VAE tiles, agreement."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inference.parallel.group import ALONE, RankLostError
from tests.inference.parallel import cases
from tests.inference.parallel.cases import CASES, Outcome, numbers, run_case
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

RANKS = (2, 4)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    return {name: run_case(case, ALONE) for name, case in CASES.items()}


@pytest.fixture(scope="module", params=RANKS)
def together(request: pytest.FixtureRequest) -> list[dict[str, Outcome]]:
    """The outcomes of every rank."""
    return run_ranks(request.param, cases.run_all_cases)


@pytest.mark.parametrize("name", CASES)
def test_runs_agree_with_one_process(name: str, alone: dict[str, Outcome], together: list[dict[str, Outcome]]) -> None:
    one, ranks = alone[name], [outcomes[name] for outcomes in together]
    for outcome in ranks:
        assert outcome.reuse_map == one.reuse_map and outcome.forwards == one.forwards
        assert len(outcome.chunks) == len(one.chunks)
        for ours, expected in zip(outcome.chunks, one.chunks, strict=True):
            assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()
        # Not only close: whoever drifted would decide otherwise at some step.
        assert all(torch.equal(a, b) for a, b in zip(outcome.chunks, ranks[0].chunks, strict=True))
        assert outcome.cache_bytes * len(ranks) == one.cache_bytes
    kept = [torch.cat(parts, dim=1) for parts in zip(*(outcome.kept for outcome in ranks), strict=True)]
    assert len(kept) == len(one.kept) and all(map(torch.equal, kept, one.kept))


def test_the_cases_reuse_and_compress(alone: dict[str, Outcome]) -> None:
    """What the comparison above would not notice if it were never done."""
    for name, outcome in alone.items():
        reused = sum(row.count(1) for row in outcome.reuse_map)
        assert (reused > 5) == ("rel_l1_thresh" in CASES[name].flowcache), name
        assert bool(outcome.kept) == name.startswith("compressed")
        kinds = {forward.kind for forward in outcome.forwards}
        assert ("previous" in kinds) == CASES[name].three_pass and ("prefix" in kinds) == (CASES[name].prefix > 6)
    # A window of three with the finished chunk in front and a copy of the first behind it.
    assert max(len(forward.keys) for forward in alone["t2v"].forwards) == 5


def test_the_bundled_model_agrees_with_one_process() -> None:
    one = cases.run_bundled(ALONE)
    for outcome in run_ranks(2, cases.share_bundled):
        for name, (velocities, reuse_map, frames) in one.items():
            ours = outcome[name]
            assert ours[1] == reuse_map and sum(row.count(1) for row in reuse_map) > 5
            assert len(ours[0]) == len(velocities)
            for found, expected in zip(ours[0], velocities, strict=True):
                assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), name
            assert (ours[2].to(torch.int16) - frames.to(torch.int16)).abs().max() <= 1


@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_exchanged_arrives_unchanged(ranks: int) -> None:
    results = run_ranks(ranks, cases.exchange)
    shares = {2: [4, 3], 4: [2, 2, 2, 1]}[ranks]
    q, kv = numbers(2, 7, 8, 3), numbers(2, 7, 4, 6)
    for rank, result in enumerate(results):
        start = sum(shares[:rank])
        mine = slice(start, start + shares[rank])
        heads, groups = (slice(rank * count // ranks, (rank + 1) * count // ranks) for count in (8, 4))
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
            rounded_q, rounded_kv = q.to(dtype).float(), kv.to(dtype).float()
            expected = [rounded_q[:, :, heads], rounded_kv[:, :, groups], rounded_q[:, mine].flatten(2)]
            assert_equal(result[str(dtype)], [*expected, rounded_q[:, mine], rounded_q[..., 0]])
        assert_equal(result["map"], [numbers(1, size).double() * 2 for size in (3, 1, 5, 2, 4)])
        assert_equal(result["map_one"], [numbers(1, 3) + 1])
        assert result["first"]["rank"] == "0" and torch.equal(result["first"]["tensor"], numbers(3))
        assert result["about"] == {"count": ranks, "strategy": "cp_ulysses", "backend": "gloo", "first": rank == 0}


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_alone_nothing_is_moved() -> None:
    q, kv = numbers(2, 7, 8, 3), numbers(2, 7, 4, 6)
    heads = ALONE.to_heads(q, kv, 7)
    assert heads[0] is q and heads[1] is kv
    assert all(same is q for same in (ALONE.shard(q), ALONE.gather(q, 7), ALONE.to_tokens(q)))


def test_the_first_rank_decides() -> None:
    """Each rank's decider wants to skip other chunks than the others'."""
    (asked, reuse_map, latents), (asked_second, *others) = run_ranks(2, cases.disagree)
    assert asked == len(reuse_map) == 10 and asked_second == 0
    assert others[0] == reuse_map and torch.equal(others[1], latents)
    assert [row.count(1) for row in reuse_map] == [int(step > 0 and step % 3 == 0) for step in range(10)]


@pytest.mark.parametrize("ranks", RANKS)
def test_shared_tiles_give_the_same_bits(ranks: int) -> None:
    encoded, decoded = cases.code_tiles(ALONE)
    assert encoded.shape == (1, 16, 7, 6, 12) and decoded.shape == (24, 48, 96, 3)
    for ours, pixels in run_ranks(ranks, cases.share_tiles):
        assert torch.equal(ours, encoded) and torch.equal(pixels, decoded)


@pytest.mark.parametrize(
    ("victim", "how", "message"),
    [
        (1, "kill", "rank {} of 4 cannot go on: rank 1 has ended"),
        (0, "fail", "rank {} of 4 cannot go on: rank 0 has ended"),
        (3, "hang", "rank {} of 4 cannot go on: one of the other ranks does not answer: it hangs, or the network"),
    ],
)
def test_a_lost_rank_ends_the_others(victim: int, how: str, message: str) -> None:
    results: list[Any] = run_ranks(4, cases.lose, victim, how)
    lost = results.pop(victim)
    if how == "kill":
        assert lost.status == -9
    else:
        assert isinstance(lost, ZeroDivisionError)
    for rank, result in zip((rank for rank in range(4) if rank != victim), results, strict=True):
        with pytest.raises(RankLostError, match=message.format(rank)):
            raise result
