"""VBench's official evaluator as a process in an environment of its own (docs/scores.md, "VBench").

Its command line (version 0.1.5) hands everything to a shell, unquoted, with the status thrown away; it takes the suffix
of whichever file it lists first for that of the videos; and it looks for ``python`` on the PATH. Hence the folder of
links to nothing but videos, the working directory instead of an output path, and the result file as the only proof.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inference.config import REPOSITORY_ROOT
from inference.files import read_json
from metrics.vbench import RESULTS_SUFFIX
from sampling.evaluator.log import LOG, EvaluatorError, log_hint

logger = logging.getLogger(__name__)

DEFAULT_EVALUATOR = Path("downloads/vbench/bin/vbench")
# What a shell takes literally.
SAFE_PATH = re.compile(r"[\w@%+=:,./-]+")
# Indices that the evaluator looks for.
INDICES = 5
FILTERED = "temporal_flickering"
# Written by the static filter once it has looked at every video.
FILTER_REPORT = "filtered_static_video.json"
# Of the evaluator's networks, the filter's is fetched with this dimension and by nothing else.
FILTER_WEIGHTS_FROM = "dynamic_degree"
RECORD = "evaluation.json"
FILTER_FAILED = f"""the static filter failed; where its weights are missing, judge {FILTER_WEIGHTS_FROM} first, which \
fetches them; --no_static_filter judges the first five videos of each prompt"""
NONE_STATIC = """no videos to judge (none was found static; --no_static_filter judges the first five of each prompt)"""
OWN_FILES = (LOG, RECORD, f"*{RESULTS_SUFFIX}", "*_full_info.json")

INSTALL = """bash scripts/score_vbench.sh --setup makes it an environment of its own, since it pins old libraries; \
--evaluator names a vbench command elsewhere"""


# VBench-Long picks static clips by itself, and leaves the videos that have any here, in the folder of its videos.
LONG_FILTERED = Path("temporal_filtered_cilps/filtered_videos")
LONG_RUN = Path(__file__).with_name("long_run.py")


@dataclass(frozen=True)
class Evaluation:
    """A dimension's result: a file in its folder, made of ``given`` videos, static ones picked first or not; by
    VBench-Long or by VBench.
    """

    dimension: str
    result: str
    given: int
    static_filter: bool
    long: bool = False


def find_evaluator(given: str | None) -> Path:
    """The ``vbench`` command: as given, or in the default environment, or on the PATH."""
    if given is not None:
        path = Path(given).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise EvaluatorError(f"the official evaluator is not at {path} (a file that can be executed); {INSTALL}")
    else:
        default, on_path = REPOSITORY_ROOT / DEFAULT_EVALUATOR, shutil.which("vbench")
        if not default.is_file() and on_path is None:
            raise EvaluatorError(f"the official evaluator is not at {default} and not on the PATH; {INSTALL}")
        path = default if default.is_file() else Path(str(on_path))
    path = path.absolute()
    if not SAFE_PATH.fullmatch(str(path)):
        raise EvaluatorError(
            f"the evaluator cannot run from {path}: it hands its own path to a shell, which splits it; make its "
            "environment where the path has no spaces or other special characters"
        )
    return path


def evaluate(
    evaluator: Path,
    dimension: str,
    videos: Sequence[Path],
    folder: Path,
    static_filter: bool,
    ngpus: int = 1,
    long: bool = False,
) -> Evaluation:
    """Score one dimension; its files go to ``folder`` and replace those of an earlier evaluation.

    Args:
        evaluator: see :func:`find_evaluator`.
        videos: ``PROMPT-INDEX.mp4``; without the filter indices from 5 on are not looked at.
        static_filter: let the evaluator pick up to five static videos per prompt first, as its protocol has it for
            temporal_flickering; VBench-Long picks clips.
        ngpus: for VBench; VBench-Long takes one.
        long: by VBench-Long.

    Raises:
        EvaluatorError: there is no result; the message has the Python error from the evaluator's log, or the log's end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    if not static_filter:
        videos = [video for video in videos if int(video.stem.rpartition("-")[2]) < INDICES]
    with tempfile.TemporaryDirectory(prefix="vbench-") as temporary:
        linked = Path(temporary) / "videos"
        linked.mkdir()
        for video in videos:
            (linked / video.name).symlink_to(video.absolute())
        judge = judge_long if long else judge_standard
        given = judge(evaluator, dimension, linked, folder, static_filter, ngpus)
    results = sorted(folder.glob(f"*{RESULTS_SUFFIX}"))
    if len(results) != 1:
        raise EvaluatorError(f"the evaluator gave no result for {dimension}" + log_hint(folder))
    evaluation = Evaluation(dimension, results[0].name, given, static_filter, long)
    (folder / RECORD).write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    return evaluation


