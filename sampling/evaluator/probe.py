"""Run by the evaluator's own Python: which dimensions can be imported there, and where it looks for weights.

Prints one line of JSON behind whatever the imports print. Knows nothing of ours: that environment has none of it.
"""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path


def main(packages: list[str], dimensions: list[str]) -> None:
    found: dict[str, dict[str, str | None]] = {}
    for package in packages:
        found[package] = {}
        for dimension in dimensions:
            try:
                importlib.import_module(f"{package}.{dimension}")
            except Exception as error:  # noqa: BLE001 - whatever the package does at its import
                found[package][dimension] = (
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
            else:
                found[package][dimension] = None
    sys.stdout.write("\n" + json.dumps({"dimensions": found, "roots": roots(), "gpus": gpus()}) + "\n")


def roots() -> dict[str, str | None]:
    """Folders of weights: the evaluator's own, those of CLIP and torch.hub, and the package of VBench-Long."""
    home = Path.home() / ".cache"
    places = {"vbench": os.environ.get("VBENCH_CACHE_DIR", str(home / "vbench")), "clip": str(home / "clip")}
    try:
        import torch

        places["hub"] = torch.hub.get_dir()
        long = importlib.util.find_spec("vbench2_beta_long")
    except ImportError:
        return places
    return places | {"long": None if long is None else str(Path(str(long.origin)).parent)}


def gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


if __name__ == "__main__":
    cut = sys.argv.index("--")
    main(sys.argv[1:cut], sys.argv[cut + 1 :])
