#!/usr/bin/env python
"""Runs that are killed at random moments and resumed, against the same run undisturbed: the same file, or not.

  resume.py --kills 50 --method flowcache_fast

Counts kills that found a run at work, and says after each how far it had come. The exit status is 1 where the files
differ.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.arguments import parse
from harness.program import make_parser, run_program
from inference.config import REPOSITORY_ROOT

PROMPT = "a big red ball bounces up and down in the sky"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many (default: %(default)s)")
    parser.add_argument("--method", help="of the run (default: no caching)")
    parser.add_argument("--num_frames", type=int, default=2400, help="of the run (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=16, help="of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parse(parser, argv)


def command(args: argparse.Namespace, video: Path) -> list[str]:
    method = [] if args.method is None else ["--method", args.method]
    counts = [f"--{name}={getattr(args, name)}" for name in ("num_frames", "num_steps")]
    script = REPOSITORY_ROOT / "scripts" / "generate.py"
    flags = ["--prompt", PROMPT, *counts, *method, "--save_state=true", "--resume", "--quiet", f"--output_path={video}"]
    return [sys.executable, str(script), *flags]


def kept(video: Path) -> int:
    """The last chunk that is kept, or -1."""
    return max((int(path.name.partition(".")[0]) for path in video.with_suffix(".state").glob("[0-9]*.pt")), default=-1)


def measure(args: argparse.Namespace) -> int:
    moments, kills = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed.mp4", Path(folder) / "disturbed.mp4"
        began = time.perf_counter()
        subprocess.run(command(args, undisturbed), check=True)
        whole = time.perf_counter() - began
        while True:
            process = subprocess.Popen(command(args, disturbed))
            # As long as there are kills left, most processes are killed before they come to an end.
            done, before = kept(disturbed), kept(disturbed)
            while kills < args.kills and process.poll() is None and done == before:
                time.sleep(0.01)
                done = kept(disturbed)
            try:
                process.wait(moments.uniform(0, 2 * whole / args.kills) if kills < args.kills else None)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                print(f"kill {kills}: behind chunk {kept(disturbed)}", flush=True)
        same = process.returncode == 0 and undisturbed.read_bytes() == disturbed.read_bytes()
    print(f"{kills} kills, {args.num_frames} frames, method {args.method}: {'the same bits' if same else 'OTHER BITS'}")
    return 0 if same else 1


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
