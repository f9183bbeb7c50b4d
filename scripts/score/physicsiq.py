#!/usr/bin/env python
"""Score videos made for Physics-IQ: the Original and the Verified score, both computed here.

Examples:
  score_physicsiq.sh outputs/physics_iq/nano-flowcache_fast-v2v/sampling.yaml
  score_physicsiq.sh --generated outputs/my-model --data downloads/physics-IQ-benchmark
  score_physicsiq.sh --generated outputs/*-op-run_* --data downloads/physics-IQ-benchmark-verified --layout verified

The configuration that scripts/sample.py leaves in its output folder says what is where, and its samples are verified
first, seeds included. Other videos are given with --generated: the folder they are in, or one that holds several such
folders. A folder is not scored unless every video is there, can be decoded and lasts 5 s. The scores folder gets, for
each folder of videos, NAME.csv and NAME_metrics.json as the official evaluator writes them and NAME_details.json (of
categories and views); with --layout verified also models/MODEL_verified.csv and MODEL_original.csv, the official form
of mean and deviation over runs; and scores.md, which is also printed.
"""

import argparse
import itertools
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bootstrap import use_checkout

use_checkout()

import cv2
from tqdm import tqdm

from harness.arguments import parse
from harness.json_files import save_json
from harness.outputs import Ours, beginning_with, check_outputs, json_with
from harness.program import make_parser, run_program
from inference.config import require_path
from inference.files import replacing
from metrics.bit_depth import deep_note
from metrics.physics_iq.files import Benchmark, check_generated, refuse_videos, score_or_problem
from metrics.physics_iq.official import SCORE_TYPES, aggregate_table, group_runs, official_metrics, official_table
from metrics.physics_iq.report import COLUMNS, details, markdown_table
from metrics.physics_iq.scores import ViewResult
from metrics.physics_iq.table import ScenarioView, find_descriptions, read_descriptions
from sampling.config import PhysicsIqRun
from sampling.verified import verified_job

logger = logging.getLogger("score_physicsiq")

LAYOUTS = ("original", "verified")
VERIFIED_RUNS = 4
# With fewer videos, starting processes takes longer than scoring.
WORTH_PROCESSES = 40


@dataclass(frozen=True)
class Videos:
    """What is to be scored: ``folders`` of videos against ``data``, whose views ``descriptions`` lists."""

    folders: list[Path]
    data: Path
    descriptions: Path
    layout: str
    scores: Path


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, lambda args: print(score(find_videos(args), args.processes), end=""), argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(
        __doc__, "%(prog)s CONFIG | --generated DIR [DIR ...] --data DIR [--layout {original,verified}] [...]"
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="sampling configuration (YAML)")
    parser.add_argument("--generated", nargs="+", metavar="DIR", help="folders of videos, instead of a configuration")
    parser.add_argument("--data", metavar="DIR", help="with --generated: the folder of the benchmark's real videos")
    parser.add_argument(
        "--descriptions", metavar="FILE", help="with --generated: descriptions.csv, if not in its place"
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="with --generated: verified groups runs of a model (default: original)"
    )
    parser.add_argument("--scores_folder", metavar="DIR", help="where scores go (default: scores/ beside the videos)")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per core where there is much to do")
    args = parse(parser, argv)
    if (args.config is None) == (args.generated is None):
        parser.error("give either a sampling configuration or --generated")
    if args.config is None and args.data is None:
        parser.error("--generated needs --data, the folder of the benchmark's real videos")
    if args.config is not None and (args.data or args.descriptions or args.layout):
        parser.error("--data, --descriptions and --layout go with --generated; the configuration says them itself")
    return args


def find_videos(args: argparse.Namespace) -> Videos:
    """What the arguments name, verified where a configuration says how it was made."""
    if args.config is None:
        folders, layout = video_folders(args.generated), args.layout or LAYOUTS[0]
        data, descriptions, scores = args.data, args.descriptions, folders[0].parent / "scores"
    else:
        job = verified_job(args.config)
        if not isinstance(job.run, PhysicsIqRun):
            raise ValueError(f"{args.config} is a configuration for {job.run.benchmark}, not for physics_iq")
        folders, layout = list(dict.fromkeys(job.output / task.path.parent for task in job.tasks)), job.run.layout
        data, descriptions, scores = job.run.data, job.run.descriptions, job.output / "scores"
    root = require_path(data, "data")
    table = find_descriptions(root) if descriptions is None else require_path(descriptions, "descriptions")
    return Videos(folders, root, table, layout, Path(args.scores_folder or scores))


