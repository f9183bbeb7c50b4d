#!/usr/bin/env python
"""Kill runs at random moments, and look at what they leave: python benchmarks/kills.py --kills 20

Each run is killed (SIGKILL) somewhere between its start and its end. What it leaves must be a playable video of whole
chunks, with every chunk that it had said to be finished; the next run onto the name must keep it and clean up.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.files import hidden_beside
from inference.video.names import partial_path
from inference.video.reading import probe_video
from inference.video.unfinished import UnfinishedVideo

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a big red circle moves up"
CHUNK = 24


def start(video: Path, frames: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--prompt", PROMPT, "--num_steps", "8"]
    flags = ["--num_frames", str(frames), "--output_path", str(video), "--quiet"]
    return subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_once(folder: Path, delay: float) -> tuple[int, str]:
    """Whole chunks left by a run killed ``delay`` seconds after its first one, and what is wrong, if anything."""
    video = folder / "video.mp4"
    hidden = hidden_beside(video, "part.mp4")
    process = start(video, 100_000)
    while not (hidden.exists() and hidden.stat().st_size):
        if process.poll() is not None:
            return 0, f"the run ended by itself: {process.stderr.read().decode()}"
        time.sleep(0.01)
    time.sleep(delay)
    on_disk = hidden.stat().st_size
    process.kill()
    process.communicate()
    left = probe_video(hidden).frames
    if left % CHUNK or not left or hidden.stat().st_size < on_disk:
        return 0, f"{left} frames are left, {hidden.stat().st_size} bytes of {on_disk}"
    unfinished = UnfinishedVideo(video)  # as the next run begins
    kept = unfinished.rescue(partial_path(video))
    unfinished.close()
    whole = probe_video(partial_path(video)).frames == kept == left
    return left // CHUNK, "" if whole else f"the next run kept {kept} of {left} frames"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(argv)
    moments, wrong = random.Random(args.seed), 0
    for number in range(args.kills):
        with tempfile.TemporaryDirectory() as name:
            delay = moments.uniform(0, 3)
            chunks, problem = kill_once(Path(name), delay)
            remains = [entry for entry in os.listdir(name) if entry.startswith(".~")]
            problem = problem or (f"remains: {remains}" if remains else "")
        wrong += bool(problem)
        print(
            f"{number + 1:3d}: killed after {delay:.2f} s, {chunks} chunks {problem or 'whole, kept by the next run'}"
        )
    print(f"{args.kills} kills, {wrong} with something lost")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
