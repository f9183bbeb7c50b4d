"""The scripts of scripts/single_run/: what they hand to generate.py, in a copy with stand-ins around them."""

import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.fake_checkout import fake_checkout
from tests.paths import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts" / "single_run").glob("*_*.sh"))
METHODS = {"flowcache": "flowcache_fast", "magi": "none", "teacache": "teacache_fast", "multistep": "multistep"}
PREFIXES = {"t2v": None, "i2v": "image_path", "v2v": "prefix_video_path"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return fake_checkout(tmp_path, "single_run")


def test_every_method_has_every_mode() -> None:
    assert {f"{method}_{mode}" for method in METHODS for mode in PREFIXES} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments(checkout: Path, tmp_path: Path, script: ModuleType, name: str) -> None:
    command = ["bash", str(checkout / "scripts" / "single_run" / f"{name}.sh"), "--prompt", "a b", "--seed", "5"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    file, *arguments = result.stdout.splitlines()
    assert file == str(checkout / "scripts" / "generate.py") and (checkout / "scripts" / "made").exists()
    args = script.parse_arguments(arguments)
    method, mode = name.split("_")
    assert (args.mode, args.prompt, args.seed) == (mode, "a b", 5)  # the user's arguments win
    assert args.output_path == f"outputs/{name}.mp4"
    used = [args.config_file, args.method_config]
    assert used == [str(checkout / "configs" / path) for path in ("model/nano.json", f"method/{METHODS[method]}.yaml")]
    for prefix in filter(None, PREFIXES.values()):
        if prefix == PREFIXES[mode]:
            used.append(getattr(args, prefix))
        else:
            assert getattr(args, prefix) is None
    for path in used:
        assert (ROOT / os.path.relpath(path, checkout)).is_file(), path
