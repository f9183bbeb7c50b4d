"""benchmarks/flops.py: the published default, and one row summed by hand."""

import json
import os
import subprocess

import pytest

from tests.paths import ROOT
from tests.warm.start import warm_python

pytestmark = pytest.mark.slow


def table(*flags: str) -> dict[str, int]:
    command = [warm_python(), str(ROOT / "benchmarks" / "flops.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500, env=environment)
    return json.loads(result.stdout.splitlines()[-1])["flop"]


def by_hand(chunks: int) -> int:
    """Every chunk at each of its 64 steps with the whole history before it; 4.5B, 720x720, 50 caption tokens."""
    width, inner, groups, head, layers, tokens, caption = 3072, 12288, 8, 128, 34, 6 * 45 * 45, 50
    # Queries of both attentions, keys and values, the output of both, and the feed-forward network.
    linear = 2 * width * width + 2 * width * groups * head + 2 * width * width + 2 * width * inner
    caption_linear = 2 * width * groups * head
    total = 0
    for chunk in range(chunks):
        keys = (chunk + 1) * tokens + caption
        layer = 2 * (linear * tokens + caption_linear * caption) + 4 * tokens * keys * width
        total += 64 * (layers * layer + 2 * 4096 * width * caption)
    return total


def test_the_published_default() -> None:
    flop = table()
    assert flop["full history, neither copies nor clean passes"] == by_hand(10)
    assert flop["full history"] / 1e15 == pytest.approx(310, abs=1)
    shipped = flop["window [5,4,3,2], as MAGI-1 ships"]
    assert 306 * shipped / flop["full history"] == pytest.approx(206, abs=1)
    assert list(flop.values())[:5] == sorted(list(flop.values())[:5], reverse=True)


def test_another_length() -> None:
    flop = table("--num_frames", "168")
    assert flop["full history, neither copies nor clean passes"] == by_hand(7)
    assert flop["window [5,4,3,2], as MAGI-1 ships"] / 1e15 == pytest.approx(140, abs=1)
