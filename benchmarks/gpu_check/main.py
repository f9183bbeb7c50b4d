#!/usr/bin/env python
"""Everything worth measuring on a GPU, in one call of a few minutes: python benchmarks/gpu_check/main.py [OUT_DIR]

Needs no weights: reference data and a 4.5B transformer with random numbers. Every result is printed and in the JSON
file as soon as it is there; a section that fails is recorded with its error, and those for which no time is left are
skipped. A table of the most telling figures comes last.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Before torch is imported; the programs of scripts/ do the same (scripts/bootstrap.py).
if not any(name in os.environ for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")):
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"

import torch

from benchmarks.gpu_check import model, parts, placement, variants
from benchmarks.gpu_check.bench import FULL, SMALL, Bench, Findings
from benchmarks.gpu_check.table import table
from harness.json_files import commit, save_json
from inference.config import REPOSITORY_ROOT

Section = Callable[[Bench, Findings], None]

# In this order: what says most first, what may take longest last.
SECTIONS: Mapping[str, Section] = {
    "matmul": model.matmul,
    "copies": placement.copies,
    "attention": parts.attention,
    "forwards": model.forwards,
    "projection": model.projection,
    "attention_layouts": variants.attention_layouts,
    "variants": variants.variants,
    "profile": placement.profile,
    "fp8_layers": variants.fp8_layers,
    "repeatable": placement.repeatable,
    "placements": variants.placements,
    "runs": parts.runs,
    "cache_memory": model.cache_memory,
    "flowcache": parts.flowcache_work,
    "vae": parts.vae,
    "parity": parts.parity,
}
SECONDS = 500.0
# What a section should have before it is begun.
LEAST_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", nargs="?", type=Path, default=REPOSITORY_ROOT / "benchmarks/results")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: the same code in a minute or two on a CPU")
    parser.add_argument(
        "--golden", type=Path, default=REPOSITORY_ROOT / "tests/golden", help="folder of reference data"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all of it (default: %(default)s)")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        print(f"no GPU {device} here: nothing to check. --device cpu --small runs the same code on a CPU.")
        return 1
    bench = Bench(device, SMALL if args.small else FULL, args.golden, time.monotonic() + args.seconds)
    record = describe(device, args)
    output = args.out_dir / f"gpu_{slug(record['device']['name'])}{'_small' if args.small else ''}.json"
    check(bench, {name: SECTIONS[name] for name in SECTIONS if name in args.sections}, record, output)
    print(f"\n{table(record['sections'])}\n\nwritten: {output}")
    return 1 if any("error" in section for section in record["sections"].values()) else 0


def check(bench: Bench, sections: Mapping[str, Section], record: dict[str, Any], output: Path) -> None:
    """Run ``sections`` one after the other; after each result ``output`` holds ``record`` with all that was found."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        outcome: dict[str, Any] = {}
        record["sections"][name] = outcome

        def tell(what: str, value: Any, name: str = name) -> None:
            print(f"{name}: {what}: {json.dumps(value)}", flush=True)
            save_json(output, record)

        run_section(bench, section, outcome, Findings(tell))
        if problem := outcome.get("error") or outcome.get("skipped"):
            print(f"{name}: {problem}", flush=True)
        save_json(output, record)


def run_section(bench: Bench, section: Section, outcome: dict[str, Any], found: Findings) -> None:
    """Put into ``outcome`` what a section finds, as it finds it, how long it took, and why it ended early, if so."""
    if bench.left < LEAST_SECONDS:
        left = max(bench.left, 0)
        outcome["skipped"] = f"{left:.0f} s of the time are left; a section should have {LEAST_SECONDS:.0f}"
        return
    began = time.monotonic()
    outcome["result"] = found
    try:
        section(bench, found)
    except Exception as error:  # noqa: BLE001 - recorded; the other sections go on
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        outcome["where"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        outcome["error"] = f"{type(error).__name__}: {error}"
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    outcome["seconds"] = round(time.monotonic() - began, 1)


def describe(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """What was run, where, when, of which version."""
    place: dict[str, Any] = {"type": device.type, "name": platform.machine()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        place |= {"name": properties.name, "bytes": properties.total_memory}
        place["capability"] = f"{properties.major}.{properties.minor}"
    return {
        "what": "parity, speed and memory on one device with random weights of the 4.5B transformer",
        "command": " ".join(["benchmarks/gpu_check/main.py", *sys.argv[1:]]),
        "sizes": "small" if args.small else "full",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": place,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        },
        "sections": {},
    }


def slug(name: str) -> str:
    """A device's name as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
