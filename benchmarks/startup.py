#!/usr/bin/env python
"""How many processor seconds a program takes before it says or does anything: python benchmarks/startup.py

Measured are `import torch`, and scripts/generate.py with a misspelt flag, with --help, with --dry_run, and with the
demonstration (scripts/single_run/flowcache_t2v.sh) until its progress bar is there, before its first step, and until
the bar shows that step done. All of them in turn, --rounds times after one round that is not counted; the least of
each is printed, since what else runs on a machine only adds, and the median of the ratios of the rounds.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
TORCH = "import torch"
# Of tqdm's bar.
BEFORE_STEPS = re.compile(rb"\b0/\d+ \[")
FIRST_STEP = re.compile(rb"[1-9]\d*/\d+ \[")


def commands(folder: Path) -> dict[str, tuple[list[str], re.Pattern[bytes] | None]]:
    """What is measured, by what it is called, and what it shows when it has come far enough; nothing is written outside
    ``folder``.
    """
    generate = [sys.executable, str(ROOT / "scripts" / "generate.py")]
    prompt = "a big red ball bounces up and down in the sky"
    demonstration = [*generate, "--prompt", prompt, "--method", "flowcache_fast"]
    demonstration += ["--output_path", str(folder / "video.mp4")]
    return {
        # Without taking it down again, as the demonstration, which is killed, does not.
        TORCH: ([sys.executable, "-c", "import os, torch; os._exit(0)"], None),
        "a typing error": ([*generate, "--promt", prompt], None),
        "--help": ([*generate, "--help"], None),
        "--dry_run": ([*demonstration, "--dry_run"], None),
        "the demonstration until its first step": (demonstration, BEFORE_STEPS),
        "the demonstration with its first step": (demonstration, FIRST_STEP),
    }


def processor_seconds(command: list[str], until: re.Pattern[bytes] | None) -> float:
    """Of ``command`` until it ends, or until it shows ``until``, when it is killed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    said = b""
    while part := process.stderr.read1(4096):
        said += part
        if until is not None and until.search(said):
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
            {name: processor_seconds(*measured) for name, measured in wanted.items()} for _ in range(args.rounds + 1)
        ][1:]
    for name in wanted:
        ratios = sorted(found[name] / found[TORCH] for found in rounds)
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times `{TORCH}`"
        print(f"{name:40s} {min(found[name] for found in rounds):6.2f} s  {spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
