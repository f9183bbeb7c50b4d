#!/usr/bin/env python
"""Score videos made for VBench: its official evaluator judges them, the totals are computed here.

Examples:
  score_vbench.sh --setup
  score_vbench.sh outputs/vbench/nano-flowcache_fast/sampling.yaml
  score_vbench.sh outputs/vbench/nano-flowcache_fast/sampling.yaml --evaluator ~/vbench/bin/vbench --ngpus 8

CONFIG is the configuration that scripts/sample.py leaves in its output folder; its samples are verified first, seeds
included. The evaluator runs in an environment of its own, a dimension at a time; dimensions that were judged after
their videos were made are not judged again. Videos of five seconds and more are judged by VBench-Long, which cuts them
into clips, shorter ones by VBench, unless --suite says otherwise. The scores folder gets a folder per dimension with
the evaluator's files and log, vbench.json, and vbench.md, which is also printed; those of VBench-Long are
vbench_long.json, vbench_long.md and below vbench_long/. Quality, Semantic and Total need all 16 dimensions.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bootstrap import use_checkout

use_checkout()

from harness.arguments import parse
from harness.json_files import save_json
from harness.outputs import Ours, beginning_with, check_outputs, json_with
from harness.program import make_parser, run_program
from inference.files import replacing
from metrics.vbench import DIMENSIONS, markdown_table, normalise, read_results, totals
from sampling.config import VBenchRun
from sampling.evaluator.process import (
    FILTERED,
    INDICES,
    RECORD,
    Evaluation,
    check_counts,
    earlier_evaluation,
    evaluate,
    find_evaluator,
    in_order,
)
from sampling.evaluator.setup import describe, set_up, survey
from sampling.job import Job
from sampling.vbench import protocol
from sampling.verified import verified_job

logger = logging.getLogger("score_vbench")

LONG = "vbench_long"
SUITES = {"vbench": "VBench", LONG: "VBench-Long"}
# From here on VBench-Long is made for a video.
LONG_SECONDS = 5


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, run, argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(
        __doc__,
        "%(prog)s CONFIG|--setup [--evaluator FILE] [--scores_folder DIR] [--ngpus N] [--again] [--no_static_filter]",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="sampling configuration (YAML)")
    parser.add_argument(
        "--setup",
        action="store_true",
        help="make the evaluator's environment, or complete it, and show what it can judge; no CONFIG then",
    )
    parser.add_argument("--evaluator", metavar="FILE", help="the vbench command (default: downloads/vbench/bin/vbench)")
    parser.add_argument("--scores_folder", metavar="DIR", help="where scores go (default: scores/ in the run's output)")
    parser.add_argument("--ngpus", type=int, default=1, metavar="N", help="GPUs for the evaluator (default: 1)")
    parser.add_argument("--again", action="store_true", help="judge every dimension, judged before or not")
    parser.add_argument(
        "--suite", choices=("auto", *SUITES), help="what judges: VBench or VBench-Long (default: the configuration's)"
    )
    parser.add_argument(
        "--no_static_filter",
        action="store_true",
        help="judge temporal_flickering on each prompt's first five videos, not on five static ones of all",
    )
    args = parse(parser, argv)
    if args.setup == (args.config is not None):
        parser.error("give a CONFIG, or --setup without one")
    return args


def run(args: argparse.Namespace) -> None:
    if args.setup:
        print("\n".join(describe(survey(set_up()))))
    else:
        print(score(args), end="")


def score(args: argparse.Namespace) -> str:
    """Judge every dimension of the run, write the scores and give their table, in Markdown."""
    evaluator = find_evaluator(args.evaluator)
    job = verified_job(args.config, lambda job: check_scores(scores_folder(args, job), job, args.config))
    if not isinstance(job.run, VBenchRun):
        raise ValueError(f"{args.config} is a configuration for {job.run.benchmark}, not for vbench")
    scores, suite = scores_folder(args, job), suite_of(args, job)
    below = scores / suite if suite == LONG else scores
    evaluations = {
        name: judge(args, evaluator, job, name, below / name, suite == LONG) for name in in_order(job.run.dimensions)
    }
    results = read_results(below / name / evaluation.result for name, evaluation in evaluations.items())
    check_counts(evaluations, {name: results[name].judged for name in evaluations})

    missing = [name for name in DIMENSIONS if name not in results]
    overall = None if missing else totals(results)
    if missing:
        logger.warning("no totals without all 16 dimensions; missing: %s", ", ".join(missing))
    dimensions: dict[str, Any] = {}
    for name, result in results.items():
        made = evaluations[name]
        dimensions[name] = {
            "score": result.score,
            "normalised": normalise(name, result.score),
            "judged": result.judged,
            "given": made.given,
            "static_filter": made.static_filter,
            "file": str((below / name / made.result).relative_to(scores)),
        }
    made_by = protocol(
        job.run.dimensions,
        job.run.samples_per_prompt,
        job.run.flickering_samples,
        any(each.static_filter for each in evaluations.values()),
    )
    contents = {
        "model_name": job.model_name,
        "suite": suite,
        "protocol": made_by,
        "samples_per_prompt": job.run.samples_per_prompt,
        "total": None if overall is None else overall.total,
        "quality": None if overall is None else overall.quality,
        "semantic": None if overall is None else overall.semantic,
        "missing": missing,
        "dimensions": dimensions,
    }
    table = f"{markdown_table(results, overall)}\nJudged by {SUITES[suite]}. Protocol: {made_by}.\n"
    save_json(scores / f"{suite}.json", contents)
    with replacing(scores / f"{suite}.md") as part:
        part.write_text(table, encoding="utf-8")
    return table


def scores_folder(args: argparse.Namespace, job: Job) -> Path:
    return Path(args.scores_folder or job.output / "scores")


def suite_of(args: argparse.Namespace, job: Job) -> str:
    """What judges the videos of ``job``, a VBench run: ``vbench`` or ``vbench_long``."""
    assert isinstance(job.run, VBenchRun)
    chosen = str(args.suite or job.run.suite)
    runtime = job.model.runtime
    seconds = runtime.num_frames / runtime.fps
    if chosen == "auto":
        chosen = LONG if seconds >= LONG_SECONDS else "vbench"
        logger.info(
            "videos of %g s are judged by %s; --suite %s for the other",
            *(seconds, SUITES[chosen], next(name for name in SUITES if name != chosen)),
        )
    return chosen


def check_scores(scores: Path, job: Job, config: str) -> None:
    """ValueError where a file would be replaced that no scoring has left."""
    outputs: dict[Path, Ours] = {}
    for suite in SUITES:
        outputs[scores / f"{suite}.json"] = json_with("model_name", "protocol", "dimensions")
        outputs[scores / f"{suite}.md"] = beginning_with("| dimension | score |")
    for name in job.listing.groups:
        for folder in (scores / name, scores / LONG / name):
            outputs[folder / RECORD] = json_with("dimension", "result", "static_filter")
    check_outputs(outputs, {"config": config})


def judge(args: argparse.Namespace, evaluator: Path, job: Job, dimension: str, folder: Path, long: bool) -> Evaluation:
    """The evaluation of one dimension: an earlier one, where it still stands, or a new one."""
    videos = [job.output / task.path for task in job.listing.groups[dimension]]
    more_than_needed = job.run.flickering_samples > INDICES
    static_filter = dimension == FILTERED and more_than_needed and not args.no_static_filter
    found = None if args.again else earlier_evaluation(folder, dimension, videos, static_filter, long)
    if found is not None:
        logger.info("%s: judged before", dimension)
        return found
    logger.info("%s: judging %d videos", dimension, len(videos))
    return evaluate(evaluator, dimension, videos, folder, static_filter, args.ngpus, long)


if __name__ == "__main__":
    sys.exit(main())
