"""Lets `python scripts/NAME.py` work with whatever `python` is; standard library only, imported before the rest."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# Blocks of a forward change size with the number of chunks computed; torch's allocator otherwise leaves holes between
# them, gigabytes on a full card. The second name is what torch 2.10 and later prefer.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def use_checkout() -> None:
    """Make the checkout's packages importable, in the checkout's environment where the current one has no torch; and
    have torch, which must not have been imported yet, hold a GPU's memory in one piece, where the user has not chosen.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("torch") is not None:
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("PyTorch is not installed: run `bash scripts/setup_env.sh` once, which makes .venv in the checkout")
    os.execv(python, [str(python), *sys.argv])
