"""What benchmarks/speed.py calls a speed-up, and what it does not."""

from pathlib import Path
from typing import Any

import pytest

from tests.loading import load_benchmark


def result(script: Any, seconds: list[float], flop: float) -> dict[str, Any]:
    run = {"total": 9.0, "share_reused": 0.5, "kv_cache_bytes": 1}
    runs = {
        "baseline": [run | {"denoise": 8.0, "flop": 100.0} for _ in seconds],
        "method": [run | {"denoise": one, "flop": flop} for one in seconds],
    }
    kinds = ("denoise", "total", "flop")
    methods = {name: {"source": name} for name in runs}
    return {"runs": runs, "methods": methods, "speedup": {kind: script.ratios(runs, kind) for kind in kinds}}


@pytest.mark.parametrize(
    ("output", "flag"), [("distill.json", "config_file"), ("own.yaml", "method"), ("x.json", None)]
)
def test_only_a_result_is_replaced(
    checkpoint_copy: Path, caplog: pytest.LogCaptureFixture, output: str, flag: str | None
) -> None:
    (checkpoint_copy / "own.yaml").write_text("method: none\n", encoding="utf-8")
    (checkpoint_copy / "x.json").write_text("[]", encoding="utf-8")
    before = (checkpoint_copy / output).read_bytes()
    inputs = ["--config_file", str(checkpoint_copy / "distill.json"), "--method", str(checkpoint_copy / "own.yaml")]
    assert load_benchmark("speed").main([*inputs, "--output", str(checkpoint_copy / output)]) == 1
    assert (f"is the input of --{flag}" if flag else "this program has not left it") in caplog.text
    assert (checkpoint_copy / output).read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "flop", "named", "doubted"),
    [
        ([4.0, 4.2, 3.9], 50.0, "speed-up by denoise: 2.00", False),
        ([4.0], 50.0, "ratio of one pair, which is no speed-up, by denoise: 2.00", False),
        ([2.0, 2.1], 50.0, "ratio, which is no speed-up, by denoise: 3.9", True),  # twice the work that was saved
        ([8.1, 8.4], 50.0, "ratio, which is no speed-up, by denoise: 0.9", True),
        ([8.1, 8.4], 99.0, "speed-up by denoise: 0.9", False),  # nothing was saved
        ([6.0, 6.1], 50.0, "speed-up by denoise", False),  # less than was saved: that is usual
    ],
)
def test_what_is_called_a_speed_up(seconds: list[float], flop: float, named: str, doubted: bool) -> None:
    script = load_benchmark("speed")
    said = script.describe(result(script, seconds, flop))
    assert named in said and ("not to be trusted" in said) == doubted
