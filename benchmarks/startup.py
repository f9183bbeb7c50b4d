#!/usr/bin/env python
"""How many processor seconds a program takes before it says or does anything: python benchmarks/startup.py

Measured are `import torch`, and scripts/generate.py with a misspelt flag, with --help, with --dry_run, and with the
demonstration (scripts/single_run/flowcache_t2v.sh) until its progress bar shows a step. All of them in turn, --rounds
times after one round that is not counted; the least of each is printed, since what else runs on a machine only adds.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "import torch"
FIRST_STEP = re.compile(rb"[1-9]\d*/\d+ \[")  # of tqdm's bar


def commands(folder: Path) -> dict[str, list[str]]:
    """What is measured, by what it is called; nothing is written outside ``folder``."""
    generate = [sys.executable, str(ROOT / "scripts" / "generate.py")]
    prompt = "a big red ball bounces up and down in the sky"
    demonstration = [*generate, "--prompt", prompt, "--method", "flowcache_fast"]
    demonstration += ["--output_path", str(folder / "video.mp4")]
    return {
        # Without taking it down again, as the demonstration, which is killed, does not.
        TORCH: [sys.executable, "-c", "import os, torch; os._exit(0)"],
        "a typing error": [*generate, "--promt", prompt],
        "--help": [*generate, "--help"],
        "--dry_run": [*demonstration, "--dry_run"],
        "the demonstration's first step": demonstration,
    }


def processor_seconds(command: list[str]) -> float:
    """Of ``command`` until it ends, or until it shows its first step, when it is killed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    said = b""
    while part := process.stderr.read1(4096):
        said += part
        if FIRST_STEP.search(said):
            process.kill()
    process.stderr.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == 1:
        sys.exit(f"{' '.join(command)} failed:\n{said.decode(errors='replace')}")
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if sys.dont_write_bytecode:
        print("PYTHONDONTWRITEBYTECODE is set: what Python would keep compiled is compiled each time, and that counts")
    with tempfile.TemporaryDirectory() as folder:
        wanted = commands(Path(folder))
        rounds = [
            {name: processor_seconds(command) for name, command in wanted.items()} for _ in range(args.rounds + 1)
        ]
    least = {name: min(found[name] for found in rounds[1:]) for name in wanted}
    for name, seconds in least.items():
        print(f"{name:32s} {seconds:6.2f} s {seconds / least[TORCH]:6.2f} times `{TORCH}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
