#!/usr/bin/env python
"""Make many videos, those of a benchmark (VBench, Physics-IQ) or of your own prompts, and verify every file.

As many workers as there are GPUs share them; each loads the models once.

Examples:
  sample.py --prompts prompts.txt --method flowcache_fast              (a prompt a line, or YAML with seeds and inputs)
  sample.py configs/sample/vbench.yaml --method flowcache_fast
  sample.py configs/sample/vbench.yaml --data downloads/VBench/prompts --config_file configs/model/4.5B_distill.json
  sample.py configs/sample/physicsiq.yaml --mode i2v --dry_run
  sample.py configs/sample/vbench.yaml --nnodes 2 --rdzv_endpoint node0:29400     (the same on every machine)

Call it again to go on after an interruption, with any number of workers: what is there and right is kept. The exit
status is 0 only if every sample is there and verified; otherwise failures.json in the output folder says what is
missing and why. Every flag may be spelled with dashes instead of underscores.
"""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import ROOT, use_checkout

use_checkout()

from tqdm import tqdm

from harness.arguments import parse
from harness.methods import add_parameters, given_parameters
from harness.outputs import beginning_with, check_outputs, is_sidecar, json_with
from harness.program import make_parser, run_program
from inference.files import replacing
from sampling.config import LEFT_BY, PhysicsIqRun, add_settings, as_yaml, given_settings, read_run
from sampling.job import Job, make_job
from sampling.names import check_names
from sampling.report import summary, write_failures
from sampling.task import SampleTask
from sampling.verify import Finding, check_sample, of_kind, unlisted_videos, verify

logger = logging.getLogger("sample")

MOST_CPU_WORKERS = 4
OWN_PROMPTS = "configs/sample/prompts.yaml"
# Restarts of the whole group, which a lost machine or a killed guard causes; a dead worker does not.
GROUP_RESTARTS = 10


def main(argv: list[str] | None = None) -> int:
    again = "stopped; the same command goes on from here"
    return run_program(parse_arguments, make_samples, argv, stopped=again)


def make_samples(args: argparse.Namespace) -> int:
    """Make what is missing of a run, and say what is there; the exit status."""
    overrides = given_settings(args) | {"method_overrides": given_parameters(args)}
    if args.prompts is not None:
        overrides["data"] = args.prompts
    job = make_job(read_run(args.config or OWN_PROMPTS, overrides))
    if args.dry_run:
        return list_samples(job)
    prepare(job, args.remake)
    from torch.distributed.elastic.multiprocessing.api import SignalException

    try:
        distribute(job, args)
        return conclude(job)
    except SignalException as error:  # torchrun's handlers, which stay after its end, raise it
        raise KeyboardInterrupt from error


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, "%(prog)s CONFIG|--prompts FILE [--dry_run] [--SETTING VALUE ...]")
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="sampling configuration (YAML), see configs/sample/"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help=f"your own: a prompt a line, or YAML (with {OWN_PROMPTS} as CONFIG)"
    )
    parser.add_argument("--dry_run", action="store_true", help="list every file, with counts, and make nothing")
    parser.add_argument(
        "--remake", action="store_true", help="make samples again that were made with other settings (else: an error)"
    )
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="machines that take part (default: 1)")
    parser.add_argument(
        "--rdzv_endpoint", metavar="HOST:PORT", help="where the machines meet: one of them, and a free port of it"
    )
    add_settings(parser)
    add_parameters(parser)
    args = parse(parser, argv)
    if args.config is None and args.prompts is None:
        parser.error("what is to be made? Give a CONFIG, such as configs/sample/vbench.yaml, or --prompts FILE")
    if (args.nnodes > 1) != (args.rdzv_endpoint is not None):
        parser.error("several machines need --nnodes N and --rdzv_endpoint HOST:PORT, one machine neither")
    return args


def list_samples(job: Job) -> int:
    """Print the state and the path of every file, then the counts."""
    findings = {task: check_sample(job, task, decode=False) for task in job.tasks}
    for task, finding in findings.items():
        print("there" if finding is None else finding.kind, job.output / task.path, sep="\t")
    print(summary(job, findings))
    return 0


