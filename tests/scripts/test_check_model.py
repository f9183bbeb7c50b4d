"""scripts/check_model.py as a user calls it."""

import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.warm.start import warm_python

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "check_model.py"


@pytest.mark.parametrize(("memory", "status"), [("24", 0), ("0.001", 1)])
def test_the_exit_status_says_whether_it_fits(checkpoint: Path, memory: str, status: int) -> None:
    command = [warm_python(), str(SCRIPT), str(checkpoint / "distill.json"), "--memory-gb", memory]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == status, result.stdout + result.stderr
    assert "ok transformer" in result.stdout and "PFLOP" in result.stdout
    assert ("NO memory" in result.stdout) == bool(status)
