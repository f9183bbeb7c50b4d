"""benchmarks/wall_clock.py: a wider model computes what the bundled one did."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.warm.start import warm_python

pytestmark = pytest.mark.slow

MULTISTEP = "configs/method/multistep.yaml"
SMALLEST = ["--width", "256", "--layers", "1", "--size", "32", "--num_frames", "48", "--num_steps", "16"]


def test_a_wider_model_computes_what_the_bundled_one_did(tmp_path: Path) -> None:
    output = tmp_path / "wall_clock.json"
    command = [warm_python(), str(ROOT / "benchmarks" / "wall_clock.py"), "--methods", MULTISTEP, *SMALLEST]
    command += ["--repeats", "2", "--device", "cpu", "--output", str(output)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500, cwd=ROOT).stdout
    result = json.loads(output.read_text(encoding="utf-8"))
    row = result["summary"][MULTISTEP]
    assert json.loads(printed.splitlines()[-1]) == result["summary"]
    assert 0.2 < row["share_reused"] < 0.8
    assert row["by_operations"] > 1
    assert row["reached"] == pytest.approx(row["by_clock"] / row["by_operations"])
    none, cached = result["runs"]["none"], result["runs"][MULTISTEP]
    assert len(none) == len(cached) == 2 and none[0]["share_reused"] == 0
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(none, cached, strict=True)]
    assert row["by_clock"] == pytest.approx(sum(pairs) / 2)
    assert result["config"]["model_config"]["hidden_size"] == 256
