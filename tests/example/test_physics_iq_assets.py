"""The bundled benchmark: the official layout, what its files show, and what both scores say of known videos."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from example.nano.make_assets import ASSETS, write_clip
from example.nano.make_physics_iq import SCENARIOS, TESTING_FRAMES, filmed, rows
from example.nano.scenes.data import FPS, words
from example.nano.scenes.drawing import render
from metrics.physics_iq.files import Benchmark, read_frames, score_view
from metrics.physics_iq.scores import ViewResult, original_score, verified_score
from metrics.physics_iq.table import find_descriptions, read_descriptions

pytestmark = pytest.mark.slow

FOLDER = ASSETS / "physics_iq"
BENCHMARK = Benchmark(FOLDER, FPS)
VIEWS = read_descriptions(find_descriptions(FOLDER))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 700_000


def test_the_table_is_the_scenarios() -> None:
    lines = (FOLDER / "descriptions" / "descriptions.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["scenario,description,category,generated_video_name", *map(",".join, rows())]
    assert [view.scenario for view in VIEWS] == [scenario.name for scenario in SCENARIOS]
    assert [view.number for view in VIEWS] == [f"{number:04}" for number in range(1, len(SCENARIOS) + 1)]
    spoken = {word for view in VIEWS for word in view.description.split()}
    assert spoken <= set(words()), "the bundled model knows these words"


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_the_files_show_what_is_drawn(number: int) -> None:
    view, scenario = VIEWS[number], SCENARIOS[number]
    for take in (1, 2):
        drawn = filmed(scenario.scene, take).astype(int)
        after = BENCHMARK.testing(view, take)
        before = Path(str(after).replace("testing", "conditioning"))
        for path, expected in ((before, drawn[: 3 * FPS]), (after, drawn[3 * FPS :])):
            found = np.stack(list(read_frames(path))).astype(int)
            assert found.shape == expected.shape and np.abs(found - expected).mean() < 4, path.name
    switch = FOLDER / "switch-frames" / f"{view.number}_switch-frames_anyFPS_{view.view}_{view.scenario}.jpg"
    picture = np.asarray(Image.open(switch), int)
    assert np.abs(picture - filmed(scenario.scene, 1)[3 * FPS - 1]).mean() < 4


def score(folder: Path, video: Callable[[int, Path], None]) -> list[ViewResult]:
    """Scores of the videos that ``video`` writes for the scenarios: first four of eight, one of each two alike."""
    results = []
    for number in range(0, len(SCENARIOS), 2):
        path = folder / VIEWS[number].generated_name
        video(number, path)
        results.append(score_view(BENCHMARK, VIEWS[number], path))
    return results


def test_the_second_take_is_as_good_as_reality(tmp_path: Path) -> None:
    results = score(tmp_path, lambda number, path: shutil.copy(BENCHMARK.testing(VIEWS[number], 2), path))
    assert original_score(results) == pytest.approx(100, abs=0.05)
    assert verified_score(results).score == pytest.approx(1, abs=1e-3)
    for result in results:
        assert 0.3 < result.variance.mean("spatiotemporal_iou") < 0.95, "the takes differ, but not in everything"
        assert 1e-4 < result.variance.mean("mse") < 0.01


def test_a_still_video_is_near_zero(tmp_path: Path) -> None:
    def still(number: int, path: Path) -> None:
        write_clip(path, filmed(SCENARIOS[number].scene, 1)[3 * FPS - 1][None].repeat(TESTING_FRAMES, axis=0))

    results = score(tmp_path, still)
    assert original_score(results) < 5 and verified_score(results).score < 0.1


def test_the_right_motion_at_the_wrong_time_is_between(tmp_path: Path) -> None:
    def late(number: int, path: Path) -> None:
        write_clip(path, render(SCENARIOS[number].scene, TESTING_FRAMES, first_frame=3 * FPS + 8))

    results = score(tmp_path, late)
    assert 0.3 < verified_score(results).score < 0.8 and 50 < original_score(results) < 95
