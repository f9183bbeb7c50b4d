#!/usr/bin/env python
"""Verify the samples of a run file by file: scripts/sample/verify.py OUTPUT/sampling.yaml [--SETTING VALUE ...]

CONFIG is the configuration that scripts/sample.py left in its output folder, or any other with the same flags as there.
Every file must be there, unchanged since it was written, decodable to its end, of the right length, size and rate, and
its sidecar must state the right prompt, seed and settings; and no other videos may be in the samples' folders, which an
evaluator may take for samples. The exit status is 0 only if all of that holds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bootstrap import use_checkout

use_checkout()

from tqdm import tqdm

from harness.arguments import parse
from harness.methods import add_parameters, given_parameters
from harness.program import make_parser, run_program
from sampling.config import add_settings, given_settings, read_run
from sampling.job import make_job
from sampling.verify import unlisted_videos, verify


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, look, argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, "%(prog)s CONFIG [--SETTING VALUE ...]")
    parser.add_argument("config", metavar="CONFIG", help="sampling configuration (YAML)")
    add_settings(parser)
    add_parameters(parser)
    return parse(parser, argv)


def look(args: argparse.Namespace) -> int:
    """Look at every file and print what is wrong, a line each; the exit status."""
    job = make_job(read_run(args.config, given_settings(args) | {"method_overrides": given_parameters(args)}))
    with tqdm(total=len(job.tasks), unit="file", dynamic_ncols=True) as bar:
        findings = verify(job, on_sample=bar.update)
    for finding in findings:
        print(finding.kind, job.output / finding.task.path, finding.reason, sep="\t")
    unlisted = list(unlisted_videos(job))
    for video in unlisted:
        print("unlisted", video, "no sample of this run", sep="\t")
    print(f"{len(job.tasks) - len(findings)} of {len(job.tasks)} samples in {job.output} are right")
    return 1 if findings or unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
