"""A checkout with stand-ins around a shell script: what the script hands on is seen, and nothing else happens."""

import shutil
from pathlib import Path

from tests.paths import ROOT


def fake_checkout(root: Path, *copied: str, status: int = 0) -> Path:
    """Make ``root`` one, whose path has a space in it: what is ``copied`` of scripts/, a set-up that leaves the mark
    scripts/made, and a Python that prints its arguments, one a line, and ends with ``status``.
    """
    root = root / "check out"
    for name in copied:
        source, target = ROOT / "scripts" / name, root / "scripts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (root / "scripts" / "setup_env.sh").write_text('touch "$(dirname "$0")/made"\n', encoding="utf-8")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {status}\n', encoding="utf-8")
    python.chmod(0o755)
    return root
