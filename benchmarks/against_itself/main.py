#!/usr/bin/env python
"""Compare a forward of this checkout with that of an earlier revision: benchmarks/against_itself/main.py REVISION

Each has a process of its own, with the same random weights and inputs; they take turns, so that what else the machine
does falls on both. The figure is the median of the ratios of neighbouring forwards, with their range; beside it stands
how far the results lie apart.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.against_itself.worker import SIZES
from harness.arguments import parse
from harness.device import choose_device
from harness.json_files import commit, save_json
from harness.program import make_parser, run_program
from harness.sidecar import describe_device
from inference.config import REPOSITORY_ROOT

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A process that makes forwards with the code of ``tree`` when it is asked."""

    def __init__(self, tree: Path, device: str, threads: int) -> None:
        command = [sys.executable, str(WORKER), str(tree), device, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def forward(self, size: str) -> dict[str, Any]:
        """Seconds of one forward of ``size`` and what came out of it; RuntimeError where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(size + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # said below
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the forward ended with status {self.process.wait()}; its error stands above")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, measure, argv, level=logging.WARNING)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("revision", help="of this repository, with the layout of now (since 34132d4)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of forwards, after one each that is not counted")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parse(parser, argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


def measure(args: argparse.Namespace) -> None:
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        earlier = check_out(args.revision, Path(folder))
        workers = {"earlier": Worker(Path(folder), str(device), args.threads)}
        workers["now"] = Worker(REPOSITORY_ROOT, str(device), args.threads)
        try:
            results = {size: compare(workers, size, args.rounds) for size in args.sizes}
        finally:
            for worker in workers.values():
                worker.end()
    if args.output:
        about = {"what": "seconds of a forward of this revision as a share of an earlier one's", "earlier": earlier}
        about |= {"commit": commit(), "command": " ".join(["benchmarks/against_itself/main.py", *sys.argv[1:]])}
        save_json(args.output, about | {"device": describe_device(device), "threads": args.threads, "sizes": results})


def check_out(revision: str, folder: Path) -> str:
    """Put the tree of ``revision`` into ``folder``; gives its full name. ValueError where git knows none."""
    asked = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise ValueError(f"git knows no revision {revision!r} here; a shallow clone has none but the last")
    archive = folder / "tree.tar"
    with archive.open("wb") as file:
        subprocess.run(["git", "archive", asked.stdout.strip()], cwd=REPOSITORY_ROOT, stdout=file, check=True)
    with tarfile.open(archive) as tree:
        tree.extractall(folder, filter="data")
    archive.unlink()
    return asked.stdout.strip()


def compare(workers: dict[str, Worker], size: str, rounds: int) -> dict[str, Any]:
    """Medians, the ratio with its range, and the largest difference relative to the largest number."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for round_ in range(rounds + 1):
        # The one that goes first changes, so that none always has the warmer machine.
        for name in list(workers) if round_ % 2 else reversed(list(workers)):
            answers[name].append(workers[name].forward(size))
    seconds = {name: [answer["seconds"] for answer in found[1:]] for name, found in answers.items()}
    ratios = [now / earlier for now, earlier in zip(seconds["now"], seconds["earlier"], strict=True)]
    values = {name: found[0]["values"] for name, found in answers.items()}
    apart = max(abs(a - b) for a, b in zip(values["now"], values["earlier"], strict=True))
    row = {
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "relative_difference": apart / max(abs(value) for value in values["earlier"]),
    }
    told = f"{row['ratio']:.3f} ({row['range'][0]:.3f} to {row['range'][1]:.3f}) of the time"
    print(
        f"{size:12s} {told}, {row['seconds']['now']:.4g} s; results {row['relative_difference']:.1e} apart", flush=True
    )
    return row


if __name__ == "__main__":
    sys.exit(main())
