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
from inference.errors import ExpectedError
from inference.files import read_json
from metrics.vbench import RESULTS_SUFFIX

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
LOG = "evaluator.log"
RECORD = "evaluation.json"
LOG_LINES_SHOWN = 15
TRACEBACK = "Traceback (most recent call last):"
# torchrun puts the number of the process before its lines.
RANK = re.compile(r"^\[rank\d+\]: ?")
# With which torchrun ends whatever happened.
LAUNCHER_ERROR = "ChildFailedError"
NO_GPU = re.compile(r"NCCL|NVIDIA driver|not compiled with CUDA|no CUDA GPUs|no CUDA-capable device", re.IGNORECASE)
GPU_NEEDED = """the evaluator needs an NVIDIA GPU (it starts NCCL in any case): score on a machine with one, where the \
run's whole output folder can be copied and its sampling.yaml given"""
OWN_FILES = (LOG, RECORD, f"*{RESULTS_SUFFIX}", "*_full_info.json")

INSTALL = """it pins old libraries (numpy < 2, transformers 4.33.2), so give it an environment of its own, once:
  .venv/bin/uv venv --python 3.11 downloads/vbench
  .venv/bin/uv pip install --python downloads/vbench/bin/python -r configs/vbench_environment.txt
and, for object_class, multiple_objects, color and spatial_relationship, detectron2 as VBench's README says; \
--evaluator names a vbench command elsewhere"""


class EvaluatorError(ExpectedError):
    """The evaluator is not there, or gave no result."""


@dataclass(frozen=True)
class Evaluation:
    """A dimension's result: a file in its folder, made of ``given`` videos, static ones picked first or not."""

    dimension: str
    result: str
    given: int
    static_filter: bool


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
    evaluator: Path, dimension: str, videos: Sequence[Path], folder: Path, static_filter: bool, ngpus: int = 1
) -> Evaluation:
    """Score one dimension; its files go to ``folder`` and replace those of an earlier evaluation.

    Args:
        evaluator: see :func:`find_evaluator`.
        videos: ``PROMPT-INDEX.mp4``; without the filter indices from 5 on are not looked at.
        static_filter: let the evaluator pick up to five static videos per prompt first, as its protocol has it for
            temporal_flickering.

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
        if static_filter:
            picked = Path(temporary) / "static"
            run(evaluator, ["static_filter", "--videos_path", str(linked), "--result_path", str(picked)], folder)
            if not (picked / FILTER_REPORT).is_file():
                raise EvaluatorError(
                    f"{dimension}: the static filter failed; where its weights are missing, judge "
                    f"{FILTER_WEIGHTS_FROM} first, which fetches them; --no_static_filter judges the first five videos "
                    "of each prompt" + log_hint(folder)
                )
            linked = picked / "filtered_videos"
        given = len(list(linked.glob("*.mp4")))
        if not given:
            raise EvaluatorError(
                f"{dimension}: no videos to judge (none was found static; --no_static_filter judges the first five of "
                "each prompt)" + log_hint(folder)
            )
        command = ["evaluate", "--videos_path", str(linked), "--dimension", dimension, "--output_path", "."]
        run(evaluator, [*command, "--ngpus", str(ngpus)], folder)
    results = sorted(folder.glob(f"*{RESULTS_SUFFIX}"))
    if len(results) != 1:
        raise EvaluatorError(f"the evaluator gave no result for {dimension}" + log_hint(folder))
    evaluation = Evaluation(dimension, results[0].name, given, static_filter)
    (folder / RECORD).write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    return evaluation


def run(evaluator: Path, arguments: Sequence[str], folder: Path) -> None:
    """Run the evaluator in ``folder``, which gets its log; its status says nothing, see above."""
    search = os.pathsep.join([str(evaluator.parent), os.environ.get("PATH", os.defpath)])
    with (folder / LOG).open("ab") as log:
        subprocess.run(
            [str(evaluator), *arguments],
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


def log_hint(folder: Path) -> str:
    """Where the log is, and what it says of the cause: the last Python error in it, or else its end."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    if not lines:
        return ""
    error = python_error(lines)
    advice = f"; {GPU_NEEDED}" if error and NO_GPU.search(error[-1]) else ""
    said = "says" if error else "ends with"
    return f"{advice}; {log} {said}:\n  " + "\n  ".join((error or lines)[-LOG_LINES_SHOWN:])


def python_error(lines: Sequence[str]) -> list[str]:
    """The last traceback that is not the launcher's own, down to the line that names the error, if any."""
    found: list[str] = []
    block: list[str] | None = None
    for line in (RANK.sub("", line) for line in lines):
        if line.startswith(TRACEBACK):
            block = [line]
        elif block is not None:
            block.append(line)
            if line and not line[0].isspace():
                found = found if LAUNCHER_ERROR in line else block
                block = None
    return found


def earlier_evaluation(folder: Path, dimension: str, videos: Sequence[Path], static_filter: bool) -> Evaluation | None:
    """The evaluation that ``folder`` holds, if it was made the same way and after the last of the videos."""
    record = folder / RECORD
    try:
        found = Evaluation(**read_json(record))
    except (OSError, ValueError, TypeError):
        return None
    newest = max(video.stat().st_mtime for video in videos)
    same = (found.dimension, found.static_filter) == (dimension, static_filter)
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
