"""scripts/score/vbench.py on a tiny run with a stand-in for the official evaluator."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from metrics.vbench import DIMENSIONS, read_results, totals
from sampling.config import read_run
from sampling.job import Job, make_job
from sampling.vbench import PROMPT_FILES
from tests.fake_vbench import calls, install
from tests.loading import load_script
from tests.tiny_runs import make_samples, write_prompts, write_run

pytestmark = pytest.mark.slow

PROMPTS = ["a cat", "the mat"]
SCORES = {dimension: 0.3 + 0.02 * number for number, dimension in enumerate(DIMENSIONS)} | {"appearance_style": 0.2}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("score/vbench")


@pytest.fixture(scope="module")
def config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run of all dimensions, two prompts each, by the smallest possible model."""
    root = tmp_path_factory.mktemp("vbench")
    write_prompts(root, PROMPT_FILES, PROMPTS)
    path = write_run(root, checkpoint, num_frames=4, num_steps=4, samples_per_prompt=1, flickering_samples=6)
    make_samples(job_of(path))
    return path


def job_of(config: Path) -> Job:
    return make_job(read_run(config))


@pytest.fixture
def evaluator(tmp_path: Path) -> Path:
    static = [f"a cat-{index}.mp4" for index in (1, 2, 5)]
    return install(tmp_path / "bin", prompts=PROMPTS, scores=SCORES, static=static)


def run(script: ModuleType, config: Path, evaluator: Path, scores: Path, *flags: str) -> int:
    return script.main([str(config), "--evaluator", str(evaluator), "--scores_folder", str(scores), *flags])


def test_all_dimensions(script: ModuleType, config: Path, evaluator: Path, tmp_path: Path, capsys) -> None:
    scores = tmp_path / "scores"
    assert run(script, config, evaluator, scores) == 0
    found = json.loads((scores / "vbench.json").read_text(encoding="utf-8"))
    expected = totals(read_results(sorted(scores.glob("*/*_eval_results.json"))))
    assert (found["total"], found["quality"], found["semantic"]) == pytest.approx(
        (expected.total, expected.quality, expected.semantic)
    )
    assert found["missing"] == [] and found["samples_per_prompt"] == 1
    scene, flickering = found["dimensions"]["scene"], found["dimensions"]["temporal_flickering"]
    assert (scene["score"], scene["judged"], scene["given"]) == (SCORES["scene"], 2, 2)
    assert (flickering["given"], flickering["static_filter"]) == (3, True)
    printed = capsys.readouterr().out
    assert printed == (scores / "vbench.md").read_text(encoding="utf-8")
    assert f"| **Total** | | **{expected.total:.2f}** | |" in printed
    assert printed.endswith(f"\nJudged by VBench. Protocol: {found['protocol']}.\n")
    assert found["protocol"].startswith(
        "index 0 of each prompt; 11 of 11 prompt files; temporal flickering picked as static from 6 per prompt (VBench "
    )
    # Dimensions with shared prompts are judged on the shared videos.
    names = {call["--dimension"]: call["names"] for call in calls(evaluator) if call["command"] == "evaluate"}
    assert set(names) == set(DIMENSIONS)
    # The static filter has no weights before dynamic degree fetched them.
    order = [(call["command"], call.get("--dimension")) for call in calls(evaluator)]
    assert order.index(("static_filter", None)) == order.index(("evaluate", "dynamic_degree")) + 1
    assert sorted(names["aesthetic_quality"]) == ["a cat-0.mp4", "the mat-0.mp4"]

    assert run(script, config, evaluator, scores) == 0
    assert len(calls(evaluator)) == 17, "judged once: the videos are what they were"
    assert run(script, config, evaluator, scores, "--again", "--no_static_filter") == 0
    assert len(calls(evaluator)) == 17 + 16


@pytest.mark.parametrize("place", ["vbench.json", "vbench.md", "color/evaluation.json"])
def test_files_that_are_no_scores_are_not_replaced(
    script: ModuleType, config: Path, evaluator: Path, tmp_path: Path, caplog, place: str
) -> None:
    file = tmp_path / "scores" / place
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    assert run(script, config, evaluator, tmp_path / "scores") == 1
    assert f"{place} would be replaced, but this program has not left it" in caplog.text
    assert not calls(evaluator) and file.read_text() == "{}"


