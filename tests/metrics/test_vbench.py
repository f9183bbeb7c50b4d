"""VBench totals against figures worked out by hand, and result files that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from metrics.vbench import (
    DIMENSIONS,
    QUALITY,
    SEMANTIC,
    DimensionResult,
    markdown_table,
    normalise,
    read_results,
    totals,
)

# Half way between the bounds of each dimension, except three.
SCORES = {
    "subject_consistency": 0.5731,
    "background_consistency": 0.63075,
    "temporal_flickering": 0.81465,
    "motion_smoothness": 0.85175,
    "dynamic_degree": 1.0,
    "aesthetic_quality": 0.5,
    "imaging_quality": 0.7,
    "object_class": 0.5,
    "multiple_objects": 0.5,
    "human_action": 0.95,
    "color": 0.5,
    "spatial_relationship": 0.5,
    "scene": 0.4111,
    "appearance_style": 0.1432,
    "temporal_style": 0.182,
    "overall_consistency": 0.182,
}


def results_of(scores: dict[str, float]) -> dict[str, DimensionResult]:
    return {dimension: DimensionResult(score, judged=5) for dimension, score in scores.items()}


def write_results(path: Path, contents: Any) -> Path:
    path.write_text(json.dumps(contents), encoding="utf-8")
    return path


def per_video(count: int) -> list[dict[str, Any]]:
    return [{"video_path": f"a cat-{index}.mp4", "video_results": 0.5} for index in range(count)]


def test_sixteen_dimensions() -> None:
    assert (len(QUALITY), len(SEMANTIC), len(set(DIMENSIONS))) == (7, 9, 16) and set(SCORES) == set(DIMENSIONS)


def test_totals_by_hand() -> None:
    found = totals(results_of(SCORES))
    # Five dimensions at 0.5, imaging 0.7, and dynamic degree 1.0 with half the weight: (2.5 + 0.7 + 0.5) / 6.5
    assert found.quality == pytest.approx(56.923077, abs=1e-6)
    # Eight at 0.5 and one at 0.95, over 9
    assert found.semantic == pytest.approx(55.0, abs=1e-9)
    assert found.total == pytest.approx((4 * 56.923077 + 55.0) / 5, abs=1e-6)


@pytest.mark.parametrize(
    ("dimension", "score", "expected"),
    [
        ("subject_consistency", 0.1462, 0),
        ("background_consistency", 0.2615, 0),
        ("temporal_flickering", 0.6293, 0),
        ("motion_smoothness", 0.706, 0),
        ("motion_smoothness", 0.9975, 1),
        ("scene", 0.8222, 1),
        ("appearance_style", 0.0009, 0),
        ("appearance_style", 0.2855, 1),
        ("temporal_style", 0.364, 1),
        ("overall_consistency", 0.364, 1),
        ("overall_consistency", 0.4004, 1.1),  # not clipped
        ("imaging_quality", 0.25, 0.25),
    ],
)
def test_bounds(dimension: str, score: float, expected: float) -> None:
    assert normalise(dimension, score) == pytest.approx(expected, abs=1e-12)


def test_missing_dimensions_are_named() -> None:
    scores = {dimension: score for dimension, score in SCORES.items() if dimension not in ("color", "scene")}
    with pytest.raises(ValueError, match=r"all 16 dimensions; missing: color, scene$"):
        totals(results_of(scores))


def test_result_files(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a_eval_results.json", {"color": [0.8, per_video(3)], "scene": [0.25, []]})
    second = write_results(tmp_path / "b_eval_results.json", {"dynamic_degree": [1, per_video(5)]})
    assert read_results([first, second]) == {
        "color": DimensionResult(0.8, 3),
        "scene": DimensionResult(0.25, 0),
        "dynamic_degree": DimensionResult(1.0, 5),
    }
    with pytest.raises(ValueError, match=r"color is in both .*a_eval_results\.json and .*a_eval_results\.json"):
        read_results([first, first])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([], "holds no dimension"),
        ({}, "holds no dimension"),
        ({"colour": [0.5, []]}, "'colour' is no VBench dimension"),
        ({"color": 0.5}, "color should be"),
        ({"color": [0.5]}, "color should be"),
        ({"color": ["0.5", []]}, "score of color should be a number from 0 to 1, not '0.5'"),
        ({"imaging_quality": [68.2, []]}, r"from 0 to 1, not 68\.2"),
        ({"color": [float("nan"), []]}, "from 0 to 1, not nan"),
    ],
)
def test_files_of_another_form(tmp_path: Path, contents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_results([write_results(tmp_path / "x_eval_results.json", contents)])


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x_eval_results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a JSON file"):
        read_results([tmp_path / "x_eval_results.json"])


def test_the_table() -> None:
    results = results_of(SCORES)
    lines = markdown_table(results, totals(results)).splitlines()
    assert len(lines) == 2 + 16 + 3
    assert "| motion smoothness | 85.17 | 50.00 | 5 |" in lines
    assert "| **Quality** | | **56.92** | |" in lines
    partial = markdown_table({"color": DimensionResult(0.5, 4)}, None).splitlines()
    assert partial[2:] == ["| color | 50.00 | 50.00 | 4 |"]