def prepare(job: Job, remake: bool) -> None:
    """The output folder with the resolved configuration; ValueError where it holds samples of other settings or files
    that no run has left, or its disk takes two names for one.
    """
    check_names(job.output, job.tasks)
    check_outputs({config_path(job): beginning_with(LEFT_BY), job.failures: json_with("output", "failures")}, {})
    findings = [finding for task in job.tasks if (finding := check_sample(job, task, decode=False)) is not None]
    foreign = of_kind(findings, "foreign")
    if foreign and not remake:
        raise ValueError(
            f"{len(foreign)} samples in {job.output} were made with other settings, the first is "
            f"{foreign[0].task.path}: {foreign[0].reason}\n"
            "Choose another --output or --model_name, or make them again with --remake"
        )
    unknown = [finding.task.path for finding in findings if not left_by_a_run(job, finding.task)]
    if unknown and not remake:
        raise ValueError(
            f"{len(unknown)} files in {job.output} would be replaced, but no sampling run has left them, the first is "
            f"{unknown[0]}; choose another --output or --model_name, or make them again with --remake"
        )
    for finding in foreign:
        (job.output / finding.task.sidecar).unlink()
    job.output.mkdir(parents=True, exist_ok=True)
    job.failures.unlink(missing_ok=True)
    shutil.rmtree(job.private / "errors", ignore_errors=True)
    settings = job.run.model_copy(update={"output": str(job.output), "model_name": job.model_name})
    with replacing(config_path(job)) as part:
        part.write_text(as_yaml(settings), encoding="utf-8")
    logger.info("%s: %d samples, %d of them to make", job.output, len(job.tasks), len(findings))


def left_by_a_run(job: Job, task: SampleTask) -> bool:
    """Whether what stands in a sample's place was left by a run, or nothing stands there."""
    sidecar = job.output / task.sidecar
    return is_sidecar(sidecar) if sidecar.exists() else not (job.output / task.path).is_file()


def config_path(job: Job) -> Path:
    return job.output / "sampling.yaml"


def distribute(job: Job, args: argparse.Namespace) -> None:
    """Run the workers with torchrun until nothing is left; its agent, in this process, hosts their queue."""
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    workers = job.run.workers
    if workers == "auto":
        workers = torch.cuda.device_count() or min(os.cpu_count() or 1, MOST_CPU_WORKERS)
    # Said to torchrun, which would warn otherwise; the workers set the number of their threads themselves.
    os.environ.setdefault("OMP_NUM_THREADS", str(job.run.threads))
    place = ["--standalone"]
    if args.nnodes > 1:
        place = [f"--nnodes={args.nnodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={args.rdzv_endpoint}"]
        place.append(f"--rdzv-id=sample-{job.model_name}")
    script = str(ROOT / "scripts" / "sample" / "worker.py")
    try:
        torchrun(
            [*place, f"--nproc-per-node={workers}", f"--max-restarts={GROUP_RESTARTS}", script, str(config_path(job))]
        )
    except ChildFailedError as error:
        # Verification says what that means.
        logger.error("the workers of this machine ended early: %s", str(error).strip().splitlines()[0])


def conclude(job: Job) -> int:
    """Verify everything, write or remove failures.json, and score where the benchmark has scores of its own."""
    with tqdm(total=len(job.tasks), unit="file", desc="verifying", dynamic_ncols=True) as bar:
        findings = verify(job, on_sample=bar.update)
    for video in unlisted_videos(job):
        logger.warning("%s is no sample of this run; an evaluator may take it for one", video)
    if findings:
        return failed(job, findings)
    shutil.rmtree(job.private, ignore_errors=True)
    logger.info("%s: all %d samples are there and verified", job.output, len(job.tasks))
    return score(job, job.run) if isinstance(job.run, PhysicsIqRun) and job.run.score else 0


def failed(job: Job, findings: list[Finding]) -> int:
    write_failures(job, findings)
    kinds = Counter(finding.kind for finding in findings)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    logger.error(
        "error: %d of %d samples are not right (%s), see %s", len(findings), len(job.tasks), counts, job.failures
    )
    return 1


def score(job: Job, run: PhysicsIqRun) -> int:
    """Print the Physics-IQ scores and leave them in scores/; the exit status of the script that computes them."""
    folders = dict.fromkeys(str(job.output / task.path.parent) for task in job.tasks)
    script = str(ROOT / "scripts" / "score" / "physicsiq.py")
    command = [sys.executable, script, "--generated", *folders, "--data", run.data, "--layout", run.layout]
    command += [] if run.descriptions is None else ["--descriptions", run.descriptions]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
