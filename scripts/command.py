"""The command ``flowcache`` of an installed checkout (`pip install -e .`): the programs of this folder by one name."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "generate": ("scripts/generate.py", "one video"),
    "serve": ("scripts/serve.py", "a page that shows videos while they are made"),
    "sample": ("scripts/sample.py", "the samples of a benchmark"),
    "metric": ("scripts/metric.py", "how alike videos are, and how one drifts"),
    "compare": ("benchmarks/compare/main.py", "methods against each other"),
    "score-vbench": ("scripts/score/vbench.py", "VBench scores of finished samples"),
    "score-physicsiq": ("scripts/score/physicsiq.py", "Physics-IQ scores of finished samples"),
    "calibrate": ("scripts/calibrate.py", "which settings keep which quality"),
    "check": ("scripts/check_model.py", "does a model fit on this machine"),
    "download": ("scripts/download.py", "the published weights"),
}


def main() -> int:
    """Become the program that the first argument names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: flowcache PROGRAM [arguments]; PROGRAM --help says which\n")
        print("\n".join(f"  {name:16s}{meaning}" for name, (_, meaning) in PROGRAMS.items()))
        return 0
    if arguments[0] not in PROGRAMS:
        print(f"flowcache: there is no {arguments[0]!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    path = ROOT / PROGRAMS[arguments[0]][0]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(path), *arguments[1:]])


if __name__ == "__main__":
    sys.exit(main())
