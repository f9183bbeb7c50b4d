"""The command of an installed checkout: every program is there, and gets its arguments."""

import subprocess
import sys
import tomllib

import pytest

from tests.loading import load_script
from tests.paths import ROOT

pytestmark = pytest.mark.slow
PROGRAMS = load_script("command").PROGRAMS


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    # As the installed command does, from a folder of the user's.
    code = "import sys; from scripts.command import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )


def test_it_lists_its_programs() -> None:
    found = call()
    assert found.returncode == 0 and all(name in found.stdout for name in PROGRAMS)
    assert all((ROOT / path).is_file() for path, _ in PROGRAMS.values())
    wrong = call("genrate")
    assert wrong.returncode == 2 and "there is no 'genrate'" in wrong.stderr


def test_a_program_gets_its_arguments() -> None:
    found = call("generate", "--help")
    assert found.returncode == 0 and "--prompt_schedule" in found.stdout
    assert "unknown argument --fps" in call("generate", "--prompt", "a", "--fps", "3").stderr


def test_the_project_names_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"flowcache": "scripts.command:main"}
    # ComfyUI loads its folder by itself, under a name of its own.
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "comfyui"}
    found = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert tops <= found