def judge_standard(evaluator: Path, dimension: str, linked: Path, folder: Path, static_filter: bool, ngpus: int) -> int:
    """VBench on the videos in ``linked``; how many it was given."""
    if static_filter:
        picked = linked.with_name("static")
        run([evaluator, "static_filter", "--videos_path", linked, "--result_path", picked], folder)
        if not (picked / FILTER_REPORT).is_file():
            raise EvaluatorError(f"{dimension}: {FILTER_FAILED}" + log_hint(folder))
        linked = picked / "filtered_videos"
    given = len(list(linked.glob("*.mp4")))
    if not given:
        raise EvaluatorError(f"{dimension}: {NONE_STATIC}" + log_hint(folder))
    command = [evaluator, "evaluate", "--videos_path", linked, "--dimension", dimension, "--output_path", "."]
    run([*command, "--ngpus", ngpus], folder)
    return given


def judge_long(evaluator: Path, dimension: str, linked: Path, folder: Path, static_filter: bool, ngpus: int) -> int:
    """VBench-Long on the videos in ``linked``; how many it was given, or found static clips in."""
    python = evaluator.with_name("python")
    if not python.is_file():
        raise EvaluatorError(f"VBench-Long runs by the evaluator's own Python, and {python} is not there")
    run([python, LONG_RUN, linked, dimension, INDICES, int(static_filter)], folder)
    if not static_filter:
        return len(list(linked.glob("*.mp4")))
    report = linked / LONG_FILTERED.parent / FILTER_REPORT
    if not report.is_file():
        raise EvaluatorError(f"{dimension}: {FILTER_FAILED}" + log_hint(folder))
    given = len(list((linked / LONG_FILTERED).glob("*.mp4")))
    if not given:
        raise EvaluatorError(f"{dimension}: {NONE_STATIC}" + log_hint(folder))
    return given


def run(command: Sequence[object], folder: Path) -> None:
    """Run a program of the evaluator's in ``folder``, which gets its log; its status says nothing, see above."""
    words = [str(word) for word in command]
    search = os.pathsep.join([os.path.dirname(words[0]), os.environ.get("PATH", os.defpath)])
    with (folder / LOG).open("ab") as log:
        subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "PATH": search},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )


def in_order(dimensions: Sequence[str]) -> list[str]:
    """Dimensions as they are to be judged: the one that is filtered follows those that fetch the filter's weights."""
    return sorted(dimensions, key=lambda dimension: dimension == FILTERED)


def earlier_evaluation(
    folder: Path, dimension: str, videos: Sequence[Path], static_filter: bool, long: bool = False
) -> Evaluation | None:
    """The evaluation that ``folder`` holds, if it was made the same way and after the last of the videos."""
    record = folder / RECORD
    try:
        found = Evaluation(**read_json(record))
    except (OSError, ValueError, TypeError):
        return None
    newest = max(video.stat().st_mtime for video in videos)
    same = (found.dimension, found.static_filter, found.long) == (dimension, static_filter, long)
    whole = (folder / found.result).is_file()
    return found if same and whole and record.stat().st_mtime >= newest else None


def check_counts(evaluations: Mapping[str, Evaluation], judged: Mapping[str, int]) -> None:
    """EvaluatorError where fewer videos were judged than given, of which the evaluator would say nothing.

    In ``color`` it leaves out those in which it does not find the object.
    """
    for dimension, evaluation in evaluations.items():
        if judged[dimension] >= evaluation.given:
            continue
        message = f"{dimension}: only {judged[dimension]} of {evaluation.given} videos were judged"
        if dimension != "color" or not judged[dimension]:
            raise EvaluatorError(f"{message}; are all prompts the official ones? See the evaluator's log")
        logger.warning("%s: the object was not found in the others", message)
