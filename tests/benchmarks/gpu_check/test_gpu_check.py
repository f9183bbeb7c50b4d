"""The GPU check in tiny sizes on a CPU: what it finds, that a failing section stops no other, that time is kept."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.loading import load_benchmark
from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("gpu_check/main")


def bench(script: ModuleType, seconds: float = 600.0) -> Any:
    sizes = replace(script.SMALL, sides=(32,), matmul=64, repeats=1, run_chunks=5, run_steps=16, compiler="eager")
    return script.Bench(torch.device("cpu"), sizes, ROOT / "tests" / "golden", time.monotonic() + seconds)


def found(script: ModuleType, sections: dict[str, Any], folder: Path, seconds: float = 600.0) -> dict[str, Any]:
    record: dict[str, Any] = {"sections": {}}
    script.check(bench(script, seconds), sections, record, folder / "new" / "gpu.json")
    written = json.loads((folder / "new" / "gpu.json").read_text(encoding="utf-8"))
    assert written["sections"].keys() == sections.keys()
    return written["sections"]


def test_every_section_finds_something(script: ModuleType, tmp_path: Path) -> None:
    # Parity starts processes and compiling takes long; both are tested on their own.
    sections = {name: section for name, section in script.SECTIONS.items() if name not in ("parity", "variants")}
    outcome = found(script, sections, tmp_path)
    assert {name: section for name, section in outcome.items() if "result" not in section} == {}
    results = {name: section["result"] for name, section in outcome.items()}

    (alone, _, window) = results["forwards"]["32x32"]
    assert (alone["keys"], window["chunks"]) == ([240], 4)
    assert window["keys"] == [168, 192, 216, 240]  # 24 tokens a chunk, the last window of ten
    memory = results["cache_memory"]
    assert memory["full_history"]["kv_cache_bytes"] == 2 * memory["compressed"]["kv_cache_bytes"] > 0
    assert memory["compressed"]["keys"][-1] == 5 * 24
    assert memory["compressed"]["compressions"] == len(results["flowcache"]["compression_seconds"]) == 5
    assert results["attention"]["sdpa"]["self_error"] < 0.05 and results["attention"]["sdpa"]["cross_error"] < 0.05
    assert "CUDA" in results["attention"]["flash2"]["not_measured"]
    assert 0.0 <= results["fp8_layers"]["fc1"]["relative_difference"] < 0.02
    assert all(results["repeatable"][place]["largest_difference"] == 0 for place in ("again", "kv_offload", "both"))
    assert results["placements"]["chunks_4"]["both"]["ratio"] > 0
    assert results["profile"]["chunks_1"]["kernels"][0]["seconds"] > 0
    assert results["projection"]["relative_difference"] < 1e-5
    lines = script.table(outcome).splitlines()
    assert lines[0].startswith("matmul ceiling") and lines[0].endswith("TFLOP/s")
    assert any(line.startswith("run, fast") and line.endswith("x as fast") for line in lines)
    runs = results["runs"]
    assert runs["none"]["share_reused"] == 0
    for name, share in (("slow", 0.21), ("fast", 0.32)):
        assert runs[name]["share_reused"] == pytest.approx(share, abs=0.03)


def test_variants_are_the_same_forward(script: ModuleType, tmp_path: Path) -> None:
    found_here = found(script, {"variants": script.SECTIONS["variants"]}, tmp_path)["variants"]["result"]
    rows = found_here["32x32, chunks 4"]
    assert set(rows) == {"as_it_is", "operators", "compiled", "published_projection"} and rows["as_it_is"]["ratio"] == 1
    tiny = bench(script)
    forward = script.variants.WindowForward(tiny, 32, 10)
    forward.fill()
    made = (tiny.dit, script.variants.without_kernels(tiny.dit), script.variants.with_widened_projection(tiny.dit))
    outputs = [velocity_of(dit, forward) for dit in made]
    assert all(torch.allclose(out, outputs[0], atol=1e-2) and out.abs().max() > 0.1 for out in outputs)
    assert [weight.data_ptr() for weight in made[0].parameters()] == [one.data_ptr() for one in made[2].parameters()]


@torch.no_grad()
def velocity_of(dit: Any, forward: Any) -> torch.Tensor:
    from inference.model.context import CachedAttention, Entry
    from inference.model.dit import Captions

    generator = torch.Generator().manual_seed(0)
    captions = Captions.of([torch.randn(9, 64, generator=generator)])
    chunk = forward.step.window[-1].chunk
    context = CachedAttention(forward.cache, [Entry(chunk)], "sdpa")
    latents = torch.randn(1, 16, 6, 4, 4, generator=generator)
    return dit(latents, torch.tensor([0.5]), captions, context, first_frames=[6 * chunk], step_scalar=2.0)


def test_a_failing_section_is_recorded_and_the_others_go_on(script: ModuleType, tmp_path: Path) -> None:
    def fails(bench: Any, found: dict[str, Any]) -> None:
        found["half"] = 1
        raise RuntimeError("CUDA out of memory")

    outcome = found(script, {"first": fails, "matmul": script.SECTIONS["matmul"]}, tmp_path)
    assert outcome["first"]["result"] == {"half": 1}
    assert outcome["first"]["error"] == "RuntimeError: CUDA out of memory"
    assert outcome["first"]["where"][-1].startswith("test_gpu_check.py:")
    assert outcome["matmul"]["result"]["tflops"] > 0


def test_without_time_the_rest_is_skipped(script: ModuleType, tmp_path: Path) -> None:
    outcome = found(script, {"matmul": script.SECTIONS["matmul"]}, tmp_path, seconds=3.0)
    assert "s of the time are left" in outcome["matmul"]["skipped"]


def test_a_run_stops_when_time_is_up(script: ModuleType) -> None:
    with pytest.raises(TimeoutError, match="no time left at step 0 of"):
        script.SECTIONS["runs"](bench(script, seconds=0.0), {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert script.main([str(tmp_path)]) == 1
    assert "no GPU cuda here" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
