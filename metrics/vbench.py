"""VBench totals from what its official evaluator writes (docs/scores.md, "VBench")."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUALITY = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
DIMENSIONS = (*QUALITY, *SEMANTIC)
# Smallest and largest value that the official totals reckon with; 0 and 1 for the others.
BOUNDS = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
# 1 for the others.
WEIGHTS = {"dynamic_degree": 0.5}
QUALITY_SHARE = 4
SEMANTIC_SHARE = 1
RESULTS_SUFFIX = "_eval_results.json"


@dataclass(frozen=True)
class DimensionResult:
    """A dimension's score as the evaluator gives it, 0..1, and how many videos it was ``judged`` on."""

    score: float
    judged: int


@dataclass(frozen=True)
class VBenchTotals:
    """In percent, as papers print them; ``normalised`` by dimension, 0..1 between its bounds."""

    quality: float
    semantic: float
    total: float
    normalised: dict[str, float]


def read_results(paths: Iterable[Path]) -> dict[str, DimensionResult]:
    """Dimensions from result files ``NAME_eval_results.json``, each ``{dimension: [score, [one entry per video]]}``, of
    VBench-Long in most dimensions ``[score, [one entry per clip], [the same by video]]``.

    Raises ValueError for a file of another form, for a score outside 0..1, for a dimension that VBench does not have,
    and for one that two files hold.
    """
    found: dict[str, DimensionResult] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        for dimension, value in _read_file(path).items():
            if dimension in found:
                raise ValueError(f"{dimension} is in both {origin[dimension]} and {path}; which one counts?")
            found[dimension] = _dimension_result(path, dimension, value)
            origin[dimension] = path
    return found


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(contents, dict) or not contents:
        raise ValueError(f"{path} holds no dimension: it should be {{dimension: [score, [one entry per video]]}}")
    return contents


def _dimension_result(path: Path, dimension: str, value: Any) -> DimensionResult:
    if dimension not in DIMENSIONS:
        raise ValueError(f"{path}: {dimension!r} is no VBench dimension; they are {', '.join(DIMENSIONS)}")
    if not isinstance(value, list) or len(value) not in (2, 3) or not all(isinstance(part, list) for part in value[1:]):
        raise ValueError(f"{path}: {dimension} should be [score, [one entry per video]], not {str(value)[:60]}")
    score = value[0]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"{path}: the score of {dimension} should be a number from 0 to 1, not {score!r}")
    # VBench-Long has an entry per clip under the name of its video, and in temporal flickering one that only counts.
    videos = {Path(str(entry["video_path"])).name for entry in value[-1] if _names_a_video(entry)}
    others = [entry for entry in value[-1] if not _names_a_video(entry) and "long_video_cnt" not in entry]
    return DimensionResult(float(score), len(videos) + len(others))


def _names_a_video(entry: Any) -> bool:
    return isinstance(entry, dict) and "video_path" in entry


def normalise(dimension: str, score: float) -> float:
    """The score between the dimension's bounds; not clipped, as in the official totals."""
    smallest, largest = BOUNDS.get(dimension, (0.0, 1.0))
    return (score - smallest) / (largest - smallest)


def totals(results: Mapping[str, DimensionResult]) -> VBenchTotals:
    """Quality, Semantic and Total over all 16 dimensions; ValueError names those that are missing."""
    missing = [dimension for dimension in DIMENSIONS if dimension not in results]
    if missing:
        raise ValueError(f"no VBench total without all 16 dimensions; missing: {', '.join(missing)}")
    normalised = {dimension: normalise(dimension, results[dimension].score) for dimension in DIMENSIONS}
    quality, semantic = (_weighted_mean(normalised, dimensions) for dimensions in (QUALITY, SEMANTIC))
    total = (QUALITY_SHARE * quality + SEMANTIC_SHARE * semantic) / (QUALITY_SHARE + SEMANTIC_SHARE)
    return VBenchTotals(100 * quality, 100 * semantic, 100 * total, normalised)


def _weighted_mean(values: Mapping[str, float], dimensions: Iterable[str]) -> float:
    weights = {dimension: WEIGHTS.get(dimension, 1.0) for dimension in dimensions}
    return sum(weight * values[dimension] for dimension, weight in weights.items()) / sum(weights.values())


def markdown_table(results: Mapping[str, DimensionResult], overall: VBenchTotals | None) -> str:
    """The dimensions that there are, then the totals if there are any, all in percent."""
    lines = ["| dimension | score | normalised | videos judged |", "| --- | --- | --- | --- |"]
    for dimension in (name for name in DIMENSIONS if name in results):
        result = results[dimension]
        scores = f"{100 * result.score:.2f} | {100 * normalise(dimension, result.score):.2f}"
        lines.append(f"| {dimension.replace('_', ' ')} | {scores} | {result.judged} |")
    if overall is not None:
        for name in ("quality", "semantic", "total"):
            lines.append(f"| **{name.capitalize()}** | | **{getattr(overall, name):.2f}** | |")
    return "\n".join(lines) + "\n"
