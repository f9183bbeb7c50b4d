"""The scripts of scripts/sample/ and the configurations they name: what they hand to sample.py, with stand-ins."""

import os
import subprocess
from pathlib import Path

import pytest

from sampling.config import PhysicsIqRun, PromptsRun, VBenchRun, as_yaml, read_run
from sampling.job import make_job
from tests.fake_checkout import fake_checkout
from tests.paths import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts" / "sample").glob("*_*.sh"))
METHODS = {"magi": "none", "teacache": "teacache_slow", "flowcache": "flowcache_fast"}
BENCHMARKS = {"vbench": VBenchRun, "physicsiq": PhysicsIqRun}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return fake_checkout(tmp_path, "sample", status=7)


def call(checkout: Path, folder: Path, name: str, *arguments: str) -> list[str]:
    command = ["bash", str(checkout / "scripts" / "sample" / f"{name}.sh"), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 7, result.stderr  # that of sample.py
    return result.stdout.splitlines()


def test_all_six_are_there() -> None:
    assert {f"{method}_{benchmark}" for method in METHODS for benchmark in BENCHMARKS} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments(checkout: Path, tmp_path: Path, name: str) -> None:
    method, benchmark = name.split("_")
    file, config, *flags = call(checkout, tmp_path, name, "--num_steps", "8", "--dry_run")
    assert file == str(checkout / "scripts" / "sample.py") and (checkout / "scripts" / "made").exists()
    method_file = checkout / "configs" / "method" / f"{METHODS[method]}.yaml"
    assert flags == ["--method_config", str(method_file), "--num_steps", "8", "--dry_run"]
    assert config == str(checkout / "configs" / "sample" / f"{benchmark}.yaml")
    for path in (config, method_file):
        assert (ROOT / os.path.relpath(path, checkout)).is_file()
    assert call(checkout, tmp_path, name, "my own.yaml", "--seed", "5")[1:] == [
        "my own.yaml", "--method_config", str(method_file), "--seed", "5"
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sample").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations(path: Path, tmp_path: Path) -> None:
    """Valid, of the benchmark in their name, with the benchmark's own counts, and the same after saving."""
    run = read_run(path)
    assert isinstance(run, {**BENCHMARKS, "prompts": PromptsRun}[path.stem.split("_")[0]])
    if isinstance(run, VBenchRun):
        # Papers on caching score index 0 of each prompt.
        counts = (1, 1) if path.stem == "vbench_paper" else (5, 25)
        assert (run.samples_per_prompt, run.flickering_samples, len(run.dimensions)) == (*counts, 16)
    saved = tmp_path / "sampling.yaml"
    saved.write_text(as_yaml(run), encoding="utf-8")
    again = read_run(saved)
    assert read_run(saved.parent) == again  # the folder that sampling names
    assert again.model_dump(exclude={"data", "config_file", "method_config"}) == run.model_dump(
        exclude={"data", "config_file", "method_config"}
    )
    assert Path(again.config_file) == ROOT / run.config_file


def test_bundled_benchmarks() -> None:
    """What the scripts make by default."""
    vbench = make_job(read_run(ROOT / "configs" / "sample" / "vbench.yaml"))
    assert len(vbench.tasks) == 11 * 2 * 5 + 2 * 20 and str(vbench.output) == "outputs/vbench/nano-magi"
    overrides = {"method_config": "configs/method/flowcache_fast.yaml", "method_overrides": {"warmup_steps": 2}}
    for mode, frames in (("v2v", 72), ("i2v", 1)):
        job = make_job(read_run(ROOT / "configs" / "sample" / "physicsiq.yaml", {"mode": mode, **overrides}))
        assert len(job.tasks) >= 4 and job.model.runtime.num_frames == 120
        assert str(job.output) == f"outputs/physics_iq/nano-flowcache_fast-{mode}"
        sample = job.sample(job.tasks[0])
        assert sample.prefix is not None and len(sample.prefix) == frames
        assert job.method.to_json_dict()["warmup_steps"] == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"num_frames": 96}, "exactly 5 s; the settings give 96 frames at 24 fps"),
        ({"mode": "t2v"}, "mode: Input should be 'i2v' or 'v2v', got 't2v'"),
        ({"runs": 0}, "runs: Input should be greater than or equal to 1"),
        ({"benchmark": "vbnch"}, "benchmark"),
        ({"workers": "many"}, "workers"),
    ],
)
def test_settings_that_are_refused(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        make_job(read_run(ROOT / "configs" / "sample" / "physicsiq.yaml", overrides))
    assert said in str(refused.value)


def test_a_prefix_that_would_not_reach_the_end_of_the_clip(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "model" / "nano.json").read_text(encoding="utf-8")
    config = tmp_path / "nano.json"
    config.write_text(text.replace('"fps": 24', '"fps": 24, "prefix_selection": "first"'), encoding="utf-8")
    with pytest.raises(ValueError, match="would continue from the middle of the conditioning clip"):
        make_job(read_run(ROOT / "configs" / "sample" / "physicsiq.yaml", {"config_file": str(config)}))