def video_folders(given: list[str]) -> list[Path]:
    """Each folder that holds videos, of those given or directly below them."""
    folders: list[Path] = []
    for folder in map(Path, given):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of generated videos: {folder}")
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.mp4")))
        found = [folder] if any(folder.glob("*.mp4")) else inner
        if not found:
            raise FileNotFoundError(f"no mp4 videos in {folder} nor in a folder in it")
        folders += [path.absolute() for path in found]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"scores are called by the folder's name, and several have the same: {', '.join(names)}")
    return folders


def score(videos: Videos, processes: int | None) -> str:
    """Write every folder's scores and give the table of all of them, in Markdown."""
    views = read_descriptions(videos.descriptions)
    verified = videos.layout == "verified"
    if verified:
        check_run_names(videos.folders)
    check_scores(videos, [folder.name for folder in videos.folders])
    rates = {folder: check_generated(folder, views) for folder in videos.folders}
    benchmarks = {fps: Benchmark(videos.data, fps) for fps in rates.values()}
    if note := deep_note(folder / view.generated_name for folder in rates for view in views):
        logger.warning("warning: %s", note)
    videos.scores.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, float]] = {}
    for folder, fps in rates.items():
        results = list(zip(views, compare_all(benchmarks[fps], views, folder, processes), strict=True))
        runs[folder.name] = official_metrics([result for _, result in results])
        write_text(videos.scores / f"{folder.name}.csv", official_table(results))
        save_json(videos.scores / f"{folder.name}_metrics.json", runs[folder.name])
        more = {"layout": videos.layout, "fps": fps, **details(results)}
        save_json(videos.scores / f"{folder.name}_details.json", more)
    if verified:
        write_models(videos.scores / "models", runs)
    table = markdown_table(runs, models=verified)
    write_text(videos.scores / "scores.md", table)
    return table


def check_scores(videos: Videos, names: list[str]) -> None:
    """ValueError where ``score`` would replace the descriptions, or a file that it has not left."""
    outputs: dict[Path, Ours] = {videos.scores / "scores.md": beginning_with("| run | Original |")}
    for name in names:
        outputs[videos.scores / f"{name}.csv"] = beginning_with("scenario,v1_mse_")
        outputs[videos.scores / f"{name}_metrics.json"] = json_with("final_score_origround", *COLUMNS)
        outputs[videos.scores / f"{name}_details.json"] = json_with("layout", "fps", "categories", "views")
    if videos.layout == "verified":
        for model, score_type in itertools.product(group_runs(names), SCORE_TYPES):
            outputs[videos.scores / "models" / f"{model}_{score_type}.csv"] = beginning_with("Model,Phys-IQ ")
    check_outputs(outputs, {"descriptions": videos.descriptions})


def write_models(folder: Path, runs: dict[str, dict[str, float]]) -> None:
    """Both scores of every model over its runs, in the form of the official aggregation."""
    folder.mkdir(exist_ok=True)
    for model, names in group_runs(list(runs)).items():
        for score_type in SCORE_TYPES:
            table = aggregate_table(model, [runs[name] for name in names], score_type)
            write_text(folder / f"{model}_{score_type}.csv", table)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def check_run_names(folders: list[Path]) -> None:
    """ValueError where a folder of the Verified layout is not named as a run; a warning where a run is lacking."""
    for model, runs in group_runs([folder.name for folder in folders]).items():
        if len(runs) != VERIFIED_RUNS:
            logger.warning("%s has %d runs; Verified asks for %d", model, len(runs), VERIFIED_RUNS)


def compare_all(
    benchmark: Benchmark, views: list[ScenarioView], folder: Path, processes: int | None
) -> list[ViewResult]:
    """Compare every video of a folder with the real ones, in order of the views."""
    if processes is None:
        processes = (os.cpu_count() or 1) if len(views) >= WORTH_PROCESSES else 1
    arguments = ([benchmark] * len(views), views, [folder / view.generated_name for view in views])
    with tqdm(total=len(views), unit="video", desc=folder.name, disable=None) as progress:
        if processes <= 1:
            found = [advance(progress, score_or_problem(*each)) for each in zip(*arguments, strict=True)]
        else:
            # Forked processes would inherit the locks of OpenCV's threads.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
                found = [advance(progress, each) for each in pool.map(score_or_problem, *arguments)]
    refuse_videos(folder, [each for each in found if isinstance(each, str)], len(views))
    return [each for each in found if isinstance(each, ViewResult)]


def advance(progress: tqdm, result: ViewResult | str) -> ViewResult | str:
    progress.update()
    return result


if __name__ == "__main__":
    sys.exit(main())