def test_a_dimension_that_fails(script: ModuleType, config: Path, tmp_path: Path, caplog) -> None:
    broken = install(tmp_path / "bin", prompts=PROMPTS, scores=SCORES, static=["a cat-0.mp4"], broken=["scene"])
    assert run(script, config, broken, tmp_path / "scores") == 1
    assert "gave no result for scene" in caplog.text and "out of memory" in caplog.text
    assert not (tmp_path / "scores" / "vbench.json").exists()


def test_prompts_that_the_evaluator_does_not_know(script: ModuleType, config: Path, tmp_path: Path, caplog) -> None:
    knows_one = install(tmp_path / "bin", prompts=PROMPTS[:1], scores=SCORES, static=["a cat-0.mp4"])
    assert run(script, config, knows_one, tmp_path / "scores") == 1
    assert "only 1 of 2 videos were judged" in caplog.text


def test_some_dimensions_have_no_total(
    script: ModuleType, config: Path, evaluator: Path, tmp_path: Path, caplog
) -> None:
    """Nor is the evaluator shown videos that are no samples."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) | {"dimensions": ["color", "scene"]}
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(yaml.safe_dump(settings), encoding="utf-8")
    stray = job_of(config).output / "color" / "a dog-0.mp4"
    stray.write_bytes(b"a video")
    try:
        assert run(script, fewer, evaluator, tmp_path / "scores") == 0
    finally:
        stray.unlink()
    assert f"{stray} is no sample of this run" in caplog.text
    assert all("a dog-0.mp4" not in call["names"] for call in calls(evaluator))
    found = json.loads((tmp_path / "scores" / "vbench.json").read_text(encoding="utf-8"))
    assert found["total"] is None and len(found["missing"]) == 14
    assert "no totals without all 16 dimensions; missing: subject_consistency, " in caplog.text


def test_a_video_that_is_missing(script: ModuleType, config: Path, evaluator: Path, tmp_path: Path, caplog) -> None:
    video = job_of(config).output / job_of(config).tasks[3].path
    contents = video.read_bytes()
    video.unlink()
    try:
        assert run(script, config, evaluator, tmp_path / "scores") == 1
    finally:
        video.write_bytes(contents)
    assert f"{video.parent.name}/{video.name}: there is no such file" in caplog.text
    assert not calls(evaluator)


def test_no_evaluator(script: ModuleType, config: Path, tmp_path: Path, caplog) -> None:
    assert run(script, config, tmp_path / "vbench", tmp_path / "scores") == 1
    assert "--setup" in caplog.text and "--evaluator" in caplog.text


def test_the_suite_goes_by_the_length(
    script: ModuleType, config: Path, evaluator: Path, tmp_path: Path, capsys, caplog, monkeypatch
) -> None:
    scores = tmp_path / "scores"
    monkeypatch.setattr(script, "LONG_SECONDS", 4 / 24)
    caplog.set_level("INFO")
    assert run(script, config, evaluator, scores) == 0
    assert "Judged by VBench-Long" in capsys.readouterr().out and "--suite vbench for the other" in caplog.text
    found = json.loads((scores / "vbench_long.json").read_text(encoding="utf-8"))
    assert found["suite"] == "vbench_long" and found["total"] is not None
    assert found["dimensions"]["scene"]["file"] == "vbench_long/scene/results_long_eval_results.json"
    assert {call["command"] for call in calls(evaluator)} == {"long_run.py"}
    # The other suite beside it, by flag.
    assert run(script, config, evaluator, scores, "--suite", "vbench") == 0
    assert json.loads((scores / "vbench.json").read_text(encoding="utf-8"))["suite"] == "vbench"
    assert (scores / "vbench_long.json").is_file()


def test_a_configuration_or_the_setup(script: ModuleType, capsys) -> None:
    for flags in ([], ["some.yaml", "--setup"]):
        with pytest.raises(SystemExit):
            script.main(flags)
        assert "give a CONFIG, or --setup without one" in capsys.readouterr().err
