"""Lets `python scripts/NAME.py` work with whatever `python` is; standard library only, imported before the rest."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use_checkout() -> None:
    """Make the checkout's packages importable, in the checkout's environment where the current one has no torch."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("torch") is not None:
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("PyTorch is not installed: run `bash scripts/setup_env.sh` once, which makes .venv in the checkout")
    os.execv(python, [str(python), *sys.argv])
