"""JSON that programs leave behind, and the commit that made it; imports nothing of the models."""

import json
import subprocess
from pathlib import Path
from typing import Any

from inference.config import REPOSITORY_ROOT
from inference.files import replacing


def commit() -> str | None:
    """The checkout's commit, marked where files were changed; None outside a git checkout."""
    # Without locks: a run that is killed here must not leave one in the checkout.
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY_ROOT)]
    command = [*git, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def save_json(path: Path, contents: dict[str, Any]) -> None:
    """Write it beside and rename it, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        write_json(part, contents)
