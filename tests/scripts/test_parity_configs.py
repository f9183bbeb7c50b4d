"""The parity check of the published configurations and tensor lists, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("published_configs.json", "checkpoint_keys.json")


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "check_parity.py"), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def golden() -> dict[str, dict]:
    return {name: json.loads((ROOT / "tests" / "golden" / name).read_text(encoding="utf-8")) for name in FILES}


def write(directory: Path, data: dict[str, dict]) -> None:
    for name, content in data.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def test_the_published_files_pass(tmp_path: Path) -> None:
    write(tmp_path, golden())
    result = check(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "24B_distill_quant" in result.stdout


def test_every_changed_number_is_a_miss(tmp_path: Path) -> None:
    data = golden()
    configs, keys = (data[name] for name in FILES)
    configs["4.5B_base_config.json"]["runtime_config"]["seed"] += 1
    keys["4.5B_distill_quant"]["other_layers"]["mlp.linear_fc2.input_scale"]["shape"] = [2]
    keys["4.5B_distill"]["parameters"] += 1
    keys["7B_base"] = keys.pop("4.5B_base")  # no configuration describes it
    data["checkpoint_keys.json"] = {name: keys[name] for name in ("4.5B_distill", "4.5B_distill_quant", "7B_base")}
    write(tmp_path, data)
    result = check(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    missed = [line for line in result.stdout.splitlines() if line.startswith("MISS")]
    for case in ("4.5B_base_config.json", "4.5B_distill_quant", "4.5B_distill ", "7B_base"):
        assert any(case in line for line in missed), f"{case} in {missed}"
    assert len(missed) == 4
