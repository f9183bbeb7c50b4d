"""What the evaluator's log says of a failure."""

import re
from collections.abc import Sequence
from pathlib import Path

from inference.errors import ExpectedError

LOG = "evaluator.log"
LOG_LINES_SHOWN = 15
TRACEBACK = "Traceback (most recent call last):"
# torchrun puts the number of the process before its lines.
RANK = re.compile(r"^\[rank\d+\]: ?")
# With which torchrun ends whatever happened.
LAUNCHER_ERROR = "ChildFailedError"
NO_GPU = re.compile(r"NCCL|NVIDIA driver|not compiled with CUDA|no CUDA GPUs|no CUDA-capable device", re.IGNORECASE)
GPU_NEEDED = """the evaluator needs an NVIDIA GPU (it starts NCCL in any case): score on a machine with one, where the \
run's whole output folder can be copied and its sampling.yaml given"""


class EvaluatorError(ExpectedError):
    """The evaluator is not there, or gave no result."""


def log_hint(folder: Path) -> str:
    """Where the log is, and what it says of the cause: the last Python error in it, or else its end."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    if not lines:
        return ""
    error = python_error(lines)
    advice = f"; {GPU_NEEDED}" if error and NO_GPU.search(error[-1]) else ""
    said = "says" if error else "ends with"
    return f"{advice}; {log} {said}:\n  " + "\n  ".join((error or lines)[-LOG_LINES_SHOWN:])


def python_error(lines: Sequence[str]) -> list[str]:
    """The last traceback that is not the launcher's own, down to the line that names the error, if any."""
    found: list[str] = []
    block: list[str] | None = None
    for line in (RANK.sub("", line) for line in lines):
        if line.startswith(TRACEBACK):
            block = [line]
        elif block is not None:
            block.append(line)
            if line and not line[0].isspace():
                found = found if LAUNCHER_ERROR in line else block
                block = None
    return found
